//! The daemon's durable records: one redb file, one writer, commits batched.
//!
//! Holds only what cannot be had from the kernel or a shim. A record is on disk when [`Store::put`] or
//! [`Store::delete`] returns. Each value is JSON in an envelope with a version, so that a later daemon can tell
//! old records from new ones.
//!
//! ```text
//! <root>/metadata.redb            tables: images, sandboxes, containers, node
//! <root>/metadata.redb.damaged-*  a file that was damaged, kept for a person to look at
//! <root>/metadata.substitute.redb stands in for one that the file system does not give up
//! ```

pub mod copy;
mod file;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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

impl StoreError {
    /// Whether another process has the store open.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        matches!(self, Self::Open { source, .. } if matches!(**source, redb::Error::DatabaseAlreadyOpen))
    }
}

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    Images,
    Sandboxes,
    Containers,
    /// What the daemon tells the next one about itself.
    Node,
}

impl Table {
    const ALL: [Table; 4] = [Table::Images, Table::Sandboxes, Table::Containers, Table::Node];

    fn name(self) -> &'static str {
        match self {
            Table::Images => "images",
            Table::Sandboxes => "sandboxes",
            Table::Containers => "containers",
            Table::Node => "node",
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

/// A record that is there and cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreadable {
    pub table: &'static str,
    pub key: String,
    /// A newer daemon understands it.
    pub is_newer: bool,
}

/// The open store. Clones of the `Arc` share one writer.
pub struct Store {
    database: Slot,
    writer: Writer,
    losses: Vec<String>,
    unreadable: Mutex<Vec<Unreadable>>,
}

impl Store {
    /// Opens the store at `path`, making it when it is missing, and checks it page by page. A damaged file is set aside, and
    /// a new store begins with what can be read of it: a node must come up. `expected` says that there was one.
    ///
    /// # Errors
    /// When neither the file nor a new one in its place can be opened.
    pub fn open(path: &Path, expected: bool) -> Result<Arc<Self>, StoreError> {
        let file::Opened { database, path, losses } = file::open(path, expected)?;
        let database = Arc::new(Mutex::new(Some(database)));
        let writer = Writer::start(path, Arc::clone(&database));
        Ok(Arc::new(Self { database, writer, losses, unreadable: Mutex::default() }))
    }

    /// What was lost before this daemon, in words; nothing, ordinarily.
    #[must_use]
    pub fn losses(&self) -> &[String] {
        &self.losses
    }

    /// The records that were left out when tables were loaded.
    #[must_use]
    pub fn unreadable(&self) -> Vec<Unreadable> {
        self.unreadable.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether records are missing that there were: what has none is then looked for elsewhere.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        !self.losses.is_empty() || !self.unreadable().is_empty()
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

    /// All records of a table. One that cannot be understood (a damaged or a newer one) is left out, see
    /// [`Self::unreadable`].
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
                Err((is_newer, reason)) => {
                    let (table, key) = (table.name(), key.value().to_owned());
                    tracing::warn!(table, key, reason, "record left out");
                    let mut all = self.unreadable.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(Unreadable { table, key, is_newer });
                }
            }
        }
        Ok(records)
    }
}

/// The record, or whether a newer daemon understands it, and why this one does not.
fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, (bool, String)> {
    let damaged = |error: serde_json::Error| (false, error.to_string());
    let version: Envelope<serde::de::IgnoredAny> = serde_json::from_slice(bytes).map_err(damaged)?;
    if version.version > RECORD_VERSION {
        let version = version.version;
        return Err((true, format!("version {version} is newer than this daemon's {RECORD_VERSION}")));
    }
    let envelope: Envelope<T> = serde_json::from_slice(bytes).map_err(damaged)?;
    Ok(envelope.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn records_survive_a_reopen() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metadata.redb");
        let store = Store::open(&path, false)?;
        store.put(Table::Images, "a", &vec![1, 2]).await?;
        store.put(Table::Images, "b", &vec![3]).await?;
        store.delete(Table::Images, "b").await?;
        drop(store);
        let store = Store::open(&path, false)?;
        assert_eq!(store.load::<Vec<i32>>(Table::Images)?, vec![("a".to_owned(), vec![1, 2])]);
        Ok(())
    }

    /// As many records as fill some pages.
    async fn filled(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let store = Store::open(path, false)?;
        for number in 0..50 {
            store.put(Table::Sandboxes, &format!("s{number}"), &"x".repeat(1000)).await?;
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_damaged_file_is_set_aside_and_told() -> Result<(), Box<dyn std::error::Error>> {
        type Harm = fn(&mut Vec<u8>);
        let damage: [(&str, Harm); 4] = [
            ("garbage", |bytes| *bytes = b"this is no database at all, only text of some length".to_vec()),
            ("cut in half", |bytes| bytes.truncate(bytes.len() / 2)),
            ("head overwritten", |bytes| bytes[..512].fill(0xa5)),
            ("pages overwritten", |bytes| bytes[4096..].iter_mut().step_by(64).for_each(|b| *b ^= 0x55)),
        ];
        for (name, damage) in damage {
            let dir = tempfile::tempdir()?;
            let path = dir.path().join("metadata.redb");
            filled(&path).await?;
            let mut bytes = std::fs::read(&path)?;
            damage(&mut bytes);
            std::fs::write(&path, bytes)?;
            let store = Store::open(&path, true).map_err(|error| format!("{name}: {error}"))?;
            assert!(store.is_incomplete() && store.losses().len() == 1, "{name}: {:?}", store.losses());
            assert!(store.load::<String>(Table::Sandboxes)?.len() <= 50);
            assert_eq!(std::fs::read_dir(dir.path())?.count(), 2, "{name}: one file aside");
            store.put(Table::Sandboxes, "new", &"x").await?;
            drop(store);
            let store = Store::open(&path, true)?;
            assert!(!store.is_incomplete(), "{name}: {:?}", store.losses());
            assert!(store.load::<String>(Table::Sandboxes)?.iter().any(|(key, _)| key == "new"), "{name}");
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_store_that_is_gone_is_told() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("metadata.redb");
        assert!(!Store::open(&path, false)?.is_incomplete());
        std::fs::remove_file(&path)?;
        assert!(Store::open(&path, true)?.is_incomplete());
        std::fs::write(&path, b"")?;
        assert!(Store::open(&path, true)?.is_incomplete());
        Ok(())
    }

    #[tokio::test]
    async fn a_record_that_is_not_understood_is_left_out() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let store = Store::open(&dir.path().join("metadata.redb"), false)?;
        store.put(Table::Images, "good", &1).await?;
        store.put(Table::Images, "bad", &"text").await?;
        assert_eq!(store.load::<i32>(Table::Images)?, vec![("good".to_owned(), 1)]);
        let bad = Unreadable { table: "images", key: "bad".to_owned(), is_newer: false };
        assert_eq!(store.unreadable(), vec![bad]);
        assert!(decode::<i32>(br#"{"version":9,"record":{"of":"later"}}"#).is_err_and(|(newer, _)| newer));
        Ok(())
    }
}
