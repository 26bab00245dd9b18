//! What shims report. Exits are learned from Wait, which no lost event can hide; events are for the log.

use tokio::sync::mpsc;

use crate::runtime::events::Event;

/// Logs events until the sink is shut down.
pub(super) async fn drain(mut received: mpsc::Receiver<Event>) {
    while let Some(event) = received.recv().await {
        match event {
            Event::Oom { id } => {
                tracing::warn!(container = id, "a process was killed for want of memory");
            }
            other => tracing::debug!(event = ?other, "shim"),
        }
    }
}
