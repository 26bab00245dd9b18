//! Watches a pause process: when it ends, by itself or with its shim, the sandbox is not ready any more.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use super::{Sandbox, SandboxError, Sandboxes};
use crate::runtime::{HeldProcess, Launcher, Shim};
use crate::task::{self, End};

/// Between attempts to settle an end.
const RETRY: Duration = Duration::from_secs(1);

impl Sandboxes {
    /// Watches until the pause process has ended; the daemon's end ends the task.
    pub(super) fn supervise(self: &Arc<Self>, sandbox: &Arc<Sandbox>, shim: Arc<Shim>) {
        let (sandboxes, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.ports.tracker.spawn(async move {
            let stopping = sandboxes.ports.stopping.clone();
            let watched = stopping.run_until_cancelled(sandboxes.see_off(&sandbox, shim)).await;
            if let Some(Err(error)) = watched {
                tracing::error!(sandbox = %sandbox.id(), error = %crate::report::chain(&error), "end of the pause process");
            }
        });
    }

    async fn see_off(&self, sandbox: &Arc<Sandbox>, shim: Arc<Shim>) -> Result<(), SandboxError> {
        let places = self.ending(sandbox)?;
        let ending = task::Ending { shim: Some(shim), ..places.ending() };
        let held = sandbox.pid().and_then(HeldProcess::open);
        // Its number may be another's by now.
        let first = held.filter(|process| self.ports.cgroups.hold(ending.cgroups_path, process.name().pid));
        let end = loop {
            match task::wait(&self.ports, ending.clone(), &sandbox.shim, first.as_ref()).await {
                Ok(end) => break end,
                Err(error) => self.not_yet(sandbox, &error).await,
            }
        };
        failpoint!("sandbox.end.seen", infallible);
        if sandbox.is_ready() {
            let shim = match end {
                End::Told(_) => "told it",
                End::ShimDead(_) => "died",
                End::ShimSilent(_) => "did not answer any more and was ended",
            };
            let why = Launcher::why(ending.bundle).unwrap_or_default();
            tracing::warn!(sandbox = %sandbox.id(), shim, why, "the pause process ended: the pod is not ready");
        }
        while let Err(error) = self.mark_ended(sandbox).await {
            self.not_yet(sandbox, &error).await;
        }
        failpoint!("sandbox.end.recorded", infallible);
        Ok(())
    }

    /// An end is never given up: a full disk gets room, and a process that cannot be killed wakes at last.
    pub(super) async fn not_yet(&self, sandbox: &Sandbox, error: &(dyn std::error::Error + Sync)) {
        let error = crate::report::chain(error);
        tracing::warn!(sandbox = %sandbox.id(), error, "the pod's end cannot be settled yet; trying again");
        tokio::time::sleep(RETRY).await;
    }
}
