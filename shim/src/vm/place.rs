//! The pod's cgroup on the node, which holds its machine: what kills the cgroup ends the pod.

use std::fs;
use std::io;
use std::path::Path;

use crate::cgroup::CgroupPaths;

/// Makes the cgroup that the pod's specification names, in every hierarchy.
pub fn make(path: &Path) -> io::Result<CgroupPaths> {
    let cgroups = CgroupPaths::intended(path)?;
    for (controller, folder) in &cgroups.v1 {
        fs::create_dir_all(folder)?;
        if controller == "cpuset" {
            inherit_cpuset(folder)?;
        }
    }
    if let Some(folder) = &cgroups.unified {
        fs::create_dir_all(folder)?;
    }
    Ok(cgroups)
}

pub fn put(cgroups: &CgroupPaths, pid: i32) -> io::Result<()> {
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
