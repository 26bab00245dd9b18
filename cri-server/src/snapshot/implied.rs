//! Directories that a layer uses without describing them, and what a container sees of them.
//!
//! Such a directory is made with plain attributes, and overlayfs would show these instead of those that a lower layer gives
//! it. Which lower layers there are is an image's matter, and a layer serves many images: so it is left as it is, and the
//! container's writable layer gets the directory, with the attributes that unpacking the layers onto each other would have
//! left.
//!
//! Invariant: nothing becomes visible that was hidden, and no layer is changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;

use super::Owners;
use super::error::SnapshotError;
use super::layer::Layer;
use super::tree;

/// The work that an image may ask for: directories times layers.
const MAX_LOOKS: u64 = 2_000_000;
/// The most directories that a writable layer gets before its container runs.
const MAX_MADE: usize = 10_000;

/// A directory for a writable layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Attributes {
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
}

impl Attributes {
    fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode & 0o7777,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec.cast_signed()),
        }
    }

    fn same_rights(&self, other: &Self) -> bool {
        (self.mode, self.owner) == (other.mode, other.owner)
    }
}

/// What a writable layer has to hold from the start; parents before children.
#[derive(Debug, Default)]
pub(super) struct Corrections(BTreeMap<String, Attributes>);

/// A layer as it is looked at.
pub(super) struct Seen {
    pub fs: PathBuf,
    pub layer: Layer,
}

/// What one layer says of a path.
enum Finding {
    Directory {
        stat: Stat,
        opaque: bool,
    },
    Absent {
        opaque: bool,
    },
    /// Something else is there, which hides all below.
    Hidden,
}

/// What the stack shows of a directory, and what it should show.
struct Look {
    shown: Attributes,
    right: Attributes,
}

impl Corrections {
    /// Of `layers`, top first.
    pub fn of(layers: &[Seen]) -> Result<Self, SnapshotError> {
        let implied: Vec<HashSet<&str>> = layers.iter().map(|l| l.layer.implied().collect()).collect();
        // Below the lowest layer nothing describes anything.
        let above = implied.len().saturating_sub(1);
        let paths: BTreeSet<&str> = implied[..above].iter().flatten().copied().collect();
        if (paths.len() as u64).saturating_mul(layers.len() as u64) > MAX_LOOKS {
            let what = "look-ups of directories that no entry describes";
            return Err(SnapshotError::Limit { what, limit: MAX_LOOKS });
        }
        let mut made = BTreeMap::new();
        for path in paths {
            let Some(found) = look(layers, &implied, path)? else { continue };
            if found.shown.same_rights(&found.right) {
                continue;
            }
            made.insert(path.to_owned(), found.right);
            // On the way to it there are others, which have to look as without it.
            for parent in parents(path) {
                if !parent.is_empty()
                    && !made.contains_key(parent)
                    && let Some(found) = look(layers, &implied, parent)?
                {
                    made.insert(parent.to_owned(), found.right);
                }
            }
            if made.len() > MAX_MADE {
                let what = "directories that no entry describes and another layer does";
                return Err(SnapshotError::Limit { what, limit: MAX_MADE as u64 });
            }
        }
        Ok(Self(made))
    }

    /// Whether the layers fit each other as they are.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Makes them in the new, empty writable layer `upper` of `owners`; the empty path is `upper` itself.
    pub fn make(&self, upper: &Path, owners: Option<Owners>) -> Result<(), SnapshotError> {
        for (path, wanted) in &self.0 {
            let target = upper.join(path);
            if !path.is_empty() {
                fs::create_dir(&target).map_err(SnapshotError::io("make directory", &target))?;
            }
            let (uid, gid) = owners.map_or(wanted.owner, |owners| owners.on_the_node(wanted.owner));
            chown(&target, Some(uid), Some(gid)).map_err(SnapshotError::io("set the owner of", &target))?;
            fs::set_permissions(&target, fs::Permissions::from_mode(wanted.mode))
                .map_err(SnapshotError::io("set the mode of", &target))?;
        }
        // Times change with every directory made inside, so they come last.
        for (path, wanted) in self.0.iter().rev() {
            let target = upper.join(path);
            let time = Timespec { tv_sec: wanted.mtime.0, tv_nsec: wanted.mtime.1 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, &target, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| SnapshotError::io("set the times of", &target)(e.into()))?;
        }
        Ok(())
    }
}

/// The folders above a path, the root last.
fn parents(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors((!path.is_empty()).then_some(path), |path| {
        (!path.is_empty()).then(|| path.rsplit_once('/').map_or("", |(parent, _)| parent))
    })
    .skip(1)
}

/// None where the stack shows no directory at `path`.
fn look(layers: &[Seen], implied: &[HashSet<&str>], path: &str) -> Result<Option<Look>, SnapshotError> {
    let mut shown: Option<Attributes> = None;
    for (seen, implied) in std::iter::zip(layers, implied) {
        let opaque = match find(seen, path)? {
            Finding::Directory { stat, opaque } => {
                let here = Attributes::of(&stat);
                if !implied.contains(path) {
                    return Ok(Some(Look { shown: shown.unwrap_or(here), right: here }));
                }
                shown.get_or_insert(here);
                opaque
            }
            Finding::Absent { opaque } => opaque,
            Finding::Hidden => break,
        };
        if opaque {
            break;
        }
    }
    Ok(shown.map(|shown| Look { shown, right: shown }))
}

/// Looks without a link being followed: what is on the way are directories of the layer or nothing.
fn find(seen: &Seen, path: &str) -> Result<Finding, SnapshotError> {
    let failed = || SnapshotError::entry_io("look at directory", path.as_bytes());
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = rustix::fs::openat(CWD, &seen.fs, flags, Mode::empty()).map_err(failed())?;
    let mut opaque = seen.layer.opaque_root;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        here = match tree::open_directory(here.as_fd(), name.as_bytes()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Finding::Absent { opaque }),
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Finding::Hidden),
            Err(errno) => return Err(failed()(errno)),
        };
        opaque |= is_opaque(&here);
    }
    let stat = rustix::fs::fstat(&here).map_err(failed())?;
    Ok(Finding::Directory { stat, opaque })
}

fn is_opaque(directory: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    rustix::fs::fgetxattr(directory, tree::OPAQUE, &mut value)
        .is_ok_and(|length| length == 1 && value == *b"y")
}
