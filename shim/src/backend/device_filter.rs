//! Puts the container's device rules into force on cgroup v2, before its program runs.
//!
//! v1 has a controller for it, which libcontainer sets up. Invariant: on v2 a container either has its filter, or the
//! shim's log says why this node cannot have one; a node that could have one never goes on without.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use oci_spec::runtime::{LinuxDeviceCgroup, Spec};

use super::{Failure, FailureKind, Reporter};
use crate::cgroup::{CgroupPaths, devices};
use crate::sys::bpf::{self, Rejected};

#[derive(Debug, thiserror::Error)]
enum Unenforced {
    #[error(transparent)]
    Load(#[from] Rejected),
    #[error("attach the device filter to {0}")]
    Attach(String, #[source] io::Error),
}

impl Unenforced {
    fn is_a_missing_right(&self) -> bool {
        let (Unenforced::Load(Rejected { error, .. }) | Unenforced::Attach(_, error)) = self;
        error.raw_os_error() == Some(libc::EPERM)
    }
}

pub fn enforce(spec: &Spec, cgroups: &CgroupPaths, reporter: Reporter) -> Result<(), Failure> {
    if !cgroups.v1.is_empty() {
        return Ok(());
    }
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules: &[LinuxDeviceCgroup] = resources.and_then(|r| r.devices().as_deref()).unwrap_or_default();
    let program =
        devices::program(rules).map_err(Failure::because(FailureKind::Spec, "read the device rules"))?;
    let Some(program) = program else { return Ok(()) };
    let Some(folder) = &cgroups.unified else {
        reporter.warn("the device rules are not enforced: the container has no cgroup of its own");
        return Ok(());
    };
    match attach(&program, folder) {
        Ok(()) => Ok(()),
        Err(error) if error.is_a_missing_right() || in_user_namespace() => {
            reporter.warn(format!("the device rules are not enforced: {}", super::chain(&error)));
            Ok(())
        }
        Err(error) => Err(Failure::because(FailureKind::Runtime, "enforce the device rules")(error)),
    }
}

fn attach(program: &[devices::Instruction], folder: &std::path::Path) -> Result<(), Unenforced> {
    // Kernels before 5.11 count programs against this limit. This process is about to end, and where the limit may not
    // be raised, the load says so.
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY);
    let filter = bpf::load_device_filter(program)?;
    let failed = |error| Unenforced::Attach(folder.display().to_string(), error);
    let cgroup = File::open(folder).map_err(failed)?;
    bpf::attach_device_filter(cgroup.as_fd(), filter.as_fd()).map_err(failed)
}

/// The first user namespace of the node maps every id to itself.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut words = map.split_whitespace();
    (words.next(), words.next(), words.next()) != (Some("0"), Some("0"), Some("4294967295"))
}
