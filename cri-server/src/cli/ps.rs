//! `cofferdam ps`

use cofferdam_proto::cri;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::table::Table;
use super::text::{age, short_id};
use super::time::now;

#[derive(Debug, clap::Args)]
pub(super) struct Ps {
    /// Those that do not run, too
    #[arg(short, long)]
    all: bool,
    #[command(flatten)]
    output: FormatOption,
    /// Ids only, in full
    #[arg(short, long)]
    quiet: bool,
}

/// A container's state in a word.
pub(super) fn state(state: cri::ContainerState) -> &'static str {
    match state {
        cri::ContainerState::ContainerCreated => "created",
        cri::ContainerState::ContainerRunning => "running",
        cri::ContainerState::ContainerExited => "exited",
        cri::ContainerState::ContainerUnknown => "unknown",
    }
}

impl Ps {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let pods = client.pods().await?;
        let mut containers = client.containers().await?;
        containers.retain(|c| self.all || c.state() == cri::ContainerState::ContainerRunning);
        containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        if self.quiet {
            return output::print(&containers.iter().map(|c| format!("{}\n", c.id)).collect::<String>());
        }
        let pod_name = |container: &cri::Container| {
            let pod = pods.iter().find(|pod| pod.id == container.pod_sandbox_id);
            pod.and_then(|pod| pod.metadata.clone()).unwrap_or_default().name
        };
        let mut rows = Vec::new();
        for container in containers {
            let name = pod_name(&container);
            let exit = exit_code(client, &container).await?;
            rows.push(Row { pod: name, container, exit });
        }
        match self.output.format {
            Format::Table => output::print(&table(&rows).to_string()),
            Format::Json => output::json(&rows.iter().map(Row::json).collect::<Vec<_>>()),
        }
    }
}

/// How it ended; the list does not tell.
async fn exit_code(
    client: &mut Client,
    container: &cri::Container,
) -> Result<Option<(i32, String)>, CliError> {
    if container.state() != cri::ContainerState::ContainerExited {
        return Ok(None);
    }
    match client.container_status(&container.id).await {
        Ok(status) => Ok(Some((status.exit_code, status.reason))),
        // It has gone since.
        Err(CliError::Call(status)) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

struct Row {
    pod: String,
    container: cri::Container,
    exit: Option<(i32, String)>,
}

impl Row {
    fn json(&self) -> serde_json::Value {
        let container = &self.container;
        json!({
            "id": container.id,
            "podId": container.pod_sandbox_id,
            "podName": self.pod,
            "metadata": container.metadata,
            "state": state(container.state()),
            "exitCode": self.exit.as_ref().map(|(code, _)| code),
            "reason": self.exit.as_ref().map(|(_, reason)| reason),
            "image": image_name(container),
            "imageRef": container.image_ref,
            "imageId": container.image_id,
            "createdAt": container.created_at,
            "labels": container.labels,
            "annotations": container.annotations,
        })
    }
}

/// The image as the pod's author wrote it, or the one in use.
fn image_name(container: &cri::Container) -> String {
    let image = container.image.clone().unwrap_or_default();
    if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image }
}

fn table(rows: &[Row]) -> Table {
    let head = ["CONTAINER ID", "NAME", "POD", "POD ID", "IMAGE", "STATE", "CREATED", "ATTEMPT"];
    let mut table = Table::new(&head);
    let now = now();
    for Row { pod, container, exit } in rows {
        let metadata = container.metadata.clone().unwrap_or_default();
        let word = state(container.state());
        let image = image_name(container);
        table.row([
            short_id(&container.id),
            metadata.name,
            pod.clone(),
            short_id(&container.pod_sandbox_id),
            if image.starts_with("sha256:") { short_id(&image) } else { image },
            exit.as_ref().map_or(word.to_owned(), |(code, _)| format!("{word} ({code})")),
            age(container.created_at, now),
            metadata.attempt.to_string(),
        ]);
    }
    table
}
