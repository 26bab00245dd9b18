//! Reads files of an image without running it.
//!
//! Invariant: a path of an image is resolved by the kernel inside the image's root; a symbolic link in an image cannot name
//! a file of the node.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen,
};

use super::error::SnapshotError;
use super::tree;

/// The stack of `lower` directories, top first, as one read-only directory that no path leads to.
pub(super) fn stack(lower: &[PathBuf], scratch: &Path) -> Result<OwnedFd, SnapshotError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    if let [only] = lower {
        return rustix::fs::openat(CWD, only, flags, Mode::empty())
            .map_err(|e| SnapshotError::io("open", only)(e.into()));
    }
    match detached(lower) {
        Ok(fd) => Ok(fd),
        // Kernels before 6.8 take no list of directories this way.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => mounted_and_detached(lower, scratch),
        Err(errno) => Err(SnapshotError::io("stack layers for", scratch)(errno.into())),
    }
}

fn detached(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for directory in lower {
        fsconfig_set_string(context.as_fd(), "lowerdir+", directory)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The mount is in the table for a moment only; the file descriptor keeps it alive.
fn mounted_and_detached(lower: &[PathBuf], scratch: &Path) -> Result<OwnedFd, SnapshotError> {
    std::fs::create_dir_all(scratch).map_err(SnapshotError::io("make directory", scratch))?;
    let names: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let options = std::ffi::CString::new(format!("lowerdir={}", names.join(":")))
        .map_err(|e| SnapshotError::io("mount", scratch)(e.into()))?;
    rustix::mount::mount(
        "overlay",
        scratch,
        "overlay",
        MountFlags::RDONLY | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(|e| SnapshotError::io("mount", scratch)(e.into()))?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(CWD, scratch, flags, Mode::empty());
    rustix::mount::unmount(scratch, UnmountFlags::DETACH)
        .map_err(|e| SnapshotError::io("unmount", scratch)(e.into()))?;
    let _ = std::fs::remove_dir(scratch);
    opened.map_err(|e| SnapshotError::io("open", scratch)(e.into()))
}

/// The folder `path` under `root`, wherever links in the image lead inside it; the root itself for an empty one.
///
/// # Errors
/// When there is none.
pub fn open_folder_in_root(root: BorrowedFd<'_>, path: &str) -> Result<OwnedFd, Errno> {
    tree::resolve(root, path.as_bytes(), OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::empty())
}

/// Content of the regular file `path` under `root`, at most `max_bytes`; `None` when there is no such file.
///
/// # Errors
/// When it is no regular file, is larger, or cannot be read.
pub fn read_in_root(
    root: BorrowedFd<'_>,
    path: &str,
    max_bytes: u64,
) -> Result<Option<Vec<u8>>, SnapshotError> {
    let failed = || SnapshotError::entry_io("open", path.as_bytes());
    let unreadable = |reason: String| SnapshotError::Unreadable { path: path.to_owned(), reason };
    // Opened twice: the first time nothing happens, whatever device or pipe it is.
    let handle = match tree::resolve(root, path.as_bytes(), OFlags::PATH, ResolveFlags::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(errno) => return Err(failed()(errno)),
    };
    let before = rustix::fs::fstat(&handle).map_err(failed())?;
    if tree::file_type(&before) != rustix::fs::FileType::RegularFile {
        return Err(unreadable("it is no regular file".to_owned()));
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = tree::resolve(root, path.as_bytes(), flags, ResolveFlags::empty()).map_err(failed())?;
    let after = rustix::fs::fstat(&fd).map_err(failed())?;
    if (after.st_ino, after.st_dev) != (before.st_ino, before.st_dev) {
        return Err(unreadable("it changed while it was opened".to_owned()));
    }
    let mut bytes = Vec::new();
    File::from(fd).take(max_bytes + 1).read_to_end(&mut bytes).map_err(|source| SnapshotError::EntryIo {
        op: "read",
        entry: path.to_owned(),
        source,
    })?;
    if bytes.len() as u64 > max_bytes {
        return Err(unreadable(format!("it has more than {max_bytes} bytes")));
    }
    Ok(Some(bytes))
}
