//! Unix sockets by folder and name, so that a long path never meets the 107-byte limit of socket addresses.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A path to the same socket that is short however deep the folder lies; valid while the folder's handle lives.
fn short(path: &Path) -> io::Result<(File, PathBuf)> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let folder = File::options().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(folder)?;
    let path = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    Ok((folder, path))
}

pub fn bind_in_folder(path: &Path) -> io::Result<UnixListener> {
    let (_folder, path) = short(path)?;
    UnixListener::bind(path)
}

pub fn connect_in_folder(path: &Path) -> io::Result<UnixStream> {
    let (_folder, path) = short(path)?;
    UnixStream::connect(path)
}
