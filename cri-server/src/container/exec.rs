//! ExecSync: a command in a running container, with the container's own settings.

use std::time::Duration;

use oci_spec::runtime::{Process, Spec};

use super::{Container, ContainerError, Containers};
use crate::runtime::ExecOutput;

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
        let not_running = || ContainerError::NotRunning { state: container.state().name() };
        if !container.is_running() {
            return Err(not_running());
        }
        let shim = container.shim.load_full().ok_or_else(not_running)?;
        let bundle = self.ports.places.container(container.id());
        let path = bundle.join("config.json");
        let spec = tokio::task::spawn_blocking(move || Spec::load(path)).await?;
        let mut process: Process =
            spec.map_err(ContainerError::SpecFile)?.process().clone().unwrap_or_default();
        process.set_args(Some(command));
        process.set_terminal(Some(false));
        Ok(self.ports.exec.exec_sync(&shim, &bundle, process, limit).await?)
    }
}
