//! Where a hybrid node keeps controllers in its unified hierarchy, the container is put there as well: libcontainer
//! only knows the v1 side of such a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup::{Mounted, parse_mount};

/// Another container of the pod may take the empty folders above away at the same moment.
const TRIES: u32 = 5;

/// Moves `pid` into the unified cgroup of this path if that is where the node's huge pages are counted.
pub fn for_hugepages(pid: i32, cgroups_path: &Path) -> io::Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mounts: Vec<Mounted> = mounts.lines().filter_map(parse_mount).collect();
    if mounts.iter().any(|mount| mount.controllers.iter().any(|c| c == "hugetlb")) {
        return Ok(());
    }
    let Some(unified) = mounts.iter().find(|mount| mount.unified) else { return Ok(()) };
    let has = fs::read_to_string(unified.at.join("cgroup.controllers"))?;
    if !has.split_whitespace().any(|controller| controller == "hugetlb") {
        return Ok(());
    }
    let below = cgroups_path.strip_prefix("/").unwrap_or(cgroups_path);
    let mut tries = 0;
    let folder = loop {
        tries += 1;
        match make(&unified.at, below) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && tries < TRIES => {}
            made => break made?,
        }
    };
    fs::write(folder.join("cgroup.procs"), pid.to_string())
}

/// Makes a cgroup to which all above it pass the controller on.
fn make(mount: &Path, below: &Path) -> io::Result<PathBuf> {
    let mut folder = mount.to_owned();
    for part in below.components() {
        fs::write(folder.join("cgroup.subtree_control"), "+hugetlb")?;
        folder.push(part);
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(folder)
}
