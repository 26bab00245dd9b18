//! Whose a name is: ids carry a mark of the daemon that gave them.
//!
//! Several daemons may work on one machine, and what is left of a pod often has nothing but its id, such as a cgroup. The
//! last eight digits of an id are a digest of the others and of the owner's key, so that a daemon knows its own ids,
//! also when every record of them is lost.
//!
//! ```text
//! <root>/owner    the key: 32 hexadecimal digits, made once
//! ```

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::model::{ContainerId, IdError, SandboxId};
use crate::notices::Notices;

const KEY_BYTES: usize = 16;
/// Digits of an id that are random, and those that are the mark.
const RANDOM: usize = 56;
const MARK: usize = 8;

/// Why there is no owner.
#[derive(Debug, thiserror::Error)]
pub enum OwnerError {
    #[error("cannot {operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("no randomness")]
    Random(#[source] io::Error),
    #[error(transparent)]
    Id(#[from] IdError),
}

/// The daemon that owns a root folder.
#[derive(Clone, Debug)]
pub struct Owner {
    key: [u8; KEY_BYTES],
    is_new: bool,
}

impl Owner {
    /// The owner of `root`; made when there is none yet, or none that can be read. On a damaged file system one that lasts as
    /// long as the daemon has to do.
    ///
    /// # Errors
    /// When the key can be neither read nor stored.
    pub fn open(root: &Path, notices: &Notices) -> Result<Self, OwnerError> {
        let path = root.join("owner");
        let failed = |operation| {
            let path = path.clone();
            move |source| OwnerError::File { operation, path, source }
        };
        match fs::read_to_string(&path) {
            Ok(text) => match decode(text.trim()) {
                Some(key) => return Ok(Self { key, is_new: false }),
                None => tracing::error!(path = %path.display(), "not an owner's key; a new one is made"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                tracing::error!(path = %path.display(), "not an owner's key; a new one is made");
            }
            read => drop(
                notices
                    .pass_over(|| "the owner's key is lost, a new one is made".to_owned(), read)
                    .map_err(failed("read"))?,
            ),
        }
        let is_new = fs::symlink_metadata(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let mut key = [0; KEY_BYTES];
        File::open("/dev/urandom").and_then(|mut r| r.read_exact(&mut key)).map_err(OwnerError::Random)?;
        let stored = notices.pass_over(|| "the owner's new key is not kept".to_owned(), store(&path, &key));
        stored.map_err(failed("write"))?;
        Ok(Self { key, is_new })
    }

    /// Whether no daemon has ever worked in this root.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// A new id of a sandbox.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn sandbox_id(&self) -> Result<SandboxId, OwnerError> {
        Ok(SandboxId::parse(&self.id()?)?)
    }

    /// A new id of a container.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn container_id(&self) -> Result<ContainerId, OwnerError> {
        Ok(ContainerId::parse(&self.id()?)?)
    }

    fn id(&self) -> Result<String, OwnerError> {
        let random = ContainerId::generate().map_err(OwnerError::Random)?;
        let random = &random.as_str()[..RANDOM];
        Ok(format!("{random}{}", self.mark(random)))
    }

    /// Whether this daemon gave the id. Ids of versions before the mark are nobody's.
    #[must_use]
    pub fn owns(&self, id: &str) -> bool {
        let digits = id.len() == RANDOM + MARK && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        digits && self.mark(&id[..RANDOM]) == id[RANDOM..]
    }

    fn mark(&self, random: &str) -> String {
        let mut hasher = sha2::Sha256::default();
        sha2::Digest::update(&mut hasher, self.key);
        sha2::Digest::update(&mut hasher, random.as_bytes());
        encode(&sha2::Digest::finalize(hasher)[..MARK / 2])
    }
}

/// Whole or not at all.
fn store(path: &Path, key: &[u8]) -> io::Result<()> {
    let scratch = path.with_extension("new");
    let mut file = File::create(&scratch)?;
    file.write_all(format!("{}\n", encode(key)).as_bytes())?;
    file.sync_all()?;
    failpoint!("owner.key_written", infallible);
    fs::rename(&scratch, path)?;
    failpoint!("owner.key_replaced", infallible);
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn encode(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn decode(text: &str) -> Option<[u8; KEY_BYTES]> {
    if text.len() != 2 * KEY_BYTES || !text.is_ascii() {
        return None;
    }
    let mut key = [0; KEY_BYTES];
    for (at, byte) in key.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_knows_its_own_ids_and_no_others() {
        let (mine, yours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (me, you) = (
            Owner::open(mine.path(), &Notices::default()).unwrap(),
            Owner::open(yours.path(), &Notices::default()).unwrap(),
        );
        assert!(me.is_new());
        let id = me.container_id().unwrap();
        assert!(me.owns(id.as_str()) && !you.owns(id.as_str()));
        let again = Owner::open(mine.path(), &Notices::default()).unwrap();
        assert!(again.owns(id.as_str()) && !again.is_new());
        for other in ["", "abc", ContainerId::generate().unwrap().as_str(), &id.as_str().to_uppercase()] {
            assert!(!me.owns(other), "{other}");
        }
    }

    #[test]
    fn a_damaged_key_is_replaced() {
        let root = tempfile::tempdir().unwrap();
        for damage in ["", "zz", "é"] {
            fs::write(root.path().join("owner"), damage).unwrap();
            let owner = Owner::open(root.path(), &Notices::default()).unwrap();
            assert!(!owner.is_new());
            assert!(owner.owns(owner.sandbox_id().unwrap().as_str()));
        }
    }
}
