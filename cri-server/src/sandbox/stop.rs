//! Stopping a sandbox: everything but its record goes away. Idempotent, and the same that undoes a failed run.
//!
//! Invariant: a failed step does not keep the others from being tried, and what is absent counts as done.

use cofferdam_failpoints::failpoint;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::record::SandboxStatus;
use super::{Sandbox, SandboxError, Sandboxes, Shared, files};
use crate::model::SandboxId;
use crate::network::netns::Pins;
use crate::operation::Stage;
use crate::runtime::{Handler, Shim};
use crate::task;

/// The task of a pause process, with what [`task::Ending`] borrows.
pub(super) struct PauseTask<'a> {
    id: SandboxId,
    bundle: PathBuf,
    handler: Option<&'a Handler>,
    shim: Option<Arc<Shim>>,
    cgroups_path: String,
}

impl PauseTask<'_> {
    pub(super) fn ending(&self) -> task::Ending<'_> {
        task::Ending {
            id: self.id.as_str(),
            bundle: &self.bundle,
            handler: self.handler,
            shim: self.shim.clone(),
            cgroups_path: &self.cgroups_path,
            // The pod's containers have ended before.
            shared: false,
        }
    }
}

impl Sandboxes {
    /// Ends the pause process, detaches the network and unmounts what the pod shared. Its containers must be gone.
    ///
    /// # Errors
    /// What could not be taken away; the next call tries again.
    pub async fn stop(self: &Arc<Self>, sandbox: &Arc<Sandbox>) -> Shared<()> {
        let (sandboxes, target) = (Arc::clone(self), Arc::clone(sandbox));
        let begin = |stage| async move { sandboxes.halt(&target, &stage).await.map_err(Arc::new) };
        let joined = self.stops.join(sandbox.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    /// How long a teardown should take at most: the network's plugins have their time.
    #[must_use]
    pub fn teardown_limit(&self) -> Duration {
        self.ports.network.limit() + self.ports.launcher.deadlines().light
    }

    async fn halt(&self, sandbox: &Arc<Sandbox>, stage: &Stage) -> Result<(), SandboxError> {
        stage.set("recording");
        let stopped = |s: &SandboxStatus| {
            Ok::<_, SandboxError>(SandboxStatus { state: s.state.ended(), stopped: true, ..s.clone() })
        };
        sandbox.change(&self.ports, stopped).await?;
        failpoint!("sandbox.stop.recorded");
        stage.set("telling NRI plugins");
        self.plugins_stop(sandbox).await;
        failpoint!("sandbox.stop.plugins_told");
        self.tear_down(sandbox, stage).await
    }

    /// Records that the sandbox is not ready any more.
    pub(crate) async fn mark_ended(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let ended =
            |s: &SandboxStatus| Ok::<_, SandboxError>(SandboxStatus { state: s.state.ended(), ..s.clone() });
        sandbox.change(&self.ports, ended).await
    }

    /// Takes back all that [`Sandboxes::run`] made, but the folder and the record.
    pub(super) async fn tear_down(&self, sandbox: &Arc<Sandbox>, stage: &Stage) -> Result<(), SandboxError> {
        stage.within("ending the pause process and detaching the network", self.teardown_limit());
        let mut failures = Vec::new();
        // The kernel takes its time for either; neither needs the other.
        let (ended, disconnected) = tokio::join!(self.end_pause(sandbox), self.disconnect(sandbox));
        failures.extend(ended.err());
        failures.extend(disconnected.err());
        stage.set("unmounting its files");
        failures.extend(files::unmount(&self.ports, sandbox.id()).err());
        failpoint!("sandbox.stop.unmounted");
        SandboxError::collect(failures)
    }

    /// Ends what is left of the pause task of a sandbox that is not ready.
    ///
    /// # Errors
    /// When something stays.
    pub async fn end_leftover(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        self.end_pause(sandbox).await
    }

    pub(super) async fn end_pause(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        let pause = self.ending(sandbox)?;
        task::end(&self.ports, pause.ending()).await?;
        failpoint!("sandbox.stop.pause_ended");
        self.ports.cgroups.remove_around(&pause.cgroups_path);
        failpoint!("sandbox.stop.cgroups_removed");
        sandbox.shim.store(None);
        Ok(())
    }

    /// What ending or watching the pause task needs.
    pub(super) fn ending(&self, sandbox: &Sandbox) -> Result<PauseTask<'_>, SandboxError> {
        let ports = &self.ports;
        let handler = ports.handlers.handler(&sandbox.made.handler).ok();
        Ok(PauseTask {
            id: sandbox.id().clone(),
            bundle: ports.places.sandbox(sandbox.id()),
            handler,
            shim: sandbox.shim.load_full(),
            cgroups_path: sandbox.cgroups_path(ports)?,
        })
    }

    async fn disconnect(&self, sandbox: &Sandbox) -> Result<(), SandboxError> {
        if !sandbox.made.own_network {
            return Ok(());
        }
        if sandbox.status().attached {
            self.ports.network.detach(&sandbox.attachment(&self.ports)).await?;
            failpoint!("sandbox.stop.network_detached");
            let detached =
                |s: &SandboxStatus| Ok::<_, SandboxError>(SandboxStatus { attached: false, ..s.clone() });
            sandbox.change(&self.ports, detached).await?;
            failpoint!("sandbox.stop.detach_recorded");
        }
        let (pins, id) = (Pins::new(self.ports.places.state()), sandbox.id().clone());
        tokio::task::spawn_blocking(move || pins.remove(&id)).await??;
        failpoint!("sandbox.stop.netns_removed");
        Ok(())
    }
}
