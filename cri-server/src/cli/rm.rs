//! `cofferdam rm`: what runs is removed only with -f.

use std::path::Path;

use cofferdam_proto::cri;

use super::client::Client;
use super::error::CliError;
use super::lookup::{self, Object};
use super::output;
use super::run::{LOG_FOLDER, log_folders, remove_folder, remove_pod};

#[derive(Debug, clap::Args)]
pub(super) struct Rm {
    /// Removes what runs, too
    #[arg(short, long)]
    force: bool,
    /// Containers and pods, by name, id or beginning of an id
    #[arg(required = true, value_name = "CONTAINER|POD")]
    targets: Vec<String>,
}

impl Rm {
    pub(super) async fn run(self, client: &mut Client) -> Result<(), CliError> {
        let mut failures = Vec::new();
        for wanted in &self.targets {
            match self.remove(client, wanted).await {
                Ok(()) => output::line(wanted)?,
                Err(error) => failures.push(error),
            }
        }
        super::error::all(failures, self.targets.len())
    }

    async fn remove(&self, client: &mut Client, wanted: &str) -> Result<(), CliError> {
        match lookup::pod_or_container(client, wanted).await? {
            Object::Container(container) => {
                self.refuse_running(wanted, container.state() == cri::ContainerState::ContainerRunning)?;
                let request = cri::RemoveContainerRequest { container_id: container.id };
                client.runtime.remove_container(request).await?;
                Ok(())
            }
            Object::Pod(pod) => {
                self.refuse_running(wanted, pod.state() == cri::PodSandboxState::SandboxReady)?;
                remove_pod(client, &pod.id).await?;
                remove_log_folder(client, &pod).await
            }
            // pod_or_container finds none.
            Object::Image(_) => Ok(()),
        }
    }

    fn refuse_running(&self, wanted: &str, running: bool) -> Result<(), CliError> {
        if running && !self.force {
            let text = format!("{wanted} is running; `cofferdam stop {wanted}` first, or use -f");
            return Err(CliError::Refused(text));
        }
        Ok(())
    }
}

/// Removes the log of a pod that `run` made; a kubelet's logs are the kubelet's.
async fn remove_log_folder(client: &mut Client, pod: &cri::PodSandbox) -> Result<(), CliError> {
    let Some(folder) = pod.annotations.get(LOG_FOLDER).map(Path::new) else { return Ok(()) };
    let info = client.daemon_info().await?;
    let Some(root) = info["config"]["root"].as_str() else { return Ok(()) };
    // An annotation is anybody's word: only what `run` would have made is removed.
    let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    let made_by_run = !uid.is_empty() && !uid.contains(['/', '.']);
    if made_by_run && folder == log_folders(Path::new(root)).join(uid) {
        remove_folder(folder)?;
    }
    Ok(())
}
