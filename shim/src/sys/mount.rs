//! mount_setattr(2), for which no library has a wrapper yet.
//!
//! Invariant: the structure lives on the caller's stack for the length of the call only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;

/// `struct mount_attr` as of Linux 5.12, its first version.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn set(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> nix::Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the descriptor is open for the length of the call, the path is an empty C string, and the structure has the
    // layout and the size that the kernel is told.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

/// Shows a detached mount, or the whole tree of it, with the owners that the user namespace's mapping gives.
pub fn map_ids(mount: impl AsFd, userns: impl AsFd, recursive: bool) -> nix::Result<()> {
    map_with(mount, userns, recursive, 0)
}

/// The same for the folder of a layer, which others share: whoever comes upon the mount can change nothing through it.
pub fn map_layer(mount: impl AsFd, userns: impl AsFd) -> nix::Result<()> {
    map_with(mount, userns, false, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV)
}

fn map_with(mount: impl AsFd, userns: impl AsFd, recursive: bool, more: u64) -> nix::Result<()> {
    let userns = userns.as_fd().as_raw_fd();
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_IDMAP | more,
        userns_fd: u64::try_from(userns).map_err(|_| Errno::EBADF)?,
        ..MountAttr::default()
    };
    set(mount.as_fd(), recursive, &attr)
}

/// How mount events travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    Private,
    Slave,
}

/// Says how mount events travel at one mount of this process's namespace.
pub fn set_propagation(mount: impl AsFd, propagation: Propagation) -> nix::Result<()> {
    propagate(mount, propagation, false)
}

/// The same for a mount and all that lies in it.
pub fn set_tree_propagation(mount: impl AsFd, propagation: Propagation) -> nix::Result<()> {
    propagate(mount, propagation, true)
}

fn propagate(mount: impl AsFd, propagation: Propagation, recursive: bool) -> nix::Result<()> {
    let propagation = match propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::Slave => libc::MS_SLAVE,
    };
    set(mount.as_fd(), recursive, &MountAttr { propagation, ..MountAttr::default() })
}

/// Lets nothing be written through one mount from here on.
pub fn set_readonly(mount: impl AsFd) -> nix::Result<()> {
    set(mount.as_fd(), false, &MountAttr { set: libc::MOUNT_ATTR_RDONLY, ..MountAttr::default() })
}
