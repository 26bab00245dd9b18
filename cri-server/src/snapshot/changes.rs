//! Brings a container's changes, as a checkpoint holds them, into a new writable layer.
//!
//! Invariant: the archive is extracted below the layer, as a layer is; a directory that it uses without describing it, or
//! that holds nothing but what is gone, looks as the image's does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufReader;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid};
use rustix::io::Errno;

use super::decompress::decompress;
use super::error::SnapshotError;
use super::extract::extract;
use super::limits::Limits;
use super::tree;

/// More is not removed from an image.
const MAX_GONE: usize = 1_000_000;

/// Extracts `changes` into the writable layer `upper` of an image, and hides what is `gone`.
pub(super) fn apply(
    upper: &Path,
    image: &OwnedFd,
    changes: Option<&File>,
    gone: &[String],
    limits: &Limits,
) -> Result<(), SnapshotError> {
    if let Some(changes) = changes {
        let input =
            decompress(BufReader::with_capacity(256 << 10, changes)).map_err(SnapshotError::Stream)?;
        let made = extract(BufReader::with_capacity(256 << 10, input), upper, limits)?;
        if made.opaque_root {
            return Err(SnapshotError::entry(b"/", "the changes hide the whole image"));
        }
        let parents_first: BTreeSet<&Vec<u8>> = made.implied.iter().filter(|path| !path.is_empty()).collect();
        let upper = open(upper)?;
        for path in parents_first {
            if let (Some(like), Some(directory)) = (folder(image, path)?, folder(&upper, path)?) {
                look_like(&directory, &like, path)?;
            }
        }
    }
    if gone.len() > MAX_GONE {
        return Err(SnapshotError::Limit { what: "removed files", limit: MAX_GONE as u64 });
    }
    let upper = open(upper)?;
    gone.iter()
        .try_for_each(|path| hide(&upper, image, &tree::clean(path.as_bytes(), limits.max_path_depth)?))
}

fn open(upper: &Path) -> Result<OwnedFd, SnapshotError> {
    tree::open_directory(rustix::fs::CWD, upper.as_os_str().as_encoded_bytes())
        .map_err(|errno| SnapshotError::io("open", upper)(errno.into()))
}

/// The directory `path` below `root`, with no link on the way.
fn folder(root: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>, SnapshotError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    match tree::resolve(root.as_fd(), path, flags, ResolveFlags::NO_SYMLINKS) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(SnapshotError::entry_io("open directory", path)(errno)),
    }
}

fn stat(fd: &OwnedFd, path: &[u8]) -> Result<Stat, SnapshotError> {
    rustix::fs::fstat(fd).map_err(SnapshotError::entry_io("stat", path))
}

fn look_like(directory: &OwnedFd, like: &OwnedFd, path: &[u8]) -> Result<(), SnapshotError> {
    let like = stat(like, path)?;
    let owner = (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid));
    rustix::fs::fchown(directory, Some(owner.0), Some(owner.1))
        .and_then(|()| rustix::fs::fchmod(directory, Mode::from_raw_mode(like.st_mode & 0o7777)))
        .map_err(SnapshotError::entry_io("set the attributes of", path))
}

/// Makes a whiteout at `path`, where the image has something and the layer nothing.
fn hide(upper: &OwnedFd, image: &OwnedFd, path: &[u8]) -> Result<(), SnapshotError> {
    if path.is_empty() {
        return Err(SnapshotError::entry(b"/", "the root cannot be gone"));
    }
    let (parent, name) = tree::split(path);
    let Some(below) = folder(image, parent)? else { return Ok(()) };
    if tree::lstat(below.as_fd(), name)?.is_none() {
        return Ok(());
    }
    let Some(parent) = way(upper, image, parent)? else { return Ok(()) };
    if tree::lstat(parent.as_fd(), name)?.is_some() {
        return Ok(());
    }
    rustix::fs::mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(SnapshotError::entry_io("make the whiteout", path))
}

/// The directory `path` of the layer, made where it is missing, as the image has it. None where the layer has something
/// else on the way.
fn way(upper: &OwnedFd, image: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>, SnapshotError> {
    let mut at = tree::open_directory(upper.as_fd(), b".").map_err(SnapshotError::entry_io("open", path))?;
    let mut done = Vec::new();
    for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
        if !done.is_empty() {
            done.push(b'/');
        }
        done.extend_from_slice(name);
        match tree::lstat(at.as_fd(), name)? {
            Some(found) if tree::file_type(&found) == FileType::Directory => {}
            Some(_) => return Ok(None),
            None => make(at.as_fd(), name, image, &done)?,
        }
        at = tree::open_directory(at.as_fd(), name)
            .map_err(SnapshotError::entry_io("open directory", &done))?;
    }
    Ok(Some(at))
}

fn make(parent: BorrowedFd<'_>, name: &[u8], image: &OwnedFd, path: &[u8]) -> Result<(), SnapshotError> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))
        .map_err(SnapshotError::entry_io("make directory", path))?;
    let made = tree::open_directory(parent, name).map_err(SnapshotError::entry_io("open directory", path))?;
    match folder(image, path)? {
        Some(like) => look_like(&made, &like, path),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Seek, Write};
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};

    use super::*;

    struct Parts {
        upper: tempfile::TempDir,
        image: tempfile::TempDir,
    }

    fn parts() -> Parts {
        let parts = Parts { upper: tempfile::tempdir().unwrap(), image: tempfile::tempdir().unwrap() };
        let image = parts.image.path();
        fs::create_dir_all(image.join("etc/deep")).unwrap();
        fs::set_permissions(image.join("etc"), fs::Permissions::from_mode(0o750)).unwrap();
        fs::write(image.join("etc/deep/old"), "").unwrap();
        fs::write(image.join("etc/group"), "").unwrap();
        symlink("/etc", image.join("link")).unwrap();
        parts
    }

    impl Parts {
        fn apply(&self, changes: Option<&[u8]>, gone: &[&str]) -> Result<(), SnapshotError> {
            let file = changes.map(|bytes| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(bytes).unwrap();
                file.rewind().unwrap();
                file
            });
            let gone: Vec<String> = gone.iter().map(|path| (*path).to_owned()).collect();
            let image = open(self.image.path()).unwrap();
            apply(self.upper.path(), &image, file.as_ref(), &gone, &Limits::default())
        }

        fn is_hidden(&self, path: &str) -> bool {
            let data = fs::symlink_metadata(self.upper.path().join(path));
            data.is_ok_and(|data| data.file_type().is_char_device() && data.rdev() == 0)
        }
    }

    #[test]
    fn what_is_gone_is_hidden_and_the_way_to_it_looks_as_before() {
        let parts = parts();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(3);
        header.set_mode(0o640);
        tar.append_data(&mut header, "etc/new", &b"new"[..]).unwrap();
        let gone = ["/etc/group", "/etc/deep/old", "/never/there", "/link/group"];
        parts.apply(Some(&tar.into_inner().unwrap()), &gone).unwrap();
        assert!(parts.is_hidden("etc/group") && parts.is_hidden("etc/deep/old"));
        assert!(!parts.upper.path().join("never").exists() && !parts.upper.path().join("link").exists());
        assert_eq!(fs::read_to_string(parts.upper.path().join("etc/new")).unwrap(), "new");
        let mode = fs::metadata(parts.upper.path().join("etc")).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o750, "no entry describes it");
    }

    #[test]
    fn what_came_back_is_not_hidden_and_nothing_leads_out() {
        let parts = parts();
        fs::create_dir(parts.upper.path().join("etc")).unwrap();
        fs::write(parts.upper.path().join("etc/group"), "anew").unwrap();
        parts.apply(None, &["etc/group", "/etc/../etc/deep"]).unwrap_or_default();
        assert_eq!(fs::read_to_string(parts.upper.path().join("etc/group")).unwrap(), "anew");
        for wrong in ["/", "", "."] {
            assert!(parts.apply(None, &[wrong]).is_err(), "{wrong:?}");
        }
        let outside = tempfile::tempdir().unwrap();
        fs::create_dir(parts.image.path().join("way")).unwrap();
        fs::write(parts.image.path().join("way/file"), "").unwrap();
        symlink(outside.path(), parts.upper.path().join("way")).unwrap();
        parts.apply(None, &["/way/file"]).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
