//! Gives a volume the SELinux label of the container that uses it.
//!
//! Invariants: what is labelled lies below the volume's root, whatever its files are replaced by meanwhile; the root is
//! labelled last, so that a root that has the label says that all below it has been given it.

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

/// Why a volume could not be labelled.
#[derive(Debug, thiserror::Error)]
pub enum RelabelError {
    #[error("{0} is a folder of the node's system: it is not relabelled for a container")]
    System(PathBuf),
    #[error("{operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: io::Error },
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
    let (mut done, mut ahead) = (0, vec![PathBuf::new()]);
    while let Some(folder) = ahead.pop() {
        // An empty path would not be resolved.
        let inside = if folder.as_os_str().is_empty() { Path::new(".") } else { &folder };
        let Some(entries) = entries(&top, inside).map_err(failed("read", &root.join(&folder)))? else {
            continue;
        };
        for name in entries {
            if stop() {
                return Err(RelabelError::Stopped(root.to_owned()));
            }
            let path = folder.join(OsStr::from_bytes(&name));
            let Some(file) = open_below(&top, &path).map_err(failed("open", &root.join(&path)))? else {
                continue;
            };
            let stat = fstat(&file).map_err(failed("look at", &root.join(&path)))?;
            set(&file, label).map_err(failed("label", &root.join(&path)))?;
            done += 1;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                ahead.push(path);
            }
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

/// The names in a folder; none for what is no folder (any more).
fn entries(top: &OwnedFd, path: &Path) -> io::Result<Option<Vec<Vec<u8>>>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let Some(folder) = gone(openat2(top, path, flags, Mode::empty(), how))? else { return Ok(None) };
    let mut names = Vec::new();
    for entry in Dir::new(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(Some(names))
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
