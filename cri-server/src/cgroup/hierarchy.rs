//! A container's folders in every hierarchy, and making and removing them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use super::layout::{Driver, Layout, Mounts};
use super::procs::{KillError, kill_all};

/// A cgroup of a dead process may stay busy for a moment, until the kernel has let go of it.
const REMOVE_TRIES: u32 = 50;
const REMOVE_PAUSE: Duration = Duration::from_millis(10);
/// Deeper trees than this are nobody's: the recursion ends.
const MAX_DEPTH: usize = 32;

/// Why a cgroup could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The thread that worked on it ended without a result.
    #[error("cgroup operation was interrupted")]
    Interrupted,
    #[error("{0:?} names no cgroup")]
    NoPath(String),
    #[error("cannot {what} {path:?}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("processes of the cgroup")]
    Kill(#[from] KillError),
    #[error("cgroup {0:?} is nested too deeply")]
    TooDeep(PathBuf),
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CgroupError {
    move |source| CgroupError::Io { what, path: path.to_path_buf(), source }
}

/// The hierarchies of this node.
#[derive(Clone, Debug)]
pub struct Hierarchies {
    mounts: Mounts,
}

/// Where one cgroup lies: a folder for each v1 controller, and one in the v2 hierarchy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupPaths {
    /// v1 controllers by name, `name=systemd` among them.
    pub controllers: BTreeMap<String, PathBuf>,
    /// The v2 hierarchy, on unified and hybrid nodes.
    pub unified: Option<PathBuf>,
}

impl CgroupPaths {
    /// The folder where `controller` keeps its files.
    #[must_use]
    pub fn of(&self, controller: &str) -> Option<&Path> {
        self.controllers.get(controller).or(self.unified.as_ref()).map(PathBuf::as_path)
    }

    /// Every folder once: controllers mounted together share one.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        let all: BTreeSet<&Path> =
            self.controllers.values().chain(self.unified.as_ref()).map(PathBuf::as_path).collect();
        all.into_iter()
    }

    /// Whether any of the folders is there.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.folders().any(Path::is_dir)
    }
}

impl Hierarchies {
    /// The hierarchies that this process sees.
    ///
    /// # Errors
    /// When the mounts cannot be read.
    pub fn detect() -> Result<Self, CgroupError> {
        let path = Path::new("/proc/self/mountinfo");
        Mounts::read().map(Self::new).map_err(failed("read", path))
    }

    /// The hierarchies of these mounts.
    #[must_use]
    pub fn new(mounts: Mounts) -> Self {
        Self { mounts }
    }

    /// How controllers are mounted.
    #[must_use]
    pub fn layout(&self) -> Layout {
        self.mounts.layout()
    }

    /// The mounts themselves.
    #[must_use]
    pub fn mounts(&self) -> &Mounts {
        &self.mounts
    }

    /// The folders of a `cgroupsPath`. As OCI runtimes have it, an absolute one counts from the root of each hierarchy,
    /// whatever cgroup the daemon itself is in.
    ///
    /// # Errors
    /// When it names no cgroup.
    pub fn paths(&self, cgroups_path: &str) -> Result<CgroupPaths, CgroupError> {
        let relative =
            super::relative_path(cgroups_path).ok_or_else(|| CgroupError::NoPath(cgroups_path.into()))?;
        Ok(self.below(&relative))
    }

    /// The cgroup that holds a pod and nothing else; `None` where the request named no parent, so that pods share one.
    ///
    /// # Errors
    /// When `parent` cannot be one.
    pub fn of_pod(&self, driver: Driver, parent: &str) -> Result<Option<CgroupPaths>, CgroupError> {
        if parent.trim_matches('/').is_empty() {
            return Ok(None);
        }
        let no_path = || CgroupError::NoPath(parent.into());
        let child = super::cgroups_path(driver, parent, "child").map_err(|_| no_path())?;
        let child = super::relative_path(&child).ok_or_else(no_path)?;
        Ok(child.rsplit_once('/').map(|(parent, _)| self.below(parent)))
    }

    /// The folders of a path below the mounts.
    fn below(&self, relative: &str) -> CgroupPaths {
        let relative = relative.trim_start_matches('/');
        let join = |mount: &PathBuf| mount.join(relative);
        CgroupPaths {
            controllers: self
                .mounts
                .controllers
                .iter()
                .map(|(name, mount)| (name.clone(), join(mount)))
                .collect(),
            unified: self.mounts.unified.as_ref().map(join),
        }
    }

    /// The folders of the cgroups that a running process is in, nested as it may be; `text` is its
    /// `/proc/<pid>/cgroup`.
    #[must_use]
    pub fn paths_of_process(&self, text: &str) -> CgroupPaths {
        let own = super::OwnCgroups::parse(text).0;
        let place = |name: &str, mount: &Path| self.mounts.locate(mount, own.get(name)?);
        CgroupPaths {
            controllers: self
                .mounts
                .controllers
                .iter()
                .filter_map(|(name, mount)| Some((name.clone(), place(name, mount)?)))
                .collect(),
            unified: self.mounts.unified.as_ref().and_then(|mount| place("", mount)),
        }
    }

    /// Makes the cgroup of a pod where the kubelet's parent is missing: one that holds cgroups, and on v2 no process
    /// of its own.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn create_pod(&self, cgroups_path: &str) -> Result<CgroupPaths, CgroupError> {
        let paths = self.create(cgroups_path)?;
        paths.unified.iter().for_each(|folder| pass_controllers_on(folder));
        Ok(paths)
    }

    /// Makes a cgroup for processes, in every hierarchy. Existing ones stay as they are.
    ///
    /// # Errors
    /// When a folder cannot be made.
    pub fn create(&self, cgroups_path: &str) -> Result<CgroupPaths, CgroupError> {
        let paths = self.paths(cgroups_path)?;
        for (name, path) in &paths.controllers {
            fs::create_dir_all(path).map_err(failed("create", path))?;
            if name == "cpuset" {
                self.inherit_cpuset(path)?;
            }
        }
        if let Some(path) = &paths.unified {
            self.create_unified(path)?;
        }
        Ok(paths)
    }

    /// On v2, a child only has the controllers that every cgroup above it passes on.
    fn create_unified(&self, path: &Path) -> Result<(), CgroupError> {
        let Some(mount) = &self.mounts.unified else { return Ok(()) };
        let mut folder = mount.clone();
        for part in path.strip_prefix(mount).unwrap_or(path).components() {
            pass_controllers_on(&folder);
            folder.push(part);
            match fs::create_dir(&folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(failed("create", &folder)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// On v1, a new cpuset is empty and takes no process before it has processors and memory nodes.
    fn inherit_cpuset(&self, path: &Path) -> Result<(), CgroupError> {
        let Some(mount) = self.mounts.controllers.get("cpuset") else { return Ok(()) };
        let mut folder = mount.clone();
        for part in path.strip_prefix(mount).unwrap_or(path).components() {
            let parent = folder.clone();
            folder.push(part);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let own = folder.join(file);
                if fs::read_to_string(&own).map_err(failed("read", &own))?.trim().is_empty() {
                    let from = parent.join(file);
                    let value = fs::read(&from).map_err(failed("read", &from))?;
                    fs::write(&own, value).map_err(failed("write", &own))?;
                }
            }
        }
        Ok(())
    }
}

/// Best effort: a cgroup with processes of its own refuses, and its runtime will say which controller it misses.
fn pass_controllers_on(folder: &Path) {
    let Ok(controllers) = fs::read_to_string(folder.join("cgroup.controllers")) else { return };
    for controller in controllers.split_whitespace() {
        let result = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
        if let Err(error) = result {
            tracing::debug!(%error, controller, folder = %folder.display(), "controller is not passed on");
        }
    }
}

/// Kills what lives in a cgroup and below it, then removes it everywhere. What is not there is removed already.
///
/// # Errors
/// When processes do not die or a folder stays; the folders that could be removed are gone then.
pub fn remove_all(paths: &CgroupPaths) -> Result<(), CgroupError> {
    if !paths.exist() {
        return Ok(());
    }
    let killed = kill_all(paths);
    let mut first = killed.err().map(CgroupError::from);
    for folder in paths.folders() {
        if let Err(error) = remove_tree(folder, MAX_DEPTH) {
            first = first.or(Some(error));
        }
    }
    first.map_or(Ok(()), Err)
}

/// Removes a cgroup if it is empty, as the one of a pod after its last container.
///
/// # Errors
/// When a folder is in use or stays for another reason; the others are gone then.
pub fn remove_if_empty(paths: &CgroupPaths) -> Result<(), CgroupError> {
    let mut first = None;
    for folder in paths.folders() {
        match fs::remove_dir(folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                first = first.or(Some(failed("remove", folder)(error)));
            }
            Ok(()) | Err(_) => {}
        }
    }
    first.map_or(Ok(()), Err)
}

/// The files of a cgroup go with it; only its children have to be removed before.
fn remove_tree(folder: &Path, depth: usize) -> Result<(), CgroupError> {
    if depth == 0 {
        return Err(CgroupError::TooDeep(folder.to_path_buf()));
    }
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(failed("list", folder))?,
    };
    for entry in entries {
        let entry = entry.map_err(failed("list", folder))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path(), depth - 1)?;
        }
    }
    let mut tries = 0;
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && tries < REMOVE_TRIES => {
                tries += 1;
                sleep(REMOVE_PAUSE);
            }
            Err(error) => return Err(failed("remove", folder)(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made_up(root: &Path, unified: bool) -> Hierarchies {
        let mut mounts = Mounts::default();
        if unified {
            mounts.unified = Some(root.join("unified"));
        } else {
            for name in ["cpu", "memory"] {
                mounts.controllers.insert(name.to_owned(), root.join(name));
            }
        }
        Hierarchies::new(mounts)
    }

    #[test]
    fn a_path_is_found_in_every_hierarchy() {
        let v1 = made_up(Path::new("/cg"), false).paths("/cofferdam/c1").unwrap();
        assert_eq!(v1.of("memory"), Some(Path::new("/cg/memory/cofferdam/c1")));
        assert_eq!(v1.of("pids"), None);
        let v2 = made_up(Path::new("/cg"), true).paths("cofferdam.slice:cri-cofferdam:c1").unwrap();
        let expected = Path::new("/cg/unified/cofferdam.slice/cri-cofferdam-c1.scope");
        assert_eq!((v2.of("memory"), v2.of("pids")), (Some(expected), Some(expected)));
        assert!(made_up(Path::new("/cg"), true).paths("/../etc").is_err());
    }

    #[test]
    fn a_pods_cgroup_is_its_parent() {
        let hierarchies = made_up(Path::new("/cg"), true);
        let of = |driver, parent| hierarchies.of_pod(driver, parent).unwrap().and_then(|paths| paths.unified);
        assert_eq!(of(Driver::Cgroupfs, "/kubepods/pod1"), Some("/cg/unified/kubepods/pod1".into()));
        let slice = of(Driver::Systemd, "/kubepods.slice/kubepods-pod1.slice");
        assert_eq!(slice, Some("/cg/unified/kubepods.slice/kubepods-pod1.slice".into()));
        assert_eq!(of(Driver::Cgroupfs, ""), None);
        assert!(hierarchies.of_pod(Driver::Systemd, "/kubepods/pod1").is_err());
    }

    #[test]
    fn a_nested_process_is_found_where_it_is() {
        let paths = made_up(Path::new("/cg"), false).paths_of_process("2:memory:/agent/x\n1:cpu:/\n");
        assert_eq!(paths.of("memory"), Some(Path::new("/cg/memory/agent/x")));
        assert_eq!(paths.of("cpu"), Some(Path::new("/cg/cpu/")));
    }

    #[test]
    fn making_and_removing_can_be_repeated() {
        let root = tempfile::tempdir().unwrap();
        let hierarchies = made_up(root.path(), false);
        let paths = hierarchies.create("/kubepods/pod1").unwrap();
        assert_eq!(hierarchies.create("/kubepods/pod1").unwrap(), paths);
        assert!(paths.exist());
        fs::create_dir(paths.of("memory").unwrap().join("child")).unwrap();
        assert!(remove_if_empty(&paths).is_err(), "the child keeps it");
        remove_all(&paths).unwrap();
        assert!(!paths.exist());
        remove_all(&paths).unwrap();
        remove_if_empty(&paths).unwrap();
    }
}
