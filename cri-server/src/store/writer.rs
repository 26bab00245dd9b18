//! The one writer: a thread that turns all changes waiting at a moment into one durable commit.
//!
//! Invariant: a change is answered only after the commit that holds it. The thread ends when the store is dropped.

use cofferdam_failpoints::failpoint;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::thread::JoinHandle;
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{Slot, StoreError, Table, open_database};

/// Changes that may wait; a caller beyond that waits itself.
const QUEUE: usize = 1024;
/// Changes in one commit at the most, so that the first one in it is not held up.
const BATCH: usize = 256;

/// Seconds that commits take: a fast disk syncs in a tenth of a millisecond.
const BUCKETS: [f64; 12] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// What the writer did since the daemon's start. Clones count together.
#[derive(Clone, Debug)]
pub struct Commits {
    pub seconds: Histogram,
    pub records: Counter,
    pub failures: Counter,
}

impl Default for Commits {
    fn default() -> Self {
        Self { seconds: Histogram::new(BUCKETS), records: Counter::default(), failures: Counter::default() }
    }
}

impl Commits {
    fn count(&self, records: usize, since: Instant, succeeded: bool) {
        self.seconds.observe(since.elapsed().as_secs_f64());
        if succeeded {
            self.records.inc_by(u64::try_from(records).unwrap_or(u64::MAX));
        } else {
            self.failures.inc();
        }
    }
}

/// One record written (`value`) or deleted (no value).
pub(super) struct Change {
    pub table: Table,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

/// Without a change, somebody asks whether the writer works.
type Waiting = (Option<Change>, oneshot::Sender<Result<(), StoreError>>);

/// Why a commit failed, for each who waits for it.
#[derive(Clone)]
struct Failure {
    /// The system's word for it, which callers decide by.
    code: Option<i32>,
    text: String,
}

impl From<redb::Error> for Failure {
    fn from(error: redb::Error) -> Self {
        let code = match &error {
            redb::Error::Io(source) => source.raw_os_error(),
            _ => None,
        };
        Self { code, text: error.to_string() }
    }
}

impl From<Failure> for StoreError {
    fn from(Failure { code, text }: Failure) -> Self {
        let source = code.map_or_else(|| io::Error::other(text), io::Error::from_raw_os_error);
        StoreError::Write { source }
    }
}

pub(super) struct Writer {
    /// None only while the writer is dropped: the closed queue ends the thread.
    queue: Option<mpsc::Sender<Waiting>>,
    pub commits: Commits,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            // A panic in it has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

impl Writer {
    pub fn start(path: PathBuf, database: Slot) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let commits = Commits::default();
        let counted = commits.clone();
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(&path, &database, receiver, &counted))
            // The receiver is gone with the closure: every call answers `Closed`.
            .inspect_err(|error| tracing::error!(%error, "cannot start the store's thread"))
            .ok();
        Self { queue: Some(queue), commits, thread }
    }

    pub async fn apply(&self, change: Change) -> Result<(), StoreError> {
        self.ask(Some(change)).await
    }

    /// Returns when the writer has got to it.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.ask(None).await
    }

    async fn ask(&self, change: Option<Change>) -> Result<(), StoreError> {
        let (answer, result) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send((change, answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

fn serve(path: &Path, database: &Slot, mut queue: mpsc::Receiver<Waiting>, commits: &Commits) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        let (changes, answers): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let changes: Vec<Change> = changes.into_iter().flatten().collect();
        let mut result = Ok(());
        if !changes.is_empty() {
            let since = Instant::now();
            result = write(path, database, &changes);
            commits.count(changes.len(), since, result.is_ok());
        }
        for answer in answers {
            // A caller that went away does not need the answer.
            let _ = answer.send(result.clone().map_err(StoreError::from));
        }
    }
}

/// Commits the batch. After a failure, such as a full disk, the next batch finds the file opened anew.
fn write(path: &Path, slot: &Slot, batch: &[Change]) -> Result<(), Failure> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(open_database(path)?);
    }
    let result = slot.as_ref().map_or(Ok(()), |database| commit(database, batch).map_err(Failure::from));
    if result.is_err() {
        *slot = None;
    }
    result
}

fn commit(database: &Database, batch: &[Change]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    for change in batch {
        let mut table = transaction.open_table(change.table.definition())?;
        match &change.value {
            Some(value) => table.insert(change.key.as_str(), value.as_slice())?,
            None => table.remove(change.key.as_str())?,
        };
    }
    failpoint!("store.written", infallible);
    transaction.commit()?;
    failpoint!("store.committed", infallible);
    Ok(())
}
