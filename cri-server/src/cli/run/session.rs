//! The life of one `run`: makes the pod, shows its output, and takes away what it made.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use cofferdam_proto::cri;
use tokio::task::JoinSet;

use super::request::{LOG, Request};
use crate::cli::client::Client;
use crate::cli::error::{CliError, not_runnable};
use crate::cli::follow::Follower;
use crate::cli::logs::{Printer, follow};
use crate::cli::output;
use crate::cli::signals::Signals;
use crate::report::chain;

/// Seconds that a command has to end after the first signal; the second one ends it at once.
const GRACE: i64 = 3;

/// What has been made so far.
pub(super) struct Session<'a> {
    client: &'a mut Client,
    request: Request,
    log_folder: Option<PathBuf>,
}

/// How the command ended.
enum End {
    Exited(u8),
    Detached,
}

impl<'a> Session<'a> {
    pub(super) fn new(client: &'a mut Client, request: Request) -> Self {
        Self { client, request, log_folder: None }
    }

    /// Runs the command to its end, or to its start with `detach`.
    pub(super) async fn run(
        &mut self,
        detach: bool,
        remove: bool,
        signals: &mut Signals,
    ) -> Result<ExitCode, CliError> {
        let end = self.command(detach, signals).await;
        let keep = match &end {
            Ok(End::Detached) => true,
            Ok(End::Exited(_)) => !remove,
            Err(_) => false,
        };
        if !keep && let Err(error) = self.clean_up().await {
            let name = &self.request.name;
            eprintln!("cofferdam: pod {name} is left behind: {}; `cofferdam rm -f {name}`", chain(&error));
        }
        Ok(match end? {
            End::Exited(code) => ExitCode::from(code),
            End::Detached => ExitCode::SUCCESS,
        })
    }

    async fn command(&mut self, detach: bool, signals: &mut Signals) -> Result<End, CliError> {
        let folder = self.make_log_folder().await?;
        let pod_config = self.request.pod(&folder.display().to_string());
        let request = cri::RunPodSandboxRequest {
            config: Some(pod_config.clone()),
            runtime_handler: self.request.handler.clone(),
        };
        let pod = self.client.runtime.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        if let Some(code) = signals.received().await {
            return Ok(End::Exited(code));
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.clone(),
            config: Some(self.request.container()),
            sandbox_config: Some(pod_config),
        };
        let container = self.client.runtime.create_container(request).await?.into_inner().container_id;
        if let Some(code) = signals.received().await {
            return Ok(End::Exited(code));
        }
        let request = cri::StartContainerRequest { container_id: container.clone() };
        if let Err(status) = self.client.runtime.start_container(request).await {
            return start_failed(status);
        }
        if detach {
            output::print(&format!("{pod}\n{container}\n"))?;
            return Ok(End::Detached);
        }
        self.watch(&container, &folder.join(LOG), signals).await
    }

    async fn make_log_folder(&mut self) -> Result<PathBuf, CliError> {
        let info = self.client.daemon_info().await?;
        let root = info["config"]["root"].as_str().map(PathBuf::from);
        let root =
            root.ok_or_else(|| CliError::Refused("the daemon does not tell its root folder".to_owned()))?;
        let folder = log_folders(&root).join(&self.request.uid);
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
        made.map_err(|source| CliError::File { operation: "make", path: folder.clone(), source })?;
        self.log_folder = Some(folder.clone());
        Ok(folder)
    }

    /// Shows the output until the container has ended; a signal asks it to end, the second one makes it.
    async fn watch(&mut self, id: &str, log: &Path, signals: &mut Signals) -> Result<End, CliError> {
        let mut log = Follower::new(log);
        let mut printer = Printer::new(false);
        let mut following = self.client.clone();
        let mut each = |record| printer.record(&record);
        let mut shown = std::pin::pin!(follow(&mut following, id, &mut log, &mut each));
        let mut stops = JoinSet::new();
        let mut grace = GRACE;
        loop {
            tokio::select! {
                done = &mut shown => break done?,
                _ = signals.next() => {
                    let mut client = self.client.clone();
                    let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
                    stops.spawn(async move { client.runtime.stop_container(request).await });
                    grace = 0;
                }
            }
        }
        // They have done their work, or the clean-up does it.
        stops.abort_all();
        if let Some(code) = signals.received().await {
            return Ok(End::Exited(code));
        }
        let status = self.client.container_status(id).await?;
        if status.reason == "OOMKilled" {
            eprintln!("cofferdam: the command was killed for want of memory");
        }
        Ok(End::Exited(u8::try_from(status.exit_code).unwrap_or(u8::MAX)))
    }

    /// Removes the pod, whatever became of the call that made it, and the folder of its log.
    async fn clean_up(&mut self) -> Result<(), CliError> {
        let ours = |pod: &cri::PodSandbox| pod.metadata.as_ref().is_some_and(|m| m.uid == self.request.uid);
        let pods: Vec<String> =
            self.client.pods().await?.into_iter().filter(ours).map(|pod| pod.id).collect();
        for pod in pods {
            remove_pod(self.client, &pod).await?;
        }
        match &self.log_folder {
            Some(folder) => remove_folder(folder),
            None => Ok(()),
        }
    }
}

/// A command that cannot be run is the user's, everything else ours.
fn start_failed(status: tonic::Status) -> Result<End, CliError> {
    let code = not_runnable(status.message());
    let error = CliError::from(status);
    match code {
        Some(code) => {
            eprintln!("cofferdam: {error}");
            Ok(End::Exited(code))
        }
        None => Err(error),
    }
}

/// Where the logs of pods made by `run` lie.
pub(in crate::cli) fn log_folders(root: &Path) -> PathBuf {
    root.join("run-logs")
}

/// Stops and removes a pod with all its containers.
pub(in crate::cli) async fn remove_pod(client: &mut Client, id: &str) -> Result<(), CliError> {
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.stop_pod_sandbox(stop).await?;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
    client.runtime.remove_pod_sandbox(remove).await?;
    Ok(())
}

/// Removes a folder of logs; an absent one is removed.
pub(in crate::cli) fn remove_folder(folder: &Path) -> Result<(), CliError> {
    match std::fs::remove_dir_all(folder) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(CliError::File { operation: "remove", path: folder.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
