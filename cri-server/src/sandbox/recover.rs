//! After the daemon's start: finds the pods again that the last one left, and finishes or undoes what was half done.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use futures::future::join_all;

use super::record::{SandboxRecord, SandboxState};
use super::{Sandbox, SandboxError, Sandboxes};
use crate::event::Phase;
use crate::runtime::Launcher;
use crate::store::Table;

impl Sandboxes {
    /// Loads the records. Ready sandboxes are watched again, or become not ready when their shim is gone.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), SandboxError> {
        let records = self.ports.store.load::<SandboxRecord>(Table::Sandboxes)?;
        let recoveries = records.into_iter().map(|(_, record)| {
            let level = self.level_of(&record);
            let sandbox = Sandbox::new(record, level);
            self.all.insert(sandbox.id().as_str(), Arc::clone(&sandbox));
            self.recall(&sandbox);
            self.recover_one(sandbox)
        });
        join_all(recoveries).await;
        Ok(())
    }

    /// What was told of it before the restart is not told again.
    fn recall(&self, sandbox: &Sandbox) {
        let phase = match sandbox.status().state {
            SandboxState::Creating => return,
            SandboxState::Ready { .. } => Phase::Started,
            SandboxState::NotReady | SandboxState::Removing => Phase::Stopped,
        };
        self.ports.events.recovered(sandbox.id().as_str(), phase);
    }

    async fn recover_one(self: &Arc<Self>, sandbox: Arc<Sandbox>) {
        failpoint!("sandbox.recover.loaded", infallible);
        let bundle = self.ports.places.sandbox(sandbox.id());
        if let Some(endpoint) = Launcher::recorded(&bundle) {
            let shim = self.ports.launcher.connect(sandbox.id().as_str(), &endpoint, &bundle).await;
            sandbox.shim.store(shim.ok().map(Arc::new));
        }
        failpoint!("sandbox.recover.connected", infallible);
        let done = match (sandbox.status().state, sandbox.shim.load_full()) {
            (SandboxState::Ready { .. }, Some(shim)) => {
                self.supervise(&sandbox, shim);
                Ok(())
            }
            // The network stays until the kubelet stops the pod.
            (SandboxState::Ready { .. }, None) => self.lost(&sandbox).await,
            (SandboxState::Creating | SandboxState::Removing, _) => self
                .remove(&sandbox)
                .await
                .map_err(|error| SandboxError::Shared(crate::report::chain(&*error))),
            (SandboxState::NotReady, _) => Ok(()),
        };
        failpoint!("sandbox.recover.done", infallible);
        if let Err(error) = done {
            tracing::warn!(sandbox = %sandbox.id(), error = %crate::report::chain(&error), "recovery");
        }
    }

    /// Nobody watches the pause process any more: it is ended.
    async fn lost(&self, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        tracing::warn!(sandbox = %sandbox.id(), "the pod's shim is gone: the pod is not ready");
        self.mark_ended(sandbox).await?;
        failpoint!("sandbox.recover.lost_recorded");
        self.end_pause(sandbox).await
    }
}
