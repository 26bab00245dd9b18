//! Files whose owners are shown through a mapping: layers below an overlay, and volumes.
//!
//! Invariant: nothing on disk is changed. The kernel takes a mapping from a user namespace only, so one is made for each
//! mapping by a process that does nothing else and is gone before the namespace is used.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMapping;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::{Failure, FailureKind};
use crate::sys::{self, Forked, mount::map_layer};
use crate::wire::Mount;

/// What the kernel takes in one map: user_namespaces(7).
const MAX_LINES: usize = 340;

/// One line of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Line {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// Which users and groups a file's owners are shown as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mapping {
    pub uids: Vec<Line>,
    pub gids: Vec<Line>,
}

/// `INSIDE:OUTSIDE:COUNT`, several with commas between them, as containerd writes it.
fn lines(text: &str) -> Option<Vec<Line>> {
    let line = |text: &str| {
        let mut numbers = text.split(':').map(str::parse::<u32>);
        let line = Line {
            inside: numbers.next()?.ok()?,
            outside: numbers.next()?.ok()?,
            count: numbers.next()?.ok()?,
        };
        numbers.next().is_none().then_some(line)
    };
    text.split(',').map(line).collect()
}

fn of_oci(list: &[LinuxIdMapping]) -> Vec<Line> {
    list.iter()
        .map(|one| Line { inside: one.container_id(), outside: one.host_id(), count: one.size() })
        .collect()
}

impl Mapping {
    pub fn of_oci(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Self {
        Mapping { uids: of_oci(uids), gids: of_oci(gids) }
    }

    /// The mapping that the options `uidmap=` and `gidmap=` of a root filesystem's mount name.
    pub fn of_options(options: &[String]) -> Result<Option<Self>, Failure> {
        let value = |key: &str| options.iter().find_map(|option| option.strip_prefix(key));
        let (uids, gids) = match (value("uidmap="), value("gidmap=")) {
            (None, None) => return Ok(None),
            (uids, gids) => (uids.unwrap_or_default(), gids.unwrap_or_default()),
        };
        match (lines(uids), lines(gids)) {
            (Some(uids), Some(gids)) => Ok(Some(Mapping { uids, gids })),
            _ => Err(rootfs(format!("the mapping uidmap={uids:?}, gidmap={gids:?} is not well formed"))),
        }
    }

    /// Who root inside is outside.
    pub fn root(&self) -> Option<(u32, u32)> {
        let zero = |lines: &[Line]| lines.iter().find(|line| line.inside == 0).map(|line| line.outside);
        Some((zero(&self.uids)?, zero(&self.gids)?))
    }

    /// A user namespace with this mapping and nobody in it.
    pub fn namespace(&self) -> Result<OwnedFd, Failure> {
        for list in [&self.uids, &self.gids] {
            if list.is_empty() || list.len() > MAX_LINES || list.iter().any(|line| line.count == 0) {
                let count = list.len();
                return Err(rootfs(format!("a mapping of {count} lines, or an empty line, cannot be had")));
            }
        }
        let failed = |e: std::io::Error| rootfs(format!("make a user namespace for a mapping: {e}"));
        let (mut ours, theirs) = UnixStream::pair().map_err(failed)?;
        match sys::fork().map_err(|e| failed(e.into()))? {
            Forked::Child => {
                drop(ours);
                wait_in_new_namespace(theirs)
            }
            Forked::Parent(pid) => {
                drop(theirs);
                let made = self.write(pid, &mut ours);
                drop(ours);
                // It ends by itself once the socket is closed.
                let _ = nix::sys::wait::waitpid(pid, None);
                made.map_err(failed)
            }
        }
    }

    fn write(&self, pid: Pid, child: &mut UnixStream) -> std::io::Result<OwnedFd> {
        let mut word = [0; 1];
        child.read_exact(&mut word)?;
        if word[0] != 0 {
            return Err(std::io::Error::from_raw_os_error(i32::from(word[0])));
        }
        let text = |lines: &[Line]| -> String {
            lines.iter().map(|line| format!("{} {} {}\n", line.inside, line.outside, line.count)).collect()
        };
        // One write each: the kernel takes a map as a whole.
        fs::write(format!("/proc/{pid}/uid_map"), text(&self.uids))?;
        fs::write(format!("/proc/{pid}/gid_map"), text(&self.gids))?;
        Ok(File::open(format!("/proc/{pid}/ns/user"))?.into())
    }
}

/// The forked child: tells how the unshare went and lives until its parent has what it wants.
fn wait_in_new_namespace(mut parent: UnixStream) -> ! {
    let word = match unshare(CloneFlags::CLONE_NEWUSER) {
        Ok(()) => 0,
        Err(errno) => u8::try_from(errno as i32).unwrap_or(u8::MAX),
    };
    let _ = parent.write_all(&[word]);
    let _ = parent.read(&mut [0; 1]);
    sys::exit_now(0)
}

fn rootfs(message: String) -> Failure {
    Failure::new(FailureKind::Rootfs, message)
}

/// A copy of the mount at `path` that lies nowhere yet.
pub fn clone_tree(path: &Path, recursive: bool) -> rustix::io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags)
}

/// Lays a mount that lies nowhere over `at`.
pub fn attach(mount: &OwnedFd, at: &Path) -> rustix::io::Result<()> {
    rustix::mount::move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// The layers of an overlay while the overlay is being mounted: it takes copies of its own.
pub struct Layers {
    mounts: Vec<OwnedFd>,
    places: Vec<std::path::PathBuf>,
}

impl Layers {
    /// The same overlay with its layers shown through `mapping`; `scratch` holds them until the answer is dropped.
    pub fn map(one: &Mount, mapping: &Mapping, scratch: &Path) -> Result<(Self, Mount), Failure> {
        if one.fs_type != "overlay" {
            let kind = &one.fs_type;
            return Err(rootfs(format!(
                "a root filesystem of type {kind:?} cannot be shown through a mapping"
            )));
        }
        let userns = mapping.namespace()?;
        let mut layers = Layers { mounts: Vec::new(), places: Vec::new() };
        let mut options = Vec::with_capacity(one.options.len());
        for option in &one.options {
            match option.split_once('=') {
                Some(("uidmap" | "gidmap", _)) => {}
                Some(("lowerdir", folders)) => {
                    for folder in folders.split(':') {
                        layers.add(Path::new(folder), &userns, scratch)?;
                    }
                    options.push(format!("lowerdir={}", layers.names().join(":")));
                }
                _ => options.push(option.clone()),
            }
        }
        let mount = Mount {
            fs_type: one.fs_type.clone(),
            source: one.source.clone(),
            target: one.target.clone(),
            options,
        };
        Ok((layers, mount))
    }

    fn add(&mut self, layer: &Path, userns: &OwnedFd, scratch: &Path) -> Result<(), Failure> {
        let doing = |e: &dyn std::error::Error| rootfs(format!("map the owners of {}: {e}", layer.display()));
        let mount = clone_tree(layer, false).map_err(|e| doing(&e))?;
        map_layer(&mount, userns).map_err(|e| doing(&e))?;
        // Kernels before 6.15 take no layer from a mount that lies nowhere.
        let place = scratch.join(self.mounts.len().to_string());
        fs::create_dir_all(&place).map_err(|e| doing(&e))?;
        attach(&mount, &place).map_err(|e| doing(&e))?;
        self.mounts.push(mount);
        self.places.push(place);
        Ok(())
    }

    /// Short however deep the scratch folder lies: mount(2) takes one page of options.
    fn names(&self) -> Vec<String> {
        self.mounts.iter().map(|mount| format!("/proc/self/fd/{}", mount.as_fd().as_raw_fd())).collect()
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        for place in &self.places {
            let _ = rustix::mount::unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            let _ = fs::remove_dir(place);
        }
    }
}

/// Whether `folder` and all above it can be entered by a user whom nobody knows.
pub fn unreachable_part(folder: &Path) -> Option<&Path> {
    let enterable = |path: &&Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let opened = rustix::fs::open(*path, flags, Mode::empty());
        opened.and_then(rustix::fs::fstat).is_ok_and(|stat| stat.st_mode & 0o001 != 0)
    };
    folder.ancestors().filter(|path| !path.as_os_str().is_empty()).find(|path| !enterable(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_read_from_the_options_of_a_mount() {
        let of = |options: &[&str]| {
            Mapping::of_options(&options.iter().map(|o| (*o).to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(of(&["lowerdir=/a"]).unwrap(), None);
        let mapping =
            of(&["uidmap=0:1000:10,10:5000:1", "lowerdir=/a", "gidmap=0:2000:10"]).unwrap().unwrap();
        assert_eq!(mapping.uids[1], Line { inside: 10, outside: 5000, count: 1 });
        assert_eq!(mapping.root(), Some((1000, 2000)));
        for bad in ["uidmap=0:1000", "uidmap=0:1:2:3", "uidmap=a:b:c", "uidmap=0:1:-1"] {
            assert!(of(&[bad, "gidmap=0:1:2"]).is_err(), "{bad}");
        }
        assert!(of(&["uidmap=0:1:2"]).is_err(), "a mapping of users alone");
    }

    #[test]
    fn folders_that_only_root_enters_are_found() {
        use std::os::unix::fs::PermissionsExt;
        let top = tempfile::tempdir().unwrap();
        let below = top.path().join("a");
        fs::create_dir(&below).unwrap();
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o711)).unwrap();
        assert_eq!(unreachable_part(&below), None);
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o700)).unwrap();
        assert_eq!(unreachable_part(&below), Some(top.path()));
    }
}
