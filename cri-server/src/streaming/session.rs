//! What exec and attach sessions have in common: a name, the copies of their output, the terminal's size, the last word.
//!
//! Invariant: the copies of a session end with it; none of them outlives its [`Outputs`].

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::copy::{self, Orphaned};
use super::remote::{BoxWrite, Outcome, Resizes, StatusSink};
use crate::container::ContainerError;
use crate::io::SessionOutput;
use crate::model::ContainerId;
use crate::report::chain;
use crate::runtime::Shim;

/// A name that no other session has.
pub(super) fn name() -> Result<ContainerId, ContainerError> {
    ContainerId::generate().map_err(|source| ContainerError::File {
        operation: "id from",
        path: "/dev/urandom".into(),
        source,
    })
}

/// The copies of stdout and stderr to the client.
pub(super) struct Outputs {
    copies: JoinSet<()>,
    ended: CancellationToken,
}

impl Outputs {
    /// Starts a copy for each FIFO that has a client; the shim has its sides by now.
    pub(super) fn start(pairs: [(Option<SessionOutput>, Option<BoxWrite>); 2], orphaned: Orphaned) -> Self {
        let (mut copies, ended) = (JoinSet::new(), CancellationToken::new());
        for (fifo, client) in pairs {
            if let (Some(fifo), Some(client)) = (fifo, client) {
                copies.spawn(copy::output(fifo.connected(), client, orphaned, ended.clone()));
            }
        }
        Self { copies, ended }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.copies.is_empty()
    }

    /// Until every copy has ended by itself.
    pub(super) async fn all_ended(&mut self) {
        while self.copies.join_next().await.is_some() {}
    }

    /// The process has ended: what it wrote is still copied, what others may write is not waited for.
    pub(super) async fn drain(mut self) {
        self.ended.cancel();
        self.all_ended().await;
    }
}

/// Gives the terminal of a process the sizes of its client's, as they change.
pub(super) async fn follow_size(shim: Arc<Shim>, exec_id: String, mut sizes: Resizes) {
    while let Some(size) = sizes.recv().await {
        let resized = shim.resize_pty(&exec_id, size.width.into(), size.height.into()).await;
        if let Err(error) = resized {
            tracing::debug!(exec = exec_id, error = %chain(&error), "resize");
        }
    }
}

/// Tells the client how it ended; one that is gone does not listen.
pub(super) async fn finish(status: StatusSink, outcome: Outcome) {
    if let Err(error) = status.finish(outcome).await {
        tracing::debug!(error = %chain(&error), "the client left before the end");
    }
}
