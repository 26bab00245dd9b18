//! Container events, as the kubelet's evented PLEG reads them: from the one place where lifecycles say how far they are
//! to every reader of GetContainerEvents.
//!
//! Invariant: the events of one container are told in the order of its life, none twice (see `phase`); each holds the
//! whole pod as it was at that moment, and no later event holds an earlier picture. A reader gets all that is told while
//! it reads, or an error when it falls too far behind (see `log`). What is told while nobody reads, as by a recovery, is
//! kept for a while for the next reader.

mod log;
mod phase;

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use prost::Message;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::model::SandboxId;
use log::{Bounds, Log, Next};
pub use phase::Phase;

/// A pod with hundreds of containers and long annotations has events of some 100 KiB; a reader may be behind by many.
const BOUNDS: Bounds =
    Bounds { bytes: 16 << 20, unread_bytes: 2 << 20, unread_age: Duration::from_secs(300) };

/// Events that a reader had not read had to be let go.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "the reader fell behind by more than {} MiB of events, and some are lost to it; list, then subscribe again",
    BOUNDS.bytes >> 20
)]
pub struct Lagged;

/// A pod at a moment.
#[derive(Clone, Debug, Default)]
pub struct Portrait {
    /// None for a pod that nobody knows.
    pub sandbox: Option<cri::PodSandboxStatus>,
    pub containers: Vec<cri::ContainerStatus>,
}

/// Tells how a pod is, from memory, without waiting.
pub type Painter = Box<dyn Fn(&SandboxId) -> Portrait + Send + Sync>;

struct Told {
    /// The last step told of everybody who is not gone.
    phases: HashMap<String, Phase>,
    log: Log<cri::ContainerEventResponse>,
}

/// All events of the node.
pub struct Events {
    painter: OnceLock<Painter>,
    told: Mutex<Told>,
    /// Counts what was told; readers wait for its changes.
    changed: watch::Sender<u64>,
    closed: CancellationToken,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            painter: OnceLock::new(),
            told: Mutex::new(Told { phases: HashMap::new(), log: Log::new(BOUNDS) }),
            changed: watch::Sender::new(0),
            closed: CancellationToken::new(),
        }
    }
}

impl Events {
    /// Says who knows how pods are; only the first word counts. Events told before it hold no pod.
    pub fn paint_with(&self, painter: Painter) {
        // A second painter would be a fault of the wiring, and the first one is as good.
        let _ = self.painter.set(painter);
    }

    /// `id`, of the pod `sandbox` or that pod's sandbox itself, has come to this step. What it skipped is told as well;
    /// what was told is not told again.
    pub fn reached(&self, id: &str, sandbox: &SandboxId, phase: Phase) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = phase::owed(told.phases.get(id).copied(), phase);
        if phase == Phase::Deleted {
            told.phases.remove(id);
        } else if !owed.is_empty() {
            told.phases.insert(id.to_owned(), phase);
        }
        for kind in owed {
            // Painted under the lock: a later event never holds an earlier picture.
            let portrait = self.painter.get().map(|paint| paint(sandbox)).unwrap_or_default();
            let event = cri::ContainerEventResponse {
                container_id: id.to_owned(),
                container_event_type: kind.into(),
                created_at: now(),
                pod_sandbox_status: portrait.sandbox,
                containers_statuses: portrait.containers,
            };
            let bytes = event.encoded_len();
            told.log.push(event, bytes, Instant::now());
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    /// `id` was at this step when the daemon ended: that was told before.
    pub fn recovered(&self, id: &str, phase: Phase) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.phases.insert(id.to_owned(), phase);
    }

    /// A new reader.
    #[must_use]
    pub fn subscribe(self: &std::sync::Arc<Self>) -> Reader {
        let changed = self.changed.subscribe();
        let number = self.told.lock().unwrap_or_else(PoisonError::into_inner).log.join(Instant::now());
        Reader { events: std::sync::Arc::clone(self), number, changed }
    }

    /// How many readers there are.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).log.readers()
    }

    /// How many events were told since the daemon's start.
    #[must_use]
    pub fn count(&self) -> u64 {
        *self.changed.borrow()
    }

    /// The daemon ends: readers get what they have not read, then their streams end.
    pub fn close(&self) {
        self.closed.cancel();
    }
}

/// A reader; dropping it ends the subscription.
pub struct Reader {
    events: std::sync::Arc<Events>,
    number: u64,
    changed: watch::Receiver<u64>,
}

impl Reader {
    /// The next event, when there is one; none when the daemon ends.
    ///
    /// # Errors
    /// When the reader fell too far behind.
    pub async fn next(&mut self) -> Option<Result<cri::ContainerEventResponse, Lagged>> {
        loop {
            self.changed.mark_unchanged();
            // Looked at first: what was told before the end is read after it.
            let ended = self.events.closed.is_cancelled();
            let next = {
                let mut told = self.events.told.lock().unwrap_or_else(PoisonError::into_inner);
                told.log.next(self.number, Instant::now())
            };
            match next {
                Next::Value(event) => return Some(Ok(std::sync::Arc::unwrap_or_clone(event))),
                Next::Lost => return Some(Err(Lagged)),
                Next::Nothing if ended => return None,
                Next::Nothing => {}
            }
            // The sender lives in `events`, which this reader holds: only what comes ends the waiting, or the end.
            let _ = self.events.closed.run_until_cancelled(self.changed.changed()).await;
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut told = self.events.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.log.leave(self.number, Instant::now());
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pod() -> SandboxId {
        SandboxId::generate().unwrap()
    }

    #[tokio::test]
    async fn a_reader_gets_everything_in_order_and_an_end() {
        let (events, sandbox) = (Arc::new(Events::default()), pod());
        events.recovered("old", Phase::Started);
        events.reached("old", &sandbox, Phase::Stopped);
        let mut reader = events.subscribe();
        let told = Arc::clone(&events);
        let telling = tokio::spawn(async move {
            for phase in [Phase::Created, Phase::Started, Phase::Started, Phase::Deleted] {
                tokio::task::yield_now().await;
                told.reached("new", &sandbox, phase);
            }
            told.close();
        });
        let mut seen = Vec::new();
        while let Some(event) = reader.next().await {
            let event = event.unwrap();
            seen.push((event.container_id.clone(), event.container_event_type().as_str_name()));
        }
        telling.await.unwrap();
        let names: Vec<_> = seen.iter().map(|(id, kind)| format!("{id} {kind}")).collect();
        assert_eq!(
            names,
            [
                "old CONTAINER_STOPPED_EVENT",
                "new CONTAINER_CREATED_EVENT",
                "new CONTAINER_STARTED_EVENT",
                "new CONTAINER_STOPPED_EVENT",
                "new CONTAINER_DELETED_EVENT",
            ]
        );
        drop(reader);
        assert_eq!((events.readers(), events.count()), (0, 5));
    }

    #[tokio::test]
    async fn a_reader_that_does_not_read_is_told_that_it_missed_something() {
        let events = Arc::new(Events::default());
        let long = "x".repeat(1 << 20);
        events.paint_with(Box::new(move |_| Portrait {
            sandbox: Some(cri::PodSandboxStatus { id: long.clone(), ..Default::default() }),
            containers: Vec::new(),
        }));
        let (mut idle, sandbox) = (events.subscribe(), pod());
        for number in 0..20 {
            events.reached(&number.to_string(), &sandbox, Phase::Created);
        }
        assert!(matches!(idle.next().await, Some(Err(Lagged))));
        let mut keen = events.subscribe();
        events.reached("last", &sandbox, Phase::Created);
        loop {
            let event = keen.next().await.unwrap().unwrap();
            if event.container_id == "last" {
                break;
            }
        }
    }
}
