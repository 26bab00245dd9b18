//! The container's cgroups: found from the kernel's own tables, so that it does not matter who made them.
//!
//! Both worlds: on v1 one folder per hierarchy, on v2 one folder. Invariant: a folder that the shim itself sits in is
//! never listed, so nothing done here can hit the shim or the node.

pub mod devices;
pub mod freeze;
pub mod kill;
pub mod limits;
pub mod oom;
pub mod stats;
pub mod systemd;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupPaths {
    /// By controller name; empty on a pure v2 node.
    pub v1: BTreeMap<String, PathBuf>,
    pub unified: Option<PathBuf>,
}

#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    unified: bool,
    controllers: Vec<String>,
    root: PathBuf,
    at: PathBuf,
}

impl CgroupPaths {
    /// The cgroups of `pid`, without those that it shares with the calling process.
    pub fn of(pid: i32) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let theirs = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        Ok(resolve(&mounts, &theirs, &own))
    }

    /// Where the cgroup that a specification names lies, as far as its folders are there: for a container of which
    /// nothing else is known.
    pub fn named(path: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let mut paths = by_name(&mounts, &own, path);
        paths.v1.retain(|_, folder| folder.is_dir());
        paths.unified = paths.unified.filter(|folder| folder.is_dir());
        Ok(paths)
    }

    /// Where the cgroup that a specification names is to lie, in every hierarchy.
    pub fn intended(path: &Path) -> io::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let paths = by_name(&mounts, &fs::read_to_string("/proc/self/cgroup")?, path);
        if paths == CgroupPaths::default() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it names no cgroup of a container"));
        }
        Ok(paths)
    }

    pub fn is_v2(&self) -> bool {
        self.v1.is_empty() && self.unified.is_some()
    }

    /// Every folder once.
    pub fn folders(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = self.v1.values().chain(&self.unified).map(PathBuf::as_path).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The hierarchy in which processes are counted, frozen and killed.
    pub fn primary(&self) -> Option<&Path> {
        if self.is_v2() {
            return self.unified.as_deref();
        }
        let preferred = ["freezer", "pids", "memory"].iter().find_map(|c| self.v1.get(*c));
        preferred.or_else(|| self.v1.values().next()).map(PathBuf::as_path)
    }

    pub fn controller(&self, name: &str) -> Option<&Path> {
        self.v1.get(name).map(PathBuf::as_path)
    }

    /// Where the processes of one exec are kept apart, so that they can be killed together.
    pub fn exec(&self, exec_id: &str) -> Option<PathBuf> {
        self.primary().map(|primary| primary.join(format!("exec-{exec_id}")))
    }
}

fn resolve(mounts: &str, theirs: &str, own: &str) -> CgroupPaths {
    let mounted: Vec<Mounted> = mounts.lines().filter_map(parse_mount).collect();
    let own: Vec<&str> = own.lines().collect();
    let mut paths = CgroupPaths::default();
    for line in theirs.lines().filter(|line| !own.contains(line)) {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        if controllers.is_empty() {
            paths.unified = mounted.iter().find(|m| m.unified).and_then(|m| place(m, path));
            continue;
        }
        for controller in controllers.split(',') {
            let mount = mounted.iter().find(|m| m.controllers.iter().any(|c| c == controller));
            if let Some(folder) = mount.and_then(|m| place(m, path)) {
                paths.v1.insert(controller.trim_start_matches("name=").to_owned(), folder);
            }
        }
    }
    paths
}

fn by_name(mounts: &str, own: &str, path: &Path) -> CgroupPaths {
    let path = expand(path);
    // A name that stands for the whole node, or for what holds this process, is none of a container.
    let holds_us = own
        .lines()
        .filter_map(|line| line.splitn(3, ':').nth(2))
        .any(|own| Path::new(own).starts_with(&path));
    let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
    let mut paths = CgroupPaths::default();
    if holds_us || !plain || path.components().count() < 2 {
        return paths;
    }
    let name = path.to_string_lossy();
    for mount in mounts.lines().filter_map(parse_mount) {
        let Some(folder) = place(&mount, &name) else { continue };
        if mount.unified {
            paths.unified.get_or_insert(folder);
            continue;
        }
        for controller in &mount.controllers {
            let key = controller.trim_start_matches("name=").to_owned();
            paths.v1.entry(key).or_insert_with(|| folder.clone());
        }
    }
    paths
}

/// `a-b.slice:prefix:name`, as it is written for systemd, is `/a.slice/a-b.slice/prefix-name.scope`.
fn expand(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    let mut parts = text.split(':');
    let (Some(slice), Some(prefix), Some(name), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Path::new("/").join(path);
    };
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
    let mut full = PathBuf::from("/");
    full.extend(ends.filter(|at| *at > 0).map(|at| format!("{}.slice", &stem[..at])));
    full.join(if prefix.is_empty() { format!("{name}.scope") } else { format!("{prefix}-{name}.scope") })
}

/// The folder of a cgroup below the mount that shows it.
fn place(mount: &Mounted, path: &str) -> Option<PathBuf> {
    let below = Path::new(path).strip_prefix(&mount.root).ok()?;
    Some(mount.at.join(below))
}

fn parse_mount(line: &str) -> Option<Mounted> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, at) = (PathBuf::from(left.next()?), PathBuf::from(left.next()?));
    let mut right = right.split(' ');
    match right.next()? {
        "cgroup2" => Some(Mounted { unified: true, controllers: Vec::new(), root, at }),
        "cgroup" => {
            let controllers = right.nth(1)?.split(',').map(str::to_owned).collect();
            Some(Mounted { unified: false, controllers, root, at })
        }
        _ => None,
    }
}

/// All processes in a cgroup folder and those below it.
pub fn processes(folder: &Path) -> Vec<i32> {
    let mut pids: Vec<i32> = Vec::new();
    if let Ok(text) = fs::read_to_string(folder.join("cgroup.procs")) {
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    for child in children(folder) {
        pids.extend(processes(&child));
    }
    pids
}

pub(crate) fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// One number out of a file of `key value` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
34 30 0:30 /docker/x /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n";

    #[test]
    fn hybrid_nodes_list_only_what_the_shim_does_not_share() {
        let own = "0::/\n4:memory:/\n5:cpu,cpuacct:/docker/x\n";
        let theirs = "0::/\n4:memory:/pods/a\n5:cpu,cpuacct:/docker/x/pods/a\n";
        let paths = resolve(HYBRID, theirs, own);
        assert_eq!(paths.unified, None);
        assert_eq!(paths.controller("memory"), Some(Path::new("/sys/fs/cgroup/memory/pods/a")));
        assert_eq!(paths.controller("cpuacct"), Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/pods/a")));
        assert_eq!(paths.folders().len(), 2);
        assert!(!paths.is_v2());
    }

    #[test]
    fn a_pure_v2_node_has_one_folder() {
        let mounts = "31 30 0:27 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let paths = resolve(mounts, "0::/kubepods/a\n", "0::/system.slice/x\n");
        assert!(paths.is_v2());
        assert_eq!(paths.exec("e1"), Some("/sys/fs/cgroup/kubepods/a/exec-e1".into()));
    }

    #[test]
    fn a_name_leads_to_the_folders_unless_it_is_the_nodes() {
        let own = "0::/\n4:memory:/system.slice/daemon\n";
        let paths = by_name(HYBRID, own, Path::new("/pods/a"));
        assert_eq!(paths.controller("memory"), Some(Path::new("/sys/fs/cgroup/memory/pods/a")));
        assert_eq!(paths.controller("cpu"), None, "that hierarchy shows another part");
        assert_eq!(paths.unified, Some("/sys/fs/cgroup/unified/pods/a".into()));
        for whole in ["/", "", "/system.slice", "/system.slice/daemon", "/pods/../system.slice", "/.."] {
            assert_eq!(by_name(HYBRID, own, Path::new(whole)), CgroupPaths::default(), "{whole:?}");
        }
        let systemd = by_name(HYBRID, own, Path::new("kube-pod1.slice:cri:ab"));
        let folder = "/sys/fs/cgroup/memory/kube.slice/kube-pod1.slice/cri-ab.scope";
        assert_eq!(systemd.controller("memory"), Some(Path::new(folder)));
    }

    #[test]
    fn keys_match_whole_words() {
        assert_eq!(keyed("oom 3\noom_kill 2\n", "oom_kill"), Some(2));
        assert_eq!(keyed("oom_kill_disable 0\n", "oom_kill"), None);
    }
}
