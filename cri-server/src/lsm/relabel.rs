//! Gives a volume the SELinux label of the container that uses it.
//!
//! Invariants: what is labelled lies below the volume's root, whatever its files are replaced by meanwhile; the root is
//! labelled last, so that a root that has the label says that all below it has been given it. The work takes the same
//! memory for any number of files.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags, fstat, getxattr, openat2, setxattr,
};
use rustix::io::Errno;

const NAME: &str = "security.selinux";
/// Labels are shorter: user, role, type and a level.
const LONGEST: usize = 4096;

/// Folders that are the node's and no volume's. A container's label on them would lock the node out of itself.
const SYSTEM: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/etc",
    "/home",
    "/lib",
    "/lib32",
    "/lib64",
    "/media",
    "/mnt",
    "/opt",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/tmp",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/local",
    "/var",
    "/var/lib",
    "/var/log",
    "/var/lib/kubelet",
];
/// The kernel's, with all that is below.
const KERNEL: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Folders in folders: each costs a descriptor, and a path is no longer than what the kernel takes at once.
const DEEPEST: usize = 1024;

/// Why a volume could not be labelled.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    #[error("{0} is a folder of the node's system: it is not relabelled for a container")]
    System(PathBuf),
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} lies more than {most} folders deep")]
    Deep { path: PathBuf, most: usize },
    #[error("the daemon ends: {0} is labelled when the request is repeated")]
    Stopped(PathBuf),
}

/// Labels `root`, whose links are resolved, and all below it. Nothing is done where the root has the label already, nor on
/// file systems that have no labels. `stop` is asked now and then. Answers how many files were labelled.
///
/// # Errors
/// When the root is a folder of the system, a file cannot be labelled, or it was stopped.
pub fn relabel(root: &Path, label: &str, stop: impl Fn() -> bool) -> Result<u64, RelabelError> {
    if is_system(root) {
        return Err(RelabelError::System(root.to_owned()));
    }
    let top = open(CWD, root, ResolveFlags::NO_SYMLINKS).map_err(failed("open", root))?;
    if has(&top, label) {
        return Ok(0);
    }
    let mut done = 0;
    // One open folder for each on the way down, each read bit by bit: what a volume holds does not count in memory.
    let mut way: Vec<Dir> = Vec::new();
    let mut path = PathBuf::new();
    // An empty path would not be resolved.
    way.extend(folder(&top, Path::new(".")).map_err(failed("read", root))?);
    while let Some(deepest) = way.last_mut() {
        if stop() {
            return Err(RelabelError::Stopped(root.to_owned()));
        }
        let Some(entry) = deepest.next() else {
            way.pop();
            path.pop();
            continue;
        };
        let entry = entry.map_err(failed("read", &root.join(&path)))?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let inside = path.join(OsStr::from_bytes(name));
        let Some(file) = open_below(&top, &inside).map_err(failed("open", &root.join(&inside)))? else {
            continue;
        };
        let stat = fstat(&file).map_err(failed("look at", &root.join(&inside)))?;
        set(&file, label).map_err(failed("label", &root.join(&inside)))?;
        done += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            && let Some(below) = folder(&top, &inside).map_err(failed("read", &root.join(&inside)))?
        {
            if way.len() >= DEEPEST {
                return Err(RelabelError::Deep { path: root.join(&inside), most: DEEPEST });
            }
            way.push(below);
            path = inside;
        }
    }
    set(&top, label).map_err(failed("label", root))?;
    Ok(done + 1)
}

/// Labels one file that the daemon made itself.
///
/// # Errors
/// When the file cannot be labelled.
pub fn label_file(path: &Path, label: &str) -> Result<(), RelabelError> {
    let file = open(CWD, path, ResolveFlags::NO_SYMLINKS).map_err(failed("open", path))?;
    set(&file, label).map_err(failed("label", path))
}

fn is_system(path: &Path) -> bool {
    let strange = path.components().any(|part| matches!(part, Component::ParentDir | Component::CurDir));
    strange
        || !path.is_absolute()
        || SYSTEM.iter().any(|folder| path == Path::new(folder))
        || KERNEL.iter().any(|folder| path.starts_with(folder))
}

/// Without reading, so that no device and no FIFO notices; a link is itself what is opened.
fn open(at: impl AsFd, path: &Path, how: ResolveFlags) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = if how.contains(ResolveFlags::NO_SYMLINKS) { how } else { how | ResolveFlags::NO_MAGICLINKS };
    openat2(at, path, flags, Mode::empty(), how)
}

/// What is below the root; none for what is gone or was exchanged for a link on the way.
fn open_below(top: &OwnedFd, path: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    gone(open(top, path, ResolveFlags::BENEATH))
}

fn gone<T>(result: rustix::io::Result<T>) -> rustix::io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// A folder, to be read; none for what is no folder (any more).
fn folder(top: &OwnedFd, path: &Path) -> io::Result<Option<Dir>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let Some(folder) = gone(openat2(top, path, flags, Mode::empty(), how))? else { return Ok(None) };
    Ok(Some(Dir::new(folder)?))
}

/// The kernel's name for what a descriptor stands for, be it a link or not. proc_pid_fd(5)
fn name_of(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn has(file: &OwnedFd, label: &str) -> bool {
    let mut buffer = vec![0; LONGEST];
    let read = getxattr(name_of(file), NAME, &mut buffer[..]);
    // The kernel counts the zero byte at its end in.
    read.is_ok_and(|length| {
        buffer[..length].strip_suffix(&[0]).unwrap_or(&buffer[..length]) == label.as_bytes()
    })
}

fn set(file: &OwnedFd, label: &str) -> io::Result<()> {
    match setxattr(name_of(file), NAME, label.as_bytes(), XattrFlags::empty()) {
        // It was removed after it was opened, or its file system keeps no labels.
        Ok(()) | Err(Errno::NOENT | Errno::OPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn failed<E: Into<io::Error>>(operation: &'static str, path: &Path) -> impl FnOnce(E) -> RelabelError {
    let path = path.to_owned();
    move |source| RelabelError::File { operation, path, source: source.into() }
}

#[cfg(test)]
#[path = "relabel_tests.rs"]
mod tests;
