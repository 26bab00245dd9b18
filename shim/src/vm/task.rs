//! A task whose processes run in the guest. The host keeps its state, its streams and its exit.
//!
//! Invariant: as for every task, an exit is told once, after all output, also when the machine dies under it.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_vm::share::{Item, Share};
use cofferdam_vm::sys::mount::{self, Source, Submounts};
use containerd_shim_protos::api::{self, CreateTaskRequest, ExecProcessRequest};
use oci_spec::runtime::Spec;
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::guest::Name;
use super::pod::Pod;
use super::spec::{self, Role};
use super::streams::{self, Carriers};
use super::usage::Usage;
use super::{VmError, events};
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::publish::Publisher;
use crate::task::io::{self, Stdio};
use crate::task::process::Process;
use crate::task::state::{Exit, Lifecycle};
use crate::task::{check_id, log};

/// What a killed process is said to have ended with.
const KILLED: u32 = 137;
const NEVER_RAN: u32 = 128;
/// How long a killed process may take to die before deletion gives up on it.
const DEATH: Duration = Duration::from_secs(10);
/// The same before the whole machine is ended for it. Less, and less than the daemon's patience.
const OUTLIVED: Duration = Duration::from_secs(8);
/// How long the end of a machine may take to be known after its connections broke.
const CAUSE: Duration = Duration::from_secs(2);
/// No exit status is higher.
const HIGHEST_STATUS: u32 = 255;

/// Names streams; each is used once in the life of a shim.
static NEXT_STREAM: AtomicU64 = AtomicU64::new(1);

pub struct VmTask {
    pub id: String,
    pub bundle: Bundle,
    pub init: Arc<Process>,
    /// Of the first process, in the guest.
    pub guest_pid: u32,
    pod: Arc<Pod>,
    pub(super) publisher: Arc<Publisher>,
    max_line: usize,
    pub(super) usage: Mutex<Usage>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// The first process is to be killed.
    killed: Notify,
}

impl VmTask {
    /// Makes the container in the guest. What was made until a failure is taken away again.
    pub async fn create(
        request: &CreateTaskRequest,
        pod: Arc<Pod>,
        role: Role,
        publisher: Arc<Publisher>,
        max_line: usize,
    ) -> Result<Arc<Self>, ShimError> {
        check_id(&request.id)?;
        let bundle = Bundle::new(&request.bundle);
        let made = make(request, &pod, role, &bundle, max_line).await;
        let (guest_pid, init, carriers) = match made {
            Ok(made) => made,
            Err(error) => {
                take_away(&pod, &request.id, &bundle).await;
                return Err(error);
            }
        };
        let task = Arc::new(VmTask {
            id: request.id.clone(),
            bundle,
            init,
            guest_pid,
            pod,
            publisher,
            max_line,
            usage: Mutex::default(),
            execs: Mutex::default(),
            killed: Notify::new(),
        });
        task.watch("", Arc::clone(&task.init), carriers);
        events::created(&task.publisher, &task.id, &request.bundle, task.pid());
        Ok(task)
    }

    pub fn pid(&self) -> u32 {
        self.pod.pid().cast_unsigned()
    }

    pub fn process(&self, exec: &str) -> Result<Arc<Process>, ShimError> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        let found = execs.get(exec).cloned();
        found.ok_or_else(|| ShimError::NoExec { task: self.id.clone(), exec: exec.to_owned() })
    }

    fn name<'a>(&'a self, exec: &'a str) -> Name<'a> {
        Name { id: &self.id, exec }
    }

    pub async fn start(self: &Arc<Self>, exec: &str) -> Result<u32, ShimError> {
        let process = self.process(exec)?;
        let _starting = process.starting.lock().await;
        if exec.is_empty() {
            let Lifecycle::Created { pid } = process.state() else {
                return Err(process.refuse("start", process.state().name()));
            };
            self.pod.guest.start(self.name("")).await?;
            failpoint!("shim.vm.container_started", infallible);
            drop(process.transit("start", |state| state.started(pid)));
        } else {
            let Lifecycle::Added = process.state() else {
                return Err(process.refuse("start", process.state().name()));
            };
            if let Err(error) = self.start_exec(exec, &process).await {
                // It is over: whoever waits for it must not wait for more.
                let exit = Exit { pid: 0, status: NEVER_RAN, at: log::now() };
                process.mark_stopped(exit);
                process.announce(exit);
                return Err(error);
            }
        }
        events::started(&self.publisher, &self.id, exec, self.pid());
        Ok(self.pid())
    }

    pub fn add_exec(&self, request: &ExecProcessRequest) -> Result<(), ShimError> {
        check_id(&request.exec_id)?;
        let state = self.init.state();
        if !matches!(state, Lifecycle::Running { .. }) {
            return Err(self.init.refuse("exec", state.name()));
        }
        let process = String::from_utf8(request.spec.value.clone())
            .map_err(|_| ShimError::Invalid("the exec's process is not JSON text".into()))?;
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let name = format!("exec {} of task {}", request.exec_id, self.id);
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(&request.exec_id) {
            return Err(ShimError::Exists(name));
        }
        let exec = Process::new(name, stdio, Lifecycle::Added).with_spec(process);
        execs.insert(request.exec_id.clone(), Arc::new(exec));
        drop(execs);
        events::exec_added(&self.publisher, &self.id, &request.exec_id);
        Ok(())
    }

    async fn start_exec(self: &Arc<Self>, exec: &str, process: &Arc<Process>) -> Result<(), ShimError> {
        let (opened, ends) = open(&process.stdio, &self.bundle, self.max_line)?;
        let (paths, carriers) = streams::join(self.pod.machine.channel(), &stream_prefix(), ends).await?;
        let mut request = ExecProcessRequest::new();
        (request.id, request.exec_id) = (self.id.clone(), exec.to_owned());
        (request.stdin, request.stdout, request.stderr) = (paths.stdin, paths.stdout, paths.stderr);
        request.terminal = process.stdio.terminal;
        request.spec = MessageField::some(guest_process(&process.spec)?);
        self.pod.guest.exec(&request).await?;
        if let Err(error) = self.pod.guest.start(self.name(exec)).await {
            drop(self.pod.guest.delete(self.name(exec)).await);
            return Err(error.into());
        }
        let pid = self.pod.pid();
        process.transit("start", |state| state.started(pid))?;
        process.streams.run(opened, &self.bundle).await?;
        self.watch(exec, Arc::clone(process), carriers);
        Ok(())
    }

    /// Follows a process to its end, or to the machine's. Ends with it, so nothing needs to hold it.
    fn watch(self: &Arc<Self>, exec: &str, process: Arc<Process>, mut carriers: Carriers) {
        let (task, exec) = (Arc::clone(self), exec.to_owned());
        tokio::spawn(async move {
            let status = task.end_of(&exec).await;
            let exit = Exit { pid: task.pod.pid(), status, at: log::now() };
            if exec.is_empty() || status == KILLED {
                task.count_at_end().await;
            }
            process.mark_stopped(exit);
            if exec.is_empty()
                && let Err(error) = task.bundle.write_json("exit.json", &exit)
            {
                task.bundle.warn(&format!("keep the exit status: {error}"));
            }
            carriers.drain().await;
            process.streams.drain().await;
            drop(process.starting.lock().await);
            events::exited(&task.publisher, &task.id, &exec, exit);
            process.announce(exit);
        });
    }

    /// Waits for a process's end, or for the machine's, and answers the exit status.
    async fn end_of(&self, exec: &str) -> u32 {
        let machine = &self.pod.machine;
        let wrong = tokio::select! {
            ended = self.pod.guest.wait(self.name(exec)) => match ended {
                Ok(status) => return status.min(HIGHEST_STATUS),
                // One that was deleted in the guest, say: the machine is none the worse for it.
                Err(error @ VmError::Refused { .. }) if !exec.is_empty() => {
                    self.bundle.warn(&format!("exec {exec}: how it ends is not known: {error}"));
                    return KILLED;
                }
                // A guest that does not say how its processes end has lost them, or lies: it is of no use.
                Err(error) => {
                    // Connections break before it is known what of the machine has ended, which is the better reason.
                    drop(timeout(CAUSE, machine.ended()).await);
                    format!("it does not tell how a process ends: {error}")
                }
            },
            _ = machine.ended() => String::new(),
            () = self.outlived(exec) => format!("{} was not dead {} s after SIGKILL", self.id, OUTLIVED.as_secs()),
        };
        // One that has ended keeps its reason.
        machine.give_up(wrong);
        let reason = machine.ended().await;
        self.bundle.warn(&format!("the machine has ended under the task: {reason}"));
        if exec.is_empty() {
            self.bundle.tell_why(&format!("the pod's virtual machine has ended: {reason}"));
        }
        KILLED
    }

    /// Returns when the first process has had its time after SIGKILL.
    async fn outlived(&self, exec: &str) {
        if !exec.is_empty() {
            std::future::pending::<()>().await;
        }
        self.killed.notified().await;
        sleep(OUTLIVED).await;
    }

    pub async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let process = self.process(exec)?;
        if process.state().exit().is_some() {
            return Err(ShimError::Finished(format!("task {}", self.id)));
        }
        let last_means = exec.is_empty() && signal == libc::SIGKILL.unsigned_abs();
        if last_means {
            self.killed.notify_one();
        }
        match self.pod.guest.kill(self.name(exec), signal, all).await {
            // A guest that does not kill is ended as a whole.
            Err(error @ (VmError::Silent { .. } | VmError::Lost { .. })) if last_means => {
                self.pod.machine.give_up(format!("{}: {error}", self.id));
                Ok(())
            }
            killed => Ok(killed?),
        }
    }

    pub async fn resize(&self, exec: &str, width: u32, height: u32) -> Result<(), ShimError> {
        if !self.process(exec)?.stdio.terminal {
            return Err(ShimError::Invalid("the process has no terminal".into()));
        }
        Ok(self.pod.guest.resize(self.name(exec), width, height).await?)
    }

    pub async fn pause(&self) -> Result<(), ShimError> {
        self.init.transit("pause", Lifecycle::paused)?;
        if let Err(error) = self.pod.guest.pause(&self.id).await {
            drop(self.init.transit("resume", Lifecycle::resumed));
            return Err(error.into());
        }
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), ShimError> {
        let Lifecycle::Paused { .. } = self.init.state() else {
            return Err(self.init.refuse("resume", self.init.state().name()));
        };
        self.pod.guest.resume(&self.id).await?;
        self.init.transit("resume", Lifecycle::resumed)?;
        Ok(())
    }

    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    async fn forget_exec(&self, exec: &str) -> Result<Exit, ShimError> {
        let process = self.process(exec)?;
        // A start that is under way would find it gone in the guest.
        let _started = process.starting.lock().await;
        let exit = match process.state() {
            Lifecycle::Stopped(exit) => exit,
            Lifecycle::Added => Exit { pid: 0, status: 0, at: log::now() },
            state @ (Lifecycle::Created { .. } | Lifecycle::Running { .. } | Lifecycle::Paused { .. }) => {
                return Err(process.refuse("delete", state.name()));
            }
        };
        process.mark_stopped(exit);
        process.streams.abandon();
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec);
        Ok(exit)
    }

    pub async fn delete_exec(&self, exec: &str) -> Result<Exit, ShimError> {
        let exit = self.forget_exec(exec).await?;
        // Of one that never ran the guest knows nothing.
        drop(self.pod.guest.delete(self.name(exec)).await);
        events::deleted(&self.publisher, &self.id, exec, exit);
        Ok(exit)
    }

    /// Removes what the container left, in the guest and on the node. One that never ran is killed first, a running one
    /// is refused.
    pub async fn delete(&self) -> Result<Exit, ShimError> {
        match self.init.state() {
            Lifecycle::Added | Lifecycle::Created { .. } => {
                drop(self.kill("", libc::SIGKILL.unsigned_abs(), true).await);
            }
            state @ (Lifecycle::Running { .. } | Lifecycle::Paused { .. }) => {
                return Err(self.init.refuse("delete", state.name()));
            }
            Lifecycle::Stopped(_) => {}
        }
        let ended = timeout(DEATH, self.init.wait()).await;
        let exit = ended
            .map_err(|_| ShimError::io("wait for the killed process")(std::io::ErrorKind::TimedOut.into()))?;
        self.init.streams.abandon();
        if !self.pod.machine.has_ended()
            && let Err(error) = self.pod.guest.delete(self.name("")).await
        {
            self.bundle.warn(&format!("delete: {error}"));
        }
        failpoint!("shim.vm.container_deleted", infallible);
        take_away(&self.pod, &self.id, &self.bundle).await;
        failpoint!("shim.vm.files_hidden", infallible);
        events::deleted(&self.publisher, &self.id, "", exit);
        Ok(exit)
    }
}

fn stream_prefix() -> String {
    format!("s{}", NEXT_STREAM.fetch_add(1, Ordering::Relaxed))
}

/// The host's ends. A terminal is the guest's: here it is one stream in each direction.
fn open(
    stdio: &Stdio,
    bundle: &Bundle,
    max_line: usize,
) -> Result<(io::Opened, crate::launch::ContainerEnds), ShimError> {
    let mut streams = Stdio { terminal: false, ..stdio.clone() };
    if stdio.terminal {
        streams.stderr.clear();
    }
    io::open(&streams, bundle, "vm", max_line)
}

async fn make(
    request: &CreateTaskRequest,
    pod: &Arc<Pod>,
    role: Role,
    bundle: &Bundle,
    max_line: usize,
) -> Result<(u32, Arc<Process>, Carriers), ShimError> {
    let id = &request.id;
    let spec: Spec =
        bundle.read_json("config.json").map_err(ShimError::path("read", bundle.join("config.json")))?;
    let shm = pod.shm.as_deref();
    let mut translated = spec::translate(spec, id, role, shm)?;
    let has_mounts = |path: &Path| mount::has_below(path).unwrap_or(false);
    spec::leave_to_the_node(&mut translated.spec, id, &translated.items, has_mounts);
    for what in &translated.without {
        bundle.warn(&format!("in a virtual machine the container does without {what}"));
    }
    let rootfs = rootfs_item(request)?;
    let has_rootfs = rootfs.is_some();
    translated.items.extend(rootfs);
    pod.machine.share().show(id, &translated.items).map_err(VmError::from)?;
    failpoint!("shim.vm.files_shown");
    let config = serde_json::to_vec(&translated.spec)
        .map_err(|error| ShimError::Invalid(format!("the specification: {error}")))?;
    let guest_bundle = pod.machine.agent().put_bundle(id, config).await.map_err(VmError::from)?;
    failpoint!("shim.vm.bundle_put");
    let stdio = Stdio {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let (opened, ends) = open(&stdio, bundle, max_line)?;
    let (paths, carriers) = streams::join(pod.machine.channel(), &stream_prefix(), ends).await?;
    let mut inside = CreateTaskRequest::new();
    inside.id.clone_from(id);
    inside.bundle = guest_bundle.to_string_lossy().into_owned();
    (inside.stdin, inside.stdout, inside.stderr) = (paths.stdin, paths.stdout, paths.stderr);
    inside.terminal = request.terminal;
    if has_rootfs {
        inside.rootfs.push(api::Mount {
            type_: "bind".into(),
            source: Share::guest_path(id, ROOTFS).to_string_lossy().into_owned(),
            options: vec!["rbind".into()],
            ..Default::default()
        });
    }
    failpoint!("shim.vm.streams_joined");
    let guest_pid = pod.guest.create(&inside).await?;
    failpoint!("shim.vm.container_made", infallible);
    let init = Arc::new(Process::new(format!("task {id}"), stdio, Lifecycle::Created { pid: pod.pid() }));
    init.streams.run(opened, bundle).await?;
    Ok((guest_pid, init, carriers))
}

const ROOTFS: &str = "rootfs";

/// The container's root filesystem is mounted on the node, into the share.
fn rootfs_item(request: &CreateTaskRequest) -> Result<Option<Item>, ShimError> {
    let mount = match request.rootfs.as_slice() {
        [] => return Ok(None),
        [mount] => mount,
        _ => return Err(ShimError::Unsupported("a root filesystem of several mounts in a virtual machine")),
    };
    let has = |word: &str| mount.options.iter().any(|option| option == word);
    if mount.options.iter().any(|option| option.starts_with("uidmap=") || option.starts_with("gidmap=")) {
        return Err(ShimError::Unsupported("a root filesystem with mapped owners in a virtual machine"));
    }
    let source = if mount.type_ == "bind" || has("bind") || has("rbind") {
        Source::Bind(mount.source.clone().into())
    } else {
        Source::New {
            kind: mount.type_.clone(),
            source: mount.source.clone(),
            options: mount.options.clone(),
        }
    };
    let below = Submounts::default();
    Ok(Some(Item { name: ROOTFS.into(), source, read_only: has("ro"), below }))
}

/// The guest's kernel has none of the node's security modules.
fn guest_process(process: &str) -> Result<Any, ShimError> {
    let wrong = |error: serde_json::Error| ShimError::Invalid(format!("the exec's process: {error}"));
    let mut process: oci_spec::runtime::Process = serde_json::from_str(process).map_err(wrong)?;
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    let value = serde_json::to_vec(&process).map_err(wrong)?;
    let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".to_owned();
    Ok(Any { type_url, value, ..Default::default() })
}

/// First in the guest, which would keep them busy, then on the node.
async fn take_away(pod: &Pod, id: &str, bundle: &Bundle) {
    if pod.machine.has_ended() {
        return;
    }
    if let Err(error) = pod.machine.agent().remove_bundle(id).await {
        bundle.warn(&format!("remove the bundle in the guest: {error}"));
    }
    if let Err(error) = pod.machine.share().hide(id) {
        bundle.warn(&error.to_string());
    }
}
