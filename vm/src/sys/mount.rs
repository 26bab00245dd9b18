//! Mounts in the mount namespace of another process.
//!
//! A short-lived thread takes what is to be shown from this process's namespace, enters the other one and puts it there.
//! Invariant: the other namespace is entered by that thread alone, which ends with the call.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change,
    move_mount, open_tree, unmount,
};
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces, unshare_unsafe};

/// What is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or folder of the node, with what is mounted below it.
    Bind(PathBuf),
    /// A new mount of a filesystem.
    New { kind: String, source: String, options: Vec<String> },
}

/// What of a bind holds for what is mounted below it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Submounts {
    /// They are read-only as well.
    pub read_only: bool,
    /// Those that the node mounts later appear, too.
    pub follow: bool,
}

/// One mount, and where it is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub source: Source,
    pub read_only: bool,
    pub below: Submounts,
    /// Relative to where all of them are put.
    pub target: PathBuf,
}

/// A mount that hangs nowhere yet.
struct Detached {
    mount: OwnedFd,
    is_folder: bool,
    target: PathBuf,
}

/// An empty tmpfs that hangs nowhere, and a second mount of the same that nobody can write through.
///
/// # Errors
/// When the kernel refuses.
pub fn tmpfs_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let options = ["size=1m", "mode=755", "nosuid", "nodev"].map(str::to_owned);
    let writable = new_mount("tmpfs", "share", &options)?;
    let shown = apart(|| {
        // Kernels before 6.15 copy a mount only while it hangs in the caller's namespace, so it does in one that ends
        // with this thread.
        own_namespace()?;
        move_mount(&writable, "", CWD, "/", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let shown = open_tree(&writable, "", flags)?;
        change(shown.as_fd(), 0, &MountAttr::READ_ONLY)?;
        Ok(shown)
    })?;
    Ok((writable, shown))
}

/// Gives this thread a mount namespace of its own, of which the others see nothing.
fn own_namespace() -> io::Result<()> {
    // SAFETY: this thread shares no view of the filesystem with others from here on and ends soon; no code of it relies
    // on the sharing.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?;
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Hangs a mount at `target`. For use between fork and exec: nothing is allocated.
///
/// # Errors
/// When the kernel refuses.
pub fn hang(mount: BorrowedFd<'_>, target: &CStr) -> io::Result<()> {
    Ok(move_mount(mount, c"", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Puts all of `shown` into the mount namespace of the process `of`, or none. Below `root` there, the folders are those
/// of the mount `writable`, where what is needed to mount on is made.
///
/// # Errors
/// When a source is not there, or cannot be mounted.
pub fn show(of: BorrowedFd<'_>, root: &Path, writable: BorrowedFd<'_>, shown: &[Shown]) -> io::Result<()> {
    let places = PathBuf::from(format!("/proc/self/fd/{}", writable.as_raw_fd()));
    let mut detached = Vec::new();
    for one in shown {
        let mount = detach(one)?;
        make_place(&places.join(&one.target), mount.is_folder)?;
        detached.push(mount);
    }
    apart(|| {
        enter(of)?;
        for (done, one) in detached.iter().enumerate() {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            if let Err(errno) = move_mount(&one.mount, "", CWD, root.join(&one.target), flags) {
                for undone in &detached[..done] {
                    let _ = unmount(root.join(&undone.target), UnmountFlags::DETACH);
                }
                return Err(errno.into());
            }
        }
        Ok(())
    })
}

/// Takes everything below `folder` away in the mount namespace of the process `of`. Absent is done.
///
/// # Errors
/// When something mounted stays.
pub fn hide(of: BorrowedFd<'_>, folder: &Path) -> io::Result<()> {
    apart(|| {
        enter(of)?;
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        let points = table.lines().filter_map(mount_point).filter(|point| point.starts_with(folder));
        // The last one lies on top of those before it.
        for point in points.collect::<Vec<_>>().iter().rev() {
            match unmount(point, UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    })
}

/// Whether anything is mounted below `folder` in this namespace.
///
/// # Errors
/// When it is not there, or the table of mounts cannot be read.
pub fn has_below(folder: &Path) -> io::Result<bool> {
    let folder = folder.canonicalize()?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
    Ok(table.lines().filter_map(mount_point).any(|point| point != folder && point.starts_with(&folder)))
}

fn make_place(place: &Path, is_folder: bool) -> io::Result<()> {
    if is_folder {
        return std::fs::create_dir_all(place);
    }
    if let Some(parent) = place.parent() {
        std::fs::create_dir_all(parent)?;
    }
    std::fs::File::options().create(true).append(true).open(place).map(drop)
}

/// Runs `work` on a thread of its own, whose view of the filesystem is its own.
fn apart<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("mounts".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that mounts died")))
    })
}

fn enter(of: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: this thread shares no view of the filesystem with others from here on and ends soon; no code of it relies
    // on the sharing.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    move_into_thread_name_spaces(of, ThreadNameSpaceType::MOUNT)?;
    Ok(())
}

fn detach(shown: &Shown) -> io::Result<Detached> {
    let named = |error: rustix::io::Errno, what: &dyn std::fmt::Debug| {
        io::Error::new(io::Error::from(error).kind(), format!("mount {what:?}: {error}"))
    };
    let mount = match &shown.source {
        Source::Bind(path) => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE
                | OpenTreeFlags::OPEN_TREE_CLOEXEC
                | OpenTreeFlags::AT_RECURSIVE;
            let mount = open_tree(CWD, path, flags).map_err(|e| named(e, path))?;
            // A copy of a shared mount is its peer: what is taken away there would go here.
            let propagation = if shown.below.follow { libc::MS_SLAVE } else { libc::MS_PRIVATE };
            change(mount.as_fd(), libc::AT_RECURSIVE, &MountAttr { propagation, ..MountAttr::default() })?;
            mount
        }
        Source::New { kind, source, options } => {
            new_mount(kind, source, options).map_err(|e| named(e, &shown.source))?
        }
    };
    if shown.read_only {
        let reach = if shown.below.read_only { libc::AT_RECURSIVE } else { 0 };
        change(mount.as_fd(), reach, &MountAttr::READ_ONLY)?;
    }
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&mount)?.st_mode);
    Ok(Detached { mount, is_folder: kind == FileType::Directory, target: shown.target.clone() })
}

fn new_mount(kind: &str, source: &str, options: &[String]) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    let mut attributes = MountAttrFlags::empty();
    for option in options {
        match (option.as_str(), option.split_once('=')) {
            ("rw" | "defaults", _) => {}
            ("ro", _) => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
            ("nosuid", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NOSUID,
            ("nodev", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NODEV,
            ("noexec", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NOEXEC,
            ("noatime", _) => attributes |= MountAttrFlags::MOUNT_ATTR_NOATIME,
            (_, Some(("lowerdir", layers))) => set_layers(context.as_fd(), layers)?,
            (_, Some((key, value))) => fsconfig_set_string(&context, key, value)?,
            (flag, None) => fsconfig_set_flag(&context, flag)?,
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// One by one, so that their number has no limit but the kernel's; kernels before 6.5 take them as one text of at most
/// 256 bytes.
fn set_layers(context: BorrowedFd<'_>, layers: &str) -> rustix::io::Result<()> {
    for (at, layer) in layers.split(':').filter(|layer| !layer.is_empty()).enumerate() {
        match fsconfig_set_string(context, "lowerdir+", layer) {
            Err(rustix::io::Errno::INVAL) if at == 0 => {
                return fsconfig_set_string(context, "lowerdir", layers);
            }
            other => other?,
        }
    }
    Ok(())
}

/// `struct mount_attr` as of Linux 5.12.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

impl MountAttr {
    const READ_ONLY: Self =
        MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };
}

/// One mount, or with AT_RECURSIVE the tree below it as well. See mount_setattr(2).
fn change(mount: BorrowedFd<'_>, reach: i32, attr: &MountAttr) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call, the path is an empty C string, and the structure has
    // the layout and the size that the kernel is told.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | reach,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The mount point in a line of mountinfo, with its escapes undone.
fn mount_point(line: &str) -> Option<PathBuf> {
    let text = line.split(' ').nth(4)?;
    let codes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    Some(codes.iter().fold(text.to_owned(), |text, (code, char)| text.replace(code, char)).into())
}
