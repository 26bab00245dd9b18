//! `cofferdam pods`

use cofferdam_proto::cri;
use serde_json::json;

use super::client::Client;
use super::error::CliError;
use super::output::{self, Format, FormatOption};
use super::table::Table;
use super::text::{age, short_id};
use super::time::now;

#[derive(Debug, clap::Args)]
pub(super) struct Pods {
    #[command(flatten)]
    output: FormatOption,
    /// Ids only, in full
    #[arg(short, long)]
    quiet: bool,
}

/// A pod's state in a word.
pub(super) fn state(pod: &cri::PodSandbox) -> &'static str {
    match pod.state() {
        cri::PodSandboxState::SandboxReady => "ready",
        cri::PodSandboxState::SandboxNotready => "not ready",
    }
}

impl Pods {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut pods = client.pods().await?;
        pods.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
        if self.quiet {
            return output::print(&pods.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>());
        }
        let mut rows = Vec::new();
        for pod in pods {
            let ips = ips(client, &pod.id).await?;
            rows.push((pod, ips));
        }
        match self.output.format {
            Format::Table => output::print(&table(&rows).to_string()),
            Format::Json => output::json(&rows.iter().map(row_json).collect::<Vec<_>>()),
        }
    }
}

/// A pod's addresses; none when it has gone since.
async fn ips(client: &mut Client, id: &str) -> Result<Vec<String>, CliError> {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
    let status = match client.runtime.pod_sandbox_status(request).await {
        Ok(answer) => answer.into_inner().status.unwrap_or_default(),
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(Vec::new()),
        Err(status) => return Err(status.into()),
    };
    let network = status.network.unwrap_or_default();
    let all = std::iter::once(network.ip).chain(network.additional_ips.into_iter().map(|ip| ip.ip));
    Ok(all.filter(|ip| !ip.is_empty()).collect())
}

fn table(rows: &[(cri::PodSandbox, Vec<String>)]) -> Table {
    let mut table = Table::new(&["POD ID", "NAMESPACE", "NAME", "STATE", "CREATED", "IP", "RUNTIME"]);
    let now = now();
    for (pod, ips) in rows {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let runtime = if pod.runtime_handler.is_empty() { "(default)" } else { &pod.runtime_handler };
        table.row([
            short_id(&pod.id),
            metadata.namespace,
            metadata.name,
            state(pod).to_owned(),
            age(pod.created_at, now),
            ips.join(","),
            runtime.to_owned(),
        ]);
    }
    table
}

fn row_json((pod, ips): &(cri::PodSandbox, Vec<String>)) -> serde_json::Value {
    json!({
        "id": pod.id,
        "metadata": pod.metadata,
        "state": state(pod),
        "createdAt": pod.created_at,
        "ips": ips,
        "runtimeHandler": pod.runtime_handler,
        "labels": pod.labels,
        "annotations": pod.annotations,
    })
}
