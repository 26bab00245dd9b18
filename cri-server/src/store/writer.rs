//! The one writer: a thread that turns all changes waiting at a moment into one durable commit.
//!
//! Invariant: a change is answered only after the commit that holds it. The thread ends when the store is dropped.

use std::sync::Arc;
use std::thread::JoinHandle;

use redb::Database;
use tokio::sync::{mpsc, oneshot};

use super::{StoreError, Table};

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
    pub fn start(database: Arc<Database>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let thread = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || serve(&database, receiver))
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

fn serve(database: &Database, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.blocking_recv() {
        let mut batch = vec![first];
        while batch.len() < BATCH {
            match queue.try_recv() {
                Ok(next) => batch.push(next),
                Err(_) => break,
            }
        }
        let result = commit(database, &batch).map_err(|e| e.to_string());
        for (_, answer) in batch {
            // A caller that went away does not need the answer.
            let _ = answer.send(result.clone().map_err(StoreError::Write));
        }
    }
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
