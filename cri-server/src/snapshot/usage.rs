//! How much a container's writable layer holds.
//!
//! Invariant: the walk is bounded in depth and in entries, because the container decides what it finds; it stays on the
//! file system it began on and follows nothing.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::error::SnapshotError;
use super::tree;

/// Bytes and inodes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Allocated bytes.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// Deeper directories are not counted; none of them could be reached by an ordinary path either.
const MAX_DEPTH: usize = 256;
const MAX_ENTRIES: u64 = 4_000_000;

struct Walk {
    used: Usage,
    seen_links: HashSet<u64>,
    device: u64,
}

/// Adds up the tree below `path`, the directory itself included; an absent one uses nothing.
pub(super) fn of_tree(path: &Path) -> Result<Usage, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |e: Errno| SnapshotError::io("measure", path)(e.into());
    let top = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(Usage::default()),
        Err(errno) => return Err(failed(errno)),
    };
    let stat = rustix::fs::fstat(&top).map_err(failed)?;
    let used = Usage { bytes: allocated(stat.st_blocks), inodes: 1 };
    let mut walk = Walk { used, seen_links: HashSet::new(), device: stat.st_dev };
    walk.directory(&top, 0).map_err(failed)?;
    Ok(walk.used)
}

/// The kernel counts in sectors of 512 bytes.
fn allocated(blocks: i64) -> u64 {
    u64::try_from(blocks).unwrap_or(0) * 512
}

impl Walk {
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> Result<(), Errno> {
        for name in tree::names(directory)? {
            if self.used.inodes >= MAX_ENTRIES {
                return Ok(());
            }
            let stat = match rustix::fs::statat(directory, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // The container runs on meanwhile.
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(errno),
            };
            if stat.st_dev != self.device {
                continue;
            }
            let is_directory = tree::file_type(&stat) == FileType::Directory;
            if !is_directory && stat.st_nlink > 1 && !self.seen_links.insert(stat.st_ino) {
                continue;
            }
            self.used.inodes += 1;
            self.used.bytes += allocated(stat.st_blocks);
            if is_directory && depth < MAX_DEPTH {
                match tree::open_directory(directory.as_fd(), &name) {
                    Ok(child) => self.directory(&child, depth + 1)?,
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(())
    }
}
