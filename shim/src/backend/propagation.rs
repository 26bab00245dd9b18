//! How mount events travel between the host and each volume of a container.
//!
//! libcontainer knows one mode for the whole container: with it, a private volume on a shared mount of the host would hear
//! of the host's mounts, and beside a volume that shares its own it would even tell the host of its. So each volume is
//! settled by itself once all mounts are made, before anything of the user's runs. Invariant: nothing becomes more open
//! here, only less.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{Mode, OFlags};

use super::rootfs::unescape;
use super::{Failure, FailureKind};
use crate::sys::mount::{Propagation, set_propagation};
use crate::sys::{self, Forked};

/// The mode that a mount asks for; none for what may stay as it is.
fn wanted(mount: &Mount) -> Option<Propagation> {
    mount.options().iter().flatten().rev().find_map(|option| match option.as_str() {
        "private" | "rprivate" => Some(Some(Propagation::Private)),
        "slave" | "rslave" => Some(Some(Propagation::Slave)),
        "shared" | "rshared" => Some(None),
        _ => None,
    })?
}

/// Sets the modes of all volumes of the container whose first process is `pid`.
pub fn settle(spec: &Spec, pid: i32) -> Result<(), Failure> {
    let failure =
        |words: String| Failure::new(FailureKind::Runtime, format!("set how mounts propagate: {words}"));
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).map_err(|e| failure(e.to_string()))?;
    // On a host with private mounts there is nothing to do, and no need of another process.
    if !table.lines().any(|line| travels(line, "shared:") || travels(line, "master:")) {
        return Ok(());
    }
    let namespace = File::open(format!("/proc/{pid}/ns/mnt")).map_err(|e| failure(e.to_string()))?;
    let (mut ours, mut theirs) = UnixStream::pair().map_err(|e| failure(e.to_string()))?;
    match sys::fork().map_err(|e| failure(e.to_string()))? {
        Forked::Child => {
            drop(ours);
            if let Err(error) = settle_inside(spec, &table, &namespace) {
                let _ = theirs.write_all(error.to_string().as_bytes());
            }
            sys::exit_now(0)
        }
        Forked::Parent(child) => {
            drop(theirs);
            let mut words = String::new();
            let read = Read::by_ref(&mut ours).take(4096).read_to_string(&mut words);
            let ended = nix::sys::wait::waitpid(child, None);
            match (read, ended) {
                (Ok(0), Ok(nix::sys::wait::WaitStatus::Exited(_, 0))) => Ok(()),
                (Ok(1..), _) => Err(failure(words)),
                _ => Err(failure("the child that does it has failed".to_owned())),
            }
        }
    }
}

/// Whether a line of mountinfo has an optional field that begins so. proc_pid_mountinfo(5)
fn travels(line: &str, field: &str) -> bool {
    line.split(' ').skip(6).take_while(|word| *word != "-").any(|word| word.starts_with(field))
}

/// What is to be changed: for each mount of the table, by the innermost volume that it lies in.
fn changes<'a>(
    table: &'a str,
    volumes: &'a [(PathBuf, Option<Propagation>)],
) -> impl Iterator<Item = (PathBuf, Propagation)> + 'a {
    table.lines().filter_map(|line| {
        let point = PathBuf::from(unescape(line.split(' ').nth(4)?));
        let over = volumes.iter().filter(|(place, _)| point.starts_with(place));
        let (_, mode) = over.max_by_key(|(place, _)| place.components().count())?;
        let mode = (*mode)?;
        let (shared, slave) = (travels(line, "shared:"), travels(line, "master:"));
        let needed = match mode {
            Propagation::Private => shared || slave,
            Propagation::Slave => shared,
        };
        needed.then_some((point, mode))
    })
}

/// `table` is that of the container, whose /proc shows this process nothing of itself.
fn settle_inside(spec: &Spec, table: &str, namespace: &File) -> std::io::Result<()> {
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    let mut volumes = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        // An image's links may lead to another place than is written; what is mounted there is what counts.
        let Ok(place) = fs::canonicalize(mount.destination()) else { continue };
        volumes.push((place, wanted(mount)));
    }
    for (point, mode) in changes(table, &volumes) {
        let mount = match open(&point) {
            // Hidden by what was mounted above it later: nobody reaches it.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            opened => opened?,
        };
        set_propagation(&mount, mode)
            .map_err(|errno| std::io::Error::other(format!("{}: {}", point.display(), errno.desc())))?;
    }
    Ok(())
}

fn open(point: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(point, flags, Mode::empty())?)
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
        let found: Vec<_> = changes(table, &volumes).collect();
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
