//! Unix sockets in folders whose names are longer than those of sockets may be.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// A short name for `path`, as long as the descriptor is open.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let missing = || io::Error::from(io::ErrorKind::InvalidInput);
    let (folder, name) = (path.parent().ok_or_else(missing)?, path.file_name().ok_or_else(missing)?);
    let folder = rustix::fs::open(folder, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name);
    Ok((folder, short))
}

/// Listens at `path`, whatever was there before.
///
/// # Errors
/// When the folder is not there, or cannot be written.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    let (_folder, short) = short(path)?;
    drop(fs::remove_file(&short));
    UnixListener::bind(&short)
}

/// # Errors
/// When nobody listens at `path`.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let (_folder, short) = short(path)?;
    UnixStream::connect(&short)
}
