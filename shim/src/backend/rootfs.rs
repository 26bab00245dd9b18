//! Mounts the container's root filesystem where only the container will see it.
//!
//! The child leaves the host's mount namespace first and stops the bundle's own mount from sending events back; what
//! it mounts then lives exactly as long as the container and can never leak. One case is different: a volume that must
//! propagate mounts to the host and lies in the same mount as the bundle would be cut off by that, so then the root
//! filesystem is mounted on the host and unmounted at delete.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sched::{CloneFlags, unshare};
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::idmap::{Layers, Mapping};
use super::{Failure, FailureKind};
use crate::wire::{CreateOrder, Mount};

/// mount(2) takes one page of options; some room is left for what the kernel adds.
const CLASSIC_LIMIT: usize = 4000;

/// Whose mounts this process sees after the root filesystem's are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The host's, and nothing was mounted.
    Unchanged,
    /// The host's, with the root filesystem in it.
    Host,
    /// Its own.
    Private,
}

/// Mounts everything the order lists.
pub fn mount(order: &CreateOrder, spec: &Spec) -> Result<Place, Failure> {
    if order.rootfs.is_empty() {
        return Ok(Place::Unchanged);
    }
    let target = order.bundle.join("rootfs");
    fs::create_dir_all(&target).map_err(failed("make the mount point", &target))?;
    let on_host = needs_host(order, spec);
    if !on_host {
        enter_private_namespace(&order.bundle)?;
    }
    for one in &order.rootfs {
        let at = if one.target.is_empty() {
            target.clone()
        } else {
            target.join(one.target.trim_start_matches('/'))
        };
        if let Err(failure) = mount_mapped(one, &at, &order.bundle) {
            if on_host {
                unmount(&target);
            }
            return Err(failure);
        }
    }
    Ok(if on_host { Place::Host } else { Place::Private })
}

/// Mounts one, with its owners mapped where its options say so.
fn mount_mapped(one: &Mount, at: &Path, bundle: &Path) -> Result<(), Failure> {
    let Some(mapping) = Mapping::of_options(&one.options)? else { return mount_one(one, at) };
    let scratch = bundle.join("oci").join("lower");
    let (layers, mapped) = Layers::map(one, &mapping, &scratch)?;
    let mounted = mount_one(&mapped, at);
    drop(layers);
    mounted
}

/// Unmounts whatever lies on `target`, as often as something does.
pub fn unmount(target: &Path) {
    // Bounded, so that a mount that cannot go does not hold up the deletion for ever.
    for _ in 0..64 {
        if umount2(target, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW).is_err() {
            return;
        }
    }
}

fn failed<E: std::error::Error>(doing: &'static str, path: &Path) -> impl FnOnce(E) -> Failure {
    let path = path.to_owned();
    move |error| Failure::because(FailureKind::Rootfs, &format!("{doing} {}", path.display()))(error)
}

/// Leaves the host's mount namespace for one that hears of its mounts and tells it nothing.
pub fn enter_private_namespace(bundle: &Path) -> Result<(), Failure> {
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("leave the host's mount namespace for", bundle))?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(failed("read mounts for", bundle))?;
    let bundle = fs::canonicalize(bundle).map_err(failed("resolve", bundle))?;
    let holder = mount_of(&table, &bundle);
    nix::mount::mount(None::<&str>, &holder, None::<&str>, MsFlags::MS_SLAVE, None::<&str>)
        .map_err(failed("stop propagation from", &holder))
}

/// The mount point that `path` lies below: the longest one, and of equal ones the last.
fn mount_of(table: &str, path: &Path) -> PathBuf {
    let mut found = PathBuf::from("/");
    for line in table.lines() {
        let Some(point) = line.split(' ').nth(4) else { continue };
        let point = PathBuf::from(unescape(point));
        if path.starts_with(&point) && point.components().count() >= found.components().count() {
            found = point;
        }
    }
    found
}

/// mountinfo writes blanks, tabs, newlines and backslashes as octal numbers.
pub(super) fn unescape(text: &str) -> String {
    let plain = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    plain.iter().fold(text.to_owned(), |text, (code, char)| text.replace(code, char))
}

fn needs_host(order: &CreateOrder, spec: &Spec) -> bool {
    let own_namespace =
        spec.linux().as_ref().and_then(|l| l.namespaces().as_ref()).is_some_and(|all| {
            all.iter().any(|n| n.typ() == LinuxNamespaceType::Mount && n.path().is_none())
        });
    if !own_namespace {
        return true;
    }
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let holder = mount_of(&table, &order.bundle);
    let shared = |options: &Vec<String>| options.iter().any(|o| o == "rshared" || o == "shared");
    spec.mounts().iter().flatten().any(|m| {
        m.options().as_ref().is_some_and(shared)
            && m.source().as_ref().is_some_and(|source| mount_of(&table, source) == holder)
    })
}

pub fn mount_one(one: &Mount, at: &Path) -> Result<(), Failure> {
    let (flags, data) = split_options(&one.options);
    let doing = || format!("mount {} from {:?} at {}", one.fs_type, one.source, at.display());
    let text = data.join(",");
    if one.fs_type == "overlay" && text.len() > CLASSIC_LIMIT {
        return mount_long_overlay(one, flags, &data, at)
            .map_err(|e| Failure::because(FailureKind::Rootfs, &doing())(e));
    }
    let bind = flags & libc::MS_BIND;
    let first = crate::sys::mount(
        &one.source,
        at,
        &one.fs_type,
        if bind != 0 { flags & (libc::MS_BIND | libc::MS_REC) } else { flags },
        &text,
    );
    first.map_err(|e| Failure::because(FailureKind::Rootfs, &doing())(e))?;
    let rest = flags & !(libc::MS_BIND | libc::MS_REC);
    if bind != 0 && rest != 0 {
        crate::sys::mount("", at, "", rest | libc::MS_BIND | libc::MS_REMOUNT, "")
            .map_err(|e| Failure::because(FailureKind::Rootfs, &doing())(e))?;
    }
    Ok(())
}

/// Gives the layers one by one, so that their number has no limit but the kernel's.
fn mount_long_overlay(one: &Mount, flags: u64, data: &[&str], at: &Path) -> rustix::io::Result<()> {
    use rustix::mount::{
        fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount,
    };
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", &one.source)?;
    for option in data {
        match option.split_once('=') {
            Some(("lowerdir", layers)) => {
                for layer in layers.split(':').filter(|l| !l.is_empty()) {
                    fsconfig_set_string(&context, "lowerdir+", layer)?;
                }
            }
            // Quotes keep the commas of a label together where all options are one text.
            Some(("context", label)) => fsconfig_set_string(&context, "context", label.trim_matches('"'))?,
            Some((key, value)) => fsconfig_set_string(&context, key, value)?,
            None => fsconfig_set_flag(&context, *option)?,
        }
    }
    fsconfig_create(&context)?;
    let mut attributes = MountAttrFlags::empty();
    for (flag, attribute) in [
        (libc::MS_RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (libc::MS_NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (libc::MS_NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (libc::MS_NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (libc::MS_NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
    ] {
        if flags & flag != 0 {
            attributes |= attribute;
        }
    }
    let mounted = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    move_mount(&mounted, "", rustix::fs::CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

/// Tells the kernel's flags from the filesystem's own options.
fn split_options(options: &[String]) -> (u64, Vec<&str>) {
    let mut flags = 0;
    let mut data = Vec::new();
    for option in options {
        match option.as_str() {
            "ro" => flags |= libc::MS_RDONLY,
            "rw" | "defaults" => {}
            "bind" => flags |= libc::MS_BIND,
            "rbind" => flags |= libc::MS_BIND | libc::MS_REC,
            "nosuid" => flags |= libc::MS_NOSUID,
            "nodev" => flags |= libc::MS_NODEV,
            "noexec" => flags |= libc::MS_NOEXEC,
            "noatime" => flags |= libc::MS_NOATIME,
            "nodiratime" => flags |= libc::MS_NODIRATIME,
            "relatime" => flags |= libc::MS_RELATIME,
            "sync" => flags |= libc::MS_SYNCHRONOUS,
            other => data.push(other),
        }
    }
    (flags, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_data_are_told_apart() {
        let options: Vec<String> = ["ro", "lowerdir=/a:/b", "index=off", "nosuid"].map(Into::into).into();
        let (flags, data) = split_options(&options);
        assert_eq!(flags, libc::MS_RDONLY | libc::MS_NOSUID);
        assert_eq!(data, ["lowerdir=/a:/b", "index=off"]);
    }

    #[test]
    fn the_innermost_and_last_mount_holds_a_path() {
        let table = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / /run rw - tmpfs b rw\n3 2 0:3 / /run/my\\040dir rw - tmpfs c rw\n";
        assert_eq!(mount_of(table, Path::new("/run/my dir/x")), Path::new("/run/my dir"));
        assert_eq!(mount_of(table, Path::new("/runner")), Path::new("/"));
    }
}
