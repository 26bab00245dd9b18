//! The leases' files: opened under the network's lock, written back whole.

use super::leases::Leases;
use cofferdam_failpoints::failpoint;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("cannot {what} {}", .path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot lock {}", .path.display())]
    Lock { path: PathBuf, source: Errno },
    #[error("{} is not a record of leases", .path.display())]
    Decode { path: PathBuf, source: serde_json::Error },
    #[error("{} was written by a newer version", .path.display())]
    Version { path: PathBuf },
}

/// One network's leases, locked for as long as this lives.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    pub leases: Leases,
    _lock: Flock<File>,
}

fn failed<T>(outcome: io::Result<T>, what: &'static str, path: &Path) -> Result<T, StoreError> {
    outcome.map_err(|source| StoreError::File { what, path: path.to_path_buf(), source })
}

impl Store {
    /// Waits for the lock; makes the network's folder where it is missing.
    pub fn open(data_dir: &Path, network: &str) -> Result<Self, StoreError> {
        let folder = data_dir.join(network);
        loop {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(&folder);
            failed(made, "create", &folder)?;
            if let Some(lock) = lock(&folder.join("lock"), true)? {
                let leases = read(&folder.join("leases"))?;
                return Ok(Self { folder, leases, _lock: lock });
            }
        }
    }

    /// As [`Store::open`], but nothing is made: `None` when the network has no record.
    pub fn open_existing(data_dir: &Path, network: &str) -> Result<Option<Self>, StoreError> {
        let folder = data_dir.join(network);
        while folder.exists() {
            if let Some(lock) = lock(&folder.join("lock"), false)? {
                let leases = read(&folder.join("leases"))?;
                return Ok(Some(Self { folder, leases, _lock: lock }));
            }
            if !folder.join("lock").exists() {
                return Ok(None);
            }
        }
        Ok(None)
    }

    pub fn save(&self) -> Result<(), StoreError> {
        let (path, next) = (self.folder.join("leases"), self.folder.join("leases.new"));
        let text = serde_json::to_vec(&self.leases)
            .map_err(|source| StoreError::Decode { path: path.clone(), source })?;
        let written = std::fs::write(&next, &text);
        if written.is_ok() {
            failpoint!("plugin.ipam.written");
            return failed(std::fs::rename(&next, &path), "replace", &path);
        }
        // On a full disk a part of it may have been written.
        let _ = std::fs::remove_file(&next);
        match written {
            Err(error) if error.kind() == io::ErrorKind::StorageFull && shorten(&path, &text).is_ok() => {
                Ok(())
            }
            written => failed(written, "write", &next),
        }
    }

    /// Removes the network's record, and the data folder when this was its last network.
    pub fn remove(self) -> Result<(), StoreError> {
        for name in ["leases", "leases.new", "lock"] {
            let path = self.folder.join(name);
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                outcome => failed(outcome, "remove", &path)?,
            }
        }
        failed(std::fs::remove_dir(&self.folder), "remove", &self.folder)?;
        // Another network's record may be beside it, and then the folder stays.
        self.folder.parent().map(std::fs::remove_dir).map_or(Ok(()), |_| Ok(()))
    }
}

/// Overwrites a file with a text that is no longer than it: that needs no room, so that pods can be removed from a
/// node whose disk is full. Only then is the risk taken that a crash in the middle spoils the record.
fn shorten(path: &Path, text: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    if file.metadata()?.len() < text.len() as u64 {
        return Err(io::ErrorKind::StorageFull.into());
    }
    file.write_all(text)?;
    file.set_len(text.len() as u64)
}

/// `None` when the file was removed while we waited for it: whoever waited must start again.
fn lock(path: &Path, create: bool) -> Result<Option<Flock<File>>, StoreError> {
    let opened =
        OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path);
    let file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => failed(opened, "open", path)?,
    };
    let locked = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, source)| StoreError::Lock { path: path.to_path_buf(), source })?;
    let links = failed(locked.metadata(), "look at", path)?.nlink();
    Ok((links > 0).then_some(locked))
}

fn read(path: &Path) -> Result<Leases, StoreError> {
    let bytes = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Leases::default()),
        read => failed(read, "read", path)?,
    };
    if bytes.is_empty() {
        return Ok(Leases::default());
    }
    let leases: Leases = serde_json::from_slice(&bytes)
        .map_err(|source| StoreError::Decode { path: path.to_path_buf(), source })?;
    if leases.is_known_version() { Ok(leases) } else { Err(StoreError::Version { path: path.to_path_buf() }) }
}
