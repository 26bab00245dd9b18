//! Removing a sandbox: what stopping leaves, and the record last.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use super::record::{SandboxState, SandboxStatus};
use super::{Sandbox, SandboxError, Sandboxes, Shared, files};
use crate::event::Phase;
use crate::operation::Stage;
use crate::store::Table;

impl Sandboxes {
    /// Stops the sandbox if need be and forgets it. Its containers must be gone.
    ///
    /// # Errors
    /// What could not be taken away; the record stays, and the next call tries again.
    pub async fn remove(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Shared<()> {
        let (sandboxes, target) = (Arc::clone(self), Arc::clone(sandbox));
        let begin = |stage| async move { sandboxes.take_away(&target, &stage).await.map_err(Arc::new) };
        let joined = self.removals.join(sandbox.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    pub(super) async fn take_away(&self, sandbox: &Arc<Sandbox>, stage: &Stage) -> Result<(), SandboxError> {
        stage.set("recording");
        let removing = |s: &SandboxStatus| {
            Ok::<_, SandboxError>(SandboxStatus { state: SandboxState::Removing, ..s.clone() })
        };
        sandbox.change(&self.ports, removing).await?;
        failpoint!("sandbox.remove.recorded");
        stage.set("telling NRI plugins");
        self.plugins_stop(sandbox).await;
        self.tear_down(sandbox, stage).await?;
        failpoint!("sandbox.remove.torn_down");
        self.plugins_remove(sandbox).await;
        stage.set("removing its files and the record");
        files::remove(&self.ports, sandbox)?;
        failpoint!("sandbox.remove.folder_removed");
        self.ports.store.delete(Table::Sandboxes, sandbox.id().as_str()).await?;
        failpoint!("sandbox.remove.record_deleted");
        // While it can still be found: the event holds its last status.
        sandbox.tell(&self.ports, Some(Phase::Deleted));
        self.all.remove(sandbox.id().as_str());
        Ok(())
    }
}
