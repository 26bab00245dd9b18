//! Where criu builds a container: the root file system and every mount that comes from outside, each at a path of its
//! own that only this process and criu see.
//!
//! They are taken from the container's waiting process, which has them as the specification says. Invariant: criu gets
//! nothing of the node's file systems that this process does not have as well, and all of it goes with the two.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::MsFlags;
use nix::sched::{CloneFlags, setns};
use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};

use super::super::Failure;
use super::super::rootfs::{enter_private_namespace, unescape};
use super::{OF_NAMESPACES, failed};
use crate::bundle::Bundle;

/// For criu's log and what it writes beside it.
const SIZE: &str = "mode=700,size=64m";

pub struct Stage {
    folder: PathBuf,
    /// What lies where in the container, and where it is to be taken from.
    pub external: Vec<(String, PathBuf)>,
}

/// A mount of the waiting process, free to be put elsewhere.
struct Taken {
    point: String,
    tree: OwnedFd,
}

impl Stage {
    /// Sets it up for the container whose first process is `model`.
    pub fn build(bundle: &Bundle, model: i32) -> Result<Self, Failure> {
        enter_private_namespace(bundle.path())?;
        let folder = bundle.runtime_root().join("restore");
        fs::create_dir_all(&folder).map_err(failed("make the folder to restore in"))?;
        crate::sys::mount("tmpfs", &folder, "tmpfs", 0, SIZE)
            .map_err(failed("mount the folder to restore in"))?;
        nix::mount::mount(None::<&str>, &folder, None::<&str>, MsFlags::MS_PRIVATE, None::<&str>)
            .map_err(failed("keep the mounts of a restore apart"))?;
        let mut stage = Self { folder, external: Vec::new() };
        for name in ["root", "external", "work"] {
            fs::create_dir(stage.folder.join(name)).map_err(failed("make a folder to restore in"))?;
        }
        for (at, taken) in take(bundle.path(), model)?.into_iter().enumerate() {
            let place = stage.place(at, &taken)?;
            move_mount(&taken.tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(failed(&format!("show criu the mount at {}", taken.point)))?;
            if taken.point != "/" {
                stage.external.push((taken.point, place));
            }
        }
        Ok(stage)
    }

    pub fn root(&self) -> PathBuf {
        self.folder.join("root")
    }

    /// criu's own folder.
    pub fn work(&self) -> PathBuf {
        self.folder.join("work")
    }

    fn place(&self, at: usize, taken: &Taken) -> Result<PathBuf, Failure> {
        if taken.point == "/" {
            return Ok(self.root());
        }
        let place = self.folder.join("external").join(at.to_string());
        let stat = rustix::fs::fstat(&taken.tree).map_err(failed("look at a mount of the container"))?;
        let made = match rustix::fs::FileType::from_raw_mode(stat.st_mode) {
            rustix::fs::FileType::Directory => fs::create_dir(&place),
            _ => File::create(&place).map(drop),
        };
        made.map_err(failed("make a place for a mount"))?;
        Ok(place)
    }
}

/// Copies of the mounts of `model`.
fn take(bundle: &Path, model: i32) -> Result<Vec<Taken>, Failure> {
    let table = fs::read_to_string(format!("/proc/{model}/mountinfo"))
        .map_err(failed("read the container's mounts"))?;
    let open = |of: &str| File::open(format!("/proc/{of}/ns/mnt")).map_err(failed("open a mount namespace"));
    let (home, theirs) = (open("self")?, open(&model.to_string())?);
    setns(&theirs, CloneFlags::CLONE_NEWNS).map_err(failed("enter the container's mount namespace"))?;
    let taken = points(&table).into_iter().map(|point| {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, Path::new(&point), flags)
            .map_err(failed(&format!("take the mount at {point}")))?;
        Ok(Taken { point, tree })
    });
    let taken = taken.collect::<Result<Vec<_>, Failure>>();
    setns(&home, CloneFlags::CLONE_NEWNS)
        .map_err(failed("come back from the container's mount namespace"))?;
    // It was lost on the way.
    std::env::set_current_dir(bundle).map_err(failed("come back to the bundle"))?;
    taken
}

/// Where something is mounted that criu may be told to take from outside, the root first. proc_pid_mountinfo(5)
fn points(table: &str) -> Vec<String> {
    let mut found = vec!["/".to_owned()];
    for line in table.lines() {
        let mut fields = line.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        let kind = line.split_once(" - ").and_then(|(_, rest)| rest.split(' ').next()).unwrap_or_default();
        let point = unescape(point);
        let anew = root == "/" && OF_NAMESPACES.contains(&kind);
        // criu's options cannot name one with a bracket.
        if !anew && !point.contains(']') && !found.contains(&point) {
            found.push(point);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_anew_is_not_taken() {
        let table = "1 0 0:40 / / rw - overlay overlay rw\n2 1 0:50 / /proc rw - proc proc rw\n\
                     3 1 254:0 /pods/hosts /etc/hosts rw - ext4 /dev/vda rw\n\
                     4 1 0:20 / /sys ro - sysfs sysfs rw\n5 2 0:50 /sys /proc/sys ro - proc proc rw\n\
                     6 1 254:0 /v /my\\040data rw - ext4 /dev/vda rw\n7 1 254:0 /v /a]b rw - ext4 /dev/vda rw\n";
        assert_eq!(points(table), ["/", "/etc/hosts", "/proc/sys", "/my data"]);
    }
}
