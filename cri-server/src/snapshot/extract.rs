//! Writes the entries of one layer into a directory, as overlayfs wants a layer to look.
//!
//! Whiteouts become character devices 0:0, opaque directories carry `trusted.overlay.opaque`. Each layer stands alone: what
//! lower layers hold is not looked at.
//!
//! Invariant: nothing outside the root is created, changed or linked to, whatever the archive says; the work done is
//! bounded by [`Limits`].

use std::fs::File;
use std::io::{BufRead, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use super::archive::{Archive, Entry, Kind};
use super::error::SnapshotError;
use super::limits::Limits;
use super::manifest::Contents;
use super::tree::{self, Tree};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
/// Bytes of directory paths kept until their times are set; 4 million short paths fit.
const MAX_DIRECTORY_PATHS: usize = 256 << 20;

/// What unpacking a layer made.
#[derive(Debug, Default)]
pub struct Extracted {
    /// Bytes of file content.
    pub bytes: u64,
    /// Files, directories and other inodes.
    pub inodes: u64,
    /// Directories that the archive uses without describing them; the empty path is the root.
    pub implied: Vec<Vec<u8>>,
    /// The layer hides everything below it.
    pub opaque_root: bool,
    /// What was written into its files.
    pub(super) contents: Contents,
}

/// Unpacks a tar stream into the existing, empty directory `root`, and reads the stream to its end.
///
/// # Errors
/// On damaged or refused archives, exceeded limits, and what the kernel refuses.
pub fn extract<R: BufRead>(input: R, root: &Path, limits: &Limits) -> Result<Extracted, SnapshotError> {
    let mut work = Extraction {
        tree: Tree::open(root, limits.max_path_depth)?,
        limits,
        made: Extracted::default(),
        directory_times: Vec::new(),
        directory_path_bytes: 0,
        described: std::collections::HashSet::new(),
    };
    let mut archive = Archive::new(input, limits);
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(SnapshotError::Limit { what: "entries", limit: limits.max_entries });
        }
        if entry.size > limits.max_bytes.saturating_sub(work.made.bytes) {
            return Err(SnapshotError::Limit { what: "unpacked bytes", limit: limits.max_bytes });
        }
        work.apply(&entry, &mut archive)?;
    }
    archive.drain()?;
    work.finish()
}

struct Extraction<'a> {
    tree: Tree,
    limits: &'a Limits,
    made: Extracted,
    directory_times: Vec<(Vec<u8>, (i64, u32))>,
    directory_path_bytes: usize,
    /// Implied directories that the archive described after all.
    described: std::collections::HashSet<Vec<u8>>,
}

impl Extraction<'_> {
    fn apply<R: BufRead>(&mut self, entry: &Entry, archive: &mut Archive<R>) -> Result<(), SnapshotError> {
        let path = tree::clean(&entry.path, self.limits.max_path_depth)?;
        if path.is_empty() {
            return self.root_entry(entry);
        }
        let (parent_path, name) = tree::split(&path);
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent_path, name);
        }
        let parent = self.tree.directory(parent_path)?;
        let parent = (*parent).as_fd();
        let found = tree::lstat(parent, name)?;
        match entry.kind {
            Kind::Directory => self.directory(entry, parent, &path, name, found.as_ref()),
            Kind::Hardlink => self.hardlink(entry, parent, &path, name, found.as_ref()),
            kind => {
                self.tree.remove(parent, name, found.as_ref())?;
                self.made.inodes += 1;
                match kind {
                    Kind::File => self.file(entry, parent, name, archive),
                    Kind::Symlink => self.symlink(entry, parent, name),
                    _ => self.device(entry, parent, name),
                }
            }
        }
    }

    /// The root exists already; only its attributes can be given.
    fn root_entry(&mut self, entry: &Entry) -> Result<(), SnapshotError> {
        if entry.kind != Kind::Directory {
            return Err(SnapshotError::entry(&entry.path, "names the root, which is a directory"));
        }
        let root = tree::open_directory(self.tree.root(), b".")
            .map_err(SnapshotError::entry_io("open", &entry.path))?;
        set_attributes(&root, entry)?;
        self.described.insert(Vec::new());
        self.remember_times(Vec::new(), entry.mtime)
    }

    fn directory(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        found: Option<&Stat>,
    ) -> Result<(), SnapshotError> {
        if found.map(tree::file_type) != Some(FileType::Directory) {
            self.tree.replace_by_directory(parent, name, found)?;
            self.made.inodes += 1;
        }
        let directory =
            tree::open_directory(parent, name).map_err(SnapshotError::entry_io("open directory", path))?;
        set_attributes(&directory, entry)?;
        self.described.insert(path.to_vec());
        self.remember_times(path.to_vec(), entry.mtime)
    }

    /// Times of directories change with every entry made in them, so they come last.
    fn remember_times(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), SnapshotError> {
        self.directory_path_bytes += path.len();
        if self.directory_path_bytes > MAX_DIRECTORY_PATHS {
            let limit = MAX_DIRECTORY_PATHS as u64;
            return Err(SnapshotError::Limit { what: "bytes of directory paths", limit });
        }
        self.directory_times.push((path, mtime));
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        name: &[u8],
        archive: &mut Archive<R>,
    ) -> Result<(), SnapshotError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(SnapshotError::entry_io("create", &entry.path))?;
        let mut file = File::from(fd);
        let mut hasher = XxHash3_128::new();
        loop {
            let piece = archive.content()?;
            if piece.is_empty() {
                break;
            }
            let length = piece.len();
            file.write_all(piece).map_err(|source| SnapshotError::EntryIo {
                op: "write",
                entry: super::error::lossy(&entry.path),
                source,
            })?;
            hasher.write(piece);
            archive.consume(length);
        }
        self.made.bytes += entry.size;
        let file = OwnedFd::from(file);
        let inode = rustix::fs::fstat(&file).map_err(SnapshotError::entry_io("stat", &entry.path))?.st_ino;
        self.made.contents.insert(inode, hasher.finish_128());
        set_attributes(&file, entry)?;
        rustix::fs::futimens(&file, &times(entry.mtime))
            .map_err(SnapshotError::entry_io("set the times of", &entry.path))
    }

    fn symlink(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), SnapshotError> {
        self.tree.forget();
        rustix::fs::symlinkat(entry.link.as_slice(), parent, name)
            .map_err(SnapshotError::entry_io("make the symbolic link", &entry.path))?;
        set_owner_and_times(entry, parent, name)
    }

    fn device(&mut self, entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), SnapshotError> {
        let kind = match entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        let device = rustix::fs::makedev(entry.device.0, entry.device.1);
        let mode = Mode::from_raw_mode(entry.mode);
        rustix::fs::mknodat(parent, name, kind, mode, device)
            .map_err(SnapshotError::entry_io("make the device", &entry.path))?;
        set_owner_and_times(entry, parent, name)?;
        // The node was made a moment ago in a directory of ours, so this follows nothing; the umask does not count.
        rustix::fs::chmodat(parent, name, mode, AtFlags::empty())
            .map_err(SnapshotError::entry_io("set the mode of", &entry.path))
    }

    fn hardlink(
        &mut self,
        entry: &Entry,
        parent: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        found: Option<&Stat>,
    ) -> Result<(), SnapshotError> {
        let fail = || SnapshotError::entry_io("make the hard link", &entry.path);
        let source = tree::clean(&entry.link, self.limits.max_path_depth)?;
        if source.is_empty() {
            return Err(SnapshotError::entry(&entry.path, "hard link to the root"));
        }
        if source == path {
            return Ok(());
        }
        let (source_parent, source_name) = tree::split(&source);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let missing = || {
            let target = super::error::lossy(&entry.link);
            SnapshotError::entry(
                &entry.path,
                format!("hard link to {target:?}, which this layer does not hold"),
            )
        };
        let source_parent = match tree::resolve(self.tree.root(), source_parent, flags, ResolveFlags::empty())
        {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(errno) => return Err(fail()(errno)),
        };
        let target = tree::lstat(source_parent.as_fd(), source_name)?.ok_or_else(missing)?;
        if tree::file_type(&target) == FileType::Directory {
            return Err(SnapshotError::entry(&entry.path, "hard link to a directory"));
        }
        if found.is_some_and(|f| f.st_ino == target.st_ino && f.st_dev == target.st_dev) {
            return Ok(());
        }
        self.tree.remove(parent, name, found)?;
        // Without AT_SYMLINK_FOLLOW: a link to a symbolic link, never to what it points at.
        rustix::fs::linkat(&source_parent, source_name, parent, name, AtFlags::empty()).map_err(fail())
    }

    /// `.wh.name` hides `name` of lower layers, `.wh..wh..opq` all that lower layers have in the directory.
    fn whiteout(&mut self, parent_path: &[u8], name: &[u8]) -> Result<(), SnapshotError> {
        if name == OPAQUE_MARK {
            let parent = self.tree.directory(parent_path)?;
            if parent_path.is_empty() {
                self.made.opaque_root = true;
                return Ok(());
            }
            return tree::set_opaque((*parent).as_fd(), b".");
        }
        if name.starts_with(AUFS_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(SnapshotError::entry(name, "whiteout without a name"));
        }
        let parent = self.tree.directory(parent_path)?;
        let parent = (*parent).as_fd();
        match tree::lstat(parent, hidden)? {
            // A whiteout speaks of lower layers only, in whatever order the archive lists things.
            Some(found) if tree::file_type(&found) == FileType::Directory => tree::set_opaque(parent, hidden),
            Some(_) => Ok(()),
            None => {
                self.made.inodes += 1;
                rustix::fs::mknodat(parent, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(SnapshotError::entry_io("make the whiteout", name))
            }
        }
    }

    fn finish(mut self) -> Result<Extracted, SnapshotError> {
        for (path, mtime) in self.directory_times.iter().rev() {
            let (parent, name) = tree::split(path);
            let name = if name.is_empty() { b".".as_slice() } else { name };
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            // A later entry may have replaced the directory; then there is nothing to set.
            let Ok(parent) = tree::resolve(self.tree.root(), parent, flags, ResolveFlags::empty()) else {
                continue;
            };
            let Ok(directory) = tree::open_directory(parent.as_fd(), name) else { continue };
            rustix::fs::futimens(&directory, &times(*mtime))
                .map_err(SnapshotError::entry_io("set the times of", path))?;
        }
        let mut implied = std::mem::take(&mut self.tree.implied);
        implied.push(Vec::new());
        self.made.inodes += implied.len() as u64;
        implied.retain(|path| !self.described.contains(path));
        self.made.implied = implied;
        Ok(self.made)
    }
}

/// Owner first: changing it clears setuid bits and file capabilities.
fn set_attributes(fd: &OwnedFd, entry: &Entry) -> Result<(), SnapshotError> {
    let fail = |op| SnapshotError::entry_io(op, &entry.path);
    let (uid, gid) = owner(entry)?;
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(fail("set the owner of"))?;
    rustix::fs::fchmod(fd, Mode::from_raw_mode(entry.mode)).map_err(fail("set the mode of"))?;
    for (name, value) in &entry.xattrs {
        if !is_allowed_xattr(name) {
            tracing::debug!(entry = %super::error::lossy(&entry.path), name, "extended attribute ignored");
            continue;
        }
        match rustix::fs::fsetxattr(fd, name.as_str(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP) => {
                tracing::debug!(entry = %super::error::lossy(&entry.path), name, "file system takes no such attribute");
            }
            Err(errno) => return Err(fail("set an extended attribute of")(errno)),
        }
    }
    Ok(())
}

/// An image may carry file capabilities and its users' own attributes; `trusted.*` would speak to overlayfs, the rest
/// belongs to the node's security modules.
fn is_allowed_xattr(name: &str) -> bool {
    name == "security.capability" || (name.starts_with("user.") && !name.starts_with("user.overlay."))
}

fn set_owner_and_times(entry: &Entry, parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), SnapshotError> {
    let (uid, gid) = owner(entry)?;
    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(SnapshotError::entry_io("set the owner of", &entry.path))?;
    rustix::fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(SnapshotError::entry_io("set the times of", &entry.path))
}

/// The number that stands for "leave as it is" cannot be an owner.
fn owner(entry: &Entry) -> Result<(Uid, Gid), SnapshotError> {
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return Err(SnapshotError::entry(&entry.path, "owner out of range"));
    }
    Ok((Uid::from_raw(entry.uid), Gid::from_raw(entry.gid)))
}

fn times(mtime: (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: mtime.0, tv_nsec: mtime.1.into() };
    Timestamps { last_access: time, last_modification: time }
}
