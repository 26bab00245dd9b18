//! A task: one container with its first process, its execs, its cgroups and its streams.
//!
//! Invariant: once an exit is published, all output of that process is delivered (within a bound), nothing of the
//! container lives on, and an out-of-memory kill has been told before.

mod checkpoint;
pub mod console;
mod exec;
mod exec_cgroup;
mod exit;
pub mod io;
pub mod log;
pub mod process;
mod restore;
pub mod sink;
pub mod state;
pub mod stream;
pub mod tap;

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cofferdam_vm::Isolation;
use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use protobuf::MessageField;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::backend::unmount_rootfs;
use crate::bundle::Bundle;
use crate::cgroup::{freeze, kill, limits};
use crate::cleanup;
use crate::error::ShimError;
use crate::launch::{self, UntilExec};
use crate::options::Options;
use crate::publish::Publisher;
use crate::reaper::Reaper;
use crate::wire::{CreateOrder, Created, Mount, Order, TaskOrder};
use io::Stdio;
use process::Process;
use state::{Exit, Lifecycle};

/// How long a killed process may take to die before deletion gives up on it.
const DEATH: Duration = Duration::from_secs(10);
/// The kernel empties a cgroup a little after its last process was waited for.
const CGROUP_TRIES: u32 = 100;

/// What a `delete` without a shim finds in the bundle.
#[derive(Serialize, Deserialize)]
pub struct Record {
    #[serde(flatten)]
    pub created: Created,
    /// Absent in what older shims wrote.
    #[serde(default)]
    pub options: Option<Options>,
}

/// What every task of the shim works with.
#[derive(Clone)]
pub struct Surroundings {
    pub reaper: Arc<Reaper>,
    pub publisher: Arc<Publisher>,
}

pub struct Task {
    pub id: String,
    pub bundle: Bundle,
    pub init: Process,
    pub created: Created,
    options: Options,
    /// Those of the checkpoint that it is restored from.
    images: Option<PathBuf>,
    around: Surroundings,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    busy_cgroups: Arc<exec_cgroup::Busy>,
    until_exec: Mutex<Option<UntilExec>>,
    oom_told: Mutex<u64>,
    /// Held while what the container left is removed; the exit once it is.
    deleted: tokio::sync::Mutex<Option<Exit>>,
    /// Held while limits are written: those of two requests may not be mixed.
    updating: tokio::sync::Mutex<()>,
}

impl Task {
    /// Makes the container, unless it is told to give up meanwhile.
    pub async fn create(
        request: &CreateTaskRequest,
        around: Surroundings,
        give_up: &Notify,
    ) -> Result<Arc<Task>, ShimError> {
        check_id(&request.id)?;
        let options = Options::from_any(request.options.as_ref())?;
        if options.isolation()? == Isolation::Vm {
            let words =
                "isolation \"vm\" has to be told when the shim is started: its caller sends no options then";
            return Err(ShimError::Invalid(words.into()));
        }
        let images = restore::images(request, &options)?;
        let bundle = Bundle::new(&request.bundle);
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let (opened, ends) = io::open(&stdio, &bundle, "init", options.log_max_line)?;
        failpoint!("shim.create.io_opened");
        let order = Order::Create(CreateOrder {
            id: request.id.clone(),
            bundle: bundle.path().to_owned(),
            options: options.clone(),
            rootfs: request.rootfs.iter().map(to_mount).collect(),
            console: opened.console.as_ref().map(console::ConsoleSocket::path),
        });
        let child = launch::spawn(&around.reaper, &bundle, &order, ends)?;
        failpoint!("shim.create.child_spawned", infallible);
        let launching = around.reaper.launching();
        let (created, until_exec) = match created(child, give_up).await {
            Ok(made) => made,
            Err(error) => {
                let (id, left, mounts) = (request.id.clone(), bundle.clone(), !request.rootfs.is_empty());
                match error {
                    ShimError::ChildLost(_) => {
                        drop(spawn_blocking(move || cleanup::undo_creation(&left, &id, mounts)).await);
                    }
                    _ => drop(fs::remove_dir_all(bundle.runtime_root())),
                }
                return Err(error);
            }
        };
        failpoint!("shim.create.made", infallible);
        let exited = around.reaper.watch(created.pid);
        drop(launching);
        let name = format!("task {}", request.id);
        let task = Arc::new(Task {
            id: request.id.clone(),
            init: Process::new(name, stdio, Lifecycle::Created { pid: created.pid }),
            bundle,
            created,
            options,
            images,
            around,
            execs: Mutex::default(),
            busy_cgroups: Arc::default(),
            until_exec: Mutex::new(Some(until_exec)),
            oom_told: Mutex::new(0),
            deleted: tokio::sync::Mutex::default(),
            updating: tokio::sync::Mutex::default(),
        });
        exit::watch_init(&task, task.created.pid, exited);
        if let Err(error) = task.settle(opened).await {
            drop(task.delete().await);
            return Err(error);
        }
        task.tell_created(request);
        failpoint!("shim.create.told", infallible);
        Ok(task)
    }

    /// What follows once the process exists: it must not outlive a failure here.
    async fn settle(self: &Arc<Self>, opened: io::Opened) -> Result<(), ShimError> {
        let pid = self.created.pid.to_string();
        let write = ShimError::path("write the task's files in", self.bundle.path());
        let record = Record { created: self.created.clone(), options: Some(self.options.clone()) };
        let written = self
            .bundle
            .write_json("task.json", &record)
            .and_then(|()| self.bundle.write("init.pid", pid.as_bytes()));
        written.map_err(write)?;
        failpoint!("shim.create.noted");
        self.init.streams.run(opened, &self.bundle).await?;
        failpoint!("shim.create.streams_run");
        exit::watch_memory(self);
        Ok(())
    }

    fn tell_created(&self, request: &CreateTaskRequest) {
        let mut event = events::TaskCreate::new();
        event.container_id.clone_from(&self.id);
        event.bundle.clone_from(&request.bundle);
        event.pid = self.created.pid.cast_unsigned();
        let stdio = &self.init.stdio;
        let mut io = events::TaskIO::new();
        io.stdin.clone_from(&stdio.stdin);
        io.stdout.clone_from(&stdio.stdout);
        io.stderr.clone_from(&stdio.stderr);
        io.terminal = stdio.terminal;
        event.io = MessageField::some(io);
        event.rootfs.clone_from(&request.rootfs);
        self.around.publisher.send(topics::TASK_CREATE_EVENT_TOPIC, &event);
    }

    fn order(&self) -> TaskOrder {
        TaskOrder {
            id: self.id.clone(),
            bundle: self.bundle.path().to_owned(),
            options: self.options.clone(),
            restored: None,
        }
    }

    /// `limit` bounds a restore.
    pub async fn start(self: &Arc<Self>, limit: Duration) -> Result<i32, ShimError> {
        let _starting = self.init.starting.lock().await;
        let waiting = self.waiting()?;
        let pid = match &self.images {
            Some(images) => {
                let pid = self.run_restored(images, waiting, limit).await?;
                self.poststart_restored(pid).await?;
                pid
            }
            None => self.run_waiting(waiting).await?,
        };
        let mut event = events::TaskStart::new();
        event.container_id.clone_from(&self.id);
        event.pid = pid.cast_unsigned();
        self.around.publisher.send(topics::TASK_START_EVENT_TOPIC, &event);
        failpoint!("shim.task.start_told", infallible);
        Ok(pid)
    }

    /// Lets the process that waits run the program.
    async fn run_waiting(&self, pid: i32) -> Result<i32, ShimError> {
        let until_exec = self.until_exec.lock().unwrap_or_else(PoisonError::into_inner).take();
        if self.created.start_by_child {
            let order = Order::Start(self.order());
            let child = launch::spawn(&self.around.reaper, &self.bundle, &order, Default::default())?;
            child.done().await?;
        } else {
            crate::backend::notify_start(self.bundle.path(), &self.id)
                .map_err(ShimError::io("notify the container"))?;
        }
        failpoint!("shim.task.notified", infallible);
        if let Some(until_exec) = until_exec {
            until_exec.wait(&self.bundle).await?;
        }
        failpoint!("shim.task.running", infallible);
        // A process that already ended has been running all the same.
        drop(self.init.transit("start", |state| state.started(pid)));
        Ok(pid)
    }

    pub fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), ShimError> {
        let number = i32::try_from(signal).unwrap_or_default();
        if !exec_id.is_empty() {
            let exec = self.exec(exec_id)?;
            if let (true, Some(folder)) = (all, self.created.cgroups.exec(exec_id)) {
                kill::signal_folder(&folder, self.created.cgroups.is_v2(), number)
                    .map_err(ShimError::path("signal the processes in", folder))?;
                // The external runtimes know nothing of that cgroup; their exec at least leads its own group.
                return match exec.signal(signal) {
                    Err(ShimError::Finished(_)) if exec.state().exit().is_none() => Ok(()),
                    sent => sent,
                };
            }
            return exec.signal(signal);
        }
        if self.init.state().exit().is_some() {
            return Err(ShimError::Finished(format!("task {}", self.id)));
        }
        if all {
            kill::signal_all(&self.created.cgroups, number).map_err(ShimError::io("signal the container"))?;
            failpoint!("shim.kill.cgroup_signalled");
        }
        match self.init.signal(signal) {
            Err(ShimError::Finished(_)) if all => {}
            sent => sent?,
        }
        if number == libc::SIGKILL && matches!(self.init.state(), Lifecycle::Paused { .. }) {
            // A frozen process receives its death only when it thaws.
            freeze::thaw(&self.created.cgroups).map_err(ShimError::io("thaw the container"))?;
        }
        Ok(())
    }

    pub async fn pause(&self) -> Result<(), ShimError> {
        self.init.transit("pause", Lifecycle::paused)?;
        if let Err(error) = freeze::reach(&self.created.cgroups, true).await {
            drop(self.init.transit("resume", Lifecycle::resumed));
            return Err(ShimError::io("freeze the container")(error));
        }
        failpoint!("shim.pause.frozen", infallible);
        let mut event = events::TaskPaused::new();
        event.container_id.clone_from(&self.id);
        self.around.publisher.send(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    pub async fn resume(&self) -> Result<(), ShimError> {
        let Lifecycle::Paused { .. } = self.init.state() else {
            return Err(self.init.refuse("resume", self.init.state().name()));
        };
        freeze::reach(&self.created.cgroups, false).await.map_err(ShimError::io("thaw the container"))?;
        failpoint!("shim.resume.thawed");
        self.init.transit("resume", Lifecycle::resumed)?;
        let mut event = events::TaskResumed::new();
        event.container_id.clone_from(&self.id);
        self.around.publisher.send(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Puts the limits of a request in JSON into force, of one request after the other.
    pub async fn update(&self, json: Vec<u8>) -> Result<(), ShimError> {
        let _one = self.updating.lock().await;
        let cgroups = self.created.cgroups.clone();
        // The kernel may have to take memory back first, and meanwhile the shim must go on.
        let written = spawn_blocking(move || limits::update(&cgroups, &json)).await;
        written.map_err(|_| ShimError::Limit("the change of limits was cut off".into()))?
    }

    /// Removes what the container left, once however often it is asked for. A container that never ran is killed first, a
    /// running one is refused.
    pub async fn delete(&self) -> Result<Exit, ShimError> {
        let mut deleted = self.deleted.lock().await;
        if let Some(exit) = &*deleted {
            return Ok(*exit);
        }
        let exit = self.remove().await?;
        *deleted = Some(exit);
        Ok(exit)
    }

    async fn remove(&self) -> Result<Exit, ShimError> {
        match self.init.state() {
            Lifecycle::Added | Lifecycle::Created { .. } => {
                kill::signal_all(&self.created.cgroups, libc::SIGKILL)
                    .map_err(ShimError::io("kill the container"))?;
                drop(self.init.signal(libc::SIGKILL.cast_unsigned()));
            }
            state @ (Lifecycle::Running { .. } | Lifecycle::Paused { .. }) => {
                return Err(self.init.refuse("delete", state.name()));
            }
            Lifecycle::Stopped(_) => {}
        }
        let exit = timeout(DEATH, self.init.wait())
            .await
            .map_err(|_| ShimError::io("wait for the killed process")(std::io::ErrorKind::TimedOut.into()))?;
        self.init.streams.abandon();
        failpoint!("shim.delete.streams_closed");
        if self.created.delete_by_child && cleanup::may_delete(&self.bundle, &self.options) {
            let order = Order::Delete(self.order());
            let child = launch::spawn(&self.around.reaper, &self.bundle, &order, Default::default())?;
            if let Err(error) = child.done().await {
                self.bundle.warn(&format!("delete: {error}"));
            }
        }
        self.remove_cgroups().await;
        failpoint!("shim.delete.cgroups_removed");
        if self.created.mounted_on_host {
            let rootfs = self.bundle.rootfs();
            // Its last words go to a disk, which may take them slowly.
            drop(spawn_blocking(move || unmount_rootfs(&rootfs)).await);
        }
        drop(fs::remove_dir_all(self.bundle.runtime_root()));
        failpoint!("shim.delete.state_removed");
        let mut event = events::TaskDelete::new();
        event.container_id.clone_from(&self.id);
        event.pid = exit.pid.cast_unsigned();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(crate::publish::to_timestamp(exit.at));
        self.around.publisher.send(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok(exit)
    }

    async fn remove_cgroups(&self) {
        for attempt in 1..=CGROUP_TRIES {
            match kill::remove(&self.created.cgroups) {
                Ok(true) => return,
                Ok(false) => drop(kill::signal_all(&self.created.cgroups, libc::SIGKILL)),
                Err(error) => return self.bundle.warn(&format!("remove the cgroups: {error}")),
            }
            sleep(Duration::from_millis(attempt.min(20).into())).await;
        }
        self.bundle.warn("the cgroups are still occupied and stay behind");
    }
}

/// The child's report, or its failure once it was ended because nobody wants the container any more.
async fn created(child: launch::Child, give_up: &Notify) -> Result<(Created, UntilExec), ShimError> {
    let handle = child.handle();
    let mut creating = pin!(child.created());
    tokio::select! {
        made = &mut creating => return made,
        () = give_up.notified() => {}
    }
    if let Some(handle) = handle {
        // One that ended meanwhile has made the container, or has told why not.
        let _ = rustix::process::pidfd_send_signal(handle, rustix::process::Signal::KILL);
    }
    creating.await
}

/// Names become parts of paths, so what could leave the folder is refused.
pub fn check_id(id: &str) -> Result<(), ShimError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    if id.is_empty() || id == "." || id == ".." || id.len() > 128 || !id.chars().all(plain) {
        return Err(ShimError::Invalid(format!("the id {id:?} is not usable as a name")));
    }
    Ok(())
}

fn to_mount(mount: &containerd_shim_protos::api::Mount) -> Mount {
    Mount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    }
}
