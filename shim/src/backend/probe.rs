//! `probe-user-namespaces ROOT STATE`: tries on this node what a pod with a user namespace needs, and says what fails.
//!
//! Nothing is concluded from version numbers: an overlay on a layer with mapped owners is mounted in the folder where the
//! layers lie, and a file of the folder where bundles lie is shown with a mapped owner. Both are gone with this process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::idmap::{Layers, Line, Mapping, clone_tree, unreachable_part};
use super::rootfs::{self, enter_private_namespace};
use super::{Failure, FailureKind};
use crate::sys::mount::map_ids;
use crate::wire::Mount;

/// Any range does that is not the node's own first one.
const OUTSIDE: u32 = 65536;

/// Removes the folder that the trial made, whatever came of it.
struct Trial(PathBuf);

impl Drop for Trial {
    fn drop(&mut self) {
        rootfs::unmount(&self.0.join("merged"));
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub fn main(argv: &[String]) -> Result<(), String> {
    let [root, state] = argv else { return Err("two folders are needed: root and state".to_owned()) };
    try_all(Path::new(root), Path::new(state)).map_err(|failure| failure.message)
}

fn try_all(root: &Path, state: &Path) -> Result<(), Failure> {
    if let Some(closed) = unreachable_part(state) {
        let words = format!("{} is closed to others: chmod o+x", closed.display());
        return Err(Failure::new(FailureKind::Rootfs, words));
    }
    let line = vec![Line { inside: 0, outside: OUTSIDE, count: 65536 }];
    let mapping = Mapping { uids: line.clone(), gids: line };
    let userns = mapping.namespace()?;
    enter_private_namespace(root)?;
    let tree = clone_tree(state, false)
        .map_err(|e| failure(&format!("copy the mount of {}: {e}", state.display())))?;
    map_ids(&tree, &userns, false)
        .map_err(|e| failure(&format!("the file system of {} cannot map owners: {e}", state.display())))?;
    try_overlay(root, &mapping)
}

fn try_overlay(root: &Path, mapping: &Mapping) -> Result<(), Failure> {
    let trial = Trial(root.join(format!(".userns-{}", std::process::id())));
    let folder = |name: &str| {
        let path = trial.0.join(name);
        fs::create_dir_all(&path)
            .map(|()| path)
            .map_err(|e| failure(&format!("make a folder for a trial: {e}")))
    };
    let (lower, upper, work) = (folder("lower")?, folder("upper")?, folder("work")?);
    let (scratch, merged) = (folder("scratch")?, folder("merged")?);
    fs::write(lower.join("file"), "").map_err(|e| failure(&format!("make a file for a trial: {e}")))?;
    let mount = Mount {
        fs_type: "overlay".to_owned(),
        source: "overlay".to_owned(),
        target: String::new(),
        options: vec![
            format!("lowerdir={}", lower.display()),
            format!("upperdir={}", upper.display()),
            format!("workdir={}", work.display()),
        ],
    };
    let (layers, mapped) = Layers::map(&mount, mapping, &scratch)?;
    let mounted = rootfs::mount_one(&mapped, &merged);
    drop(layers);
    mounted?;
    let owner = fs::metadata(merged.join("file")).map(|data| data.uid());
    match owner {
        Ok(OUTSIDE) => Ok(()),
        Ok(owner) => {
            Err(failure(&format!("an overlay shows owner {owner} of a layer's file, not {OUTSIDE}")))
        }
        Err(error) => Err(failure(&format!("read a file of a mapped layer: {error}"))),
    }
}

fn failure(message: &str) -> Failure {
    Failure::new(FailureKind::Rootfs, message)
}
