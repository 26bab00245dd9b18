//! The client of a shim's Task service, one per task. Cheap to clone; calls run beside each other, so that a kill or a
//! wait never queues behind a slow create. Every call but Wait has a deadline.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cofferdam_proto::shim::{
    AttachRequest, AttachResponse, DialRequest, DialResponse, NEWEST_PROTOCOL, ReopenLogRequest,
    ReopenLogResponse,
};
use containerd_shim_protos::api;
use oci_spec::runtime::{LinuxResources, Process};
use protobuf::well_known_types::any::Any;
use protobuf::well_known_types::empty::Empty;
use protobuf::well_known_types::timestamp::Timestamp;
use protobuf::{Message, MessageField};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::bootstrap::{Endpoint, ShimKind};
use super::connection::Connection;
use super::error::RuntimeError;
use super::held::HeldProcess;

pub use containerd_shim_protos::api::Mount;

const OWN_SERVICE: &str = "cofferdam.shim.v1.Shim";

/// How long calls may take.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// `shim start` and `shim delete`.
    pub launch: Duration,
    /// Calls that run an OCI runtime or boot a machine: Create, Start, Exec.
    pub heavy: Duration,
    /// Delete, which may unmount and remove.
    pub delete: Duration,
    /// All others.
    pub light: Duration,
}

/// `[shim]` of the configuration: how long shims may take, in seconds. A shim that takes longer counts as hanging.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShimConfig {
    /// For the commands `start` and `delete`.
    pub start_seconds: u64,
    /// For making and starting a container, or a further process in it.
    pub task_seconds: u64,
}

impl Default for ShimConfig {
    fn default() -> Self {
        Self { start_seconds: 10, task_seconds: 60 }
    }
}

impl ShimConfig {
    /// What follows for the calls.
    #[must_use]
    pub fn deadlines(&self) -> Deadlines {
        let (launch, heavy) = (self.start_seconds.max(1), self.task_seconds.max(1));
        Deadlines {
            launch: Duration::from_secs(launch),
            heavy: Duration::from_secs(heavy),
            ..Deadlines::default()
        }
    }
}

impl Default for Deadlines {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { launch: seconds(10), heavy: seconds(60), delete: seconds(30), light: seconds(10) }
    }
}

/// What Create needs.
#[derive(Clone, Debug, Default)]
pub struct CreateTask {
    /// The folder with `config.json`.
    pub bundle: PathBuf,
    /// Mounted by the shim at `rootfs` in the bundle; none when it is mounted already.
    pub rootfs: Vec<Mount>,
    /// A FIFO's path or nothing.
    pub stdin: String,
    /// A FIFO's path, a URI or nothing.
    pub stdout: String,
    /// A FIFO's path, a URI or nothing.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
    /// The handler's options.
    pub options: Option<Any>,
    /// The folder of criu's images, for one that is to be restored.
    pub checkpoint: Option<PathBuf>,
}

/// One more process in a task.
#[derive(Clone, Debug)]
pub struct ExecProcess {
    /// Names the process within its task.
    pub exec_id: String,
    /// What to run.
    pub process: Process,
    /// A FIFO's path or nothing.
    pub stdin: String,
    /// A FIFO's path or nothing.
    pub stdout: String,
    /// A FIFO's path or nothing.
    pub stderr: String,
    /// Whether the process gets a terminal.
    pub terminal: bool,
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, 128 plus the signal's number where a signal ended it.
    pub status: u32,
    /// When; unknown to some shims after a crash.
    pub exited_at: Option<SystemTime>,
    /// The process, in the host's numbering; 0 where the answer has none.
    pub pid: u32,
}

/// The state of a task or of one of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    /// The shim cannot tell.
    Unknown,
    /// Made, not yet started.
    Created,
    /// Running.
    Running,
    /// Ended.
    Stopped,
    /// Frozen.
    Paused,
    /// About to be frozen.
    Pausing,
}

/// The answer to State.
#[derive(Clone, Debug)]
pub struct TaskState {
    /// In the host's numbering.
    pub pid: u32,
    /// What it does.
    pub status: TaskStatus,
    /// Set once it ended.
    pub exit: Option<Exit>,
}

/// One task behind a shim.
#[derive(Clone)]
pub struct Shim {
    id: Arc<str>,
    endpoint: Arc<Endpoint>,
    connection: Arc<Connection>,
    deadlines: Deadlines,
    process: Option<Arc<HeldProcess>>,
}

impl fmt::Debug for Shim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shim").field("id", &self.id).field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Shim {
    pub(super) fn new(id: &str, endpoint: Endpoint, connection: Connection, deadlines: Deadlines) -> Self {
        let (endpoint, connection) = (Arc::new(endpoint), Arc::new(connection));
        Self { id: id.into(), endpoint, connection, deadlines, process: None }
    }

    /// The same shim, whose process is known.
    #[must_use]
    pub(super) fn held_by(mut self, process: Option<HeldProcess>) -> Self {
        let mut endpoint = Endpoint::clone(&self.endpoint);
        endpoint.process = process.as_ref().map(HeldProcess::name);
        (self.endpoint, self.process) = (Arc::new(endpoint), process.map(Arc::new));
        self
    }

    /// The shim's process, where it is known: it may serve other tasks as well.
    #[must_use]
    pub fn process(&self) -> Option<&Arc<HeldProcess>> {
        self.process.as_ref()
    }

    /// Whether it is there but answers nothing, as far as is known.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.connection.is_silent()
    }

    /// Whether nothing that is asked of it can arrive.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.is_closed() || self.process.as_ref().is_some_and(|process| process.has_ended())
    }

    /// The task's id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// How to reach the shim again after the daemon's restart.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Resolves when the connection is lost: the shim ended or was killed.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Whether the connection is lost.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.connection.is_closed()
    }

    /// Cancelled when the connection is lost; holding it does not hold the connection.
    pub(super) fn lost(&self) -> CancellationToken {
        self.connection.lost()
    }

    /// How long its calls may take.
    #[must_use]
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    pub(super) async fn call<A: Message>(
        &self,
        method: &'static str,
        request: impl Message,
        deadline: Duration,
    ) -> Result<A, RuntimeError> {
        self.connection.call(self.service(), method, &request, Some(deadline)).await
    }

    /// The text for an output that is not wanted: with no terminal, most shims open both as soon as any stream is named.
    fn output(&self, wanted: String, any: bool, terminal: bool) -> String {
        let fill = wanted.is_empty() && any && !terminal && self.endpoint.kind != ShimKind::Own;
        if fill { "/dev/null".to_owned() } else { wanted }
    }

    fn service(&self) -> &'static str {
        if self.endpoint.version >= 3 { "containerd.task.v3.Task" } else { "containerd.task.v2.Task" }
    }

    /// Makes the container; its process waits for [`Self::start`]. Answers the process's pid.
    ///
    /// # Errors
    /// [`RuntimeError`], with the OCI runtime's words in the message.
    pub async fn create(&self, task: CreateTask) -> Result<u32, RuntimeError> {
        let any = [&task.stdin, &task.stdout, &task.stderr].iter().any(|stream| !stream.is_empty());
        let request = api::CreateTaskRequest {
            id: self.id.to_string(),
            bundle: task.bundle.to_string_lossy().into_owned(),
            rootfs: task.rootfs,
            terminal: task.terminal,
            stdin: task.stdin,
            stdout: self.output(task.stdout, any, task.terminal),
            stderr: self.output(task.stderr, any, task.terminal),
            options: MessageField(task.options.map(Box::new)),
            checkpoint: task.checkpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            ..Default::default()
        };
        let answer: api::CreateTaskResponse = self.call("Create", request, self.deadlines.heavy).await?;
        Ok(answer.pid)
    }

    /// Starts the container (`""`) or a process added by [`Self::exec`]. Answers the process's pid.
    ///
    /// # Errors
    /// [`RuntimeError`], with the OCI runtime's words in the message.
    pub async fn start(&self, exec_id: &str) -> Result<u32, RuntimeError> {
        let request =
            api::StartRequest { id: self.id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::StartResponse = self.call("Start", request, self.deadlines.heavy).await?;
        Ok(answer.pid)
    }

    /// Adds a process, to be started by [`Self::start`].
    ///
    /// # Errors
    /// [`RuntimeError::AlreadyExists`] for a used `exec_id`; others as the shim says.
    pub async fn exec(&self, exec: ExecProcess) -> Result<(), RuntimeError> {
        let any = [&exec.stdin, &exec.stdout, &exec.stderr].iter().any(|stream| !stream.is_empty());
        let request = api::ExecProcessRequest {
            id: self.id.to_string(),
            exec_id: exec.exec_id,
            terminal: exec.terminal,
            stdin: exec.stdin,
            stdout: self.output(exec.stdout, any, exec.terminal),
            stderr: self.output(exec.stderr, any, exec.terminal),
            spec: MessageField::some(spec_any("Exec", "Process", &exec.process)?),
            ..Default::default()
        };
        self.call::<Empty>("Exec", request, self.deadlines.heavy).await.map(drop)
    }

    /// What the shim knows of the container (`""`) or a process.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] for what was never made or is deleted.
    pub async fn state(&self, exec_id: &str) -> Result<TaskState, RuntimeError> {
        self.state_within(exec_id, self.deadlines.light).await
    }

    /// [`Self::state`] with another deadline.
    ///
    /// # Errors
    /// As there.
    pub async fn state_within(&self, exec_id: &str, deadline: Duration) -> Result<TaskState, RuntimeError> {
        let request =
            api::StateRequest { id: self.id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::StateResponse = self.call("State", request, deadline).await?;
        let status = match answer.status.enum_value_or_default() {
            api::Status::UNKNOWN => TaskStatus::Unknown,
            api::Status::CREATED => TaskStatus::Created,
            api::Status::RUNNING => TaskStatus::Running,
            api::Status::STOPPED => TaskStatus::Stopped,
            api::Status::PAUSED => TaskStatus::Paused,
            api::Status::PAUSING => TaskStatus::Pausing,
        };
        let exit = (status == TaskStatus::Stopped).then(|| Exit {
            status: answer.exit_status,
            exited_at: system_time(answer.exited_at.as_ref()),
            pid: answer.pid,
        });
        Ok(TaskState { pid: answer.pid, status, exit })
    }

    /// Signals the container (`""`) or a process; with `all`, everything that runs in it.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`] when it has ended already.
    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), RuntimeError> {
        self.kill_within(exec_id, signal, all, self.deadlines.light).await
    }

    /// [`Self::kill`] with another deadline.
    ///
    /// # Errors
    /// As there.
    pub async fn kill_within(
        &self,
        exec_id: &str,
        signal: u32,
        all: bool,
        deadline: Duration,
    ) -> Result<(), RuntimeError> {
        let request = api::KillRequest {
            id: self.id.to_string(),
            exec_id: exec_id.to_owned(),
            signal,
            all,
            ..Default::default()
        };
        self.call::<Empty>("Kill", request, deadline).await.map(drop)
    }

    /// Waits for the end of the container (`""`) or a process, however long it takes.
    ///
    /// # Errors
    /// [`RuntimeError::ConnectionLost`] when the shim ends first.
    pub async fn wait(&self, exec_id: &str) -> Result<Exit, RuntimeError> {
        let request =
            api::WaitRequest { id: self.id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::WaitResponse = self.connection.call(self.service(), "Wait", &request, None).await?;
        Ok(Exit { status: answer.exit_status, exited_at: system_time(answer.exited_at.as_ref()), pid: 0 })
    }

    /// Forgets the ended container (`""`) or process, and frees what it held.
    ///
    /// # Errors
    /// [`RuntimeError::FailedPrecondition`] while it runs; not every shim says it with that code.
    pub async fn delete(&self, exec_id: &str) -> Result<Exit, RuntimeError> {
        self.delete_within(exec_id, self.deadlines.delete).await
    }

    /// [`Self::delete`] with another deadline.
    ///
    /// # Errors
    /// As there.
    pub async fn delete_within(&self, exec_id: &str, deadline: Duration) -> Result<Exit, RuntimeError> {
        let request =
            api::DeleteRequest { id: self.id.to_string(), exec_id: exec_id.to_owned(), ..Default::default() };
        let answer: api::DeleteResponse = self.call("Delete", request, deadline).await?;
        Ok(exit_of(&answer))
    }

    /// Sets the size of a terminal.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn resize_pty(&self, exec_id: &str, width: u32, height: u32) -> Result<(), RuntimeError> {
        let request = api::ResizePtyRequest {
            id: self.id.to_string(),
            exec_id: exec_id.to_owned(),
            width,
            height,
            ..Default::default()
        };
        self.call::<Empty>("ResizePty", request, self.deadlines.light).await.map(drop)
    }

    /// Ends the standard input.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn close_io(&self, exec_id: &str) -> Result<(), RuntimeError> {
        let request = api::CloseIORequest {
            id: self.id.to_string(),
            exec_id: exec_id.to_owned(),
            stdin: true,
            ..Default::default()
        };
        self.call::<Empty>("CloseIO", request, self.deadlines.light).await.map(drop)
    }

    /// Changes the resources of a running container.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn update(
        &self,
        resources: &LinuxResources,
        annotations: HashMap<String, String>,
    ) -> Result<(), RuntimeError> {
        let request = api::UpdateTaskRequest {
            id: self.id.to_string(),
            resources: MessageField::some(spec_any("Update", "LinuxResources", resources)?),
            annotations,
            ..Default::default()
        };
        self.call::<Empty>("Update", request, self.deadlines.light).await.map(drop)
    }

    /// All processes of the container, in the host's numbering.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn pids(&self) -> Result<Vec<u32>, RuntimeError> {
        let request = api::PidsRequest { id: self.id.to_string(), ..Default::default() };
        let answer: api::PidsResponse = self.call("Pids", request, self.deadlines.light).await?;
        Ok(answer.processes.iter().map(|process| process.pid).collect())
    }

    /// The shim's own process, so that its caller can hold on to it by other means.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn shim_pid(&self) -> Result<u32, RuntimeError> {
        let request = api::ConnectRequest { id: self.id.to_string(), ..Default::default() };
        let answer: api::ConnectResponse = self.call("Connect", request, self.deadlines.light).await?;
        Ok(answer.shim_pid)
    }

    /// Asks the shim to end; one that still has tasks stays. Its going before it answered is its answer.
    ///
    /// # Errors
    /// [`RuntimeError`] as the shim says.
    pub async fn shutdown(&self) -> Result<(), RuntimeError> {
        self.shutdown_within(self.deadlines.light).await
    }

    /// [`Self::shutdown`] with another deadline.
    ///
    /// # Errors
    /// As there.
    pub async fn shutdown_within(&self, deadline: Duration) -> Result<(), RuntimeError> {
        let request = api::ShutdownRequest { id: self.id.to_string(), ..Default::default() };
        match self.call::<Empty>("Shutdown", request, deadline).await {
            Ok(_) | Err(RuntimeError::ConnectionLost { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Ends the connection for all its holders: the shim has ended or was told to.
    pub fn hang_up(&self) {
        self.connection.hang_up();
    }

    /// Has our own shim open its log anew. For others see [`crate::io::LogWriter`].
    ///
    /// # Errors
    /// [`RuntimeError::Unimplemented`] on any other shim.
    pub async fn reopen_log(&self) -> Result<(), RuntimeError> {
        self.speaks("ReopenLog")?;
        if self.endpoint.kind != ShimKind::Own {
            let message = "its log is written by a process of its own".to_owned();
            return Err(RuntimeError::Unimplemented { call: "ReopenLog", message });
        }
        let request = ReopenLogRequest { id: self.id.to_string(), ..Default::default() };
        let deadline = Some(self.deadlines.light);
        self.connection
            .call::<ReopenLogResponse>(OWN_SERVICE, "ReopenLog", &request, deadline)
            .await
            .map(drop)
    }

    /// Has our own shim copy what the container prints from now on into these FIFOs, too; an empty path leaves the
    /// stream out. Each must have its reader already.
    ///
    /// # Errors
    /// [`RuntimeError::Unimplemented`] on any other shim.
    pub async fn attach(&self, stdout: String, stderr: String) -> Result<(), RuntimeError> {
        self.speaks("Attach")?;
        if self.endpoint.kind != ShimKind::Own {
            let message = "only containerd-shim-cofferdam-v1 lets clients attach".to_owned();
            return Err(RuntimeError::Unimplemented { call: "Attach", message });
        }
        let request = AttachRequest { id: self.id.to_string(), stdout, stderr, ..Default::default() };
        let deadline = Some(self.deadlines.light);
        self.connection.call::<AttachResponse>(OWN_SERVICE, "Attach", &request, deadline).await.map(drop)
    }

    /// Has our own shim connect to a port of its pod, and join that to these FIFOs, whose other sides must be open
    /// already.
    ///
    /// # Errors
    /// [`RuntimeError::Unimplemented`] where the pod's network namespace is the node's, and on any other shim.
    pub async fn dial(&self, port: u16, input: String, output: String) -> Result<(), RuntimeError> {
        self.speaks("Dial")?;
        if self.endpoint.kind != ShimKind::Own {
            let message = "only containerd-shim-cofferdam-v1 connects to pods".to_owned();
            return Err(RuntimeError::Unimplemented { call: "Dial", message });
        }
        let id = self.id.to_string();
        let request = DialRequest { id, port: port.into(), input, output, ..Default::default() };
        let deadline = Some(self.deadlines.light);
        self.connection.call::<DialResponse>(OWN_SERVICE, "Dial", &request, deadline).await.map(drop)
    }

    /// After an older daemon has taken over from a newer one, only what every shim serves is asked of its shims.
    fn speaks(&self, call: &'static str) -> Result<(), RuntimeError> {
        if self.endpoint.is_spoken() {
            return Ok(());
        }
        let theirs = self.endpoint.protocol;
        let message = format!(
            "the container's shim speaks protocol {theirs} of Cofferdam's shims, this daemon {NEWEST_PROTOCOL} at most: \
             update the daemon, or make the pod anew"
        );
        Err(RuntimeError::Unimplemented { call, message })
    }
}

/// What a Delete answer says; also printed by `shim delete`.
pub(super) fn exit_of(answer: &api::DeleteResponse) -> Exit {
    Exit { status: answer.exit_status, exited_at: system_time(answer.exited_at.as_ref()), pid: answer.pid }
}

/// The time of a message; times before 1970 are a shim's way to say that it has none.
pub(super) fn system_time(timestamp: Option<&Timestamp>) -> Option<SystemTime> {
    let timestamp = timestamp?;
    let since = Duration::new(u64::try_from(timestamp.seconds).ok()?, u32::try_from(timestamp.nanos).ok()?);
    (!since.is_zero()).then(|| SystemTime::UNIX_EPOCH.checked_add(since)).flatten()
}

/// A part of the OCI runtime specification as shims take it: JSON under a well-known name.
fn spec_any(call: &'static str, name: &str, value: &impl Serialize) -> Result<Any, RuntimeError> {
    let value = serde_json::to_vec(value).map_err(|error| {
        let source = std::io::Error::from(error).into();
        RuntimeError::Message { call, source }
    })?;
    let type_url = format!("types.containerd.io/opencontainers/runtime-spec/1/{name}");
    Ok(Any { type_url, value, ..Default::default() })
}
