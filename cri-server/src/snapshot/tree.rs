//! A directory tree that is written to without ever leaving it.
//!
//! Invariant: every path is resolved by the kernel under [`Tree::root`] (`openat2` with `RESOLVE_IN_ROOT`), and the last
//! component of what is created or removed is never followed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::error::SnapshotError;

/// Symbolic links followed while parents are made, as many as the kernel follows.
const MAX_LINKS: usize = 40;
/// Directory levels held open while removing; deeper ones are first moved up.
const REMOVE_DEPTH: usize = 64;
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

/// A path cleaned of `.`, `..` and empty components, relative to the root; empty for the root itself.
pub(crate) fn clean(path: &[u8], max_depth: usize) -> Result<Vec<u8>, SnapshotError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            // Above the root is the root, as in a chroot.
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    if parts.len() > max_depth {
        return Err(SnapshotError::Limit { what: "directories in a path", limit: max_depth as u64 });
    }
    Ok(parts.join(&b'/'))
}

/// Parent and last component of a cleaned path that is not the root.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

pub(crate) fn resolve(
    root: BorrowedFd<'_>,
    path: &[u8],
    flags: OFlags,
    extra: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | extra;
    // EAGAIN: something was renamed meanwhile and the kernel cannot tell whether `..` stayed inside.
    for _ in 0..16 {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), how) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Whether overlayfs takes this for "removed here".
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// The most that the names of directories without an entry may take together: some 100,000 ordinary ones.
const MAX_IMPLIED_BYTES: u64 = 16 << 20;

/// The tree of one layer while it is unpacked.
pub(crate) struct Tree {
    root: OwnedFd,
    last_parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories that entries needed but the archive did not describe; real paths.
    pub implied: Vec<Vec<u8>>,
    implied_bytes: u64,
    max_depth: usize,
}

impl Tree {
    /// Takes the directory `root` as the root.
    pub fn open(root: &std::path::Path, max_depth: usize) -> Result<Self, SnapshotError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root, flags, Mode::empty())
            .map_err(|e| SnapshotError::io("open", root)(e.into()))?;
        Ok(Self { root, last_parent: None, implied: Vec::new(), implied_bytes: 0, max_depth })
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Forgets directories that may have moved.
    pub fn forget(&mut self) {
        self.last_parent = None;
    }

    /// The directory at a cleaned path; symbolic links in it lead inside the root, what is missing is created.
    pub fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, SnapshotError> {
        if let Some((known, fd)) = &self.last_parent
            && known == path
        {
            return Ok(fd.clone());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let fd = match resolve(self.root(), path, flags, ResolveFlags::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
            Err(errno) => return Err(SnapshotError::entry_io("open directory", path)(errno)),
        };
        let fd = Rc::new(fd);
        self.last_parent = Some((path.to_vec(), fd.clone()));
        Ok(fd)
    }

    /// Walks like the kernel would in a chroot, and makes what is missing.
    fn make_directories(&mut self, path: &[u8]) -> Result<OwnedFd, SnapshotError> {
        let parts = |path: &[u8]| path.split(|b| *b == b'/').rev().map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut todo = parts(path);
        let mut real: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        let mut here = self.real_directory(b"")?;
        while let Some(part) = todo.pop() {
            match part.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    real.pop();
                    here = self.real_directory(&real.join(&b'/'))?;
                    continue;
                }
                _ => {}
            }
            if real.len() >= self.max_depth {
                return Err(SnapshotError::Limit {
                    what: "directories in a path",
                    limit: self.max_depth as u64,
                });
            }
            let found = lstat(here.as_fd(), &part)?;
            match found.as_ref().map(file_type) {
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(SnapshotError::entry(path, "too many symbolic links"));
                    }
                    let target = rustix::fs::readlinkat(&here, part.as_slice(), Vec::new())
                        .map_err(SnapshotError::entry_io("read link", &part))?
                        .into_bytes();
                    if target.starts_with(b"/") {
                        real.clear();
                        here = self.real_directory(b"")?;
                    }
                    todo.extend(parts(&target));
                    continue;
                }
                Some(FileType::Directory) => real.push(part),
                _ => {
                    self.replace_by_directory(here.as_fd(), &part, found.as_ref())?;
                    real.push(part);
                    self.imply(real.join(&b'/'))?;
                }
            }
            here = self.real_directory(&real.join(&b'/'))?;
        }
        Ok(here)
    }

    /// Notes a directory that no entry describes. They cost inodes and memory like entries, so they have bounds too.
    fn imply(&mut self, path: Vec<u8>) -> Result<(), SnapshotError> {
        self.implied_bytes += path.len() as u64;
        if self.implied_bytes > MAX_IMPLIED_BYTES {
            return Err(SnapshotError::Limit {
                what: "bytes in names of directories that no entry describes",
                limit: MAX_IMPLIED_BYTES,
            });
        }
        self.implied.push(path);
        Ok(())
    }

    fn real_directory(&self, path: &[u8]) -> Result<OwnedFd, SnapshotError> {
        resolve(self.root(), path, OFlags::PATH | OFlags::DIRECTORY, ResolveFlags::NO_SYMLINKS)
            .map_err(SnapshotError::entry_io("open directory", path))
    }

    /// Makes a directory where nothing, or something that is no directory, was.
    pub fn replace_by_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        found: Option<&Stat>,
    ) -> Result<(), SnapshotError> {
        if found.is_some() {
            self.remove(parent, name, found)?;
        }
        rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
            .map_err(SnapshotError::entry_io("make directory", name))?;
        // What lower layers have there was removed by the whiteout, and stays so.
        if found.is_some_and(is_whiteout) {
            set_opaque(parent, name)?;
        }
        Ok(())
    }

    /// Removes what is at `name`, if anything is, with all below it.
    pub fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        found: Option<&Stat>,
    ) -> Result<(), SnapshotError> {
        let Some(found) = found else { return Ok(()) };
        if file_type(found) != FileType::Directory {
            if file_type(found) == FileType::Symlink {
                self.forget();
            }
            return rustix::fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(SnapshotError::entry_io("remove", name));
        }
        self.forget();
        remove_tree(parent, name).map_err(SnapshotError::entry_io("remove", name))
    }
}

/// What is at `name`, without following it.
pub(crate) fn lstat(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<Stat>, SnapshotError> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(SnapshotError::entry_io("stat", name)(errno)),
    }
}

/// Hides what lower layers hold in the directory `name`.
pub(crate) fn set_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), SnapshotError> {
    let fail = || SnapshotError::entry_io("mark opaque", name);
    let directory = open_directory(parent, name).map_err(fail())?;
    rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty()).map_err(fail())
}

pub(crate) fn open_directory(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

/// The same, but not where something is mounted: nothing is removed through a mount.
fn open_here(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(parent, name, flags, Mode::empty(), how)
}

/// Removes a directory with all below it, however deep: no recursion beyond [`REMOVE_DEPTH`].
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let top = open_here(parent, name)?;
    let mut moved = 0u64;
    // Every round removes all but what lay too deep, which has then become a child of the top.
    loop {
        let before = moved;
        empty_directory(&top, &top, 0, &mut moved)?;
        if moved == before {
            break;
        }
    }
    rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}

fn empty_directory(directory: &OwnedFd, top: &OwnedFd, depth: usize, moved: &mut u64) -> Result<(), Errno> {
    for name in names(directory)? {
        match rustix::fs::unlinkat(directory, name.as_slice(), AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) if depth >= REMOVE_DEPTH => {
                *moved += 1;
                let up = format!(".moved-up-{moved}-{}", rustix::process::getpid().as_raw_nonzero());
                rustix::fs::renameat(directory, name.as_slice(), top, up)?;
            }
            Err(Errno::ISDIR | Errno::PERM) => {
                let child = open_here(directory.as_fd(), &name)?;
                empty_directory(&child, top, depth + 1, moved)?;
                rustix::fs::unlinkat(directory, name.as_slice(), AtFlags::REMOVEDIR)?;
            }
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Names in a directory, without `.` and `..`.
pub(crate) fn names(directory: &OwnedFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}
