//! Which cgroups this node has: the mounts of the controllers, the daemon's own place in them, and who keeps them.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// How controllers are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// One hierarchy per controller (v1).
    #[default]
    Legacy,
    /// v1 controllers, and a v2 hierarchy with few or none beside them.
    Hybrid,
    /// One hierarchy with all of them (v2).
    Unified,
}

impl Layout {
    /// cgroup v2 alone.
    #[must_use]
    pub fn is_unified(self) -> bool {
        self == Self::Unified
    }
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Driver {
    /// We do, as folders.
    #[default]
    Cgroupfs,
    /// systemd does, as slices and scopes.
    Systemd,
}

impl Driver {
    /// The driver that fits the node: systemd where it runs as the first process.
    #[must_use]
    pub fn detect() -> Self {
        // sd_booted(3): this folder exists exactly where systemd is the init.
        if Path::new("/run/systemd/system").is_dir() { Self::Systemd } else { Self::Cgroupfs }
    }
}

/// Where hierarchies are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// v1: the mount of each controller; `name=systemd` is under its own name.
    pub controllers: BTreeMap<String, PathBuf>,
    /// The v2 hierarchy.
    pub unified: Option<PathBuf>,
    /// For a mount that shows only a part of its hierarchy, as inside a container: that part.
    pub roots: BTreeMap<PathBuf, String>,
}

/// One line of a mountinfo file that is about cgroups.
struct Found<'a> {
    root: &'a str,
    point: &'a str,
    is_unified: bool,
    options: &'a str,
}

impl<'a> Found<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let (root, point) = (before.nth(3)?, before.next()?);
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        let is_unified = kind == "cgroup2";
        (is_unified || kind == "cgroup").then_some(Self { root, point, is_unified, options })
    }

    /// v1 names its controllers among the mount options.
    fn controllers(&self) -> impl Iterator<Item = &'a str> {
        let plain = ["rw", "ro", "xattr", "noprefix", "clone_children"];
        let options = if self.is_unified { "" } else { self.options };
        options.split(',').filter(move |option| !option.is_empty() && !plain.contains(option))
    }
}

/// A daemon's own cgroups, by controller; the v2 one under "".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnCgroups(pub BTreeMap<String, String>);

impl Mounts {
    /// The mounts of this process's mount namespace.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/self/mountinfo").map(|text| Self::parse(&text))
    }

    /// Reads the text of a mountinfo file. The first mount of a hierarchy counts, a whole one before one of a part.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut mounts = Self::default();
        let mut found: Vec<Found<'_>> = mountinfo.lines().filter_map(Found::parse).collect();
        found.sort_by_key(|mount| mount.root != "/");
        for mount in found {
            let point = PathBuf::from(mount.point);
            let mut used = false;
            if mount.is_unified && mounts.unified.is_none() {
                mounts.unified = Some(point.clone());
                used = true;
            }
            for controller in mount.controllers() {
                mounts.controllers.entry(controller.to_owned()).or_insert_with(|| {
                    used = true;
                    point.clone()
                });
            }
            if used && mount.root != "/" {
                mounts.roots.insert(point, mount.root.to_owned());
            }
        }
        mounts
    }

    /// Where a cgroup lies that a `/proc/<pid>/cgroup` file names, below one of these mounts; `None` where the mount
    /// does not show it.
    #[must_use]
    pub fn locate(&self, mount: &Path, path: &str) -> Option<PathBuf> {
        let root = self.roots.get(mount).map_or("/", String::as_str);
        let shown = Path::new(path).strip_prefix(root).ok()?;
        Some(mount.join(shown))
    }

    /// How controllers are mounted.
    #[must_use]
    pub fn layout(&self) -> Layout {
        let has_v1 = self.controllers.keys().any(|name| !name.starts_with("name="));
        match (has_v1, &self.unified) {
            (false, Some(_)) => Layout::Unified,
            (true, Some(_)) => Layout::Hybrid,
            (_, None) => Layout::Legacy,
        }
    }

    /// Controllers that can be used, by name, wherever they are.
    ///
    /// # Errors
    /// When the v2 hierarchy's list cannot be read.
    pub fn available(&self) -> io::Result<Vec<String>> {
        let mut names: Vec<String> =
            self.controllers.keys().filter(|name| !name.starts_with("name=")).cloned().collect();
        if let Some(unified) = &self.unified {
            let listed = fs::read_to_string(unified.join("cgroup.controllers"))?;
            names.extend(listed.split_whitespace().map(str::to_owned));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }
}

impl OwnCgroups {
    /// The cgroups of this process.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn read() -> io::Result<Self> {
        fs::read_to_string("/proc/self/cgroup").map(|text| Self::parse(&text))
    }

    /// Reads the text of a `/proc/<pid>/cgroup` file.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut own = BTreeMap::new();
        for line in text.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            for controller in controllers.split(',') {
                own.insert(controller.to_owned(), path.to_owned());
            }
        }
        Self(own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:4 - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 31 0:30 /sub /elsewhere/memory rw - cgroup cgroup rw,memory\n\
        35 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
        36 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\nnonsense\n";
    const UNIFIED: &str = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
    const LEGACY: &str = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn layouts_are_told_apart() {
        let table = [(HYBRID, Layout::Hybrid), (UNIFIED, Layout::Unified), (LEGACY, Layout::Legacy)];
        for (text, expected) in table {
            assert_eq!(Mounts::parse(text).layout(), expected);
        }
        let mounts = Mounts::parse(HYBRID);
        assert_eq!(mounts.controllers["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mounts.controllers["memory"], Path::new("/sys/fs/cgroup/memory"));
        assert!(mounts.roots.is_empty(), "the whole mount of memory was there");
        let names: Vec<_> = mounts.controllers.keys().map(String::as_str).collect();
        assert_eq!(names, ["cpu", "cpuacct", "memory", "name=systemd"]);
    }

    #[test]
    fn a_part_of_a_hierarchy_serves_where_there_is_no_more() {
        let nested =
            Mounts::parse("33 31 0:30 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n");
        let mount = &nested.controllers["memory"];
        let located = |path| nested.locate(mount, path);
        assert_eq!(located("/docker/x/c1"), Some(PathBuf::from("/sys/fs/cgroup/memory/c1")));
        assert_eq!(located("/docker/other"), None);
        let whole = Mounts::parse(LEGACY);
        let located = whole.locate(&whole.controllers["memory"], "/a/b");
        assert_eq!(located, Some(PathBuf::from("/sys/fs/cgroup/memory/a/b")));
    }

    #[test]
    fn own_cgroups_are_read_for_each_controller() {
        let own = OwnCgroups::parse(
            "4:memory:/agent/x\n2:cpu,cpuacct:/\n1:name=systemd:/a:b\n0::/init.scope\nbad\n",
        );
        let get = |name: &str| own.0.get(name).map(String::as_str);
        assert_eq!((get("memory"), get("cpuacct")), (Some("/agent/x"), Some("/")));
        assert_eq!((get("name=systemd"), get("")), (Some("/a:b"), Some("/init.scope")));
    }

    #[test]
    fn this_machine_has_a_layout() {
        let mounts = Mounts::read().unwrap();
        assert!(!mounts.available().unwrap().is_empty(), "{mounts:?}");
    }
}
