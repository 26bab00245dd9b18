//! Volumes that libcontainer must not mount at their places: above all those where it makes devices and links, which is
//! /dev, as privileged daemons and storage drivers ask for.
//!
//! libcontainer makes those by path in whatever it finds there, which would be the host's own /dev. So it gets a stand-in
//! to work on, and lays each such volume, and whatever else is mounted in one, beside it, with all its options; here they
//! are put to their places before the program runs. As with runc, nothing is made in such a volume but the mount points
//! that it lacks, and devices that are asked for at a place in it are those that it has.
//!
//! The same way goes what lies in any volume that is private, or hears of the host only, where another volume tells the host of
//! its mounts: libcontainer would mount all of them openly.
//!
//! Invariant: what is laid in a volume is seen in the container only, however the volume propagates.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat, openat2, statfs};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, move_mount};

use super::enter::{self, Who};
use super::idmap::clone_tree;
use super::propagation::{self, Line};
use super::{Failure, Reporter, guard, workdir};
use crate::sys::mount::{Propagation, set_propagation, set_readonly, set_tree_propagation};

const DEV: &str = "/dev";
const TERMINALS: &str = "/dev/pts";
const CONSOLE: &str = "/dev/console";
/// Where libcontainer lays what is put to its place later.
const BESIDE: &str = "/dev/.volumes";
/// What libcontainer makes in every container, besides the devices that are asked for.
const MADE: [&str; 12] = [
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/tty",
    "/dev/urandom",
    "/dev/random",
    "/dev/fd",
    "/dev/stdin",
    "/dev/stdout",
    "/dev/stderr",
    "/dev/kcore",
    "/dev/ptmx",
];
/// proc_filesystems(5): the magic number of devpts.
const DEVPTS_MAGIC: i128 = 0x1cd1;
const ROOT: &str = "/";

/// One mount that is put to its place after everything else.
#[derive(Debug, PartialEq, Eq)]
struct Laid {
    /// Where libcontainer lays it.
    beside: PathBuf,
    /// Where it belongs.
    place: PathBuf,
    /// What the specification calls that place.
    destination: PathBuf,
    propagation: Option<Propagation>,
    /// Made so when all mount points in it are there.
    readonly: bool,
}

/// What is left to do once libcontainer is done.
#[derive(Debug, Default)]
pub struct Late {
    mounts: Vec<Laid>,
    /// The terminal, which libcontainer has laid on the stand-in's console.
    console: bool,
    /// Devices that were asked for at places in the volumes.
    devices: Vec<PathBuf>,
    /// The working directory, where it lies in one of the volumes.
    pub cwd: Option<PathBuf>,
}

/// Whether other eyes see what is made in it: anything but a file system in memory of the container's own.
fn is_foreign(mount: &Mount) -> bool {
    let bind = mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind");
    bind || mount.typ().as_deref() != Some("tmpfs")
}

/// The volumes that libcontainer makes at once, with the container's most open propagation and not yet each with its own.
struct Volumes {
    /// That one lets mounts out to the host.
    open: bool,
    /// Each with whether it lets none out itself.
    closed: Vec<(PathBuf, bool)>,
}

impl Volumes {
    fn of(spec: &Spec) -> Self {
        let mode = spec.linux().as_ref().and_then(|linux| linux.rootfs_propagation().as_deref());
        Volumes { open: matches!(mode, Some("shared" | "rshared")), closed: Vec::new() }
    }

    fn add(&mut self, place: PathBuf, mount: &Mount) {
        if self.open && is_foreign(mount) {
            self.closed.push((place, propagation::wanted(mount).is_some()));
        }
    }

    /// Whether what is mounted there now would reach the host although the volume that it lies in is not to tell.
    fn would_tell(&self, place: &Path) -> bool {
        let over = self.closed.iter().filter(|(volume, _)| place.starts_with(volume));
        over.max_by_key(|(volume, _)| volume.components().count()).is_some_and(|(_, closed)| *closed)
    }
}

/// Takes the wish to be read-only from a mount's options. The last word counts.
fn take_readonly(mount: &mut Mount) -> bool {
    let options = mount.options().clone().unwrap_or_default();
    let readonly = options.iter().rev().find(|option| *option == "ro" || *option == "rw");
    let readonly = readonly.is_some_and(|option| option == "ro");
    mount.set_options(Some(options.into_iter().filter(|option| option != "ro").collect()));
    readonly
}

fn mount(destination: &str, typ: &str, source: &Path, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into()).set_typ(Some(typ.into())).set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

impl Late {
    pub fn is_empty(&self) -> bool {
        self.mounts.is_empty()
    }

    fn covers(&self, place: &Path) -> bool {
        self.mounts.iter().any(|laid| place.starts_with(&laid.place))
    }

    /// Whether the mount that the specification has there is one of these.
    pub fn holds(&self, destination: &Path) -> bool {
        self.mounts.iter().any(|laid| laid.destination == destination)
    }

    fn replaces_dev(&self) -> bool {
        self.mounts.iter().any(|laid| laid.place == Path::new(DEV))
    }

    /// Fits the specification to what libcontainer may do itself. `root` is the mounted root file system.
    pub fn plan(spec: &mut Spec, root: &Path, terminal: bool) -> Result<Self, Failure> {
        let root = guard::open_root(root)?;
        let asked = spec.linux().as_ref().and_then(|linux| linux.devices().as_ref());
        let made: Vec<PathBuf> = asked.into_iter().flatten().map(|device| device.path().clone()).collect();
        let made = || made.iter().map(PathBuf::as_path).chain(MADE.iter().map(Path::new));
        let (mut late, mut kept, mut laid) = (Late::default(), Vec::new(), Vec::new());
        let mut volumes = Volumes::of(spec);
        for mut mount in spec.mounts().clone().unwrap_or_default() {
            let place = guard::resolve(&root, mount.destination());
            let hides = is_foreign(&mount) && made().any(|path| path.starts_with(&place));
            if !(hides || late.covers(&place) || volumes.would_tell(&place)) {
                volumes.add(place, &mount);
                kept.push(mount);
                continue;
            }
            // A terminal is to come from the terminals that the container will see.
            let of_terminals = terminal && late.replaces_dev() && place == Path::new(TERMINALS);
            let beside = if of_terminals {
                TERMINALS.into()
            } else {
                Path::new(BESIDE).join(late.mounts.len().to_string())
            };
            late.mounts.push(Laid {
                beside: beside.clone(),
                place,
                destination: mount.destination().clone(),
                propagation: propagation::wanted(&mount),
                readonly: take_readonly(&mut mount),
            });
            mount.set_destination(beside);
            laid.push(mount);
        }
        if late.is_empty() {
            return Ok(late);
        }
        late.console = terminal && late.replaces_dev();
        late.stand_in(spec, &mut kept, &laid);
        kept.append(&mut laid);
        spec.set_mounts(Some(kept));
        late.take_devices(spec);
        late.take_cwd(spec, &root);
        Ok(late)
    }

    /// Gives libcontainer a /dev to work on, and the folder for what is laid beside.
    fn stand_in(&self, spec: &Spec, kept: &mut Vec<Mount>, laid: &[Mount]) {
        let memory = Path::new("tmpfs");
        let has = |mounts: &[Mount], path: &str| mounts.iter().any(|m| m.destination() == Path::new(path));
        if self.replaces_dev() && !has(kept, DEV) {
            kept.insert(0, mount(DEV, "tmpfs", memory, &["nosuid", "strictatime", "mode=755", "size=1m"]));
        }
        if self.console && !has(kept, TERMINALS) && !has(laid, TERMINALS) {
            let at = self.mounts.iter().rposition(|one| one.place == Path::new(DEV));
            let volume = at.and_then(|at| laid.get(at)?.source().as_deref());
            kept.push(terminals(volume.filter(|_| !has_users(spec))));
        }
        kept.push(mount(BESIDE, "tmpfs", memory, &["nosuid", "nodev", "noexec", "mode=700", "size=1m"]));
    }

    fn take_devices(&mut self, spec: &mut Spec) {
        let Some(linux) = spec.linux_mut() else { return };
        let devices = linux.devices().clone().unwrap_or_default();
        let (taken, left): (Vec<_>, Vec<_>) =
            devices.into_iter().partition(|device| self.covers(device.path()));
        self.devices = taken.into_iter().map(|device| device.path().clone()).collect();
        linux.set_devices(Some(left));
    }

    fn take_cwd(&mut self, spec: &mut Spec, root: &OwnedFd) {
        let Some(process) = spec.process_mut() else { return };
        if self.covers(&guard::resolve(root, process.cwd())) {
            self.cwd = Some(process.cwd().clone());
            process.set_cwd(ROOT.into());
        }
    }

    /// Puts everything to its place in the container whose first process is `pid`.
    pub fn settle(&self, pid: i32, reporter: Reporter) -> Result<(), Failure> {
        if self.is_empty() {
            return Ok(());
        }
        let doing = "put the volumes to their places";
        enter::mounts_of(pid, Who::Container, doing, |table| self.arrange(table, reporter))
    }

    fn arrange(&self, mut table: File, reporter: Reporter) -> io::Result<()> {
        let mut trees = Vec::with_capacity(self.mounts.len() + 1);
        for laid in &self.mounts {
            let tree = clone_tree(&laid.beside, true).map_err(|errno| at(&laid.place, errno))?;
            if let Some(propagation) = laid.propagation {
                set_tree_propagation(&tree, propagation).map_err(|errno| at(&laid.place, errno))?;
            }
            trees.push((tree, laid.place.as_path()));
        }
        if self.console {
            let terminal = clone_tree(Path::new(CONSOLE), false);
            trees.push((terminal.map_err(|errno| at(Path::new(CONSOLE), errno))?, Path::new(CONSOLE)));
        }
        // With it goes all that lies in it, what was copied as well; nothing that shares it with the host may hear of that.
        let gone = if self.replaces_dev() { DEV } else { BESIDE };
        set_tree_propagation(propagation::open(Path::new(gone))?, Propagation::Private)
            .map_err(|errno| at(Path::new(gone), errno))?;
        umount2(gone, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .map_err(|errno| at(Path::new(gone), errno))?;
        if gone == BESIDE {
            fs::remove_dir(gone)?;
        }
        for (tree, place) in &trees {
            lay(tree, place, &mut table, reporter).map_err(|error| at(place, error))?;
        }
        for ((tree, place), _) in trees.iter().zip(&self.mounts).filter(|(_, laid)| laid.readonly) {
            set_readonly(tree).map_err(|errno| at(place, errno))?;
        }
        self.look_for_devices(reporter);
        Ok(())
    }

    /// A device that the volume at its place does not have cannot be given: it would have to be made in the volume.
    fn look_for_devices(&self, reporter: Reporter) {
        let missing: Vec<_> =
            self.devices.iter().filter(|path| fs::symlink_metadata(path).is_err()).collect();
        if let Some(first) = missing.first() {
            let (first, count) = (first.display(), missing.len());
            reporter.warn(format!("{first}: {count} of the devices are not in the volume that lies there"));
        }
    }
}

fn at(path: &Path, error: impl Into<io::Error>) -> io::Error {
    io::Error::other(format!("{}: {}", path.display(), error.into()))
}

fn has_users(spec: &Spec) -> bool {
    let namespaces = spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    namespaces.into_iter().flatten().any(|one| one.typ() == LinuxNamespaceType::User)
}

/// The terminals that the container's own comes from: those that it will see in the volume, if there are any.
fn terminals(volume: Option<&Path>) -> Mount {
    let seen = volume.map(|volume| volume.join("pts"));
    let seen = seen.filter(|path| statfs(path).is_ok_and(|fs| i128::from(fs.f_type) == DEVPTS_MAGIC));
    match seen {
        Some(path) => mount(TERMINALS, "bind", &path, &["bind", "nosuid", "noexec"]),
        None => {
            let options = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
            mount(TERMINALS, "devpts", Path::new("devpts"), &options)
        }
    }
}

/// Lays a mount over its place in the container, where this process is.
fn lay(tree: &OwnedFd, place: &Path, table: &mut File, reporter: Reporter) -> io::Result<()> {
    let folder = FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory;
    let target = target(place, folder)?;
    keep_to_itself(&target, table, reporter)?;
    let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", &target, "", both)?)
}

/// The place itself, made where it is missing.
fn target(place: &Path, folder: bool) -> io::Result<OwnedFd> {
    let (path, inside) =
        (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    match openat2(CWD, place, path, Mode::empty(), inside) {
        Err(Errno::NOENT) => {}
        opened => return Ok(opened?),
    }
    // Links have been followed now, also one that leads to nothing.
    let place = guard::resolve(&rustix::fs::open(ROOT, path, Mode::empty())?, place);
    let (Some(above), Some(name)) = (place.parent(), place.file_name()) else {
        return Err(Errno::NOENT.into());
    };
    workdir::make_below(Path::new(ROOT), above, ResolveFlags::empty(), None)?;
    let above = openat2(CWD, above, path | OFlags::DIRECTORY, Mode::empty(), inside)?;
    if folder {
        mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
    } else {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(openat(&above, name, new, Mode::from_raw_mode(0o644))?);
    }
    Ok(openat(&above, name, path | OFlags::NOFOLLOW, Mode::empty())?)
}

/// Stops the mount that `place` lies in from telling others of what is mounted there: the host's /dev is not for a pod's
/// shared memory.
fn keep_to_itself(place: &OwnedFd, table: &mut File, reporter: Reporter) -> io::Result<()> {
    let id = propagation::mount_of(place)?;
    let mut text = String::new();
    table.rewind()?;
    table.read_to_string(&mut text)?;
    let Some(line) = text.lines().filter_map(Line::parse).find(|line| line.id == id) else { return Ok(()) };
    if !line.shared || line.point == Path::new(ROOT) {
        return Ok(());
    }
    let point = line.point.display();
    reporter.warn(format!(
        "the volume at {point} does not tell the host of mounts in it any more, for the container has some of its own there"
    ));
    let mount = propagation::open(&line.point)?;
    Ok(set_propagation(&mount, Propagation::Slave)?)
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::{Linux, LinuxDevice, Process};

    use super::*;

    fn bind(destination: &str, options: &[&str]) -> Mount {
        let options = [&["rbind"], options].concat();
        mount(destination, "bind", Path::new("/src"), &options)
    }

    fn spec(mounts: Vec<Mount>, devices: &[&str], propagation: Option<&str>) -> Spec {
        let device = |path: &&str| {
            let mut device = LinuxDevice::default();
            device.set_path((*path).into());
            device
        };
        let mut linux = Linux::default();
        linux.set_devices(Some(devices.iter().map(device).collect()));
        linux.set_rootfs_propagation(propagation.map(str::to_owned));
        let mut process = Process::default();
        process.set_cwd("/dev/sub".into());
        let mut spec = Spec::default();
        spec.set_mounts(Some(mounts)).set_linux(Some(linux)).set_process(Some(process));
        spec
    }

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("dev")).unwrap();
        std::os::unix::fs::symlink("/dev", root.path().join("door")).unwrap();
        root
    }

    fn places(late: &Late) -> Vec<&str> {
        late.mounts.iter().map(|laid| laid.place.to_str().unwrap()).collect()
    }

    fn destinations(spec: &Spec) -> Vec<&str> {
        let mounts = spec.mounts().as_deref().unwrap();
        mounts.iter().map(|mount| mount.destination().to_str().unwrap()).collect()
    }

    #[test]
    fn an_ordinary_container_is_left_alone() {
        let own = mount(DEV, "tmpfs", Path::new("tmpfs"), &[]);
        let mounts = vec![own, bind("/dev/shm", &["rprivate"]), bind("/data", &[]), bind("/data/sub", &[])];
        let mut spec = spec(mounts, &["/dev/fuse"], None);
        let before = spec.clone();
        let late = Late::plan(&mut spec, image().path(), true).unwrap();
        assert!(late.is_empty() && late.cwd.is_none());
        assert_eq!(spec, before);
    }

    #[test]
    fn what_lies_in_a_volume_at_dev_waits_for_it_and_libcontainer_gets_a_stand_in() {
        let mounts =
            vec![bind("/door", &["rslave", "ro"]), bind("/etc/hosts", &[]), bind("/dev/shm", &["rw"])];
        let mut spec = spec(mounts, &["/dev/fuse"], None);
        let late = Late::plan(&mut spec, image().path(), true).unwrap();
        assert_eq!(places(&late), ["/dev", "/dev/shm"]);
        assert_eq!(
            destinations(&spec),
            ["/dev", "/etc/hosts", "/dev/pts", "/dev/.volumes", "/dev/.volumes/0", "/dev/.volumes/1"]
        );
        let volume = &late.mounts[0];
        assert_eq!((volume.readonly, volume.propagation), (true, Some(Propagation::Slave)));
        assert!(late.holds(Path::new("/door")) && !late.holds(Path::new("/etc/hosts")));
        assert_eq!(late.cwd.as_deref(), Some(Path::new("/dev/sub")));
        assert_eq!(spec.process().as_ref().unwrap().cwd(), Path::new(ROOT));
        assert_eq!(late.devices, [Path::new("/dev/fuse")]);
        assert!(late.console && spec.linux().as_ref().unwrap().devices().as_ref().unwrap().is_empty());
    }

    #[test]
    fn a_volume_over_a_device_that_is_asked_for_waits() {
        let own = mount(DEV, "tmpfs", Path::new("tmpfs"), &[]);
        let mounts = vec![own, bind("/dev/bus", &[]), bind("/dev/net", &[]), bind("/dev/kmsg", &[])];
        let mut spec = spec(mounts, &["/dev/bus/usb/1", "/dev/kmsg", "/dev/fuse"], None);
        let late = Late::plan(&mut spec, image().path(), true).unwrap();
        assert_eq!(places(&late), ["/dev/bus", "/dev/kmsg"]);
        assert!(!late.console, "libcontainer's own /dev stays");
        assert_eq!(spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn beside_an_open_volume_what_lies_in_a_closed_one_waits() {
        let mounts = || {
            let open = bind("/open", &["rshared"]);
            vec![open, bind("/open/a", &["rprivate"]), bind("/data", &["rprivate"]), bind("/data/b", &[])]
        };
        let mut shared = spec(mounts(), &[], Some("shared"));
        assert_eq!(places(&Late::plan(&mut shared, image().path(), false).unwrap()), ["/data/b"]);
        let mut slave = spec(mounts(), &[], Some("slave"));
        assert!(Late::plan(&mut slave, image().path(), false).unwrap().is_empty());
    }
}
