//! ReopenContainerLog: after the kubelet renamed the log away, output goes to a new file of the old name.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Container, ContainerError, Containers, Shared};
use crate::io::LogWriter;
use crate::operation::Stage;
use crate::runtime::ShimKind;
use cofferdam_failpoints::failpoint;

impl Containers {
    /// Has the writer of the container's log open it anew; returns when the new file is there.
    ///
    /// A retry does not join: the log may have been renamed again after the first request reached the writer, and only a
    /// file that is opened after that is the right one. A caller that goes away changes nothing.
    ///
    /// # Errors
    /// When the container does not run, or the writer does not do so.
    pub async fn reopen_log(self: &Arc<Self>, container: &Arc<Container>) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let number = self.reopened.fetch_add(1, Ordering::Relaxed);
        let begin = |stage: Stage| async move {
            stage.within("asking the writer", containers.ports.launcher.deadlines().light);
            containers.reopen(&target).await.map_err(Arc::new)
        };
        let joined = self.reopens.join((container.id().as_str(), number.to_string()), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn reopen(&self, container: &Container) -> Result<(), ContainerError> {
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
