//! Takes the parts of a checkpoint out of an archive, or out of an image that was made of one, into a folder.
//!
//! ```text
//! <folder>/checkpoint/<image>   criu's images, nothing but plain files
//! <folder>/<part>               those of the other parts that are there
//! ```
//!
//! Invariant: only regular files of known names are taken, each once, and what they hold is bounded; whatever else the
//! archive lists is passed over.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::archive::{Archive, Kind};
use super::decompress::decompress;
use super::error::{SnapshotError, lossy};
use super::limits::Limits;
use super::tree;

/// The folder of criu's images.
const IMAGES: &str = "checkpoint";
const PARTS: [&str; 6] =
    ["config.dump", "spec.dump", "status.dump", "deleted.files", "rootfs-diff.tar", "container.log"];
/// A name of the kernel's file systems is not longer.
const MAX_NAME: usize = 255;
const PIECE: usize = 256 << 10;

struct Taking<'a> {
    folder: &'a Path,
    limits: &'a Limits,
    taken: HashSet<PathBuf>,
    bytes: u64,
}

/// Takes them from an archive, which may be compressed.
pub(super) fn of_archive(archive: &File, folder: &Path, limits: &Limits) -> Result<(), SnapshotError> {
    let input = decompress(BufReader::with_capacity(PIECE, archive)).map_err(SnapshotError::Stream)?;
    let mut archive = Archive::new(BufReader::with_capacity(PIECE, input), limits);
    let mut taking = Taking::begin(folder, limits)?;
    let mut entries = 0;
    while let Some(entry) = archive.next_entry()? {
        entries += 1;
        if entries > limits.max_entries {
            return Err(SnapshotError::Limit { what: "entries", limit: limits.max_entries });
        }
        let path = tree::clean(&entry.path, limits.max_path_depth)?;
        if entry.kind != Kind::File {
            continue;
        }
        let Some(mut file) = taking.file(&path, entry.size)? else { continue };
        loop {
            let piece = archive.content()?;
            if piece.is_empty() {
                break;
            }
            let length = piece.len();
            file.write_all(piece).map_err(write_failed(&path))?;
            archive.consume(length);
        }
    }
    archive.drain()
}

/// Takes them from an image's root file system.
pub(super) fn of_image(view: &OwnedFd, folder: &Path, limits: &Limits) -> Result<(), SnapshotError> {
    let mut taking = Taking::begin(folder, limits)?;
    let mut names: Vec<Vec<u8>> = PARTS.iter().map(|name| name.as_bytes().to_vec()).collect();
    let flags = OFlags::RDONLY | OFlags::DIRECTORY;
    match tree::resolve(view.as_fd(), IMAGES.as_bytes(), flags, ResolveFlags::NO_SYMLINKS) {
        Ok(images) => {
            let found = tree::names(&images).map_err(SnapshotError::entry_io("list", IMAGES.as_bytes()))?;
            names.extend(found.iter().map(|name| [IMAGES.as_bytes(), name].join(&b'/')));
        }
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(errno) => return Err(SnapshotError::entry_io("list", IMAGES.as_bytes())(errno)),
    }
    for name in names {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
        let fd = match tree::resolve(view.as_fd(), &name, flags, ResolveFlags::NO_SYMLINKS) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => continue,
            Err(errno) => return Err(SnapshotError::entry_io("open", &name)(errno)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(SnapshotError::entry_io("stat", &name))?;
        if tree::file_type(&stat) != FileType::RegularFile {
            continue;
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if let Some(mut file) = taking.file(&name, size)? {
            io::copy(&mut File::from(fd).take(size), &mut file).map_err(write_failed(&name))?;
        }
    }
    Ok(())
}

impl<'a> Taking<'a> {
    fn begin(folder: &'a Path, limits: &'a Limits) -> Result<Self, SnapshotError> {
        let images = folder.join(IMAGES);
        fs::create_dir(&images).map_err(SnapshotError::io("make directory", &images))?;
        Ok(Self { folder, limits, taken: HashSet::new(), bytes: 0 })
    }

    /// The new file for the entry `path`, if it is a part.
    fn file(&mut self, path: &[u8], size: u64) -> Result<Option<File>, SnapshotError> {
        let Some(inside) = part(path) else { return Ok(None) };
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limits.max_bytes {
            return Err(SnapshotError::Limit { what: "unpacked bytes", limit: self.limits.max_bytes });
        }
        let place = self.folder.join(&inside);
        if !self.taken.insert(inside) {
            return Err(SnapshotError::entry(path, "the checkpoint holds it twice"));
        }
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&place);
        opened.map(Some).map_err(SnapshotError::io("create", &place))
    }
}

/// Where a part with this cleaned path goes.
fn part(path: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(path).ok()?;
    if PARTS.contains(&text) {
        return Some(text.into());
    }
    let name = text.strip_prefix(IMAGES)?.strip_prefix('/')?;
    let plain = !name.is_empty() && name.len() <= MAX_NAME && !name.contains('/') && !name.starts_with('.');
    plain.then(|| Path::new(IMAGES).join(name))
}

fn write_failed(path: &[u8]) -> impl FnOnce(io::Error) -> SnapshotError {
    let entry = lossy(path);
    move |source| SnapshotError::EntryIo { op: "write", entry, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &[u8])]) -> File {
        let mut out = tempfile::tempfile().unwrap();
        let mut tar = tar::Builder::new(&mut out);
        for (name, kind, data) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(0o600);
            header.set_size(if *kind == tar::EntryType::Regular { data.len() as u64 } else { 0 });
            header.set_link_name("/etc/passwd").unwrap();
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
            // As it stands: the library refuses names that lead out.
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            tar.append(&header, *data).unwrap();
        }
        tar.finish().unwrap();
        drop(tar);
        io::Seek::rewind(&mut out).unwrap();
        out
    }

    fn files(folder: &Path) -> Vec<String> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let name = entry.file_name().into_string().unwrap();
            match entry.file_type().unwrap() {
                kind if kind.is_dir() => {
                    found.extend(files(&entry.path()).iter().map(|f| format!("{name}/{f}")))
                }
                kind => {
                    assert!(kind.is_file(), "{name}");
                    found.push(name);
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn only_plain_files_of_known_names_are_taken() {
        use tar::EntryType::{Char, Directory, Link, Regular, Symlink};
        let archive = archive(&[
            ("./config.dump", Regular, b"{}"),
            ("checkpoint/", Directory, b""),
            ("checkpoint/core-1.img", Regular, b"core"),
            ("checkpoint/deep/er.img", Regular, b"no"),
            ("checkpoint/.hidden", Regular, b"no"),
            ("checkpoint/link.img", Symlink, b""),
            ("checkpoint/hard.img", Link, b""),
            ("container.log", Symlink, b""),
            ("spec.dump", Char, b""),
            ("other", Regular, b"no"),
        ]);
        let folder = tempfile::tempdir().unwrap();
        of_archive(&archive, folder.path(), &Limits::default()).unwrap();
        assert_eq!(files(folder.path()), ["checkpoint/core-1.img", "config.dump"]);
    }

    #[test]
    fn names_that_lead_out_and_names_that_come_twice_are_refused() {
        use tar::EntryType::Regular;
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("a");
        fs::create_dir(&inside).unwrap();
        let escape = archive(&[("checkpoint/../../b", Regular, b"out")]);
        let _refused_or_passed_over = of_archive(&escape, &inside, &Limits::default());
        assert_eq!(files(folder.path()), Vec::<String>::new());
        let twice = archive(&[("spec.dump", Regular, b"1"), ("./spec.dump", Regular, b"2")]);
        fs::remove_dir_all(&inside).unwrap();
        fs::create_dir(&inside).unwrap();
        let error = of_archive(&twice, &inside, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("twice"), "{error}");
    }

    #[test]
    fn what_it_holds_is_bounded() {
        use tar::EntryType::Regular;
        let folder = tempfile::tempdir().unwrap();
        let large = archive(&[("checkpoint/pages-1.img", Regular, &[7; 4096])]);
        let error = of_archive(&large, folder.path(), &Limits::new(4095, 10)).unwrap_err();
        assert!(matches!(error, SnapshotError::Limit { .. }), "{error}");
    }

    #[test]
    fn links_of_an_image_lead_nowhere() {
        let (image, folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(image.path().join(IMAGES)).unwrap();
        fs::write(image.path().join("checkpoint/inventory.img"), "i").unwrap();
        symlink("/etc/passwd", image.path().join("checkpoint/core-1.img")).unwrap();
        symlink("/etc/passwd", image.path().join("container.log")).unwrap();
        fs::write(image.path().join("spec.dump"), "{}").unwrap();
        let view =
            tree::open_directory(rustix::fs::CWD, image.path().as_os_str().as_encoded_bytes()).unwrap();
        of_image(&view, folder.path(), &Limits::default()).unwrap();
        assert_eq!(files(folder.path()), ["checkpoint/inventory.img", "spec.dump"]);
    }
}
