//! The RPCs: decode, call the task, encode. Nothing is decided here.

use cofferdam_failpoints::failpoint;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_proto::shim as extension;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status, UpdateTaskRequest,
    WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task as TaskRpc;
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use crate::cgroup;
use crate::error::ShimError;
use crate::publish::{Publisher, to_timestamp};
use crate::reaper::Reaper;
use crate::task::log::StreamName;
use crate::task::state::Lifecycle;
use crate::task::{Surroundings, Task};
use crate::tasks::Tasks;
use crate::work::Work;

/// How long a checkpoint may take when the caller does not say.
const CHECKPOINT: Duration = Duration::from_secs(600);
/// Of a caller's time, what ending criu and the answer get.
const ANSWER: Duration = Duration::from_secs(5);

/// How long an end waits for a creation that it has told to give up: less than the daemon waits for the answer, which then
/// ends the shim.
const GIVEN_UP: Duration = Duration::from_secs(4);
/// How long a deletion waits for a creation to end by itself.
const CREATION: Duration = Duration::from_secs(25);

pub struct Service {
    around: Surroundings,
    tasks: Arc<Tasks>,
    work: Work,
    shutdown: Arc<Notify>,
}

impl Service {
    pub fn new(reaper: Arc<Reaper>, publisher: Arc<Publisher>, shutdown: Arc<Notify>) -> Self {
        let around = Surroundings { reaper, publisher };
        Service { around, tasks: Arc::default(), work: Work::default(), shutdown }
    }

    fn task(&self, id: &str) -> Result<Arc<Task>, ShimError> {
        self.tasks.get(id)
    }
}

/// How long criu may take, so that its caller still hears what it says.
fn time_left(ctx: &TtrpcContext) -> Duration {
    let told = u64::try_from(ctx.timeout_nano).ok().filter(|told| *told > 0).map(Duration::from_nanos);
    told.map_or(CHECKPOINT, |told| told.saturating_sub(ANSWER))
}

pub fn status(state: &Lifecycle) -> Status {
    match state {
        Lifecycle::Added | Lifecycle::Created { .. } => Status::CREATED,
        Lifecycle::Running { .. } => Status::RUNNING,
        Lifecycle::Paused { .. } => Status::PAUSED,
        Lifecycle::Stopped(_) => Status::STOPPED,
    }
}

#[async_trait]
impl TaskRpc for Service {
    async fn state(&self, _: &TtrpcContext, r: StateRequest) -> ttrpc::Result<StateResponse> {
        let task = self.task(&r.id)?;
        let process = task.process(&r.exec_id)?;
        let state = process.state();
        let mut response = StateResponse::new();
        response.id.clone_from(&task.id);
        response.exec_id = r.exec_id;
        response.bundle = task.bundle.path().to_string_lossy().into_owned();
        response.pid = state.pid().unwrap_or_default().cast_unsigned();
        response.status = status(&state).into();
        response.stdin.clone_from(&process.stdio.stdin);
        response.stdout.clone_from(&process.stdio.stdout);
        response.stderr.clone_from(&process.stdio.stderr);
        response.terminal = process.stdio.terminal;
        if let Some(exit) = state.exit() {
            response.exit_status = exit.status;
            response.exited_at = MessageField::some(to_timestamp(exit.at));
        }
        Ok(response)
    }

    async fn create(&self, _: &TtrpcContext, r: CreateTaskRequest) -> ttrpc::Result<CreateTaskResponse> {
        let (reserved, around) = (self.tasks.reserve(&r.id)?, self.around.clone());
        let creating = async move {
            let task = Task::create(&r, around, &reserved.give_up).await?;
            let pid = task.created.pid;
            reserved.settle(task);
            Ok(pid)
        };
        let mut response = CreateTaskResponse::new();
        response.pid = self.work.finish(creating).await?.cast_unsigned();
        Ok(response)
    }

    async fn start(&self, ctx: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        let task = self.task(&r.id)?;
        let limit = time_left(ctx);
        let starting = async move {
            if r.exec_id.is_empty() { task.start(limit).await } else { task.start_exec(&r.exec_id).await }
        };
        let mut response = StartResponse::new();
        response.pid = self.work.finish(starting).await?.cast_unsigned();
        Ok(response)
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        self.tasks.settled(CREATION).await?;
        let (task, tasks) = (self.task(&r.id)?, Arc::clone(&self.tasks));
        let deleting = async move {
            if !r.exec_id.is_empty() {
                return task.delete_exec(&r.exec_id);
            }
            let exit = task.delete().await?;
            tasks.forget(&r.id);
            failpoint!("shim.delete.forgotten", infallible);
            Ok(exit)
        };
        let exit = self.work.finish(deleting).await?;
        let mut response = DeleteResponse::new();
        response.pid = exit.pid.cast_unsigned();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(to_timestamp(exit.at));
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let task = self.task(&r.id)?;
        let mut response = PidsResponse::new();
        let pids = task.created.cgroups.primary().map(cgroup::processes).unwrap_or_default();
        response.processes = pids
            .into_iter()
            .map(|pid| ProcessInfo { pid: pid.cast_unsigned(), ..ProcessInfo::default() })
            .collect();
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        self.work.finish(async move { task.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        self.work.finish(async move { task.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, ctx: &TtrpcContext, r: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        if r.options.as_ref().is_some_and(|options| !options.value.is_empty()) {
            return Err(ShimError::Unsupported("a checkpoint with options").into());
        }
        let limit = time_left(ctx);
        if limit.is_zero() {
            let words = format!("a checkpoint needs more than {ANSWER:?}, of which nothing is left to criu");
            return Err(ShimError::Invalid(words).into());
        }
        // It ends by its limit.
        self.work.finish(async move { task.checkpoint(Path::new(&r.path), limit).await }).await?;
        Ok(Empty::new())
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        if r.exec_id.is_empty() && r.signal == libc::SIGKILL.cast_unsigned() {
            self.tasks.give_up(&r.id);
        }
        self.tasks.settled(GIVEN_UP).await?;
        self.task(&r.id)?.kill(&r.exec_id, r.signal, r.all)?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.task(&r.id)?.add_exec(&r)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        let resized = task.process(&r.exec_id)?.streams.resize(cells(r.width), cells(r.height));
        resized.map_err(ShimError::io("resize the terminal"))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        let process = task.process(&r.exec_id)?;
        if r.stdin {
            process.streams.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        let json = r.resources.unwrap_or_default().value;
        self.work.finish(async move { task.update(json).await }).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let task = self.task(&r.id)?;
        let exit = task.process(&r.exec_id)?.wait().await;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(to_timestamp(exit.at));
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let task = self.task(&r.id)?;
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(cgroup::stats::read(&task.created.cgroups)?);
        Ok(response)
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        if let Ok(task) = self.task(&r.id) {
            let pid = task.init.state().pid().unwrap_or(task.created.pid);
            response.task_pid = pid.cast_unsigned();
        }
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> ttrpc::Result<Empty> {
        if !r.now {
            self.tasks.settled(CREATION).await?;
        }
        let empty = self.tasks.is_empty();
        if empty || r.now {
            failpoint!("shim.shutdown.begun", infallible);
            self.shutdown.notify_one();
        }
        Ok(Empty::new())
    }
}

#[async_trait]
impl extension::Shim for Service {
    async fn reopen_log(
        &self,
        _: &TtrpcContext,
        r: extension::ReopenLogRequest,
    ) -> ttrpc::Result<extension::ReopenLogResponse> {
        let task = self.task(&r.id)?;
        match task.init.streams.reopen_logs() {
            Ok(true) => Ok(extension::ReopenLogResponse::new()),
            Ok(false) => Err(ShimError::Invalid(format!("task {} has no log of ours", r.id)).into()),
            Err(error) => Err(ShimError::io("reopen the log")(error).into()),
        }
    }

    async fn attach(
        &self,
        _: &TtrpcContext,
        r: extension::AttachRequest,
    ) -> ttrpc::Result<extension::AttachResponse> {
        let task = self.task(&r.id)?;
        let streams = &task.init.streams;
        for (path, stream) in [(&r.stdout, StreamName::Stdout), (&r.stderr, StreamName::Stderr)] {
            if !path.is_empty() {
                let tapped = streams.tap(stream, Path::new(path));
                tapped.map_err(ShimError::path("attach the FIFO", path))?;
            }
        }
        Ok(extension::AttachResponse::new())
    }

    async fn dial(
        &self,
        _: &TtrpcContext,
        _: extension::DialRequest,
    ) -> ttrpc::Result<extension::DialResponse> {
        Err(ShimError::Unsupported("connecting to a pod whose network namespace is the node's").into())
    }
}
