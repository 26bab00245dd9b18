//! `mount-layers AT UIDS GIDS [LABEL]`: mounts image layers at a folder, read-only and with their owners mapped. With a
//! SELinux label, which only a stack of two layers or more can be given.
//!
//! For the daemon, which has no way to give a mount a mapping. The layers' folders come on stdin, top first, one a line;
//! a mapping is written `INSIDE:OUTSIDE:COUNT`, with commas between its lines.

use std::io::Read;
use std::path::Path;

use super::idmap::{Layers, Mapping, attach, clone_tree};
use super::rootfs::mount_one;
use super::{Failure, FailureKind};
use crate::sys::mount::map_layer;
use crate::wire::Mount;

/// More than any image's layers take.
const MAX_INPUT: u64 = 1 << 20;

pub fn main(argv: &[String]) -> Result<(), String> {
    let (at, uids, gids, label) = match argv {
        [at, uids, gids] => (at, uids, gids, None),
        [at, uids, gids, label] => (at, uids, gids, Some(label.as_str())),
        _ => return Err("a folder and two mappings are needed".to_owned()),
    };
    let mut text = String::new();
    std::io::stdin().lock().take(MAX_INPUT).read_to_string(&mut text).map_err(|e| e.to_string())?;
    let layers: Vec<&str> = text.lines().collect();
    let options = [format!("uidmap={uids}"), format!("gidmap={gids}")];
    mount(Path::new(at), &layers, &options, label).map_err(|failure| failure.message)
}

fn mount(at: &Path, layers: &[&str], mapping: &[String], label: Option<&str>) -> Result<(), Failure> {
    let failure = |words: String| Failure::new(FailureKind::Rootfs, words);
    let mapping = Mapping::of_options(mapping)?.ok_or_else(|| failure("no mapping is given".to_owned()))?;
    if let [only] = layers {
        let tree = clone_tree(Path::new(only), false)
            .map_err(|e| failure(format!("copy the mount of {only}: {e}")))?;
        map_layer(&tree, mapping.namespace()?)
            .map_err(|e| failure(format!("map the owners of {only}: {e}")))?;
        return attach(&tree, at).map_err(|e| failure(format!("mount {only}: {e}")));
    }
    let mut options = vec!["ro".to_owned(), "nodev".to_owned(), format!("lowerdir={}", layers.join(":"))];
    options.extend(label.map(|label| format!("context=\"{label}\"")));
    let overlay =
        Mount { fs_type: "overlay".to_owned(), source: "overlay".to_owned(), target: String::new(), options };
    let (held, mapped) = Layers::map(&overlay, &mapping, &at.with_extension("lower"))?;
    let mounted = mount_one(&mapped, at);
    drop(held);
    let _ = std::fs::remove_dir(at.with_extension("lower"));
    mounted
}
