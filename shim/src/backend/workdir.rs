//! Makes the working directory where the image lacks it, as users of other runtimes expect; libcontainer only enters it.
//!
//! Invariant: every step is resolved inside the root filesystem, or inside the volume that the directory lies in.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, open, openat2};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes the spec's working directory below `root`, its mounted root filesystem, for `owner`: root, as the host sees the
/// container's.
pub fn make(spec: &Spec, root: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let (base, rest) = place(process.cwd(), root, mounts);
    Ok(make_below(&base, &rest, owner)?)
}

/// The folder of the host that holds the directory, and the way from there: the innermost mount over it decides.
fn place(cwd: &Path, root: &Path, mounts: &[Mount]) -> (PathBuf, PathBuf) {
    let over = mounts.iter().filter_map(|mount| Some((mount, cwd.strip_prefix(mount.destination()).ok()?)));
    match over.min_by_key(|(_, rest)| rest.components().count()) {
        Some((mount, rest)) => (mount.source().clone().unwrap_or_default(), rest.to_owned()),
        None => (root.to_owned(), cwd.to_owned()),
    }
}

fn make_below(base: &Path, rest: &Path, owner: Option<(u32, u32)>) -> Result<(), Errno> {
    let names = rest.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let names: Vec<&OsStr> = names.collect();
    if names.is_empty() || !base.is_absolute() {
        // The root, a mount itself, or a file system that only the container has.
        return Ok(());
    }
    let base = open(base, FOLDER, Mode::empty())?;
    let enter = |way: &Path| -> Result<OwnedFd, Errno> {
        openat2(&base, way, FOLDER, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    let (mut way, mut above) = (PathBuf::new(), enter(Path::new("."))?);
    for name in names {
        way.push(name);
        above = match enter(&way) {
            Err(Errno::NOENT) => {
                mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
                let made = enter(&way)?;
                if let Some((uid, gid)) = owner {
                    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
                    chownat(&made, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
                }
                made
            }
            entered => entered?,
        };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_inside_only() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("out")).unwrap();
        std::os::unix::fs::symlink("/real", root.path().join("link")).unwrap();
        std::fs::create_dir(root.path().join("real")).unwrap();
        make_below(root.path(), Path::new("/a/b"), None).unwrap();
        make_below(root.path(), Path::new("/a/b"), None).unwrap();
        assert!(root.path().join("a/b").is_dir());
        make_below(root.path(), Path::new("/link/c"), None).unwrap();
        assert!(root.path().join("real/c").is_dir());
        assert!(make_below(root.path(), Path::new("/out/c"), None).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
