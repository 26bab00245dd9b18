//! The systemd driver: one delegated scope for each pod, in which the shims make the cgroups of its containers as they
//! do elsewhere.
//!
//! systemd is asked for one unit when a pod begins and for nothing afterwards: it does not touch what lies below a
//! delegated unit, and takes the scope away when the pod's last process has ended. So a `cgroupsPath` here is a plain
//! path, `<slices>/<scope>/<container>`.
//!
//! Invariant: runs in the short-lived child that makes a container. A scope needs a process to begin with, and the
//! child is that process. While it makes the container it stays in a folder beside the container's, never in the
//! scope's own, since on v2 one with processes passes no controllers on, and never in the container's, which a runtime
//! that fails kills as a whole, and that others refuse when somebody is in it.
//!
//! See systemd's CGROUP_DELEGATION and org.freedesktop.systemd1(5).

mod bus;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use bus::BusError;
use bus::{Bus, Property};

use super::{Mounted, parse_mount};

/// systemd starts a scope in milliseconds; on a node that is booting or overloaded it may take its time.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(2);

/// Why a container could not be put into its pod's scope.
#[derive(Debug, thiserror::Error)]
pub enum ScopeError {
    #[error("the cgroup path {0:?} is not that of a container in a scope in a slice")]
    Path(PathBuf),
    #[error("systemd keeps no cgroups on this node")]
    NoSystemd,
    #[error("ask systemd for the scope {scope}")]
    Bus { scope: String, source: BusError },
    #[error("systemd did not put this process into {scope} within {PATIENCE:?}")]
    Slow { scope: String },
    #[error("{what} {path:?}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ScopeError {
    move |source| ScopeError::Io { what, path: path.to_owned(), source }
}

/// A container's place: the scope, its slice, and the name below it.
#[derive(Debug, PartialEq, Eq)]
struct Place<'a> {
    slice: &'a str,
    scope: &'a str,
    /// Of the scope, from the root of a hierarchy.
    folder: &'a Path,
}

impl<'a> Place<'a> {
    fn of(cgroups_path: &'a Path) -> Option<Self> {
        let folder = cgroups_path.parent()?;
        let name = |path: &'a Path| path.file_name()?.to_str();
        let (scope, slice) = (name(folder)?, folder.parent().and_then(name)?);
        let fits = cgroups_path.is_absolute() && scope.ends_with(".scope") && slice.ends_with(".slice");
        fits.then_some(Place { slice, scope, folder })
    }
}

/// The folder beside a container's in which it is made.
#[must_use]
pub fn making(cgroups_path: &Path) -> PathBuf {
    let mut name = cgroups_path.as_os_str().to_owned();
    name.push(".making");
    name.into()
}

/// One hierarchy in which this process is beside the container's cgroup.
#[derive(Debug)]
struct Stay {
    making: PathBuf,
    own: PathBuf,
}

/// This process's stay beside a container's cgroup, and what brings it home. It ends with the value, whatever failed.
#[derive(Debug, Default)]
pub struct Visit {
    stays: Vec<Stay>,
    homes: Vec<PathBuf>,
}

impl Visit {
    /// Puts what was made beside the container's cgroup into it, where the runtime has not, and goes back, so that this
    /// process is not taken for one of the container's.
    pub fn end(&self) -> Result<(), ScopeError> {
        for stay in &self.stays {
            let made = super::processes(&stay.making);
            for pid in made.into_iter().filter(|pid| !is_self(pid)) {
                fs::create_dir_all(&stay.own).map_err(failed("make the cgroup", &stay.own))?;
                let procs = stay.own.join("cgroup.procs");
                match fs::write(&procs, pid.to_string()) {
                    // It has ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                    written => written.map_err(failed("enter the cgroup", &procs))?,
                }
            }
        }
        self.go_home()
    }

    fn go_home(&self) -> Result<(), ScopeError> {
        self.homes.iter().try_for_each(|procs| fs::write(procs, "0").map_err(failed("go back to", procs)))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let away = self.stays.iter().any(|stay| super::processes(&stay.making).iter().any(is_self));
        if away {
            drop(self.go_home());
        }
        for stay in &self.stays {
            // What still is in it is the business of whoever ends the container.
            let _ = fs::remove_dir(&stay.making);
        }
    }
}

fn is_self(pid: &i32) -> bool {
    pid.unsigned_abs() == std::process::id()
}

/// Makes sure of the scope, and goes beside the container's own cgroup wherever systemd looks for its processes. What this
/// process makes until the visit's end is born there.
pub fn enter(cgroups_path: &Path) -> Result<Visit, ScopeError> {
    let place = Place::of(cgroups_path).ok_or_else(|| ScopeError::Path(cgroups_path.to_owned()))?;
    let mounts = Path::new("/proc/self/mountinfo");
    let mounts = fs::read_to_string(mounts).map_err(failed("read", mounts))?;
    let watched = watched(&mounts);
    let first = watched.first().ok_or(ScopeError::NoSystemd)?;
    let own = Path::new("/proc/self/cgroup");
    let homes = homes(&mounts, &fs::read_to_string(own).map_err(failed("read", own))?);
    let mut visit = Visit { stays: Vec::new(), homes };
    if !below(first, place.folder).is_dir() {
        begin(&place, std::process::id())?;
    }
    for mount in &watched {
        let stay = Stay { making: below(mount, &making(cgroups_path)), own: below(mount, cgroups_path) };
        let folder = stay.making.clone();
        visit.stays.push(stay);
        fs::create_dir_all(&folder).map_err(failed("make the cgroup", &folder))?;
        let procs = folder.join("cgroup.procs");
        fs::write(&procs, "0").map_err(failed("enter the cgroup", &procs))?;
    }
    pass_controllers_on(first, place.folder);
    Ok(visit)
}

/// Makes sure of the scope of a task whose first process `pid` is there already, as a machine's is: the scope begins with that
/// process, whose place below it is its caller's business.
pub fn begin_with(cgroups_path: &Path, pid: u32) -> Result<(), ScopeError> {
    let place = Place::of(cgroups_path).ok_or_else(|| ScopeError::Path(cgroups_path.to_owned()))?;
    let mounts = Path::new("/proc/self/mountinfo");
    let watched = watched(&fs::read_to_string(mounts).map_err(failed("read", mounts))?);
    let first = watched.first().ok_or(ScopeError::NoSystemd)?;
    if below(first, place.folder).is_dir() { Ok(()) } else { begin(&place, pid) }
}

/// On v2 a container has the controllers that everything above it passes on. systemd does so down to the scope for those
/// that it knows; the scope itself does it only now, as it must not have processes of its own. What is missing after
/// all is the error of the limit that needs it.
pub fn pass_controllers_on(mount: &Path, scope: &Path) {
    let mut folder = mount.to_owned();
    let below = scope.strip_prefix("/").unwrap_or(scope);
    for part in std::iter::once(Path::new("")).chain(below.iter().map(Path::new)) {
        folder.push(part);
        let has = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        for controller in has.split_whitespace() {
            drop(fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}")));
        }
    }
}

/// Where a process is, in every hierarchy: systemd puts what a scope begins with into the scope's cgroup in several.
fn homes(mountinfo: &str, own: &str) -> Vec<PathBuf> {
    let paths = super::resolve(mountinfo, own, "");
    paths.folders().into_iter().map(|folder| folder.join("cgroup.procs")).collect()
}

/// The hierarchies in which systemd tells units apart: its own of v1 and the unified one, as far as there are any.
fn watched(mountinfo: &str) -> Vec<PathBuf> {
    let mounts: Vec<Mounted> = mountinfo.lines().filter_map(parse_mount).collect();
    let named = mounts.iter().find(|mount| mount.controllers.iter().any(|c| c == "name=systemd"));
    let unified = mounts.iter().find(|mount| mount.unified);
    unified.into_iter().chain(named).map(|mount| mount.at.clone()).collect()
}

fn below(mount: &Path, path: &Path) -> PathBuf {
    mount.join(path.strip_prefix("/").unwrap_or(path))
}

/// Has systemd make the scope with this process in it.
fn begin(place: &Place<'_>, pid: u32) -> Result<(), ScopeError> {
    let failed = |source| ScopeError::Bus { scope: place.scope.to_owned(), source };
    let properties = [
        ("Description", Property::Text(format!("Pod in {}", place.slice))),
        ("Slice", Property::Text(place.slice.to_owned())),
        ("Delegate", Property::Flag(true)),
        ("CPUAccounting", Property::Flag(true)),
        ("MemoryAccounting", Property::Flag(true)),
        ("TasksAccounting", Property::Flag(true)),
        ("IOAccounting", Property::Flag(true)),
        // systemd bounds the tasks of a unit by default; a pod's bounds are its containers'.
        ("TasksMax", Property::Number(u64::MAX)),
        // Ends with its processes, not when the node begins to shut down: that is the kubelet's to arrange.
        ("DefaultDependencies", Property::Flag(false)),
        ("CollectMode", Property::Text("inactive-or-failed".to_owned())),
        ("PIDs", Property::Numbers(vec![pid])),
    ];
    Bus::connect().and_then(|mut bus| bus.start_transient_unit(place.scope, &properties)).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    while !is_inside(place, pid) {
        if Instant::now() > deadline {
            return Err(ScopeError::Slow { scope: place.scope.to_owned() });
        }
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

fn is_inside(place: &Place<'_>, pid: u32) -> bool {
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    own.lines().any(|line| line.splitn(3, ':').nth(2).is_some_and(|path| Path::new(path) == place.folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_scope_in_a_slice() {
        let path = Path::new("/kubepods.slice/kubepods-pod7.slice/cri-cofferdam-s1.scope/c1");
        let place = Place::of(path).unwrap();
        assert_eq!((place.slice, place.scope), ("kubepods-pod7.slice", "cri-cofferdam-s1.scope"));
        assert_eq!(place.folder, path.parent().unwrap());
        for other in ["/a.slice/b/c1", "/a/b.scope/c1", "a.slice:cri:c1", "a.slice/b.scope/c1", "/", ""] {
            assert_eq!(Place::of(Path::new(other)), None, "{other}");
        }
    }

    #[test]
    fn a_scope_that_cannot_be_is_not_asked_for() {
        let own = std::process::id();
        let outside = begin_with(Path::new("/kubepods/pod7/c1"), own).unwrap_err();
        assert!(matches!(outside, ScopeError::Path(_)), "{outside}");
    }

    #[test]
    fn systemd_looks_at_its_own_hierarchy_and_the_unified_one() {
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            35 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n";
        let expected = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];
        assert_eq!(watched(hybrid), expected.map(PathBuf::from));
        let v2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(watched(v2), [PathBuf::from("/sys/fs/cgroup")]);
    }
}
