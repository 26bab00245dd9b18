//! `cofferdam stop`

use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::lookup::{self, Object};
use super::output;

const GRACE: i64 = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Stop {
    /// Seconds until a container that did not end is killed
    #[arg(short, long, default_value_t = GRACE, value_parser = clap::value_parser!(i64).range(0..))]
    timeout: i64,
    /// Containers and pods, by name, id or beginning of an id
    #[arg(required = true, value_name = "CONTAINER|POD")]
    targets: Vec<String>,
}

impl Stop {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut failures = Vec::new();
        for wanted in &self.targets {
            match stop(client, wanted, self.timeout).await {
                Ok(()) => output::line(wanted)?,
                Err(error) => failures.push(error),
            }
        }
        super::error::all(failures, self.targets.len())
    }
}

async fn stop(client: &mut Client, wanted: &str, timeout: i64) -> Result<(), CliError> {
    match lookup::pod_or_container(client, wanted).await? {
        Object::Container(container) => stop_container(client, container.id, timeout).await,
        Object::Pod(pod) => {
            // The CRI stops a pod without grace; its containers get theirs first.
            let mut containers = client.containers().await?;
            containers
                .retain(|c| c.pod_sandbox_id == pod.id && c.state() == cri::ContainerState::ContainerRunning);
            for container in containers {
                stop_container(client, container.id, timeout).await?;
            }
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id };
            client.runtime.stop_pod_sandbox(request).await?;
            Ok(())
        }
        // pod_or_container finds none.
        Object::Image(_) => Ok(()),
    }
}

async fn stop_container(client: &mut Client, container_id: String, timeout: i64) -> Result<(), CliError> {
    client.runtime.stop_container(cri::StopContainerRequest { container_id, timeout }).await?;
    Ok(())
}
