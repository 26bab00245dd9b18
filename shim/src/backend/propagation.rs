//! How mount events travel between the host and each volume of a container.
//!
//! libcontainer knows one mode for the whole container: with it, a private volume on a shared mount of the host would hear
//! of the host's mounts, and beside a volume that shares its own it would even tell the host of its. So each volume is
//! settled by itself once all mounts are made, before anything of the user's runs. Invariant: nothing becomes more open
//! here, only less.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags, statx};

use super::enter::{self, Who};
use super::late::Late;
use super::rootfs::unescape;
use super::{Failure, FailureKind};
use crate::sys::mount::{Propagation, set_propagation};

/// The mode that a mount asks for; none for what may stay as it is.
pub(super) fn wanted(mount: &Mount) -> Option<Propagation> {
    mount.options().iter().flatten().rev().find_map(|option| match option.as_str() {
        "private" | "rprivate" => Some(Some(Propagation::Private)),
        "slave" | "rslave" => Some(Some(Propagation::Slave)),
        "shared" | "rshared" => Some(None),
        _ => None,
    })?
}

/// A line of mountinfo. proc_pid_mountinfo(5)
#[derive(Debug)]
pub(super) struct Line {
    pub id: u64,
    pub point: PathBuf,
    pub shared: bool,
    pub slave: bool,
}

impl Line {
    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let point = PathBuf::from(unescape(fields.nth(3)?));
        let optional = || fields.clone().skip(1).take_while(|word| *word != "-");
        let (shared, slave) = (
            optional().any(|word| word.starts_with("shared:")),
            optional().any(|word| word.starts_with("master:")),
        );
        Some(Line { id, point, shared, slave })
    }
}

/// Sets the modes of all volumes of the container whose first process is `pid`, but those that are yet to be put to their
/// places.
pub fn settle(spec: &Spec, late: &Late, pid: i32) -> Result<(), Failure> {
    let doing = "set how mounts propagate";
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"));
    let table = table.map_err(Failure::because(FailureKind::Runtime, doing))?;
    // On a host with private mounts there is nothing to do, and no need of another process.
    if !table.lines().filter_map(Line::parse).any(|line| line.shared || line.slave) {
        return Ok(());
    }
    enter::mounts_of(pid, Who::Host, doing, |_| settle_inside(spec, late, &table))
}

/// What is to be changed: for each mount of the table, by the innermost volume that it lies in.
fn changes<'a>(
    table: &'a str,
    volumes: &'a [(PathBuf, Option<Propagation>)],
) -> impl Iterator<Item = (Line, Propagation)> + 'a {
    table.lines().filter_map(Line::parse).filter_map(|line| {
        let over = volumes.iter().filter(|(place, _)| line.point.starts_with(place));
        let (_, mode) = over.max_by_key(|(place, _)| place.components().count())?;
        let mode = (*mode)?;
        let needed = match mode {
            Propagation::Private => line.shared || line.slave,
            Propagation::Slave => line.shared,
        };
        needed.then_some((line, mode))
    })
}

/// `table` is that of the container, whose /proc shows this process nothing of itself.
fn settle_inside(spec: &Spec, late: &Late, table: &str) -> io::Result<()> {
    let mut volumes = Vec::new();
    for mount in spec.mounts().iter().flatten().filter(|mount| !late.holds(mount.destination())) {
        // An image's links may lead to another place than is written; what is mounted there is what counts.
        let Ok(place) = fs::canonicalize(mount.destination()) else { continue };
        volumes.push((place, wanted(mount)));
    }
    for (line, mode) in changes(table, &volumes) {
        let failed = |error: io::Error| io::Error::other(format!("{}: {error}", line.point.display()));
        let mount = match open(&line.point) {
            // Hidden by what was mounted above it later: nobody reaches it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            opened => opened.map_err(failed)?,
        };
        // The same: another mount lies there, which has a line of its own.
        if mount_of(&mount).map_err(failed)? != line.id {
            continue;
        }
        set_propagation(&mount, mode).map_err(|errno| failed(errno.into()))?;
    }
    Ok(())
}

pub(super) fn open(point: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(point, flags, Mode::empty())?)
}

/// The mount that an open file lies in, by its number in mountinfo.
pub(super) fn mount_of(file: &OwnedFd) -> io::Result<u64> {
    Ok(statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mount_is_settled_by_the_volume_it_lies_in() {
        let table = "1 0 0:1 / / rw shared:1 - overlay o rw\n2 1 0:2 / /data rw shared:2 - ext4 a rw\n\
                     3 2 0:3 / /data/sub rw shared:3 master:9 - ext4 b rw\n4 2 0:4 / /data/open rw shared:4 - ext4 c rw\n\
                     5 1 0:5 / /slave rw shared:5 - ext4 d rw\n6 5 0:6 / /slave/below rw master:6 - ext4 e rw\n\
                     7 1 0:7 / /proc rw shared:7 - proc p rw\n8 1 0:8 / /calm rw - ext4 f rw\n";
        let volumes = [
            (PathBuf::from("/data"), Some(Propagation::Private)),
            (PathBuf::from("/data/open"), None),
            (PathBuf::from("/slave"), Some(Propagation::Slave)),
            (PathBuf::from("/calm"), Some(Propagation::Private)),
        ];
        let found: Vec<_> = changes(table, &volumes).map(|(line, mode)| (line.point, mode)).collect();
        let expected = [
            ("/data", Propagation::Private),
            ("/data/sub", Propagation::Private),
            ("/slave", Propagation::Slave),
        ];
        assert_eq!(found, expected.map(|(point, mode)| (PathBuf::from(point), mode)));
    }

    #[test]
    fn the_last_word_on_propagation_counts() {
        let mode = |options: &[&str]| {
            let mut mount = Mount::default();
            mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
            wanted(&mount)
        };
        assert_eq!(mode(&["rbind", "rprivate", "ro"]), Some(Propagation::Private));
        assert_eq!(mode(&["rbind", "rslave"]), Some(Propagation::Slave));
        assert_eq!((mode(&["rbind", "rshared"]), mode(&["rbind"])), (None, None));
    }
}
