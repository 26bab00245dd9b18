//! Watches a pause process: when it ends, by itself or with its shim, the sandbox is not ready any more.

use std::sync::Arc;

use super::record::SandboxStatus;
use super::{Sandbox, SandboxError, Sandboxes};
use crate::runtime::Shim;

impl Sandboxes {
    /// Watches until the pause process has ended. The task ends with the shim's connection at the latest.
    pub(super) fn supervise(self: &Arc<Self>, sandbox: &Arc<Sandbox>, shim: Arc<Shim>) {
        let (sandboxes, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        self.ports.tracker.spawn(async move {
            let end = shim.wait("").await;
            if sandbox.is_ready() {
                tracing::warn!(sandbox = %sandbox.id(), exit = ?end, "the pause process ended; the pod is not ready");
            }
            let ended = |s: &SandboxStatus| {
                Ok::<_, SandboxError>(SandboxStatus { state: s.state.ended(), ..s.clone() })
            };
            if let Err(error) = sandbox.change(&sandboxes.ports, ended).await {
                tracing::error!(sandbox = %sandbox.id(), error = %crate::report::chain(&error), "record");
            }
        });
    }
}
