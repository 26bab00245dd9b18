//! The RPCs of a pod's shim: decode, call the task, encode.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use cofferdam_proto::shim as extension;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, PauseRequest,
    PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest, StartRequest,
    StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, UpdateTaskRequest, WaitRequest,
    WaitResponse,
};
use containerd_shim_protos::shim_async::Task as TaskRpc;
use oci_spec::runtime::Spec;
use protobuf::MessageField;
use tokio::sync::Notify;
use ttrpc::r#async::TtrpcContext;

use super::VmError;
use super::pod::Pod;
use super::saying;
use super::spec::{Role, shm_of, translate};
use super::task::VmTask;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::options::Options;
use crate::publish::{Publisher, to_timestamp};
use crate::service::status;
use crate::task::log::StreamName;
use crate::task::state::Exit;
use crate::work::Work;

/// The pod's machine, and the first process of its pause in the guest.
type Booted = (Arc<Pod>, u32);

/// Its clones are one.
#[derive(Clone)]
pub struct Service {
    publisher: Arc<Publisher>,
    shutdown: Arc<Notify>,
    /// Keeps what is known of KVM on this node.
    probes: Arc<Path>,
    /// None stands for one that is being made.
    tasks: Arc<Mutex<HashMap<String, Option<Arc<VmTask>>>>>,
    pod: Arc<tokio::sync::Mutex<Option<Booted>>>,
    /// What is seen to its end, whoever asked for it and hung up.
    work: Arc<Work>,
}

impl Service {
    pub fn new(publisher: Arc<Publisher>, shutdown: Arc<Notify>, probes: PathBuf) -> Self {
        Service {
            publisher,
            shutdown,
            probes: probes.into(),
            tasks: Arc::default(),
            pod: Arc::default(),
            work: Arc::default(),
        }
    }

    fn tasks(&self) -> std::sync::MutexGuard<'_, HashMap<String, Option<Arc<VmTask>>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn task(&self, id: &str) -> Result<Arc<VmTask>, ShimError> {
        self.tasks().get(id).cloned().flatten().ok_or_else(|| ShimError::NoTask(id.to_owned()))
    }

    async fn make(&self, request: &CreateTaskRequest) -> Result<Arc<VmTask>, ShimError> {
        if !request.checkpoint.is_empty() {
            return Err(ShimError::Unsupported("restoring from a checkpoint in a virtual machine"));
        }
        let options = Options::from_any(request.options.as_ref())?;
        // Held while the machine boots: whoever comes meanwhile joins its pod.
        let mut pod = self.pod.lock().await;
        let (publisher, max_line) = (Arc::clone(&self.publisher), options.log_max_line);
        let joined = pod.as_ref().map(|(pod, pause)| (Arc::clone(pod), *pause));
        if let Some((joined, pause)) = joined {
            drop(pod);
            let role = Role::Container { pause };
            return VmTask::create(request, joined, role, publisher, max_line).await;
        }
        let bundle = Bundle::new(&request.bundle);
        let read = bundle.read_json::<Spec>("config.json");
        let spec = read.map_err(ShimError::path("read", bundle.join("config.json")))?;
        // What a machine cannot give is refused before one boots.
        translate(spec.clone(), &request.id, Role::Pause, shm_of(&spec).as_deref())?;
        let booted = Pod::boot(&request.id, &bundle, &spec, &options, &self.probes).await;
        let outcome = booted.as_ref().map(|pod| &pod.machine);
        saying::leave(&self.probes, request.options.as_ref(), outcome);
        let booted = Arc::new(booted?);
        match VmTask::create(request, Arc::clone(&booted), Role::Pause, publisher, max_line).await {
            Ok(task) => {
                *pod = Some((booted, task.guest_pid));
                Ok(task)
            }
            Err(error) => {
                booted.end(&bundle).await;
                Err(error)
            }
        }
    }

    /// Makes a task under its name, which is taken from the beginning.
    async fn add(&self, request: &CreateTaskRequest) -> Result<u32, ShimError> {
        {
            let mut tasks = self.tasks();
            if tasks.contains_key(&request.id) {
                return Err(ShimError::Exists(format!("task {}", request.id)));
            }
            tasks.insert(request.id.clone(), None);
        }
        let made = self.make(request).await;
        match &made {
            Ok(task) => drop(self.tasks().insert(request.id.clone(), Some(Arc::clone(task)))),
            Err(_) => drop(self.tasks().remove(&request.id)),
        }
        made.map(|task| task.pid())
    }

    async fn remove(&self, task: &VmTask) -> Result<Exit, ShimError> {
        let exit = task.delete().await?;
        self.end_pod(task).await;
        self.tasks().remove(&task.id);
        Ok(exit)
    }

    /// Ends the machine with its pod, and with it whatever was not taken out of it before.
    async fn end_pod(&self, task: &VmTask) {
        if task.id == task.pod().id {
            task.pod().end(&task.bundle).await;
            *self.pod.lock().await = None;
            self.tasks().retain(|_, other| other.is_none());
        }
    }

    /// Does the work to its end, also when its caller hangs up.
    async fn finish<T, W>(&self, work: impl FnOnce(Self) -> W) -> Result<T, ShimError>
    where
        T: Send + 'static,
        W: Future<Output = Result<T, ShimError>> + Send + 'static,
    {
        self.work.finish(work(self.clone())).await
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
        let pid = self.finish(|service| async move { service.add(&r).await }).await?;
        Ok(CreateTaskResponse { pid, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, r: StartRequest) -> ttrpc::Result<StartResponse> {
        let mut response = StartResponse::new();
        let task = self.task(&r.id)?;
        response.pid = self.finish(|_| async move { task.start(&r.exec_id).await }).await?;
        Ok(response)
    }

    async fn delete(&self, _: &TtrpcContext, r: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let task = self.task(&r.id)?;
        let deleted = self.finish(|service| async move {
            if r.exec_id.is_empty() {
                service.remove(&task).await
            } else {
                task.delete_exec(&r.exec_id).await
            }
        });
        let exit = deleted.await?;
        let mut response = DeleteResponse::new();
        response.pid = exit.pid.cast_unsigned();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(to_timestamp(exit.at));
        Ok(response)
    }

    async fn pids(&self, _: &TtrpcContext, r: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let mut response = PidsResponse::new();
        // Those in the guest mean nothing here.
        let pid = self.task(&r.id)?.pid();
        response.processes = vec![ProcessInfo { pid, ..ProcessInfo::default() }];
        Ok(response)
    }

    async fn pause(&self, _: &TtrpcContext, r: PauseRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        self.finish(|_| async move { task.pause().await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, r: ResumeRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        self.finish(|_| async move { task.resume().await }).await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, _: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        Err(ShimError::Unsupported("a checkpoint of a container in a virtual machine").into())
    }

    async fn kill(&self, _: &TtrpcContext, r: KillRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        self.finish(|_| async move { task.kill(&r.exec_id, r.signal, r.all).await }).await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, r: ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.task(&r.id)?.add_exec(&r)?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, r: ResizePtyRequest) -> ttrpc::Result<Empty> {
        self.task(&r.id)?.resize(&r.exec_id, r.width, r.height).await?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, r: CloseIORequest) -> ttrpc::Result<Empty> {
        let process = self.task(&r.id)?.process(&r.exec_id)?;
        if r.stdin {
            process.streams.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, r: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&r.id)?;
        task.update(&r.resources.into_option().unwrap_or_default().value, &r.annotations).await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, r: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let exit = self.task(&r.id)?.process(&r.exec_id)?.wait().await;
        let mut response = WaitResponse::new();
        response.exit_status = exit.status;
        response.exited_at = MessageField::some(to_timestamp(exit.at));
        Ok(response)
    }

    async fn stats(&self, _: &TtrpcContext, r: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let task = self.task(&r.id)?;
        let mut response = StatsResponse::new();
        response.stats = MessageField::some(task.stats().await?);
        Ok(response)
    }

    async fn connect(&self, _: &TtrpcContext, r: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        let mut response = ConnectResponse::new();
        response.shim_pid = std::process::id();
        response.version = env!("CARGO_PKG_VERSION").to_owned();
        if let Ok(task) = self.task(&r.id) {
            response.task_pid = task.pid();
        }
        Ok(response)
    }

    async fn shutdown(&self, _: &TtrpcContext, r: ShutdownRequest) -> ttrpc::Result<Empty> {
        // What is only being made ends with the shim: whoever wanted it has given it up.
        if self.tasks().values().all(Option::is_none) || r.now {
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
        match self.task(&r.id)?.init.streams.reopen_logs() {
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
        for (path, stream) in [(&r.stdout, StreamName::Stdout), (&r.stderr, StreamName::Stderr)] {
            if !path.is_empty() {
                let tapped = task.init.streams.tap(stream, Path::new(path));
                tapped.map_err(ShimError::path("attach the FIFO", path))?;
            }
        }
        Ok(extension::AttachResponse::new())
    }

    async fn dial(
        &self,
        _: &TtrpcContext,
        r: extension::DialRequest,
    ) -> ttrpc::Result<extension::DialResponse> {
        let port = match u16::try_from(r.port) {
            Ok(port @ 1..) => port,
            _ => return Err(ShimError::Invalid(format!("port {} is no port", r.port)).into()),
        };
        let task = self.task(&r.id)?;
        let pod = task.pod();
        let (input, output) = (Path::new(&r.input), Path::new(&r.output));
        pod.connections.dial(pod.machine.channel(), port, input, output).await?;
        Ok(extension::DialResponse::new())
    }
}

impl From<VmError> for ttrpc::Error {
    fn from(error: VmError) -> Self {
        ShimError::from(error).into()
    }
}
