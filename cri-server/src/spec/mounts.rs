//! The mounts of a container, in the order in which they are made.
//!
//! Invariant: no two mounts have the same destination, a mount never comes before one that would hide it, and what the
//! request mounts at a place takes the place of what would be there by default.

use std::path::{Path, PathBuf};

use cofferdam_proto::cri::{self, MountPropagation};
use oci_spec::runtime::{LinuxIdMapping, Mount};

use super::devices::plain_path;
use super::error::SpecError;
use super::host::Host;
use super::userns::{self, UserNamespace};

/// Files of the sandbox that its containers share.
#[derive(Clone, Debug, Default)]
pub struct SandboxFiles {
    /// Folder of the pod's /dev/shm; `/dev/shm` itself for a pod in the host's ipc namespace.
    pub shm: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub hostname: Option<PathBuf>,
    pub hosts: Option<PathBuf>,
}

/// What mounts depend on besides the request.
#[derive(Clone, Copy, Debug)]
pub struct MountPolicy {
    pub privileged: bool,
    pub readonly_rootfs: bool,
    /// Whether the runtime can make a whole tree of mounts read-only.
    pub recursive_readonly: bool,
    /// The pod's own users, if it has any.
    pub users: Option<UserNamespace>,
}

/// Whose terminals are, everywhere.
const TTY_GROUP: u32 = 5;

/// A spec's mounts and the propagation of its root.
#[derive(Debug)]
pub struct Mounts {
    pub list: Vec<Mount>,
    pub rootfs_propagation: Option<String>,
}

pub(super) fn mount(destination: &Path, typ: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.to_path_buf());
    mount.set_typ(Some(typ.to_owned()));
    mount.set_source(Some(source.to_path_buf()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

fn pseudo(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    mount(Path::new(destination), typ, Path::new(source), options)
}

/// /proc, /dev and what lies in it, for containers and the pause process alike.
pub(super) fn proc_and_dev(users: Option<UserNamespace>) -> Vec<Mount> {
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if users.is_none_or(|users| users.gids.outside_of(TTY_GROUP).is_some()) {
        pts.push("gid=5");
    }
    vec![
        pseudo("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        pseudo("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        pseudo("/dev/pts", "devpts", "devpts", &pts),
        pseudo("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ]
}

/// Where nothing of the pod's is shared: a /dev/shm of its own.
pub(super) fn own_shm() -> Mount {
    pseudo("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
}

pub(super) fn sysfs(writable: bool) -> Mount {
    pseudo("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", if writable { "rw" } else { "ro" }])
}

/// The type stands for both worlds in the runtime specification: the runtime mounts what the node has.
fn cgroup(writable: bool) -> Mount {
    let access = if writable { "rw" } else { "ro" };
    pseudo("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access])
}

fn of_sandbox(files: &SandboxFiles, policy: MountPolicy) -> Vec<Mount> {
    let access = if policy.readonly_rootfs { "ro" } else { "rw" };
    let bound = [
        ("/etc/hostname", &files.hostname, access),
        ("/etc/hosts", &files.hosts, access),
        ("/etc/resolv.conf", &files.resolv_conf, access),
        ("/dev/shm", &files.shm, "rw"),
    ];
    let bind = |(destination, source, access): (&str, &Option<PathBuf>, &str)| {
        let source = source.as_ref()?;
        let mut mount = mount(Path::new(destination), "bind", source, &["rbind", "rprivate", access]);
        // The node's root made the files, the pod's root shall own them; the shared memory is the pod's already.
        if let Some(users) = policy.users.filter(|_| destination != "/dev/shm") {
            show_as(&mut mount, users.maps());
        }
        Some(mount)
    };
    bound.into_iter().filter_map(bind).collect()
}

/// Has the owners of a mount's files shown through a mapping.
fn show_as(mount: &mut Mount, (uids, gids): (Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)) {
    mount.set_uid_mappings(Some(uids));
    mount.set_gid_mappings(Some(gids));
}

fn propagation(request: &cri::Mount) -> Result<MountPropagation, SpecError> {
    MountPropagation::try_from(request.propagation).map_err(|_| SpecError::Invalid {
        field: "mount propagation",
        value: request.propagation.to_string(),
        why: "no propagation of the CRI",
    })
}

/// `rro` where the whole tree shall be read-only.
fn access(request: &cri::Mount, policy: MountPolicy) -> Result<&'static str, SpecError> {
    let invalid = |why| SpecError::Invalid {
        field: "recursive read-only mount",
        value: request.container_path.clone(),
        why,
    };
    match (request.readonly, request.recursive_read_only) {
        (false, false) => Ok("rw"),
        (true, false) => Ok("ro"),
        (false, true) => Err(invalid("it is not read-only")),
        (true, true) if propagation(request)? != MountPropagation::PropagationPrivate => {
            Err(invalid("its propagation is not private"))
        }
        (true, true) if !policy.recursive_readonly => Err(SpecError::Unavailable {
            what: "recursive read-only mount",
            value: request.container_path.clone(),
            why: "the container's runtime handler cannot make one",
        }),
        (true, true) => Ok("rro"),
    }
}

fn check_propagation(request: &cri::Mount, host: &dyn Host) -> Result<&'static str, SpecError> {
    let path = Path::new(&request.host_path);
    let found = || host.propagation(path).map_err(|source| SpecError::Host { path: path.to_owned(), source });
    let refused = |asked, found| SpecError::Propagation { host_path: path.to_owned(), asked, found };
    match propagation(request)? {
        MountPropagation::PropagationPrivate => Ok("rprivate"),
        MountPropagation::PropagationHostToContainer => {
            let found = found()?;
            if found.shared || found.slave {
                Ok("rslave")
            } else {
                Err(refused("HostToContainer", "private"))
            }
        }
        MountPropagation::PropagationBidirectional => {
            if found()?.shared {
                Ok("rshared")
            } else {
                Err(refused("Bidirectional", "non-shared"))
            }
        }
    }
}

fn requested(request: &cri::Mount, policy: MountPolicy, host: &dyn Host) -> Result<Mount, SpecError> {
    let bidirectional = propagation(request)? == MountPropagation::PropagationBidirectional;
    if policy.users.is_some() && bidirectional {
        return Err(SpecError::Invalid {
            field: "mount propagation",
            value: request.container_path.clone(),
            why: "the kernel lets no mount out of a user namespace, so it cannot be Bidirectional",
        });
    }
    let destination = plain_path("mount destination", &request.container_path)?;
    if destination == Path::new("/") {
        return Err(SpecError::Invalid {
            field: "mount destination",
            value: request.container_path.clone(),
            why: "the root of the container cannot be mounted over",
        });
    }
    let source = Path::new(&request.host_path);
    if !source.is_absolute() {
        return Err(SpecError::Invalid {
            field: "mount source",
            value: request.host_path.clone(),
            why: "the path is not absolute",
        });
    }
    // A request that contradicts itself is told so, whatever the host could give.
    let access = access(request, policy)?;
    let options = ["rbind", check_propagation(request, host)?, access];
    let mut mount = mount(&destination, "bind", source, &options);
    if let Some(maps) = userns::of_mount(request)? {
        show_as(&mut mount, maps);
    }
    Ok(mount)
}

/// The later of two mounts at the same place stays.
fn without_repetition(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut kept: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        kept.retain(|known| known.destination() != mount.destination());
        kept.push(mount);
    }
    kept
}

/// The mounts of a container.
///
/// # Errors
/// When a requested mount contradicts itself or needs what the host or the runtime does not have.
pub fn for_container(
    requests: &[cri::Mount],
    files: &SandboxFiles,
    policy: MountPolicy,
    host: &dyn Host,
) -> Result<Mounts, SpecError> {
    let mut own =
        requests.iter().map(|request| requested(request, policy, host)).collect::<Result<Vec<_>, _>>()?;
    own = without_repetition(own);
    let brings_dev = own.iter().any(|mount| mount.destination() == Path::new("/dev"));
    let overridden = |default: &Mount| {
        let destination = default.destination();
        own.iter().any(|mount| mount.destination() == destination)
            // The pod's shared memory stays the pod's, even over the host's /dev.
            || (brings_dev && destination.starts_with("/dev") && destination != Path::new("/dev/shm"))
    };
    let mut list = proc_and_dev(policy.users);
    list.push(sysfs(policy.privileged));
    list.push(cgroup(policy.privileged));
    list.extend(of_sandbox(files, policy));
    list.retain(|default| !overridden(default));
    list.extend(own);
    // Stable: at equal depth the order stays that of the request.
    list.sort_by_key(|mount| mount.destination().components().count());
    Ok(Mounts { list, rootfs_propagation: rootfs_propagation(requests)? })
}

/// The root has to let through what the most open of its mounts needs.
fn rootfs_propagation(requests: &[cri::Mount]) -> Result<Option<String>, SpecError> {
    let mut root = None;
    for request in requests {
        match propagation(request)? {
            MountPropagation::PropagationPrivate => {}
            MountPropagation::PropagationHostToContainer => root = root.or(Some("rslave")),
            MountPropagation::PropagationBidirectional => root = Some("rshared"),
        }
    }
    Ok(root.map(str::to_owned))
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
