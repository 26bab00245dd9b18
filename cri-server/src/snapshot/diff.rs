//! What a container changed in its root file system: an archive of what is there now, and a list of what is gone.
//!
//! Invariant: the walk follows nothing, stays on its file system and is bounded in depth and entries, because the
//! container decides what it finds. It should not run meanwhile: the archive is of one moment only then.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::error::SnapshotError;
use super::tree;

const MAX_DEPTH: usize = 256;
const MAX_ENTRIES: u64 = 1_000_000;
const MAX_XATTR: usize = 64 << 10;
/// Overlayfs keeps its own notes under these names.
const OWN_XATTRS: &str = "trusted.overlay.";
/// Notes that say that a name stands for something elsewhere; no node has them unless the kernel was told so.
const ELSEWHERE: [&str; 2] = ["trusted.overlay.redirect", "trusted.overlay.metacopy"];

struct Diff<'a, W: Write> {
    tar: tar::Builder<W>,
    /// The image's root, without the container's changes.
    image: &'a OwnedFd,
    gone: Vec<String>,
    links: HashMap<u64, Vec<u8>>,
    device: u64,
    entries: u64,
}

/// Archives the writable layer at `upper` into `out`. Answers the paths of the image that the container removed.
pub(super) fn write(upper: &Path, image: &OwnedFd, out: impl Write) -> Result<Vec<String>, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |e: Errno| SnapshotError::io("archive", upper)(e.into());
    let top = rustix::fs::openat(CWD, upper, flags, Mode::empty()).map_err(failed)?;
    let device = rustix::fs::fstat(&top).map_err(failed)?.st_dev;
    let tar = tar::Builder::new(out);
    let mut diff = Diff { tar, image, gone: Vec::new(), links: HashMap::new(), device, entries: 0 };
    let opaque = is_opaque(&top, b"/")?;
    diff.directory(&top, b"", opaque, 0)?;
    diff.tar.into_inner().and_then(|mut out| out.flush()).map_err(SnapshotError::io("archive", upper))?;
    Ok(diff.gone)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

fn entry_failed(path: &[u8]) -> impl FnOnce(io::Error) -> SnapshotError {
    let entry = super::error::lossy(path);
    move |source| SnapshotError::EntryIo { op: "archive", entry, source }
}

impl<W: Write> Diff<'_, W> {
    /// `opaque`: nothing of the image shows below this directory.
    fn directory(
        &mut self,
        directory: &OwnedFd,
        path: &[u8],
        opaque: bool,
        depth: usize,
    ) -> Result<(), SnapshotError> {
        let names: BTreeSet<Vec<u8>> =
            tree::names(directory).map_err(SnapshotError::entry_io("list", path))?.into_iter().collect();
        if opaque {
            self.hidden(path, &names)?;
        }
        for name in &names {
            let inside = join(path, name);
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(SnapshotError::Limit { what: "changed files", limit: MAX_ENTRIES });
            }
            let Some(stat) = tree::lstat(directory.as_fd(), name)? else { continue };
            if tree::is_whiteout(&stat) {
                // Below an opaque directory it hides nothing that is not listed already.
                if !opaque {
                    self.gone.push(shown(&inside));
                }
            } else if stat.st_dev == self.device {
                self.entry(directory, name, &inside, &stat, opaque, depth)?;
            }
        }
        Ok(())
    }

    /// Lists what the image has at `path` and the opaque directory there has not.
    fn hidden(&mut self, path: &[u8], names: &BTreeSet<Vec<u8>>) -> Result<(), SnapshotError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let below = match tree::resolve(self.image.as_fd(), path, flags, ResolveFlags::NO_SYMLINKS) {
            Ok(below) => below,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(SnapshotError::entry_io("look below", path)(errno)),
        };
        for name in tree::names(&below).map_err(SnapshotError::entry_io("list", path))? {
            if !names.contains(&name) {
                self.gone.push(shown(&join(path, &name)));
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        opaque: bool,
        depth: usize,
    ) -> Result<(), SnapshotError> {
        match tree::file_type(stat) {
            FileType::Directory if depth >= MAX_DEPTH => {
                Err(SnapshotError::Limit { what: "directories in a path", limit: MAX_DEPTH as u64 })
            }
            FileType::Directory => {
                let child = tree::open_directory(parent.as_fd(), name)
                    .map_err(SnapshotError::entry_io("open directory", path))?;
                self.attributes(&child, path)?;
                self.append(stat, tar::EntryType::Directory, path, io::empty())?;
                let opaque = opaque || is_opaque(&child, path)?;
                self.directory(&child, path, opaque, depth + 1)
            }
            FileType::RegularFile => self.file(parent, name, path, stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(parent, name, Vec::new())
                    .map_err(SnapshotError::entry_io("read link", path))?;
                self.link(stat, tar::EntryType::Symlink, path, target.as_bytes())
            }
            FileType::CharacterDevice => self.append(stat, tar::EntryType::Char, path, io::empty()),
            FileType::BlockDevice => self.append(stat, tar::EntryType::Block, path, io::empty()),
            FileType::Fifo => self.append(stat, tar::EntryType::Fifo, path, io::empty()),
            // Nobody listens at a socket that comes out of an archive.
            FileType::Socket | FileType::Unknown => Ok(()),
        }
    }

    fn file(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8], stat: &Stat) -> Result<(), SnapshotError> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino).cloned() {
                return self.link(stat, tar::EntryType::Link, path, &first);
            }
            self.links.insert(stat.st_ino, path.to_vec());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(parent, name, flags, Mode::empty())
            .map_err(SnapshotError::entry_io("open", path))?;
        let now = rustix::fs::fstat(&fd).map_err(SnapshotError::entry_io("stat", path))?;
        if (now.st_ino, now.st_dev) != (stat.st_ino, stat.st_dev) {
            return Err(SnapshotError::entry(path, "it changed while it was archived"));
        }
        self.attributes(&fd, path)?;
        let size = u64::try_from(now.st_size).unwrap_or(0);
        // A file that is cut short meanwhile ends in zeros: the archive has announced its size.
        self.append(&now, tar::EntryType::Regular, path, File::from(fd).chain(io::repeat(0)).take(size))
    }

    fn header(stat: &Stat, kind: tar::EntryType) -> io::Result<tar::Header> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
        let regular = kind == tar::EntryType::Regular;
        header.set_size(if regular { u64::try_from(stat.st_size).unwrap_or(0) } else { 0 });
        if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
            header.set_device_major(rustix::fs::major(stat.st_rdev))?;
            header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
        }
        Ok(header)
    }

    fn append(
        &mut self,
        stat: &Stat,
        kind: tar::EntryType,
        path: &[u8],
        data: impl Read,
    ) -> Result<(), SnapshotError> {
        let header = Self::header(stat, kind);
        header
            .and_then(|mut header| self.tar.append_data(&mut header, OsStr::from_bytes(path), data))
            .map_err(entry_failed(path))
    }

    fn link(
        &mut self,
        stat: &Stat,
        kind: tar::EntryType,
        path: &[u8],
        target: &[u8],
    ) -> Result<(), SnapshotError> {
        let (path_name, target) = (OsStr::from_bytes(path), OsStr::from_bytes(target));
        Self::header(stat, kind)
            .and_then(|mut header| self.tar.append_link(&mut header, path_name, target))
            .map_err(entry_failed(path))
    }

    /// Writes the extended attributes of the entry that follows.
    fn attributes(&mut self, fd: &OwnedFd, path: &[u8]) -> Result<(), SnapshotError> {
        let mut records = Vec::new();
        for name in attribute_names(fd).map_err(SnapshotError::entry_io("list attributes of", path))? {
            if ELSEWHERE.contains(&name.as_str()) {
                return Err(SnapshotError::entry(path, "overlayfs keeps its content elsewhere"));
            }
            if !name.starts_with(OWN_XATTRS) {
                let value =
                    attribute(fd, &name).map_err(SnapshotError::entry_io("read attributes of", path))?;
                records.push((format!("SCHILY.xattr.{name}"), value));
            }
        }
        let records = records.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(entry_failed(path))
    }
}

/// A path as it stands in the list of what is gone, which is text.
fn shown(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

fn attribute_names(fd: &OwnedFd) -> Result<Vec<String>, Errno> {
    let mut buffer = vec![0u8; MAX_XATTR];
    let length = match rustix::fs::flistxattr(fd, &mut buffer[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(errno) => return Err(errno),
    };
    let names = buffer[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.map(|name| String::from_utf8_lossy(name).into_owned()).collect())
}

fn attribute(fd: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0u8; MAX_XATTR];
    let length = rustix::fs::fgetxattr(fd, name, &mut buffer[..])?;
    buffer.truncate(length);
    Ok(buffer)
}

fn is_opaque(directory: &OwnedFd, path: &[u8]) -> Result<bool, SnapshotError> {
    match attribute(directory, tree::OPAQUE) {
        Ok(value) => Ok(value == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
        Err(errno) => Err(SnapshotError::entry_io("read attributes of", path)(errno)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn entries(archive: &[u8]) -> Vec<(String, tar::EntryType, String)> {
        let mut archive = tar::Archive::new(archive);
        let entry = |entry: io::Result<tar::Entry<'_, &[u8]>>| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            if let Some(target) = entry.link_name().unwrap() {
                text = target.display().to_string();
            }
            (entry.path().unwrap().display().to_string(), entry.header().entry_type(), text)
        };
        archive.entries().unwrap().map(entry).collect()
    }

    #[test]
    fn what_is_there_is_archived_as_it_is() {
        let (upper, image) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let at = |name: &str| upper.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/file"), "text").unwrap();
        fs::set_permissions(at("d/file"), fs::Permissions::from_mode(0o4711)).unwrap();
        fs::hard_link(at("d/file"), at("e")).unwrap();
        symlink("/etc/passwd", at("link")).unwrap();
        let long = "n".repeat(200);
        fs::write(at(&long), "").unwrap();
        let image = tree::open_directory(CWD, image.path().as_os_str().as_bytes()).unwrap();
        let mut out = Vec::new();
        assert!(write(upper.path(), &image, &mut out).unwrap().is_empty());
        let row = |name: &str, kind, text: &str| (name.to_owned(), kind, text.to_owned());
        let expected = [
            row("d", tar::EntryType::Directory, ""),
            row("d/file", tar::EntryType::Regular, "text"),
            row("e", tar::EntryType::Link, "d/file"),
            row("link", tar::EntryType::Symlink, "/etc/passwd"),
            row(&long, tar::EntryType::Regular, ""),
        ];
        assert_eq!(entries(&out), expected);
    }

    #[test]
    fn a_writer_that_refuses_ends_the_walk() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let upper = tempfile::tempdir().unwrap();
        fs::write(upper.path().join("file"), "text").unwrap();
        let image = tree::open_directory(CWD, upper.path().as_os_str().as_bytes()).unwrap();
        assert!(write(upper.path(), &image, Full).unwrap_err().is_disk_full());
    }
}
