//! What has to be there before anything else: modules, a root that containers can leave, the kernel's filesystems.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam_vm::agent::{BUNDLES, MODULES, STREAMS, TAG};
use cofferdam_vm::share::GUEST_ROOT;
use rustix::mount::{MountFlags, mount, mount_move};

use crate::sys;

/// What the image's builder puts there: modules in the order of their needs.
const MODULES_FOLDER: &str = "/modules";
const NEW_ROOT: &str = "/newroot";

fn named<E: Into<io::Error>>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> io::Error {
    move |error| {
        let error = error.into();
        io::Error::new(error.kind(), format!("{doing}: {error}"))
    }
}

pub fn load_modules() -> io::Result<()> {
    let order =
        fs::read_to_string(format!("{MODULES_FOLDER}/order")).map_err(named("read the list of modules"))?;
    let wanted = std::env::var(MODULES).unwrap_or_default();
    let is_wanted = |group: &str| group.is_empty() || wanted.split(',').any(|one| one == group);
    for line in order.lines() {
        let (name, group) = line.split_once(' ').unwrap_or((line, ""));
        if !is_wanted(group) {
            continue;
        }
        let file = File::open(format!("{MODULES_FOLDER}/{name}"))
            .map_err(named(format_args!("open module {name}")))?;
        sys::load_module(&file).map_err(named(format_args!("load module {name}")))?;
    }
    Ok(())
}

/// A container cannot pivot away from the initial root filesystem, so the programs move to another first.
pub fn move_root() -> io::Result<()> {
    fs::create_dir_all(NEW_ROOT)?;
    mount("root", NEW_ROOT, "tmpfs", MountFlags::empty(), c"mode=755").map_err(named("mount the root"))?;
    for folder in ["bin", "dev", "proc", "sys", "run", "tmp", "etc", "root"] {
        fs::create_dir(Path::new(NEW_ROOT).join(folder))?;
    }
    for entry in fs::read_dir("/bin")? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        let target = Path::new(NEW_ROOT).join("bin").join(name);
        fs::copy(&path, &target).map_err(named("move a program"))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        // Frees the memory of what was copied.
        fs::remove_file(&path)?;
    }
    drop(fs::remove_dir_all(MODULES_FOLDER));
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/").map_err(named("move the root"))?;
    rustix::process::chroot(".").map_err(named("enter the root"))?;
    std::env::set_current_dir("/")
}

pub fn mount_all() -> io::Result<()> {
    let strict = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let plain = MountFlags::NOSUID;
    for (kind, target, flags, data) in [
        ("proc", "/proc", strict, c""),
        ("sysfs", "/sys", strict, c""),
        ("devtmpfs", "/dev", plain, c"mode=755"),
        ("devpts", "/dev/pts", plain | MountFlags::NOEXEC, c"ptmxmode=0666,mode=0620,gid=5"),
        ("tmpfs", "/dev/shm", strict, c"mode=1777"),
        ("tmpfs", "/run", plain | MountFlags::NODEV, c"mode=755"),
        ("tmpfs", "/tmp", plain | MountFlags::NODEV, c"mode=1777"),
        ("cgroup2", "/sys/fs/cgroup", strict, c"nsdelegate"),
        // Programs that change the user are the images' own matter, as on the node.
        ("virtiofs", GUEST_ROOT, MountFlags::empty(), c""),
    ] {
        fs::create_dir_all(target)?;
        let source = if kind == "virtiofs" { TAG } else { kind };
        mount(source, target, kind, flags, data).map_err(named(format_args!("mount {target}")))?;
    }
    for folder in [BUNDLES, STREAMS] {
        fs::create_dir_all(folder)?;
    }
    delegate_controllers()
}

/// Containers' cgroups get every controller that the kernel has.
fn delegate_controllers() -> io::Result<()> {
    let all = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    for controller in all.split_whitespace() {
        // One that cannot be delegated is missed by the container that asks for it, in words.
        drop(fs::write("/sys/fs/cgroup/cgroup.subtree_control", format!("+{controller}")));
    }
    Ok(())
}
