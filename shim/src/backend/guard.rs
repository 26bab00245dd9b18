//! Makes sure that what is mounted for a container lies where it seems to: before, by the image's own folders; after,
//! by what the kernel says is there.
//!
//! libcontainer mounts through descriptors below the root, but it makes the links of /dev by path, before the root is
//! changed: a /dev that is a link of the image would lead it through the host (a volume there is [`super::late`]'s).
//! Invariant: no program runs in a container
//! whose /proc holds a mount that nobody meant, or whose masked and read-only paths are not what they are called.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatVfsMountFlags, fstat, fstatfs, fstatvfs, open,
    openat2, readlinkat, statat,
};
use rustix::io::Errno;

use super::rootfs::unescape;
use super::{Failure, FailureKind};

/// Folders of the image on which the kernel's own file systems are mounted.
const SYSTEM: [&str; 3] = ["dev", "proc", "sys"];
/// What lxcfs shows in place of the kernel's numbers: the only files of /proc that may be mounted on.
const REPLACEABLE: [&str; 10] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/loadavg",
    "/proc/meminfo",
    "/proc/slabinfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/sys/crypto/fips_enabled",
    "/proc/sys/kernel/ns_last_pid",
];
const PROC: &str = "/proc";
/// As many links as the kernel follows in one path.
const MOST_LINKS: u32 = 40;
const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
/// proc(5), tmpfs(5): the magic numbers of the file systems.
const PROC_MAGIC: i128 = 0x9fa0;
const TMPFS_MAGIC: i128 = 0x0102_1994;
const NULL: (u32, u32) = (1, 3);

fn rootfs(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Rootfs, message)
}

pub(super) fn open_root(root: &Path) -> Result<OwnedFd, Failure> {
    open(root, FOLDER, Mode::empty())
        .map_err(Failure::because(FailureKind::Rootfs, &format!("open the root {}", root.display())))
}

/// Refuses an image, and mounts on it, that would lead the runtime elsewhere. `root` is the mounted root file system.
pub fn before(spec: &Spec, root: &Path) -> Result<(), Failure> {
    let root = open_root(root)?;
    for name in SYSTEM {
        match statat(&root, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode))
        {
            Ok(FileType::Directory) | Err(Errno::NOENT) => {}
            Ok(FileType::Symlink) => {
                return Err(rootfs(format!("the image's /{name} is a symbolic link; it must be a folder")));
            }
            Ok(_) => return Err(rootfs(format!("the image's /{name} is not a folder"))),
            Err(errno) => return Err(rootfs(format!("look at the image's /{name}: {errno}"))),
        }
    }
    for mount in spec.mounts().iter().flatten() {
        let place = resolve(&root, mount.destination());
        if place == Path::new("/") {
            return Err(rootfs(format!(
                "{}: the root cannot be mounted over",
                mount.destination().display()
            )));
        }
        if place.starts_with(PROC) && !may_lie_in_proc(mount, &place) {
            let asked = mount.destination().display();
            return Err(rootfs(format!("{asked}: nothing may be mounted on {}", place.display())));
        }
    }
    Ok(())
}

fn may_lie_in_proc(mount: &Mount, place: &Path) -> bool {
    if place != Path::new(PROC) {
        return REPLACEABLE.iter().any(|file| place == Path::new(file));
    }
    mount.typ().as_deref() == Some("proc") || binds_proc(mount)
}

/// The node's own /proc, given to a container on purpose.
fn binds_proc(mount: &Mount) -> bool {
    let source = mount.source().as_ref().and_then(|source| open(source, FOLDER, Mode::empty()).ok());
    mount.typ().as_deref() != Some("proc")
        && source.is_some_and(|fd| magic(&fd).is_ok_and(|m| m == PROC_MAGIC))
}

fn magic(fd: &OwnedFd) -> io::Result<i128> {
    Ok(i128::from(fstatfs(fd)?.f_type))
}

/// Where a path of the container ends up once the links of its image are followed; what is not there counts as plain.
pub(super) fn resolve(root: &OwnedFd, path: &Path) -> PathBuf {
    let words =
        |path: &Path| path.components().map(|c| c.as_os_str().to_owned()).collect::<VecDeque<OsString>>();
    let (mut ahead, mut found, mut links) = (words(path), PathBuf::from("/"), 0);
    while let Some(word) = ahead.pop_front() {
        match Path::new(&word).components().next() {
            Some(Component::RootDir) => found = PathBuf::from("/"),
            Some(Component::ParentDir) => drop(found.pop()),
            Some(Component::Normal(name)) => {
                let next = found.join(name);
                let inside = next.strip_prefix("/").unwrap_or(&next);
                // Everything before the last word has been resolved, so this follows no link.
                match readlinkat(root, inside, Vec::new()) {
                    Ok(target) if links < MOST_LINKS => {
                        links += 1;
                        let target = target.to_string_lossy().into_owned();
                        ahead = words(Path::new(&target)).into_iter().chain(ahead).collect();
                    }
                    _ => found = next,
                }
            }
            Some(Component::CurDir | Component::Prefix(_)) | None => {}
        }
    }
    found
}

/// Looks at the finished container of which `pid` is the first process, before it runs a program.
pub fn after(spec: &Spec, pid: i32) -> Result<(), Failure> {
    let linux = spec.linux().as_ref();
    let masked = linux.and_then(|l| l.masked_paths().as_deref()).unwrap_or_default();
    let readonly = linux.and_then(|l| l.readonly_paths().as_deref()).unwrap_or_default();
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let root = open_root(Path::new(&format!("/proc/{pid}/root")))?;
    if mounts.iter().any(|m| m.destination() == Path::new(PROC) && !binds_proc(m)) {
        let proc = openat2(&root, "proc", FOLDER | OFlags::NOFOLLOW, Mode::empty(), ResolveFlags::IN_ROOT);
        if !proc.is_ok_and(|proc| magic(&proc).is_ok_and(|m| m == PROC_MAGIC)) {
            return Err(rootfs("the container's /proc is not the kernel's"));
        }
        let table = fs::read_to_string(format!("/proc/{pid}/mountinfo"))
            .map_err(Failure::because(FailureKind::Runtime, "look at the container's mounts"))?;
        if let Some(point) = strangers(&table, masked, readonly).next() {
            return Err(rootfs(format!("nothing may be mounted on {}", point.display())));
        }
    }
    all(&root, masked, is_masked, "masked")?;
    all(&root, readonly, is_readonly, "read-only")
}

/// Whether each of `paths` is what `check` says; what the kernel does not have needs no guard.
fn all(
    root: &OwnedFd,
    paths: &[String],
    check: fn(&OwnedFd) -> io::Result<bool>,
    word: &str,
) -> Result<(), Failure> {
    for path in paths {
        let inside = Path::new(path).strip_prefix("/").unwrap_or(Path::new(path));
        match openat2(root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(fd) if check(&fd).is_ok_and(|it_is| it_is) => {}
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Ok(_) | Err(_) => return Err(rootfs(format!("{path} could not be made {word}"))),
        }
    }
    Ok(())
}

/// Mount points below /proc that neither the specification's lists nor lxcfs explain. proc_pid_mountinfo(5)
fn strangers<'a>(
    table: &'a str,
    masked: &'a [String],
    readonly: &'a [String],
) -> impl Iterator<Item = PathBuf> + 'a {
    let points = table.lines().filter_map(|line| Some(PathBuf::from(unescape(line.split(' ').nth(4)?))));
    points.filter(move |point| {
        let listed = masked.iter().chain(readonly).any(|path| point.starts_with(path));
        let known = REPLACEABLE.iter().any(|file| point == Path::new(file));
        point.starts_with(PROC) && point != Path::new(PROC) && !listed && !known
    })
}

/// The kernel's null device, or an empty file system in memory that nobody can write.
fn is_masked(fd: &OwnedFd) -> io::Result<bool> {
    let stat = fstat(fd)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::CharacterDevice => Ok(device == NULL),
        FileType::Directory => Ok(magic(fd)? == TMPFS_MAGIC && is_readonly(fd)?),
        _ => Ok(false),
    }
}

fn is_readonly(fd: &OwnedFd) -> io::Result<bool> {
    Ok(fstatvfs(fd)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn image() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for name in SYSTEM {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        symlink("/proc", root.path().join("door")).unwrap();
        symlink("/proc/self/attr", root.path().join("deep")).unwrap();
        symlink("../../../proc", root.path().join("sys/up")).unwrap();
        symlink("round", root.path().join("round")).unwrap();
        root
    }

    fn spec(destination: &str, typ: &str, source: &str) -> Spec {
        let mut mount = Mount::default();
        mount.set_destination(destination.into()).set_typ(Some(typ.into())).set_source(Some(source.into()));
        let mut spec = Spec::default();
        spec.set_mounts(Some(vec![mount]));
        spec
    }

    #[test]
    fn only_the_kernels_own_lies_in_proc() {
        let root = image();
        let tried = |destination, typ, source| before(&spec(destination, typ, source), root.path());
        for place in
            ["/proc", "/proc/self/attr", "/door/sys", "/deep", "/sys/up/1", "/bin/../proc/x", "/./door"]
        {
            let refused = tried(place, "bind", "/tmp").unwrap_err();
            assert!(refused.message.contains(place), "{place}: {refused}");
        }
        for (place, typ, source) in [
            ("/proc", "proc", "proc"),
            ("/proc", "bind", "/proc"),
            ("/proc/uptime", "bind", "/etc/hostname"),
            ("/procure", "bind", "/tmp"),
            ("/door/../etc", "bind", "/tmp"),
            ("/round/x", "bind", "/tmp"),
        ] {
            tried(place, typ, source).unwrap();
        }
        assert!(tried("/proc/sys", "proc", "proc").is_err());
        assert!(tried("/sys/../", "bind", "/tmp").unwrap_err().message.contains("the root"));
    }

    #[test]
    fn a_system_folder_that_is_a_link_or_a_file_is_refused() {
        let root = image();
        fs::remove_dir(root.path().join("dev")).unwrap();
        before(&Spec::default(), root.path()).unwrap();
        symlink("/tmp", root.path().join("dev")).unwrap();
        assert!(
            before(&Spec::default(), root.path()).unwrap_err().message.contains("/dev is a symbolic link")
        );
        fs::remove_file(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev"), "").unwrap();
        assert!(before(&Spec::default(), root.path()).unwrap_err().message.contains("/dev is not a folder"));
    }

    #[test]
    fn mounts_in_proc_are_told_from_those_that_were_asked_for() {
        let table = "1 0 0:1 / / rw - overlay o rw\n2 1 0:2 / /proc rw - proc p rw\n\
                     3 2 0:2 /sys /proc/sys ro - proc p rw\n4 2 0:3 / /proc/self/attr rw - ext4 a rw\n\
                     5 2 0:4 / /proc/uptime rw - fuse l rw\n6 1 0:5 / /proc2 rw - ext4 a rw\n";
        let readonly = ["/proc/sys".to_owned()];
        let found: Vec<_> = strangers(table, &[], &readonly).collect();
        assert_eq!(found, [Path::new("/proc/self/attr")]);
    }

    #[test]
    fn masks_are_known_by_what_they_are() {
        let fd = |path: &str| open(path, OFlags::PATH, Mode::empty()).unwrap();
        assert!(is_masked(&fd("/dev/null")).unwrap());
        for path in ["/dev/zero", "/proc/uptime", "/proc", "/etc/passwd"] {
            assert!(!is_masked(&fd(path)).unwrap(), "{path}");
        }
        assert!(!is_readonly(&fd("/proc")).unwrap());
    }
}
