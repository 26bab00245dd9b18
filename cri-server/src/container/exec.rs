//! Further processes in a running container, with the container's own settings: ExecSync, and what exec and attach
//! sessions work with.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use oci_spec::runtime::{Process, Spec};

use super::{Container, ContainerError, Containers};
use crate::runtime::{ExecOutput, RuntimeError, Shim, ShimKind};

/// What a further process needs.
pub struct ExecTarget {
    pub shim: Arc<Shim>,
    /// Takes the FIFOs.
    pub bundle: PathBuf,
    pub process: Process,
}

/// What a client that attaches needs.
pub struct AttachTarget {
    pub shim: Arc<Shim>,
    /// Takes the FIFOs.
    pub bundle: PathBuf,
    /// The FIFO that is the container's stdin, where it has one.
    pub stdin: Option<PathBuf>,
}

impl Containers {
    /// Runs `command` and collects its output. `limit` is its time; none means as long as it takes.
    ///
    /// # Errors
    /// When the container does not run, the command cannot be executed, or its time is over; then it and all it
    /// started is killed.
    pub async fn exec_sync(
        &self,
        container: &Container,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecOutput, ContainerError> {
        let target = self.exec_target(container, command, false).await?;
        Ok(self.ports.exec.exec_sync(&target.shim, &target.bundle, target.process, limit).await?)
    }

    /// The container's own process with another command.
    ///
    /// # Errors
    /// When the container does not run.
    pub async fn exec_target(
        &self,
        container: &Container,
        command: Vec<String>,
        terminal: bool,
    ) -> Result<ExecTarget, ContainerError> {
        let (shim, bundle) = self.running(container)?;
        let path = bundle.join("config.json");
        let spec = tokio::task::spawn_blocking(move || Spec::load(path)).await?;
        let mut process: Process =
            spec.map_err(ContainerError::SpecFile)?.process().clone().unwrap_or_default();
        process.set_args(Some(command));
        process.set_terminal(Some(terminal));
        if terminal {
            let mut env = process.env().clone().unwrap_or_default();
            if !env.iter().any(|variable| variable.starts_with("TERM=")) {
                env.push("TERM=xterm".to_owned());
            }
            process.set_env(Some(env));
        }
        Ok(ExecTarget { shim, bundle, process })
    }

    /// The container's own streams.
    ///
    /// # Errors
    /// When the container does not run, or its shim is a foreign one.
    pub fn attach_target(&self, container: &Container) -> Result<AttachTarget, ContainerError> {
        let (shim, bundle) = self.running(container)?;
        if shim.endpoint().kind != ShimKind::Own {
            let message =
                format!("runtime handler {} runs a shim of another kind", self.handler(container)?.name);
            return Err(RuntimeError::Unimplemented { call: "Attach", message }.into());
        }
        let stdin = container.config().stdin.then(|| bundle.join("io").join("stdin"));
        Ok(AttachTarget { shim, bundle, stdin })
    }

    fn running(&self, container: &Container) -> Result<(Arc<Shim>, PathBuf), ContainerError> {
        let not_running = || ContainerError::NotRunning { state: container.state().name() };
        if !container.is_running() {
            return Err(not_running());
        }
        let shim = container.shim.load_full().ok_or_else(not_running)?;
        Ok((shim, self.ports.places.container(container.id())))
    }
}
