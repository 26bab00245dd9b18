//! The daemon's durable records: one redb file, one writer, commits batched.
//!
//! Holds only what cannot be had from the kernel or a shim. A record is on disk when [`Store::put`] or
//! [`Store::delete`] returns. Each value is JSON in an envelope with a version, so that a later daemon can tell
//! old records from new ones.
//!
//! ```text
//! <root>/metadata.redb            tables: images, sandboxes, containers
//! <root>/metadata.redb.damaged-*  a file that could not be opened, kept for a person to look at
//! ```

mod writer;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use writer::Commits;
use writer::{Change, Writer};

/// The version this daemon writes.
const RECORD_VERSION: u32 = 1;
/// More is not needed: every record also lives in memory.
const CACHE_BYTES: usize = 1 << 20;

/// What can go wrong with durable records.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot open the store {path}")]
    Open { path: PathBuf, source: Box<redb::Error> },
    #[error("cannot set aside the damaged store {path}")]
    SetAside { path: PathBuf, source: std::io::Error },
    #[error("cannot read table {table} of the store")]
    Read { table: &'static str, source: Box<redb::Error> },
    #[error("cannot write to the store")]
    Write { source: std::io::Error },
    #[error("record {key:?} of table {table} cannot be encoded")]
    Encode { table: &'static str, key: String, source: serde_json::Error },
    #[error("the store is closed")]
    Closed,
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Images,
    Sandboxes,
    Containers,
}

impl Table {
    const ALL: [Table; 3] = [Table::Images, Table::Sandboxes, Table::Containers];

    fn name(self) -> &'static str {
        match self {
            Table::Images => "images",
            Table::Sandboxes => "sandboxes",
            Table::Containers => "containers",
        }
    }

    fn definition(self) -> TableDefinition<'static, &'static str, &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

#[derive(Serialize)]
struct EnvelopeRef<'a, T> {
    version: u32,
    record: &'a T,
}

#[derive(Deserialize)]
struct Envelope<T> {
    version: u32,
    record: T,
}

/// The open file. Empty after a failed write: redb takes no other until the file is opened anew.
type Slot = Arc<Mutex<Option<Database>>>;

/// The open store. Clones of the `Arc` share one writer.
pub struct Store {
    database: Slot,
    writer: Writer,
    incomplete: AtomicBool,
}

impl Store {
    /// Opens the store at `path`, making it when it is missing. A damaged file is set aside and a new store
    /// begins: a node must come up.
    ///
    /// # Errors
    /// When neither the file nor a new one in its place can be opened.
    pub fn open(path: &Path) -> Result<Arc<Self>, StoreError> {
        let mut incomplete = false;
        let database = match open_database(path) {
            Ok(database) => database,
            Err(error) if is_damage(&error) && path.exists() => {
                set_aside(path, &error)?;
                incomplete = true;
                open_database(path)
                    .map_err(|source| StoreError::Open { path: path.to_owned(), source: Box::new(source) })?
            }
            // Held by another daemon, no room, no permission: nothing is damaged.
            Err(error) => return Err(StoreError::Open { path: path.to_owned(), source: Box::new(error) }),
        };
        let database = Arc::new(Mutex::new(Some(database)));
        let writer = Writer::start(path.to_owned(), Arc::clone(&database));
        Ok(Arc::new(Self { database, writer, incomplete: AtomicBool::new(incomplete) }))
    }

    /// Whether records are missing that there were. What nobody knows is then nobody's garbage.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        self.incomplete.load(Ordering::Relaxed)
    }

    /// What was committed since the daemon's start.
    #[must_use]
    pub fn commits(&self) -> &Commits {
        &self.writer.commits
    }

    /// Writes a record; it is on disk when this returns.
    ///
    /// # Errors
    /// When the record cannot be encoded or the commit fails.
    pub async fn put<T: Serialize>(&self, table: Table, key: &str, value: &T) -> Result<(), StoreError> {
        let bytes = serde_json::to_vec(&EnvelopeRef { version: RECORD_VERSION, record: value })
            .map_err(|source| StoreError::Encode { table: table.name(), key: key.to_owned(), source })?;
        self.writer.apply(Change { table, key: key.to_owned(), value: Some(bytes) }).await
    }

    /// Deletes a record; an absent one is no error.
    ///
    /// # Errors
    /// When the commit fails.
    pub async fn delete(&self, table: Table, key: &str) -> Result<(), StoreError> {
        self.writer.apply(Change { table, key: key.to_owned(), value: None }).await
    }

    /// Returns when the writer answers, which is after all changes before.
    ///
    /// # Errors
    /// When there is no writer any more.
    pub async fn ping(&self) -> Result<(), StoreError> {
        self.writer.ping().await
    }

    /// All records of a table. One that cannot be read (a damaged or a newer one) is left out with a warning.
    ///
    /// # Errors
    /// When the table itself cannot be read.
    pub fn load<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<(String, T)>, StoreError> {
        let failed = |source: redb::Error| StoreError::Read { table: table.name(), source: Box::new(source) };
        let database = self.database.lock().unwrap_or_else(PoisonError::into_inner);
        let database = database.as_ref().ok_or(StoreError::Closed)?;
        let transaction = database.begin_read().map_err(|e| failed(e.into()))?;
        let rows = transaction.open_table(table.definition()).map_err(|e| failed(e.into()))?;
        let mut records = Vec::new();
        for row in rows.iter().map_err(|e| failed(e.into()))? {
            let (key, value) = row.map_err(|e| failed(e.into()))?;
            match decode(value.value()) {
                Ok(record) => records.push((key.value().to_owned(), record)),
                Err(reason) => {
                    self.incomplete.store(true, Ordering::Relaxed);
                    tracing::warn!(table = table.name(), key = key.value(), reason, "record left out");
                }
            }
        }
        Ok(records)
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    if envelope.version > RECORD_VERSION {
        return Err(format!("version {} is newer than this daemon's {RECORD_VERSION}", envelope.version));
    }
    Ok(envelope.record)
}

fn open_database(path: &Path) -> Result<Database, redb::Error> {
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    Ok(database)
}

/// Whether the file itself is bad, and not the moment.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        redb::Error::Corrupted(_) => true,
        redb::Error::Io(error) => {
            matches!(
                error.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput
            )
        }
        _ => false,
    }
}

fn set_aside(path: &Path, error: &redb::Error) -> Result<(), StoreError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{seconds}"));
    tracing::error!(path = %path.display(), %error, "the store is damaged; set aside, a new one begins");
    std::fs::rename(path, aside).map_err(|source| StoreError::SetAside { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_survive_a_reopen() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metadata.redb");
        let store = Store::open(&path)?;
        store.put(Table::Images, "a", &vec![1, 2]).await?;
        store.put(Table::Images, "b", &vec![3]).await?;
        store.delete(Table::Images, "b").await?;
        drop(store);
        let store = Store::open(&path)?;
        assert_eq!(store.load::<Vec<i32>>(Table::Images)?, vec![("a".to_owned(), vec![1, 2])]);
        Ok(())
    }

    #[test]
    fn damaged_file_is_set_aside() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metadata.redb");
        std::fs::write(&path, b"this is no database at all, only text of some length")?;
        let store = Store::open(&path)?;
        assert!(store.load::<String>(Table::Sandboxes)?.is_empty());
        assert_eq!(std::fs::read_dir(dir.path())?.count(), 2);
        Ok(())
    }
}
