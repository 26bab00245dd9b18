//! Copies of records beside what they stand for: a pod is found again when the store is lost.
//!
//! A copy counts only where the store has no record of its own. It lies in the state folder, which a reboot empties, and so
//! it is not synced: a crash of the daemon loses nothing that was written. One of another boot speaks of what has ended.
//!
//! ```text
//! <bundle>/record.json    {"version", "boot", "record"}
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::RECORD_VERSION;
use crate::boot::BootId;

const NAME: &str = "record.json";

/// A record found in a bundle.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Copy<T> {
    version: u32,
    /// When the kernel was started that it speaks of.
    pub boot: BootId,
    pub record: T,
}

/// Writes the copy, in one step, into a bundle that is there.
///
/// # Errors
/// When it cannot be written; the bundle's absence is none.
pub fn write<T: Serialize>(bundle: &Path, boot: &BootId, record: &T) -> io::Result<()> {
    let copy = Copy { version: RECORD_VERSION, boot: boot.clone(), record };
    let text = serde_json::to_vec(&copy)?;
    let scratch = bundle.join("record.json.new");
    let opened = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&scratch);
    let mut file = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    file.write_all(&text)?;
    fs::rename(&scratch, bundle.join(NAME))
}

/// The copy in a bundle; none where it is absent, or not what this daemon understands.
#[must_use]
pub fn read<T: DeserializeOwned>(bundle: &Path) -> Option<Copy<T>> {
    let copy: Copy<T> = serde_json::from_slice(&fs::read(bundle.join(NAME)).ok()?).ok()?;
    (copy.version <= RECORD_VERSION).then_some(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_comes_back_and_a_torn_one_is_none() {
        let bundle = tempfile::tempdir().unwrap();
        let boot = BootId::current().unwrap();
        write(bundle.path(), &boot, &vec![1, 2]).unwrap();
        let copy = read::<Vec<i32>>(bundle.path()).unwrap();
        assert_eq!((copy.record, copy.boot), (vec![1, 2], boot.clone()));
        let path = bundle.path().join(NAME);
        let text = fs::read(&path).unwrap();
        fs::write(&path, &text[..text.len() / 2]).unwrap();
        assert!(read::<Vec<i32>>(bundle.path()).is_none());
        write(&bundle.path().join("gone"), &boot, &1).unwrap();
    }
}
