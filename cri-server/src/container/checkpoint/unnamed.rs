//! A file that has no name until it is whole.
//!
//! Invariant: what ends the daemon in the middle leaves nothing but an archive under its own name or none, where the file
//! system knows files without names. On others the file has a name of its own, which only SIGKILL leaves behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat};
use rustix::io::Errno;

use super::failed;
use crate::container::ContainerError;

/// Only its owner may read it: it holds a container's memory.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// How many names are tried for the moment between the two links.
const TRIES: u32 = 16;

pub(super) enum Unnamed {
    Without(File),
    With(tempfile::NamedTempFile),
}

impl Unnamed {
    /// A new file in the folder of `location`.
    pub fn beside(location: &Path) -> Result<Self, ContainerError> {
        let folder = location.parent().unwrap_or_else(|| Path::new("/"));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        match rustix::fs::open(folder, flags, MODE) {
            Ok(fd) => Ok(Self::Without(fd.into())),
            // Each file system says in its own way that it has no such files.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let made = tempfile::Builder::new().prefix(".checkpoint-").tempfile_in(folder);
                made.map(Self::With).map_err(failed("create a file in", folder))
            }
            Err(errno) => Err(failed("create a file in", folder)(errno.into())),
        }
    }

    pub fn file(&mut self) -> &mut File {
        match self {
            Self::Without(file) => file,
            Self::With(file) => file.as_file_mut(),
        }
    }

    /// Puts it at `location`, in place of what is there.
    pub fn name(self, location: &Path) -> Result<(), ContainerError> {
        match self {
            Self::Without(file) => link(&file, location).map_err(failed("name", location)),
            Self::With(file) => {
                file.persist(location).map(drop).map_err(|e| failed("rename to", location)(e.error))
            }
        }
    }
}

/// A link does not replace: where something is already, another name comes first, for a moment.
fn link(file: &File, location: &Path) -> io::Result<()> {
    match link_at(file, location) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        done => return done,
    }
    for number in 0..TRIES {
        let mut name = location.as_os_str().to_owned();
        name.push(format!(".new{number}"));
        let beside = PathBuf::from(name);
        match link_at(file, &beside) {
            Ok(()) => {
                return fs::rename(&beside, location).inspect_err(|_| drop(fs::remove_file(&beside)));
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// open(2) names this way of giving an unnamed file a name.
fn link_at(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(CWD, own, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn it_appears_whole_and_replaces_what_was_there() {
        let folder = tempfile::tempdir().unwrap();
        let location = folder.path().join("c.tar");
        for text in ["first", "second"] {
            let mut unnamed = Unnamed::beside(&location).unwrap();
            unnamed.file().write_all(text.as_bytes()).unwrap();
            let before = names(folder.path());
            assert!(before.iter().all(|name| name == "c.tar"), "{before:?}");
            unnamed.name(&location).unwrap();
            assert_eq!(fs::read_to_string(&location).unwrap(), text);
            assert_eq!(names(folder.path()), ["c.tar"]);
            assert_eq!(fs::metadata(&location).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn one_that_is_given_up_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut unnamed = Unnamed::beside(&folder.path().join("c.tar")).unwrap();
        unnamed.file().write_all(b"half").unwrap();
        drop(unnamed);
        assert!(names(folder.path()).is_empty());
    }
}
