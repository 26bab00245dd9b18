//! ReopenContainerLog: after the kubelet renamed the log away, output goes to a new file of the old name.

use super::{Container, ContainerError, Containers};
use crate::io::LogWriter;
use crate::runtime::ShimKind;
use cofferdam_failpoints::failpoint;

impl Containers {
    /// Has the writer of the container's log open it anew; returns when the new file is there.
    ///
    /// # Errors
    /// When the container does not run, or the writer does not do so.
    pub async fn reopen_log(&self, container: &Container) -> Result<(), ContainerError> {
        if !container.is_running() {
            return Err(ContainerError::NotRunning { state: container.state().name() });
        }
        if container.made.log_path.is_none() {
            return Ok(());
        }
        if self.handler(container)?.kind == ShimKind::Own {
            let shim = container.shim.load_full();
            let shim = shim.ok_or_else(|| ContainerError::NotRunning { state: container.state().name() })?;
            shim.reopen_log().await?;
            failpoint!("container.log.reopened");
            return Ok(());
        }
        match LogWriter::recorded(&self.ports.places.container(container.id())) {
            Some(writer) => Ok(writer.reopen().await?),
            None => Ok(()),
        }
    }
}
