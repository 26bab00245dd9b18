//! Makes the working directory where the image lacks it, as users of other runtimes expect; libcontainer only enters it.
//!
//! Invariant: it is made in the root file system itself, where every step is resolved inside and stays on that one file
//! system, or in a volume that the container may write to, below the volume's own folder. In a volume that is read-only,
//! and in what only the container has, nothing is made: entering the folder fails then, as with other runtimes.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, mkdirat, open, openat2};
use rustix::io::Errno;

const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// What lies at the working directory's path once all mounts are made.
#[derive(Debug, PartialEq, Eq)]
enum Place<'a> {
    /// The root file system.
    Root,
    /// A folder of the host that the container may write to, and the way from there.
    Volume(&'a Path, PathBuf),
    /// Nothing that the runtime should make folders in.
    Closed,
}

/// Makes the spec's working directory below `root`, its mounted root filesystem. `owner` is who the container's root is on
/// the host, where he is not the host's.
pub fn make(spec: &Spec, root: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Some(process) = spec.process() else { return Ok(()) };
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    match place(process.cwd(), mounts) {
        Place::Root => match make_below(root, process.cwd(), ResolveFlags::NO_XDEV, owner) {
            // A link to what is mounted later, or a root that cannot be written: entering it decides.
            Err(Errno::EXIST | Errno::ROFS | Errno::XDEV) => Ok(()),
            made => Ok(made?),
        },
        // A link in a volume can mean another place in the container than it does here: entering it decides.
        Place::Volume(source, rest) => {
            let _ = make_below(source, &rest, ResolveFlags::empty(), None);
            Ok(())
        }
        Place::Closed => Ok(()),
    }
}

/// The innermost mount over the directory decides.
fn place<'a>(cwd: &Path, mounts: &'a [Mount]) -> Place<'a> {
    let over = mounts.iter().filter_map(|mount| Some((mount, cwd.strip_prefix(mount.destination()).ok()?)));
    let Some((mount, rest)) = over.min_by_key(|(_, rest)| rest.components().count()) else {
        return Place::Root;
    };
    let has =
        |wanted: &[&str]| mount.options().iter().flatten().any(|option| wanted.contains(&option.as_str()));
    let source = mount.source().as_deref().filter(|source| source.is_absolute());
    match source {
        Some(source) if has(&["bind", "rbind"]) && !has(&["ro", "rro"]) => {
            Place::Volume(source, rest.to_owned())
        }
        _ => Place::Closed,
    }
}

/// Makes the folders that `rest` lacks below `base`; every step is resolved inside.
pub(super) fn make_below(
    base: &Path,
    rest: &Path,
    bounds: ResolveFlags,
    owner: Option<(u32, u32)>,
) -> Result<(), Errno> {
    let names = rest.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name),
        _ => None,
    });
    let names: Vec<&OsStr> = names.collect();
    if names.is_empty() {
        // The root, or the volume itself.
        return Ok(());
    }
    let bounds = bounds | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let base = open(base, FOLDER, Mode::empty())?;
    let enter = |way: &Path| -> Result<OwnedFd, Errno> { openat2(&base, way, FOLDER, Mode::empty(), bounds) };
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
        let make = |path: &str| make_below(root.path(), Path::new(path), ResolveFlags::NO_XDEV, None);
        make("/a/b").unwrap();
        make("/a/b").unwrap();
        assert!(root.path().join("a/b").is_dir());
        make("/link/c").unwrap();
        assert!(root.path().join("real/c").is_dir());
        assert!(make("/out/c").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    fn mount(destination: &str, source: &str, options: &[&str]) -> Mount {
        let mut mount = Mount::default();
        mount.set_destination(destination.into()).set_source(Some(source.into()));
        mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
        mount
    }

    #[test]
    fn only_volumes_that_may_be_written_get_folders() {
        let mounts = [
            mount("/proc", "proc", &["nosuid"]),
            mount("/data", "/host/data", &["rbind", "rw"]),
            mount("/data/fixed", "/host/fixed", &["rbind", "ro"]),
            mount("/data/all", "/host/all", &["rbind", "rro"]),
        ];
        let at = |cwd: &str| place(Path::new(cwd), &mounts);
        assert_eq!(at("/srv/x"), Place::Root);
        assert_eq!(at("/data/x/y"), Place::Volume(Path::new("/host/data"), "x/y".into()));
        for closed in ["/proc/self/fd/7", "/data/fixed/x", "/data/all/x"] {
            assert_eq!(at(closed), Place::Closed, "{closed}");
        }
    }
}
