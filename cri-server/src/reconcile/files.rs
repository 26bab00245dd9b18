//! Folders, pins, sockets and FIFOs below the daemon's own folders.
//!
//! Invariant: nothing is removed through a mount, so that a volume's files are safe whatever was left mounted.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::{Orphan, ReconcileError, mounts};
use crate::model::{ContainerId, SandboxId};
use crate::network::netns::Pins;
use crate::ports::Ports;
use crate::runtime::Launcher;
use crate::snapshot;

/// A socket's maker binds it a moment before it listens.
const SOCKET_AGE: Duration = Duration::from_secs(60);

/// Everything that is named by an id, with the id.
pub(super) fn all(ports: &Ports, failures: &mut Vec<ReconcileError>) -> Vec<(String, Orphan)> {
    let places = &ports.places;
    let mut found = Vec::new();
    for (home, names) in [("sandboxes", places.sandbox_names()), ("containers", places.container_names())] {
        // What has no id's name is somebody else's.
        let ids = names.into_iter().filter(|name| ContainerId::parse(name).is_ok());
        found.extend(ids.map(|id| {
            let path = places.state().join(home).join(&id);
            (id, Orphan::Bundle { path })
        }));
    }
    match Pins::new(places.state()).list() {
        Ok(pins) => found.extend(pins.into_iter().map(|id| {
            let id = id.to_string();
            (id.clone(), Orphan::Pin { id })
        })),
        Err(error) => failures.push(error.into()),
    }
    found.extend(ports.snapshots.container_ids().into_iter().map(|id| {
        let id = id.to_string();
        (id.clone(), Orphan::Writable { id })
    }));
    found
}

/// Sockets in the folder of shims' sockets at which nobody listens.
pub(super) fn dead_sockets(ports: &Ports, started: SystemTime) -> Vec<Orphan> {
    let folder = ports.places.state().join("s");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let old = entries.filter(|entry| {
        let Ok(file) = entry.metadata() else { return false };
        let is_old = file.modified().is_ok_and(|at| {
            at < started || SystemTime::now().duration_since(at).is_ok_and(|age| age > SOCKET_AGE)
        });
        file.file_type().is_socket() && is_old
    });
    old.map(|entry| entry.path()).filter(|path| is_dead(path)).map(|path| Orphan::Socket { path }).collect()
}

/// Asked without waiting: the queue of a shim that hangs may be full.
fn is_dead(path: &Path) -> bool {
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let Ok(socket) = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None) else { return false };
    connect(&socket, &address) == Err(Errno::CONNREFUSED)
}

/// A file system's clock may be that much behind the system's: it ticks a hundred times in a second at the least.
const TICK: Duration = Duration::from_millis(20);

/// FIFOs of execs and attachments that an earlier daemon served.
pub(super) fn old_streams(ports: &Ports, started: SystemTime) -> Vec<Orphan> {
    let home = ports.places.state().join("containers");
    let mut found = Vec::new();
    for name in ports.places.container_names() {
        for entry in fs::read_dir(home.join(name).join("io")).into_iter().flatten().flatten() {
            let is_old = entry
                .metadata()
                .is_ok_and(|file| file.is_dir() && file.modified().is_ok_and(|at| at + TICK < started));
            if is_old {
                found.push(Orphan::Streams { path: entry.path() });
            }
        }
    }
    found
}

pub(super) fn unpin(ports: &Ports, id: &str) -> Result<(), ReconcileError> {
    let Ok(id) = SandboxId::parse(id) else { return Ok(()) };
    Pins::new(ports.places.state()).remove(&id)?;
    failpoint!("reconcile.unpinned");
    Ok(())
}

/// Removes a bundle, and a shim's socket that it names and nobody serves.
pub(super) fn remove_bundle(path: &Path) -> Result<(), ReconcileError> {
    if mounts::below(path)? {
        return Err(ReconcileError::Mounted(path.to_owned()));
    }
    if let Some(socket) = Launcher::recorded(path).and_then(|e| e.socket_path().map(Path::to_owned))
        && is_dead(&socket)
    {
        remove_file(&socket)?;
    }
    snapshot::remove_folder(path)?;
    failpoint!("reconcile.bundle_removed");
    Ok(())
}

/// Removes the folder of an exec or an attachment that nobody serves.
pub(super) fn remove_streams(path: &Path) -> Result<(), ReconcileError> {
    snapshot::remove_folder(path)?;
    failpoint!("reconcile.streams_removed");
    Ok(())
}

pub(super) fn remove_writable(ports: &Ports, id: &str) -> Result<(), ReconcileError> {
    let Ok(id) = ContainerId::parse(id) else { return Ok(()) };
    ports.snapshots.remove(&id)?;
    failpoint!("reconcile.writable_removed");
    Ok(())
}

/// Removes a shim's socket at which nobody listens.
pub(super) fn remove_socket(path: &Path) -> Result<(), ReconcileError> {
    remove_file(path)?;
    failpoint!("reconcile.socket_removed");
    Ok(())
}

/// Absent is done.
fn remove_file(path: &Path) -> Result<(), ReconcileError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != ErrorKind::NotFound => {
            Err(ReconcileError::File { operation: "remove", path: path.to_owned(), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
