//! Mounts below the daemon's folders, each in the folder of the pod or container that it belongs to.

use cofferdam_failpoints::failpoint;
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::{Orphan, ReconcileError};
use crate::places::Places;

const TABLE: &str = "/proc/self/mountinfo";

/// Mounts in folders named by ids, with the ids.
pub(super) fn all(places: &Places, failures: &mut Vec<ReconcileError>) -> Vec<(String, Orphan)> {
    let homes = [
        places.state().join("sandboxes"),
        places.state().join("containers"),
        places.root().join("containers"),
        places.root().join("checkpoints"),
    ];
    let points = match points() {
        Ok(points) => points,
        Err(error) => {
            failures.push(error);
            return Vec::new();
        }
    };
    let owned = points.into_iter().filter_map(|point| {
        let inside = homes.iter().find_map(|home| point.strip_prefix(home).ok())?;
        let id = inside.components().next()?.as_os_str().to_str()?.to_owned();
        Some((id, Orphan::Mount { point }))
    });
    owned.collect()
}

/// All mount points, as this process sees them.
fn points() -> Result<Vec<PathBuf>, ReconcileError> {
    let text = fs::read(TABLE).map_err(|source| ReconcileError::File {
        operation: "read",
        path: TABLE.into(),
        source,
    })?;
    let lines = text.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4)).map(unescape).collect())
}

/// Blanks and the like are written as three octal digits. proc_pid_mountinfo(5)
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, after)) = rest.split_first() {
        let octal = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = octal.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Whether something is mounted at or below `path`.
pub(super) fn below(path: &Path) -> Result<bool, ReconcileError> {
    Ok(points()?.iter().any(|point| point.starts_with(path)))
}

/// Takes a mount away, and whatever is mounted below it; absent is done.
pub(super) fn unmount(point: &Path) -> Result<(), ReconcileError> {
    match umount2(point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(errno) => {
            let path = point.to_owned();
            return Err(ReconcileError::File { operation: "unmount", path, source: errno.into() });
        }
    }
    failpoint!("reconcile.unmounted");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_they_are() {
        assert_eq!(unescape(b"/a\\040b\\134c"), Path::new("/a b\\c"));
        assert_eq!(unescape(b"/plain\\"), Path::new("/plain\\"));
        assert!(points().unwrap().iter().any(|point| point == Path::new("/proc")));
    }
}
