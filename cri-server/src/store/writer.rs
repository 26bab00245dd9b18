//! The one writer: a thread that turns all changes waiting at a moment into one durable commit.
//!
//! Invariant: a change is answered only after the commit that holds it. The thread ends when the store is dropped.

use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{Slot, StoreError, Table, open_database};

/// Changes that may wait; a caller beyond that waits itself.
const QUEUE: usize = 1024;
/// Changes in one commit at the most, so that the first one in it is not held up.
const BATCH: usize = 256;

/// One record written (`value`) or deleted (no value).
pub(super) struct Change {
    pub table: Table,
    pub key: String,
    pub value: Option<Vec<u8>>,
}

type Waiting = (Change, oneshot::Sender<Result<(), StoreError>>);

pub(super) struct Writer {
    /// None only while the writer is dropped: the closed queue ends the thread.
    queue: Option<mpsc::Sender<Waiting>>,
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
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(&path, &database, receiver))
            // The receiver is gone with the closure: every call answers `Closed`.
            .inspect_err(|error| tracing::error!(%error, "cannot start the store's thread"))
            .ok();
        Self { queue: Some(queue), thread }
    }

    pub async fn apply(&self, change: Change) -> Result<(), StoreError> {
        let (answer, result) = oneshot::channel();
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send((change, answer)).await.map_err(|_| StoreError::Closed)?;
        result.await.map_err(|_| StoreError::Closed)?
    }
}

fn serve(path: &Path, database: &Slot, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        let result = write(path, database, &batch);
        for (_, answer) in batch {
            // A caller that went away does not need the answer.
            let _ = answer.send(result.clone().map_err(StoreError::Write));
        }
    }
}

/// Commits the batch. After a failure, such as a full disk, the next batch finds the file opened anew.
fn write(path: &Path, slot: &Slot, batch: &[Waiting]) -> Result<(), String> {
    let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
    if slot.is_none() {
        *slot = Some(open_database(path).map_err(|e| e.to_string())?);
    }
    let result = slot.as_ref().map_or(Ok(()), |database| commit(database, batch).map_err(|e| e.to_string()));
    if result.is_err() {
        *slot = None;
    }
    result
}

fn commit(database: &Database, batch: &[Waiting]) -> Result<(), redb::Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    for (change, _) in batch {
        let mut table = transaction.open_table(change.table.definition())?;
        match &change.value {
            Some(value) => table.insert(change.key.as_str(), value.as_slice())?,
            None => table.remove(change.key.as_str())?,
        };
    }
    transaction.commit()?;
    Ok(())
}
