//! The container's view of cgroup v1, as binds instead of a mount of type `cgroup`.
//!
//! libcontainer resolves such a mount through /proc with the pid that the first process has in its own pid namespace.
//! In a namespace that the pod shares, that number means some other process of the host or none, and the container
//! cannot be made. With cgroup v2, and where systemd names the cgroups, the mount is left as it is.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};

/// The controllers in which libcontainer makes a container's cgroup.
const CONTROLLERS: [&str; 12] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
];

/// Replaces the mount of type `cgroup`, if there is one. True when something changed.
pub fn replace(spec: &mut Spec, mountinfo: &str) -> bool {
    let hierarchies = hierarchies(mountinfo);
    let path = spec.linux().as_ref().and_then(|l| l.cgroups_path().clone());
    let Some(path) = path.filter(|p| p.is_absolute() && !hierarchies.is_empty()) else { return false };
    let Some(mounts) = spec.mounts_mut() else { return false };
    let Some(at) = mounts.iter().position(|m| m.typ().as_deref() == Some("cgroup")) else { return false };
    let old = mounts.remove(at);
    let access = if old.options().iter().flatten().any(|o| o == "ro") { "ro" } else { "rw" };
    let inside = path.strip_prefix("/").unwrap_or(&path);
    let base = ["nosuid", "noexec", "nodev", "relatime"];
    let tmpfs =
        mount(old.destination(), "tmpfs", Path::new("tmpfs"), &[&base[..], &["mode=755", "size=64k"]]);
    let binds = hierarchies.iter().filter_map(|hierarchy| {
        let destination = old.destination().join(hierarchy.file_name()?);
        Some(mount(&destination, "bind", &hierarchy.join(inside), &[&base[..], &["bind", access]]))
    });
    mounts.splice(at..at, std::iter::once(tmpfs).chain(binds).collect::<Vec<_>>());
    true
}

fn mount(destination: &Path, kind: &str, source: &Path, options: &[&[&str]]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.to_owned());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.to_owned()));
    mount.set_options(Some(options.concat().into_iter().map(str::to_owned).collect()));
    mount
}

/// Where the v1 hierarchies are mounted that carry one of the controllers. proc_pid_mountinfo(5)
fn hierarchies(mountinfo: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mountinfo.lines() {
        let Some((before, after)) = line.split_once(" - ") else { continue };
        let mut after = after.split(' ');
        if after.next() != Some("cgroup") {
            continue;
        }
        let controllers = after.nth(1).unwrap_or_default();
        let mut fields = before.split(' ').skip(3);
        let (Some("/"), Some(point)) = (fields.next(), fields.next()) else { continue };
        let point = PathBuf::from(point);
        if controllers.split(',').any(|c| CONTROLLERS.contains(&c)) && !found.contains(&point) {
            found.push(point);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
        30 27 0:26 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu\n\
        31 27 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory\n\
        32 27 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        33 27 0:29 /docker/x /elsewhere rw - cgroup cgroup rw,pids\n\
        34 27 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    fn spec(path: &str) -> Spec {
        let mut spec = Spec::default();
        let mut linux = spec.linux().clone().unwrap_or_default();
        linux.set_cgroups_path(Some(path.into()));
        spec.set_linux(Some(linux));
        spec.set_mounts(Some(vec![mount(
            Path::new("/sys/fs/cgroup"),
            "cgroup",
            Path::new("cgroup"),
            &[&["nosuid", "ro"]],
        )]));
        spec
    }

    #[test]
    fn each_hierarchy_with_a_controller_is_bound() {
        let mut changed = spec("/pods/a");
        assert!(replace(&mut changed, TABLE));
        let mounts = changed.mounts().clone().unwrap();
        let shown: Vec<_> = mounts
            .iter()
            .map(|m| {
                (m.destination().display().to_string(), m.source().clone().unwrap().display().to_string())
            })
            .collect();
        let expected = [
            ("/sys/fs/cgroup", "tmpfs"),
            ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/pods/a"),
            ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/pods/a"),
        ];
        assert_eq!(shown, expected.map(|(d, s)| (d.to_owned(), s.to_owned())));
        assert!(mounts[1].options().clone().unwrap().contains(&"ro".to_owned()));
    }

    #[test]
    fn systemd_paths_and_v2_are_left_alone() {
        assert!(!replace(&mut spec("a.slice:cri:b"), TABLE));
        assert!(!replace(&mut spec("/pods/a"), "34 27 0:30 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"));
    }
}
