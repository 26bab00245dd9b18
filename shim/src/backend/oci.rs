//! The built-in runtime: libcontainer makes the containers, [`super::join`] the further processes in them.
//!
//! Its state lies below the bundle, never in a folder of the whole host.

use cofferdam_failpoints::failpoint;
use std::io::Write;
use std::path::{Path, PathBuf};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::hooks::run_hooks;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use oci_spec::runtime::{LinuxResources, Spec};

use super::late::Late;
use super::spec::Fitted;
use super::{
    Failure, FailureKind, OciRuntime, Reporter, chain, console, device_filter, executable, guard, join, null,
    propagation, selinux,
};
use crate::bundle::Bundle;
use crate::cgroup::limits::{self, place};
use crate::cgroup::systemd::Visit;
use crate::cgroup::{CgroupPaths, kill};
use crate::wire::{CreateOrder, Created, ExecOrder, Report, TaskOrder};

const ABANDON_TRIES: u32 = 100;

pub struct Libcontainer {
    systemd_cgroup: bool,
    reporter: Reporter,
}

impl Libcontainer {
    pub fn new(systemd_cgroup: bool, reporter: Reporter) -> Self {
        Libcontainer { systemd_cgroup, reporter }
    }

    fn build(&self, order: &CreateOrder, fitted: &Fitted) -> Result<i32, LibcontainerError> {
        let late = &fitted.late;
        let program = Program { reporter: self.reporter, late: !late.is_empty(), cwd: late.cwd.clone() };
        let root = Bundle::new(&order.bundle).runtime_root();
        std::fs::create_dir_all(&root).map_err(LibcontainerError::OtherIO)?;
        let container = ContainerBuilder::new(order.id.clone(), SyscallType::default())
            .with_root_path(root)?
            .with_console_socket(order.console.as_ref())
            .with_executor(program)
            .validate_id()?
            .as_init(&fitted.bundle)
            .with_systemd(self.systemd_cgroup)
            .with_detach(true)
            .build()?;
        container.pid().map(|pid| pid.as_raw()).ok_or_else(|| LibcontainerError::Other("no pid".into()))
    }

    /// All that libcontainer leaves out.
    fn complete(&self, spec: &Spec, pid: i32, late: &Late, visit: &Visit) -> Result<CgroupPaths, Failure> {
        visit.end().map_err(Failure::because(FailureKind::Runtime, "leave the pod's scope"))?;
        place(spec, pid)?;
        let cgroups = CgroupPaths::of(pid)
            .map_err(Failure::because(FailureKind::Runtime, "find the container's cgroups"))?;
        device_filter::enforce(spec, &cgroups, self.reporter)?;
        set_limits(spec, &cgroups)?;
        propagation::settle(spec, late, pid)?;
        late.settle(pid, self.reporter)?;
        guard::after(spec, pid)?;
        Ok(cgroups)
    }
}

impl OciRuntime for Libcontainer {
    fn create(&self, order: &CreateOrder, fitted: &Fitted, visit: &Visit) -> Result<Created, Failure> {
        let spec = load_spec(&order.bundle)?;
        let pid = self.build(order, fitted).map_err(|error| explain(&error, &fitted.bundle))?;
        failpoint!("shim.child.made", infallible);
        // The first process still waits, so nothing of the user's has run without filter, limits and masks.
        let cgroups = match self.complete(&spec, pid, &fitted.late, visit) {
            Ok(cgroups) => cgroups,
            Err(failure) => {
                abandon(order, &spec, pid);
                return Err(failure);
            }
        };
        failpoint!("shim.child.limited", infallible);
        if order.console.is_some()
            && let Err(error) = give_terminal(pid)
        {
            self.reporter.warn(format!("the terminal stays root's: {error}"));
        }
        let hooks = spec.hooks().clone().unwrap_or_default();
        let any = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|l| !l.is_empty());
        Ok(Created {
            pid,
            cgroups,
            mounted_on_host: false,
            start_by_child: any(hooks.poststart()),
            delete_by_child: any(hooks.poststop()),
        })
    }

    fn start(&self, order: &TaskOrder) -> Result<(), Failure> {
        let mut container = load_container(order)?;
        match order.restored {
            Some(pid) => container.state.pid = Some(pid),
            None => notify_start(&order.bundle, &order.id)
                .map_err(Failure::because(FailureKind::Runtime, "notify the container"))?,
        }
        let hooks = load_spec(&order.bundle)?.hooks().clone().unwrap_or_default();
        run_hooks(hooks.poststart().as_ref(), Some(&container.state), None, None, None)
            .map_err(Failure::because(FailureKind::Runtime, "run the poststart hooks"))
    }

    fn exec(&self, order: &ExecOrder) -> Result<i32, Failure> {
        join::exec(order, self.reporter)
    }

    fn delete(&self, order: &TaskOrder) -> Result<(), Failure> {
        let hooks = load_spec(&order.bundle)?.hooks().clone().unwrap_or_default();
        let container = load_container(order)?;
        run_hooks(hooks.poststop().as_ref(), Some(&container.state), None, None, None)
            .map_err(Failure::because(FailureKind::Runtime, "run the poststop hooks"))
    }
}

/// Makes the terminal its user's, which libcontainer forgets: he may open it again by name. The process still waits, so
/// what lies behind the link is what was put there.
fn give_terminal(pid: i32) -> std::io::Result<()> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uid =
        status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok());
    let uid = uid.ok_or_else(|| std::io::Error::other("its user is not known"))?;
    std::os::unix::fs::chown(format!("/proc/{pid}/fd/0"), Some(uid), None)
}

fn explain(error: &LibcontainerError, bundle: &Path) -> Failure {
    let kind = match error {
        LibcontainerError::InvalidSpec(_)
        | LibcontainerError::InvalidID(_)
        | LibcontainerError::MissingSpec(_)
        | LibcontainerError::Spec(_) => FailureKind::Spec,
        _ => FailureKind::Runtime,
    };
    let causes = chain(error);
    let more = if causes.contains("unix syscall") { folder(bundle) } else { unknown_sysctls(bundle) };
    Failure::new(kind, format!("create the container: {causes}{more}"))
}

/// The working directory, for libcontainer's errors do not name it: entering it is the one bare system call that fails
/// for what the user wrote.
fn folder(bundle: &Path) -> String {
    let spec = load_spec(bundle).ok();
    let cwd = spec.as_ref().and_then(|s| Some(s.process().as_ref()?.cwd()));
    cwd.map_or_else(String::new, |cwd| format!(" (is the working directory {} there?)", cwd.display()))
}

fn resources(spec: &Spec) -> Option<&LinuxResources> {
    spec.linux().as_ref()?.resources().as_ref()
}

/// Puts the container where this node counts what it is limited in.
fn place(spec: &Spec, pid: i32) -> Result<(), Failure> {
    let limits = resources(spec).and_then(|resources| resources.hugepage_limits().as_ref());
    let path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
    match (limits, path) {
        (Some(limits), Some(path)) if !limits.is_empty() => place::for_hugepages(pid, path)
            .map_err(Failure::because(FailureKind::Runtime, "count the container's huge pages")),
        _ => Ok(()),
    }
}

fn set_limits(spec: &Spec, cgroups: &CgroupPaths) -> Result<(), Failure> {
    let Some(resources) = resources(spec) else { return Ok(()) };
    limits::apply(cgroups, resources)
        .map_err(Failure::because(FailureKind::Runtime, "limit the container's resources"))
}

/// The sysctls that this kernel does not have, for libcontainer's errors do not name the one that failed.
fn unknown_sysctls(bundle: &Path) -> String {
    let spec = load_spec(bundle).ok();
    let asked = spec.as_ref().and_then(|s| s.linux().as_ref()?.sysctl().as_ref());
    let unknown = asked.into_iter().flatten().map(|(name, _)| name.as_str());
    let mut unknown: Vec<_> =
        unknown.filter(|name| !Path::new("/proc/sys").join(name.replace('.', "/")).exists()).collect();
    unknown.sort_unstable();
    match unknown.as_slice() {
        [] => String::new(),
        names => format!(" (the node has no sysctl {})", names.join(", ")),
    }
}

/// Undoes a creation that libcontainer takes for done: its own undoing is no longer there to do it.
fn abandon(order: &CreateOrder, spec: &Spec, pid: i32) {
    // Asked while the process is there; of one that is gone already, the name tells.
    let named = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().clone());
    let found = CgroupPaths::of(pid)
        .or_else(|_| named.map_or_else(|| Ok(CgroupPaths::default()), |path| CgroupPaths::named(&path)));
    let cgroups = found.unwrap_or_default();
    let _ = crate::sys::kill(pid, libc::SIGKILL);
    for _ in 0..ABANDON_TRIES {
        if kill::remove(&cgroups).unwrap_or(true) {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    drop(std::fs::remove_dir_all(Bundle::new(&order.bundle).runtime_root().join(&order.id)));
}

fn load_spec(bundle: &Path) -> Result<Spec, Failure> {
    Spec::load(bundle.join("config.json")).map_err(Failure::because(FailureKind::Spec, "read config.json"))
}

fn load_container(order: &TaskOrder) -> Result<libcontainer::container::Container, Failure> {
    let folder = Bundle::new(&order.bundle).runtime_root().join(&order.id);
    libcontainer::container::Container::load(folder)
        .map_err(Failure::because(FailureKind::Runtime, "load the container's state"))
}

/// Tells the waiting first process to run the program.
pub fn notify_start(bundle: &Path, id: &str) -> std::io::Result<()> {
    let socket = Bundle::new(bundle).runtime_root().join(id).join("notify.sock");
    console::connect_in_folder(&socket)?.write_all(b"start container")
}

/// Runs the user's program as the container's first process.
#[derive(Clone)]
struct Program {
    reporter: Reporter,
    /// Some of the container's mounts are put to their places after it was made.
    late: bool,
    /// The working directory that lies in one of them.
    cwd: Option<PathBuf>,
}

impl Program {
    fn enter_cwd(&self) -> Result<(), Failure> {
        let Some(cwd) = &self.cwd else { return Ok(()) };
        let doing = format!("change to the folder {}", cwd.display());
        // The second fails where the folder cannot be reached from the root.
        let entered = std::env::set_current_dir(cwd).and_then(|()| std::env::current_dir());
        entered.map(drop).map_err(Failure::because(FailureKind::Runtime, &doing))
    }

    fn words(spec: &Spec) -> (Vec<String>, Vec<String>) {
        let process = spec.process().as_ref();
        let args = process.and_then(|p| p.args().clone()).unwrap_or_default();
        let env = process.and_then(|p| p.env().clone()).unwrap_or_default();
        (args, env)
    }
}

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        if self.late {
            null::open_anew();
        }
        null::make_writable();
        let (args, _) = Self::words(spec);
        let env = executable::environment();
        let name = args.first().map(String::as_str).unwrap_or_default();
        let label = spec.process().as_ref().and_then(|process| process.selinux_label().as_deref());
        let found = self.enter_cwd().and_then(|()| executable::find(name, &env));
        let found = found.and_then(|path| selinux::on_exec(label).map(|()| path));
        let failure = match found {
            Ok(path) => executable::run(&path, &args, &env),
            Err(failure) => failure,
        };
        self.reporter.send(&Report::Failed(failure.clone()));
        Err(ExecutorError::Other(failure.message))
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        if self.late {
            // It may lie in a mount that is not there yet: the start will tell.
            return Ok(());
        }
        let (args, env) = Self::words(spec);
        let name = args.first().map(String::as_str).unwrap_or_default();
        executable::find(name, &env).map(drop).map_err(|failure| {
            // Sent from here because the way through libcontainer keeps only the text.
            self.reporter.send(&Report::Failed(failure.clone()));
            ExecutorValidationError::ArgValidationError(failure.message)
        })
    }
}
