//! The pod's cgroup on the node, which holds its machine: what kills the cgroup ends the pod, and what bounds it bounds
//! the machine.
//!
//! Where systemd keeps the cgroups it lies in the pod's scope, which begins with the machine's first process: systemd makes
//! no scope without one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::LinuxResources;

use crate::bundle::Bundle;
use crate::cgroup::{CgroupPaths, limits, systemd};

pub struct Place<'a> {
    path: PathBuf,
    cgroups: CgroupPaths,
    systemd: bool,
    limits: LinuxResources,
    bundle: &'a Bundle,
    /// Whether it has a process.
    begun: Mutex<bool>,
}

impl<'a> Place<'a> {
    /// The cgroup that the pod's specification names, in every hierarchy; where systemd keeps it, it is
    /// made with the first process.
    pub fn new(path: &Path, systemd: bool, limits: LinuxResources, bundle: &'a Bundle) -> io::Result<Self> {
        let cgroups = CgroupPaths::intended(path)?;
        if !systemd {
            make(&cgroups)?;
        }
        Ok(Place { path: path.to_owned(), cgroups, systemd, limits, bundle, begun: Mutex::new(false) })
    }

    pub fn cgroups(&self) -> &CgroupPaths {
        &self.cgroups
    }

    /// Puts a process of the machine into it.
    pub fn put(&self, pid: i32) -> io::Result<()> {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if *begun {
            return enter(&self.cgroups, pid);
        }
        if self.systemd {
            systemd::begin_with(&self.path, pid.unsigned_abs()).map_err(io::Error::other)?;
            make(&self.cgroups)?;
        }
        enter(&self.cgroups, pid)?;
        if let (true, Some(folder)) = (self.cgroups.is_v2(), &self.cgroups.unified) {
            // On v2 a cgroup has the controllers that everything above it passes on.
            let depth = self.path.components().skip(1).count();
            if let (Some(mount), Some(above)) = (folder.ancestors().nth(depth), self.path.parent()) {
                systemd::pass_controllers_on(mount, above);
            }
        }
        // The kubelet bounds the pod in any case.
        if let Err(error) = limits::apply(&self.cgroups, &self.limits) {
            self.bundle.warn(&format!("the machine is not bounded by its own cgroup: {error}"));
        }
        *begun = true;
        Ok(())
    }
}

fn make(cgroups: &CgroupPaths) -> io::Result<()> {
    for (controller, folder) in &cgroups.v1 {
        fs::create_dir_all(folder)?;
        if controller == "cpuset" {
            inherit_cpuset(folder)?;
        }
    }
    cgroups.unified.as_ref().map_or(Ok(()), fs::create_dir_all)
}

fn enter(cgroups: &CgroupPaths, pid: i32) -> io::Result<()> {
    for folder in cgroups.folders() {
        fs::write(folder.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

/// A new cpuset of v1 is empty, and nothing can be put into it before it has what its parent has.
fn inherit_cpuset(folder: &Path) -> io::Result<()> {
    let Some(parent) = folder.parent() else { return Ok(()) };
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let own = fs::read_to_string(folder.join(name))?;
        if own.trim().is_empty() {
            let above = fs::read_to_string(parent.join(name)).unwrap_or_default();
            if above.trim().is_empty() {
                inherit_cpuset(parent)?;
            }
            fs::write(folder.join(name), fs::read_to_string(parent.join(name))?)?;
        }
    }
    Ok(())
}
