//! The file itself: opened whole, or set aside with what can still be read of it saved.
//!
//! Invariant: what this module opens has been checked page by page; a damaged file never keeps the daemon from starting. One that
//! the file system does not even let rename has a substitute beside it, which takes its place as soon as it can.

use cofferdam_failpoints::failpoint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use redb::{Database, ReadableDatabase, ReadableTable};

use super::{CACHE_BYTES, StoreError, Table};

/// An open file, and what was lost on the way to it.
pub(super) struct Opened {
    pub database: Database,
    /// Where it is: at the path that was asked for, or its substitute.
    pub path: PathBuf,
    pub losses: Vec<String>,
}

/// Opens `path`, making it when it is missing. One that is damaged is set aside; what can be read of it comes into the new one.
/// `expected` says that there was one.
pub(super) fn open(path: &Path, expected: bool) -> Result<Opened, StoreError> {
    let substitute = path.with_extension("substitute.redb");
    let why = if substitute.exists() {
        match take_place(&substitute, path) {
            Ok(()) => return open_there(path, true),
            Err(error) => error,
        }
    } else {
        match open_there(path, expected) {
            Err(error @ StoreError::SetAside { .. }) if crate::report::damaged(&error) => error,
            opened => return opened,
        }
    };
    let mut opened = open_there(&substitute, false)?;
    let loss = format!(
        "the file system is damaged, check it: the store {} is out of use, {} stands in for it: {}",
        path.display(),
        substitute.display(),
        crate::report::chain(&why)
    );
    opened.losses.insert(0, loss);
    Ok(opened)
}

/// Gives the substitute the name of what it stood in for, which is older and set aside.
fn take_place(substitute: &Path, path: &Path) -> Result<(), StoreError> {
    let absent = std::fs::symlink_metadata(path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound);
    if !absent {
        set_aside(path)?;
    }
    failpoint!("store.substitute.way_cleared", infallible);
    std::fs::rename(substitute, path).map_err(|source| StoreError::SetAside { path: path.to_owned(), source })
}

fn open_there(path: &Path, expected: bool) -> Result<Opened, StoreError> {
    let failed = |source: redb::Error| StoreError::Open { path: path.to_owned(), source: Box::new(source) };
    let absent = match std::fs::metadata(path) {
        Ok(file) => file.len() == 0,
        Err(error) => !crate::report::damaged(&error),
    };
    let mut losses = Vec::new();
    if absent && expected {
        losses.push(format!("the store {} was gone: a new one begins", path.display()));
    }
    match guarded(|| open_database(path, true)) {
        Ok(database) => Ok(Opened { database, path: path.to_owned(), losses }),
        Err(error) if is_damage(&error) && !absent => {
            let aside = set_aside(path)?;
            failpoint!("store.set_aside", infallible);
            let database = guarded(|| open_database(path, true)).map_err(failed)?;
            let saved = salvage(&aside, &database);
            failpoint!("store.salvaged", infallible);
            losses.push(format!(
                "the store {} was damaged ({error}): kept as {}, {saved} records saved from it",
                path.display(),
                aside.display()
            ));
            Ok(Opened { database, path: path.to_owned(), losses })
        }
        // Held by another daemon, no room, no permission: nothing is damaged.
        Err(error) => Err(failed(error)),
    }
}

/// Opens a file that is sound or new; `check` reads all of it.
pub(super) fn open_database(path: &Path, check: bool) -> Result<Database, redb::Error> {
    let mut builder = Database::builder();
    let database = builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(check).create(path)?;
    let transaction = database.begin_write()?;
    for table in Table::ALL {
        transaction.open_table(table.definition())?;
    }
    transaction.commit()?;
    Ok(database)
}

/// A file of any content may make its reader panic, which says the same as an error.
fn guarded<T>(work: impl FnOnce() -> Result<T, redb::Error>) -> Result<T, redb::Error> {
    let done = catch_unwind(AssertUnwindSafe(work));
    done.unwrap_or_else(|_| Err(redb::Error::Corrupted("its reader gave up".to_owned())))
}

/// Whether the file itself is bad, and not the moment.
fn is_damage(error: &redb::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        redb::Error::Corrupted(_) | redb::Error::UpgradeRequired(_) | redb::Error::RepairAborted => true,
        redb::Error::TableTypeMismatch { .. } | redb::Error::TypeDefinitionChanged { .. } => true,
        redb::Error::Io(error) => {
            let content = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof, ErrorKind::InvalidInput];
            content.contains(&error.kind()) || crate::report::damaged(error)
        }
        _ => false,
    }
}

fn set_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".damaged-{now}"));
    let aside = PathBuf::from(aside);
    std::fs::rename(path, &aside).map_err(|source| StoreError::SetAside { path: path.to_owned(), source })?;
    Ok(aside)
}

/// Copies the rows that can still be read; answers how many. What they hold is judged by who loads them.
fn salvage(from: &Path, to: &Database) -> usize {
    let scratch = from.with_extension("salvage");
    let saved = std::fs::copy(from, &scratch).map_err(redb::Error::Io).and_then(|_| {
        guarded(|| {
            let old = Database::builder().set_cache_size(CACHE_BYTES).open(&scratch)?;
            Ok(Table::ALL.into_iter().map(|table| copy_rows(&old, to, table)).sum())
        })
    });
    // It is a copy; what stays of it is in nobody's way.
    let _ = std::fs::remove_file(&scratch);
    saved.unwrap_or_else(|error| {
        tracing::warn!(%error, "nothing can be read of the damaged store");
        0
    })
}

fn copy_rows(old: &Database, new: &Database, table: Table) -> usize {
    let rows = guarded(|| {
        let rows = old.begin_read()?.open_table(table.definition())?;
        // Up to the first that cannot be read.
        let readable = rows.iter()?.map_while(Result::ok);
        Ok(readable.map(|(key, value)| (key.value().to_owned(), value.value().to_vec())).collect::<Vec<_>>())
    });
    let Ok(rows) = rows else { return 0 };
    let written = guarded(|| {
        let transaction = new.begin_write()?;
        let mut target = transaction.open_table(table.definition())?;
        for (key, value) in &rows {
            target.insert(key.as_str(), value.as_slice())?;
        }
        drop(target);
        transaction.commit()?;
        Ok(())
    });
    if written.is_ok() { rows.len() } else { 0 }
}
