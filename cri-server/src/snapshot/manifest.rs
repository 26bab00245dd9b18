//! What an unpacked layer holds, written down when it is unpacked, and looked at again later.
//!
//! ```text
//! <root>/layers/<hex>/manifest    one line for each entry, in the order of a walk by sorted names:
//!     type mode uid gid size-or-device content attributes path [TAB link target]
//! ```
//!
//! `content` and `attributes` are XXH3 digests: they find what a disk or a person changed, and cost a tenth of what
//! a cryptographic one would; against an attacker who writes to the node's disk no digest beside the data helps.
//!
//! Invariant: a manifest is made by the same walk as is compared with it; content is taken from the bytes that were written, so
//! that what the disk made of them is found.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use twox_hash::XxHash3_128;

use super::error::SnapshotError;
use super::tree;

/// Contents that are remembered while a layer is unpacked; those of more files are read again.
const MOST_CONTENTS: usize = 1 << 20;
const PIECE: usize = 256 << 10;
/// What looking at an entry counts, besides its bytes, against a bound on the reading.
const ENTRY_COST: u64 = 4096;

/// Digests of what was written, by inode: the last writer of an inode is the one that counts.
#[derive(Debug, Default)]
pub(super) struct Contents(HashMap<u64, u128>);

impl Contents {
    pub fn insert(&mut self, inode: u64, digest: u128) {
        if self.0.len() < MOST_CONTENTS || self.0.contains_key(&inode) {
            self.0.insert(inode, digest);
        }
    }
}

/// Called with the bytes that are about to be read; an error ends the walk.
pub type Pace<'a> = dyn FnMut(u64) -> io::Result<()> + Send + 'a;

/// Writes the manifest of the tree `root` to `path`; answers the digest of the manifest itself.
pub(super) fn write(root: &Path, path: &Path, contents: &Contents) -> Result<String, SnapshotError> {
    let failed = |op| SnapshotError::io(op, path);
    let mut file = BufWriter::new(File::create(path).map_err(failed("create"))?);
    let mut hasher = XxHash3_128::new();
    walk(root, contents, &mut |_| Ok(()), &mut |line| {
        hasher.write(line);
        file.write_all(line)
    })
    .map_err(failed("describe"))?;
    file.into_inner().map_err(|error| failed("write")(error.into_error()))?;
    Ok(format!("{:032x}", hasher.finish_128()))
}

/// What a look at a layer found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Whole,
    /// What differs first, in words.
    Damaged(String),
}

/// Compares the tree `root` with the manifest at `path`, whose digest is `expected`.
pub(super) fn compare(root: &Path, path: &Path, expected: &str, pace: &mut Pace<'_>) -> io::Result<Verdict> {
    let mut hasher = XxHash3_128::new();
    let mut manifest = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(Verdict::Damaged("its manifest is gone".to_owned()));
        }
        opened => BufReader::new(opened?),
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        if manifest.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        pace(line.len() as u64)?;
        hasher.write(&line);
    }
    if format!("{:032x}", hasher.finish_128()) != expected {
        return Ok(Verdict::Damaged("its manifest was changed".to_owned()));
    }
    let mut manifest = BufReader::new(File::open(path)?);
    let mut different = None;
    let walked = walk(root, &Contents::default(), pace, &mut |found| {
        line.clear();
        manifest.read_until(b'\n', &mut line)?;
        if line == found {
            return Ok(());
        }
        different = Some(format!("{} was {}", describe(found), describe(&line)));
        Err(io::ErrorKind::Interrupted.into())
    });
    match (walked, different) {
        (_, Some(different)) => Ok(Verdict::Damaged(different)),
        (Err(error), None) if is_damage(&error) => {
            Ok(Verdict::Damaged(format!("it cannot be read: {error}")))
        }
        (Err(error), None) => Err(error),
        (Ok(()), None) => {
            line.clear();
            Ok(match manifest.read_until(b'\n', &mut line)? {
                0 => Verdict::Whole,
                _ => Verdict::Damaged(format!("it lacks {}", describe(&line))),
            })
        }
    }
}

/// Whether an error says that the disk lost something, and not that the moment is bad.
fn is_damage(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EUCLEAN | libc::ENODATA | libc::EBADMSG))
}

fn describe(line: &[u8]) -> String {
    if line.is_empty() {
        return "the end".to_owned();
    }
    let text = String::from_utf8_lossy(line);
    format!("{:?}", text.trim_end().chars().take(200).collect::<String>())
}

/// Gives every entry's line to `take`, the root's first, each directory's entries in the order of their names.
fn walk(
    root: &Path,
    contents: &Contents,
    pace: &mut Pace<'_>,
    take: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    let mut work = Walk { contents, read: Contents::default(), buffer: vec![0; PIECE], line: Vec::new() };
    // Depth first: the last one that was put there is the next.
    while let Some(path) = todo.pop() {
        let (parent, name) = tree::split(&path);
        if path.is_empty() {
            let stat = rustix::fs::fstat(&top)?;
            work.entry(top.as_fd(), b".", &path, &stat, pace)?;
            take(&work.line)?;
        } else {
            let parent = open_inside(top.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)?;
            let stat = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            work.entry(parent.as_fd(), name, &path, &stat, pace)?;
            take(&work.line)?;
            if tree::file_type(&stat) != FileType::Directory {
                continue;
            }
        }
        let directory = open_inside(top.as_fd(), &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = tree::names(&directory)?;
        names.sort_unstable_by(|a, b| b.cmp(a));
        let below = |name: Vec<u8>| if path.is_empty() { name } else { [&path[..], &name].join(&b'/') };
        todo.extend(names.into_iter().map(below));
    }
    Ok(())
}

/// Neither a link nor a mount leads anywhere else.
fn open_inside(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    tree::resolve(root, path, flags, ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV)
}

struct Walk<'a> {
    contents: &'a Contents,
    /// Of files with several names, which are read once.
    read: Contents,
    buffer: Vec<u8>,
    line: Vec<u8>,
}

impl Walk<'_> {
    fn entry(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        pace: &mut Pace<'_>,
    ) -> io::Result<()> {
        pace(ENTRY_COST)?;
        let kind = tree::file_type(stat);
        let (mut content, mut attributes) = (None, None);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if matches!(kind, FileType::RegularFile | FileType::Directory) {
            let file = rustix::fs::openat(parent, name, flags | OFlags::NONBLOCK, Mode::empty())?;
            attributes = attributes_of(&file)?;
            if kind == FileType::RegularFile {
                let known = self.contents.0.get(&stat.st_ino).or_else(|| self.read.0.get(&stat.st_ino));
                let digest = match known {
                    Some(known) => *known,
                    None => self.read(file, pace)?,
                };
                if stat.st_nlink > 1 {
                    self.read.insert(stat.st_ino, digest);
                }
                content = Some(digest);
            }
        }
        let (letter, size) = match kind {
            FileType::RegularFile => ('f', stat.st_size.unsigned_abs()),
            FileType::Directory => ('d', 0),
            FileType::Symlink => ('l', 0),
            FileType::CharacterDevice => ('c', stat.st_rdev),
            FileType::BlockDevice => ('b', stat.st_rdev),
            FileType::Fifo => ('p', 0),
            _ => ('?', 0),
        };
        let digest = |value: Option<u128>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:032x}"));
        self.line.clear();
        write!(
            self.line,
            "{letter} {:o} {} {} {size} {} {} {}",
            stat.st_mode & 0o7777,
            stat.st_uid,
            stat.st_gid,
            digest(content),
            digest(attributes),
            path.escape_ascii()
        )?;
        if kind == FileType::Symlink {
            let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
            write!(self.line, "\t{}", target.as_bytes().escape_ascii())?;
        }
        self.line.push(b'\n');
        Ok(())
    }

    fn read(&mut self, file: OwnedFd, pace: &mut Pace<'_>) -> io::Result<u128> {
        // What is read once should not push out what is used; an older kernel does not know the advice.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
        let mut file = File::from(file);
        let mut hasher = XxHash3_128::new();
        loop {
            pace(PIECE as u64)?;
            match file.read(&mut self.buffer)? {
                0 => return Ok(hasher.finish_128()),
                length => hasher.write(&self.buffer[..length]),
            }
        }
    }
}

/// A digest of the extended attributes that an image gives; none where there is none.
fn attributes_of(file: &OwnedFd) -> io::Result<Option<u128>> {
    let mut names = vec![0; 1024];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Err(Errno::NOTSUP) => 0,
        Err(Errno::RANGE) => {
            names.resize(64 << 10, 0);
            rustix::fs::flistxattr(file, &mut names[..])?
        }
        length => length?,
    };
    let mut wanted: Vec<&[u8]> = names[..length].split(|byte| *byte == 0).filter(|n| is_kept(n)).collect();
    if wanted.is_empty() {
        return Ok(None);
    }
    wanted.sort_unstable();
    let mut hasher = XxHash3_128::new();
    let mut value = vec![0; 64 << 10];
    for name in wanted {
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        hasher.write(name);
        hasher.write(&[0]);
        hasher.write(&(length as u64).to_le_bytes());
        hasher.write(&value[..length]);
    }
    Ok(Some(hasher.finish_128()))
}

/// The labels of the node's security modules may change.
fn is_kept(name: &[u8]) -> bool {
    name == b"security.capability" || name.starts_with(b"user.") || name == tree::OPAQUE.as_bytes()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn made() -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("fs");
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/file"), "content").unwrap();
        fs::write(root.join("a/b/two words"), "x".repeat(PIECE + 1)).unwrap();
        symlink("../file", root.join("a/b/link")).unwrap();
        let digest = write(&root, &dir.path().join("manifest"), &Contents::default()).unwrap();
        (dir, digest)
    }

    fn look(dir: &Path, digest: &str) -> Verdict {
        compare(&dir.join("fs"), &dir.join("manifest"), digest, &mut |_| Ok(())).unwrap()
    }

    #[test]
    fn a_tree_is_as_it_was_until_anything_changes() {
        let changes: [fn(&Path); 8] = [
            |fs| fs::write(fs.join("a/file"), "contenT").unwrap(),
            |fs| fs::write(fs.join("a/file"), "").unwrap(),
            |fs| fs::remove_file(fs.join("a/file")).unwrap(),
            |fs| fs::write(fs.join("z"), "").unwrap(),
            |fs| fs::set_permissions(fs.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap(),
            |fs| {
                fs::remove_file(fs.join("a/b/link")).unwrap();
                symlink("../filf", fs.join("a/b/link")).unwrap();
            },
            |fs| {
                let manifest = fs.parent().unwrap().join("manifest");
                let text = fs::read_to_string(&manifest).unwrap().replace("file", "fila");
                fs::write(manifest, text).unwrap();
            },
            |fs| fs::remove_file(fs.parent().unwrap().join("manifest")).unwrap(),
        ];
        for (number, change) in changes.iter().enumerate() {
            let (dir, digest) = made();
            assert_eq!(look(dir.path(), &digest), Verdict::Whole);
            change(&dir.path().join("fs"));
            assert!(matches!(look(dir.path(), &digest), Verdict::Damaged(_)), "change {number}");
        }
    }

    #[test]
    fn what_was_written_counts_and_not_what_the_disk_made_of_it() {
        let (dir, _) = made();
        let root = dir.path().join("fs");
        let inode = rustix::fs::stat(root.join("a/file")).unwrap().st_ino;
        let mut contents = Contents::default();
        contents.insert(inode, XxHash3_128::oneshot(b"another"));
        let digest = write(&root, &dir.path().join("manifest"), &contents).unwrap();
        let Verdict::Damaged(what) = look(dir.path(), &digest) else { panic!("not noticed") };
        assert!(what.contains("a/file"), "{what}");
    }

    #[test]
    fn the_pace_ends_a_look() {
        let (dir, digest) = made();
        let stopped = compare(&dir.path().join("fs"), &dir.path().join("manifest"), &digest, &mut |_| {
            Err(io::ErrorKind::Other.into())
        });
        assert!(stopped.is_err());
    }
}
