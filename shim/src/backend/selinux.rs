//! SELinux labels: of processes, which libcontainer gives none, and of what is mounted for a container.
//!
//! Invariant: a process whose specification names a label runs under it or not at all.

use std::io;
use std::os::fd::OwnedFd;

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags, ResolveFlags, fstatfs, open, openat2};

use super::{Failure, FailureKind};

/// proc(5): the file system's magic number.
const PROC_MAGIC: i128 = 0x9fa0;
/// File systems that are made anew for each container. A mount of any other would share what is mounted already, and the
/// kernel refuses a label that differs from the first one's.
const OWN: [&str; 2] = ["tmpfs", "devpts"];

/// Has the kernel put the program that this thread, or a child that it forks, executes next under `label`.
/// proc_pid_attr(5)
pub fn on_exec(label: Option<&str>) -> Result<(), Failure> {
    let Some(label) = label.filter(|label| !label.is_empty()) else { return Ok(()) };
    let written = attribute().and_then(|file| Ok(rustix::io::write(file, label.as_bytes())? == label.len()));
    let doing = format!("take the SELinux label {label:?}");
    match written.map_err(Failure::because(FailureKind::Runtime, &doing))? {
        true => Ok(()),
        false => Err(Failure::new(FailureKind::Runtime, format!("{doing}: only a part of it was written"))),
    }
}

/// What is opened lies on the kernel's /proc and on nothing that a container mounted there.
fn attribute() -> io::Result<OwnedFd> {
    let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = open("/proc", folder, Mode::empty())?;
    if i128::from(fstatfs(&proc)?.f_type) != PROC_MAGIC {
        return Err(io::Error::other("/proc is not the kernel's"));
    }
    let strict = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
    let write = OFlags::WRONLY | OFlags::CLOEXEC;
    Ok(openat2(&proc, "thread-self/attr/exec", write, Mode::empty(), strict)?)
}

/// Moves the mount label to the mounts that can take one, for libcontainer would ask for it with every mount. True when
/// something changed.
pub fn spread(spec: &mut Spec) -> bool {
    let Some(label) = spec.linux_mut().as_mut().and_then(|linux| {
        let label = linux.mount_label().clone();
        linux.set_mount_label(None);
        label
    }) else {
        return false;
    };
    for mount in spec.mounts_mut().iter_mut().flatten() {
        if label.is_empty() || !mount.typ().as_deref().is_some_and(|typ| OWN.contains(&typ)) {
            continue;
        }
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("context={label}"));
        mount.set_options(Some(options));
    }
    true
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Linux, Mount};

    use super::*;

    #[test]
    fn the_attribute_is_the_threads_own() {
        let file = attribute().unwrap();
        assert_eq!(i128::from(fstatfs(&file).unwrap().f_type), PROC_MAGIC);
        on_exec(None).unwrap();
        on_exec(Some("")).unwrap();
    }

    #[test]
    fn a_label_that_the_kernel_does_not_know_is_an_error() {
        let failure = on_exec(Some("no_u:no_r:no_t:s0:c1,c2")).unwrap_err();
        assert!(failure.message.contains("take the SELinux label \"no_u:no_r:no_t:s0:c1,c2\""), "{failure}");
    }

    #[test]
    fn only_file_systems_of_the_container_are_labelled() {
        let mount = |typ: &str| {
            let mut mount = Mount::default();
            mount.set_typ(Some(typ.to_owned())).set_options(Some(vec!["nosuid".to_owned()]));
            mount
        };
        let mut spec = Spec::default();
        let mut linux = Linux::default();
        linux.set_mount_label(Some("u:r:t:s0:c1,c2".to_owned()));
        spec.set_linux(Some(linux));
        spec.set_mounts(Some(["tmpfs", "proc", "devpts", "mqueue", "bind"].map(mount).into()));
        assert!(spread(&mut spec));
        let labelled = |m: &Mount| m.options().iter().flatten().any(|o| o == "context=u:r:t:s0:c1,c2");
        let found: Vec<bool> = spec.mounts().iter().flatten().map(labelled).collect();
        assert_eq!(found, [true, false, true, false, false]);
        assert!(!spread(&mut spec));
    }
}
