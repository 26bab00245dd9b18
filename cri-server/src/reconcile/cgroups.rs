//! Cgroups named by ids of ours, wherever in the hierarchies; and those that bundles name.
//!
//! Invariant: the walk does not go into a cgroup that any id names, so that what a container makes below its own is the
//! container's business, also where it is a runtime itself.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::Orphan;
use crate::cgroup::OwnCgroups;
use crate::ports::Ports;

/// Deeper trees of pods are nobody's.
const MAX_DEPTH: usize = 16;
const SCOPE: (&str, &str) = ("cri-cofferdam-", ".scope");

/// Every cgroup of ours with its id.
pub(super) fn all(ports: &Ports) -> Vec<(String, Orphan)> {
    let mounts = ports.cgroups.hierarchies().mounts();
    let owns = |id: &str| ports.owner.owns(id);
    let points: HashSet<&Path> = mounts.controllers.values().chain(&mounts.unified).map(|p| &**p).collect();
    let mut found = Vec::new();
    for point in points {
        walk(point, point, 0, &owns, &mut found);
    }
    found.extend(of_bundles(ports));
    found.sort();
    found.dedup();
    found.into_iter().map(|(id, path)| (id, Orphan::Cgroup { path })).collect()
}

fn walk(
    top: &Path,
    folder: &Path,
    depth: usize,
    owns: &impl Fn(&str) -> bool,
    found: &mut Vec<(String, String)>,
) {
    if depth > MAX_DEPTH {
        return;
    }
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let scope = name.strip_prefix(SCOPE.0).and_then(|rest| rest.strip_suffix(SCOPE.1));
        let id = scope.unwrap_or(name);
        let path = entry.path();
        if owns(id) {
            let relative = path.strip_prefix(top).unwrap_or(&path);
            found.push((id.to_owned(), format!("/{}", relative.display())));
        }
        // A pod's scope holds its containers' cgroups; any other place that an id names is that id's alone.
        if !looks_like_an_id(id) || (scope.is_some() && owns(id)) {
            walk(top, &path, depth + 1, owns, found);
        }
    }
}

fn looks_like_an_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The cgroups that bundles name and that exist: ids of older versions carry no mark.
fn of_bundles(ports: &Ports) -> Vec<(String, String)> {
    let places = &ports.places;
    let state = places.state();
    let sandboxes =
        places.sandbox_names().into_iter().map(|name| (state.join("sandboxes").join(&name), name));
    let containers =
        places.container_names().into_iter().map(|name| (state.join("containers").join(&name), name));
    let own = OwnCgroups::read().unwrap_or_default();
    sandboxes
        .chain(containers)
        .filter_map(|(bundle, id)| {
            let spec: serde_json::Value =
                serde_json::from_slice(&fs::read(bundle.join("config.json")).ok()?).ok()?;
            let path = crate::cgroup::relative_path(spec["linux"]["cgroupsPath"].as_str()?)?;
            // Only one that the task has for itself.
            let is_its_own = path.rsplit('/').next().is_some_and(|name| name.contains(&id));
            let is_ours = own.0.values().any(|own| Path::new(own).starts_with(&path));
            let exists = ports.cgroups.hierarchies().paths(&path).is_ok_and(|paths| paths.exist());
            (is_its_own && !is_ours && exists).then_some((id, path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_ids_are_found_and_no_id_is_entered() {
        let top = tempfile::tempdir().unwrap();
        let (mine, yours) = ("a".repeat(64), "b".repeat(64));
        for path in [
            format!("kubepods/pod1/{mine}/inside/{mine}"),
            format!("kubepods/pod1/{yours}/nested/{mine}"),
            format!("k.slice/cri-cofferdam-{mine}.scope/{mine}"),
            format!("k.slice/cri-containerd-{mine}.scope"),
        ] {
            fs::create_dir_all(top.path().join(path)).unwrap();
        }
        let mut found = Vec::new();
        walk(top.path(), top.path(), 0, &|id| id == mine, &mut found);
        let mut paths: Vec<_> = found.into_iter().map(|(_, path)| path).collect();
        paths.sort();
        let scope = format!("/k.slice/cri-cofferdam-{mine}.scope");
        assert_eq!(paths, [scope.clone(), format!("{scope}/{mine}"), format!("/kubepods/pod1/{mine}")]);
    }
}
