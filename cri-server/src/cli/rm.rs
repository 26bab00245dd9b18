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
                let containers = client.containers().await?;
                self.refuse_running(wanted, in_use(&pod, &containers))?;
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

/// Whether something runs in the pod, or may be about to: nobody has put a container into it yet.
fn in_use(pod: &cri::PodSandbox, containers: &[cri::Container]) -> bool {
    let mut own = containers.iter().filter(|container| container.pod_sandbox_id == pod.id).peekable();
    let empty = own.peek().is_none();
    pod.state() == cri::PodSandboxState::SandboxReady
        && (empty || own.any(|container| container.state() == cri::ContainerState::ContainerRunning))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_in_use_while_a_container_runs_or_none_was_made() {
        let pod = cri::PodSandbox { id: "p".to_owned(), ..Default::default() };
        let container = |state: cri::ContainerState, pod: &str| cri::Container {
            pod_sandbox_id: pod.to_owned(),
            state: state.into(),
            ..Default::default()
        };
        let exited = container(cri::ContainerState::ContainerExited, "p");
        let running = container(cri::ContainerState::ContainerRunning, "p");
        let elsewhere = container(cri::ContainerState::ContainerRunning, "q");
        assert!(in_use(&pod, std::slice::from_ref(&elsewhere)));
        assert!(!in_use(&pod, &[exited.clone(), elsewhere]));
        assert!(in_use(&pod, &[exited, running.clone()]));
        let stopped = cri::PodSandbox { state: cri::PodSandboxState::SandboxNotready.into(), ..pod };
        assert!(!in_use(&stopped, &[running]));
    }
}
