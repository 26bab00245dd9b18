//! Stopping a sandbox: everything but its record goes away. Idempotent, and the same that undoes a failed run.
//!
//! Invariant: a failed step does not keep the others from being tried, and what is absent counts as done.

use std::sync::Arc;

use super::record::SandboxStatus;
use super::{Sandbox, SandboxError, Sandboxes, Shared, files};
use crate::network::netns;
use crate::task;

impl Sandboxes {
    /// Ends the pause process, detaches the network and unmounts what the pod shared. Its containers must be gone.
    ///
    /// # Errors
    /// What could not be taken away; the next call tries again.
    pub async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Shared<()> {
        let (sandboxes, target) = (Arc::clone(self), Arc::clone(sandbox));
        let begin = |_stage| async move { sandboxes.halt(&target).await.map_err(Arc::new) };
        let joined = self.stops.join(sandbox.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn halt(&self, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        let ended =
            |s: &SandboxStatus| Ok::<_, SandboxError>(SandboxStatus { state: s.state.ended(), ..s.clone() });
        sandbox.change(&self.ports, ended).await?;
        self.tear_down(sandbox).await
    }

    /// Takes back all that [`Sandboxes::run`] made, but the folder and the record.
    pub(super) async fn tear_down(&self, sandbox: &Arc<Sandbox>) -> Result<(), SandboxError> {
        let mut failures = Vec::new();
        failures.extend(self.end_pause(sandbox).await.err());
        failures.extend(self.disconnect(sandbox).await.err());
        failures.extend(files::unmount(&self.ports, sandbox.id()).err());
        SandboxError::collect(failures)
    }

    async fn end_pause(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let ports = &self.ports;
        let handler = ports.handlers.handler(&sandbox.made.handler)?;
        let parent = files::cgroup_parent(sandbox.config());
        let ending = task::Ending {
            id: sandbox.id().as_str(),
            bundle: &ports.places.sandbox(sandbox.id()),
            handler,
            shim: sandbox.shim.load_full(),
            cgroups_path: &ports.cgroups.path_for(&parent, sandbox.id().as_str()),
        };
        task::end(ports, ending).await?;
        sandbox.shim.store(None);
        Ok(())
    }

    async fn disconnect(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        if !sandbox.made.own_network {
            return Ok(());
        }
        if sandbox.status().attached {
            self.ports.network.detach(&sandbox.attachment(&self.ports)).await?;
            let detached =
                |s: &SandboxStatus| Ok::<_, SandboxError>(SandboxStatus { attached: false, ..s.clone() });
            sandbox.change(&self.ports, detached).await?;
        }
        netns::remove(self.ports.places.state(), sandbox.id()).await?;
        Ok(())
    }
}
