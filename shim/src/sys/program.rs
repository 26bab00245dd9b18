//! This program's own file, seen through a mount that nobody can write.
//!
//! A process that runs it inside a container shows the file as /proc/PID/exe, and whoever opens that gets the mount as
//! well (CVE-2019-5736). Invariant: the mount is a clone of its own, read-only, and no longer attached to anything when
//! [`own`] returns, so that no right inside the container can make it writable again. It shares the file's pages: unlike
//! a copy in memory it costs none.
#![allow(unsafe_code)]

use std::ffi::c_uint;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

/// A handle of the file for [`std::process::Command`], by way of /proc/self/fd.
pub fn own() -> io::Result<OwnedFd> {
    let clone = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, "/proc/self/exe", clone)?;
    forbid_writing(&tree)?;
    let path = format!("/proc/self/fd/{}", tree.as_raw_fd());
    // Closing the tree, at the end of this function, detaches the mount; the file keeps it alive.
    Ok(rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// See mount_setattr(2).
fn forbid_writing(tree: impl AsFd) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = c_uint::try_from(libc::AT_EMPTY_PATH).unwrap_or_default();
    // SAFETY: the descriptor is borrowed for the call, the path is an empty string with its end, and the size is that
    // of the structure, which the kernel only reads.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_the_handle_shows_the_same_file_and_cannot_be_used_to_change_it() {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let handle = own().unwrap();
        let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
        let (shown, real) = (std::fs::metadata(&path).unwrap(), std::fs::metadata("/proc/self/exe").unwrap());
        assert_eq!((shown.dev(), shown.ino()), (real.dev(), real.ino()));
        let same = std::fs::Permissions::from_mode(real.mode());
        let refused = std::fs::set_permissions(&path, same).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        // The mount belongs to no namespace any more: nobody's attributes can be set, whatever rights he has.
        let again = forbid_writing(&handle).unwrap_err();
        assert_eq!(again.raw_os_error(), Some(libc::EINVAL));
        assert!(std::process::Command::new(&path).arg("--list").output().unwrap().status.success());
    }
}
