//! Runs one more process inside a container that is already there.
//!
//! Done here and not by libcontainer's tenant builder because that one drops the container's seccomp profile for such
//! processes. Order matters and follows from what each step needs: cgroups while the host's are visible, limits before
//! privileges go, namespaces, a fork into the pid namespace, then terminal, ids, seccomp, capabilities, program.

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::syscall::syscall::create_syscall;
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};
use oci_spec::runtime::{LinuxSeccomp, Process, Spec};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use super::{Failure, FailureKind, Reporter, connect_in_folder, executable, selinux, spec};
use crate::sys::{self, Forked};
use crate::wire::{ExecOrder, Report};

/// The order in which the kernel lets a process of the host enter them: user first, for the rights; mnt last, because
/// afterwards /proc is the container's.
const NAMESPACES: [(&str, CloneFlags); 8] = [
    ("user", CloneFlags::CLONE_NEWUSER),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("net", CloneFlags::CLONE_NEWNET),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("time", CloneFlags::from_bits_retain(libc::CLONE_NEWTIME)),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

/// The device number of ptmx. pts(4)
const MULTIPLEXER: (u32, u32) = (5, 2);

fn runtime<E: std::error::Error>(doing: &str) -> impl FnOnce(E) -> Failure + use<'_, E> {
    Failure::because(FailureKind::Runtime, doing)
}

/// Makes the process and gives its pid as the host sees it; its own failures come as reports of their own.
pub fn exec(order: &ExecOrder, reporter: Reporter) -> Result<i32, Failure> {
    let mut process: Process = serde_json::from_str(&order.process)
        .map_err(Failure::because(FailureKind::Spec, "read the exec's process"))?;
    let container = Spec::load(order.bundle.join("config.json"))
        .map_err(Failure::because(FailureKind::Spec, "read config.json"))?;
    let seccomp = container.linux().as_ref().and_then(|l| l.seccomp().clone());
    spec::clamp(&mut process, reporter);
    let namespaces = open_namespaces(order.init_pid)?;
    let console = match &order.console {
        Some(path) => Some(connect_in_folder(path).map_err(runtime("connect to the console socket"))?),
        None => None,
    };
    set_limits(&process)?;
    let init_home = init_environment(order.init_pid, "HOME=");
    join_cgroups(order)?;
    // While /proc is the host's: what the container has there need not be the kernel's. The forked child inherits it.
    selinux::on_exec(process.selinux_label().as_deref())?;
    for (name, fd, flag) in &namespaces {
        setns(fd, *flag).map_err(runtime(&format!("enter the container's {name} namespace")))?;
        if *flag == CloneFlags::CLONE_NEWUSER {
            become_root_of_the_namespace()?;
        }
    }
    drop(namespaces);
    match sys::fork().map_err(runtime("fork into the container"))? {
        Forked::Parent(pid) => Ok(pid.as_raw()),
        Forked::Child => {
            let failure = become_process(&process, seccomp.as_ref(), console, init_home);
            let status = match failure.kind {
                FailureKind::ExecutableNotFound => 127,
                kind if kind.is_about_the_executable() => 126,
                _ => 128,
            };
            reporter.send(&Report::Failed(failure));
            sys::exit_now(status)
        }
    }
}

/// The namespaces of the container's first process that differ from our own.
fn open_namespaces(pid: i32) -> Result<Vec<(&'static str, File, CloneFlags)>, Failure> {
    let mut found = Vec::new();
    for (name, flag) in NAMESPACES {
        let path = format!("/proc/{pid}/ns/{name}");
        let theirs = match fs::read_link(&path) {
            Ok(link) => link,
            // A kernel without this kind of namespace.
            Err(e)
                if e.kind() == std::io::ErrorKind::NotFound
                    && Path::new(&format!("/proc/{pid}")).exists() =>
            {
                continue;
            }
            Err(e) => return Err(runtime("the container's first process is gone")(e)),
        };
        if fs::read_link(format!("/proc/self/ns/{name}")).ok().as_ref() == Some(&theirs) {
            continue;
        }
        found.push((name, File::open(&path).map_err(runtime("open the container's namespaces"))?, flag));
    }
    // Every container has a mount namespace of its own: a process that shares ours got the pid of one that is gone.
    if !found.iter().any(|(name, ..)| *name == "mnt") {
        return Err(Failure::new(FailureKind::Runtime, "the container's first process is gone"));
    }
    Ok(found)
}

/// Who comes from outside has no name in a user namespace, and what he makes there (a terminal) would have no owner.
pub(super) fn become_root_of_the_namespace() -> Result<(), Failure> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(runtime("become the container's root group"))?;
    setresuid(uid, uid, uid).map_err(runtime("become the container's root"))
}

fn init_environment(pid: i32, prefix: &str) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/environ")).ok()?;
    let found = bytes.split(|b| *b == 0).find(|pair| pair.starts_with(prefix.as_bytes()))?;
    Some(String::from_utf8_lossy(found).into_owned())
}

fn set_limits(process: &Process) -> Result<(), Failure> {
    for limit in process.rlimits().iter().flatten() {
        if let Some(kind) = spec::resource(limit.typ()) {
            nix::sys::resource::setrlimit(kind, limit.soft(), limit.hard())
                .map_err(runtime(&format!("set {:?}", limit.typ())))?;
        }
    }
    if let Some(score) = process.oom_score_adj() {
        fs::write("/proc/self/oom_score_adj", score.to_string()).map_err(runtime("set oom_score_adj"))?;
    }
    Ok(())
}

/// Joins the container's cgroups, and in one hierarchy a child of its own, so that the exec can be killed as a whole.
fn join_cgroups(order: &ExecOrder) -> Result<(), Failure> {
    let own = order.cgroups.exec(&order.exec_id);
    if let Some(folder) = &own {
        fs::create_dir_all(folder).map_err(runtime("make the exec's cgroup"))?;
    }
    for folder in order.cgroups.folders() {
        let target = match &own {
            Some(own) if own.parent() == Some(folder) => own,
            _ => folder,
        };
        fs::write(target.join("cgroup.procs"), "0")
            .map_err(runtime(&format!("join the cgroup {}", target.display())))?;
    }
    Ok(())
}

/// The forked child, in all namespaces. Returns only with the reason why the program does not run.
fn become_process(
    process: &Process,
    seccomp: Option<&LinuxSeccomp>,
    console: Option<UnixStream>,
    init_home: Option<String>,
) -> Failure {
    let prepared = enter(process, seccomp, console);
    if let Err(failure) = prepared {
        return failure;
    }
    let args = process.args().clone().unwrap_or_default();
    let mut env = process.env().clone().unwrap_or_default();
    if !env.iter().any(|pair| pair.starts_with("HOME=")) {
        env.push(init_home.unwrap_or_else(|| "HOME=/".into()));
    }
    match executable::find(args.first().map(String::as_str).unwrap_or_default(), &env) {
        Ok(path) => executable::run(&path, &args, &env),
        Err(failure) => failure,
    }
}

fn enter(
    process: &Process,
    seccomp: Option<&LinuxSeccomp>,
    console: Option<UnixStream>,
) -> Result<(), Failure> {
    setsid().map_err(runtime("begin a session"))?;
    if let Some(console) = console {
        open_terminal(process, &console)?;
    }
    if let Some(profile) = process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile).map_err(runtime("apply the AppArmor profile"))?;
    }
    let early = enter_folder(process.cwd());
    take_identity(process)?;
    // A change of the user id may have lifted it.
    sys::forbid_looking_in().map_err(runtime("hide from the container"))?;
    if early.is_err() {
        // A folder that only the user may enter (a mounted home), or none at all.
        enter_folder(process.cwd())
            .map_err(runtime(&format!("change to the folder {}", process.cwd().display())))?;
    }
    let confined = process.no_new_privileges() == Some(true);
    if confined {
        sys::forbid_new_privileges().map_err(runtime("forbid new privileges"))?;
    } else {
        // Without that promise the filter needs a privilege that the next step takes away.
        load_seccomp(seccomp)?;
    }
    drop_capabilities(process)?;
    if confined {
        load_seccomp(seccomp)?;
    }
    Ok(())
}

/// Changes to a folder that lies in the container: the links of /proc to open files and to other processes' folders
/// could lead out of it, and so could a folder that was moved away.
fn enter_folder(path: &Path) -> std::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    rustix::process::fchdir(folder)?;
    // Fails where the folder cannot be reached from the root.
    std::env::current_dir().map(drop)
}

fn take_identity(process: &Process) -> Result<(), Failure> {
    let user = process.user();
    if let Some(umask) = user.umask() {
        nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(umask));
    }
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    match setgroups(&groups) {
        // A user namespace can forbid it, and then there is nothing to give up.
        Err(Errno::EPERM) if groups.is_empty() => {}
        set => set.map_err(runtime("set the supplementary groups"))?,
    }
    sys::keep_capabilities(true).map_err(runtime("keep capabilities"))?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid).map_err(runtime(&format!("become group {gid}")))?;
    setresuid(uid, uid, uid).map_err(runtime(&format!("become user {uid}")))
}

fn drop_capabilities(process: &Process) -> Result<(), Failure> {
    let syscall = create_syscall();
    reset_effective(syscall.as_ref()).map_err(runtime("raise capabilities"))?;
    if let Some(capabilities) = process.capabilities() {
        drop_privileges(capabilities, syscall.as_ref()).map_err(runtime("drop capabilities"))?;
    }
    sys::keep_capabilities(false).map_err(runtime("keep capabilities no longer"))
}

fn load_seccomp(profile: Option<&LinuxSeccomp>) -> Result<(), Failure> {
    let Some(profile) = profile else { return Ok(()) };
    libcontainer::seccomp::initialize_seccomp(profile).map(drop).map_err(runtime("load the seccomp filter"))
}

/// Whether this is the device that makes terminals: the container may have replaced it, and what the shim reads from
/// later must be nothing else (CVE-2025-52565).
fn is_multiplexer(file: &OwnedFd) -> rustix::io::Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    Ok(kind == rustix::fs::FileType::CharacterDevice && device == MULTIPLEXER)
}

/// Opens a pseudoterminal of the container's own devpts and sends its other side to the shim.
fn open_terminal(process: &Process, console: &UnixStream) -> Result<(), Failure> {
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master: OwnedFd = openpt(flags).map_err(runtime("open /dev/ptmx in the container"))?;
    if !is_multiplexer(&master).map_err(runtime("look at /dev/ptmx in the container"))? {
        let words = "the container's /dev/ptmx is not the kernel's; it makes no terminals";
        return Err(Failure::new(FailureKind::Runtime, words));
    }
    unlockpt(&master).map_err(runtime("unlock the terminal"))?;
    // By descriptor: the container may have put anything at the path.
    let slave = ioctl_tiocgptpeer(&master, flags).map_err(runtime("open the terminal"))?;
    rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(process.user().uid())), None)
        .map_err(runtime("give the terminal to the user"))?;
    if let Some(size) = process.console_size() {
        let rows = u16::try_from(size.height()).unwrap_or(u16::MAX);
        let columns = u16::try_from(size.width()).unwrap_or(u16::MAX);
        let size = rustix::termios::Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&master, size).map_err(runtime("size the terminal"))?;
    }
    let fds = [master.as_raw_fd()];
    sendmsg::<()>(
        console.as_raw_fd(),
        &[IoSlice::new(b"tty")],
        &[ControlMessage::ScmRights(&fds)],
        MsgFlags::empty(),
        None,
    )
    .map_err(runtime("send the terminal to the shim"))?;
    rustix::process::ioctl_tiocsctty(&slave).map_err(runtime("take the terminal"))?;
    nix::unistd::dup2_stdin(&slave).map_err(runtime("connect stdin"))?;
    nix::unistd::dup2_stdout(&slave).map_err(runtime("connect stdout"))?;
    nix::unistd::dup2_stderr(&slave).map_err(runtime("connect stderr"))
}
