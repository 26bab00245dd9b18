//! Execs: further processes in the container.

use cofferdam_failpoints::failpoint;
use std::sync::{Arc, PoisonError};

use containerd_shim_protos::api::ExecProcessRequest;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use protobuf::MessageField;

use super::console::ConsoleSocket;
use super::io::{self, Stdio};
use super::process::Process;
use super::state::{Exit, Lifecycle};
use super::{Task, check_id, exit};
use crate::error::ShimError;
use crate::launch;
use crate::publish::to_timestamp;
use crate::wire::{ExecOrder, Order};

/// The exit status of an exec that could not be started.
const NEVER_RAN: u32 = 128;

impl Task {
    /// The first process for an empty id, else the exec.
    pub fn process(&self, exec_id: &str) -> Result<ProcessRef<'_>, ShimError> {
        match exec_id {
            "" => Ok(ProcessRef::Init(&self.init)),
            id => self.exec(id).map(ProcessRef::Exec),
        }
    }

    pub(super) fn exec(&self, exec_id: &str) -> Result<Arc<Process>, ShimError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs
            .get(exec_id)
            .cloned()
            .ok_or_else(|| ShimError::NoExec { task: self.id.clone(), exec: exec_id.to_owned() })
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
        failpoint!("shim.exec.added", infallible);
        drop(execs);
        let mut event = events::TaskExecAdded::new();
        event.container_id.clone_from(&self.id);
        event.exec_id.clone_from(&request.exec_id);
        self.around.publisher.send(topics::TASK_EXEC_ADDED_EVENT_TOPIC, &event);
        Ok(())
    }

    pub async fn start_exec(self: &Arc<Self>, exec_id: &str) -> Result<i32, ShimError> {
        let exec = self.exec(exec_id)?;
        let _starting = exec.starting.lock().await;
        let Lifecycle::Added = exec.state() else {
            return Err(exec.refuse("start", exec.state().name()));
        };
        let init = self.init.state();
        let Lifecycle::Running { pid: init_pid } = init else {
            return Err(self.init.refuse("exec", init.name()));
        };
        let launched = self.launch_exec(exec_id, &exec, init_pid).await;
        if launched.is_err() && matches!(exec.state(), Lifecycle::Added) {
            // It is over: whoever waits for it or wants it dead must not wait for more.
            let exit = Exit { pid: 0, status: NEVER_RAN, at: super::log::now() };
            exec.mark_stopped(exit);
            exec.announce(exit);
        }
        launched
    }

    async fn launch_exec(
        self: &Arc<Self>,
        exec_id: &str,
        exec: &Arc<Process>,
        init_pid: i32,
    ) -> Result<i32, ShimError> {
        let (opened, ends) = io::open(&exec.stdio, &self.bundle, exec_id, self.options.log_max_line)?;
        let order = Order::Exec(ExecOrder {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            bundle: self.bundle.path().to_owned(),
            options: self.options.clone(),
            init_pid,
            cgroups: self.created.cgroups.clone(),
            process: exec.spec.clone(),
            console: opened.console.as_ref().map(ConsoleSocket::path),
        });
        let mut child = launch::spawn(&self.around.reaper, &self.bundle, &order, ends)?;
        failpoint!("shim.exec.child_spawned", infallible);
        let pid = match child.executed().await {
            Ok(pid) => pid,
            Err(error) => {
                self.remove_exec_cgroup(exec_id);
                return Err(error);
            }
        };
        failpoint!("shim.exec.made", infallible);
        let exited = self.around.reaper.watch(pid);
        if let Err(error) = child.until_exec().wait(&self.bundle).await {
            // The process ends by itself; its status tells nothing that the error does not.
            drop(exited.await);
            self.remove_exec_cgroup(exec_id);
            return Err(error);
        }
        failpoint!("shim.exec.running", infallible);
        exec.transit("start", |state| state.started(pid))?;
        let running = exec.streams.run(opened, &self.bundle).await;
        exit::watch_exec(self, exec_id.to_owned(), exec, pid, exited);
        if let Err(error) = running {
            drop(self.kill(exec_id, libc::SIGKILL.cast_unsigned(), true));
            return Err(error);
        }
        let mut event = events::TaskExecStarted::new();
        event.container_id.clone_from(&self.id);
        event.exec_id = exec_id.to_owned();
        event.pid = pid.cast_unsigned();
        self.around.publisher.send(topics::TASK_EXEC_STARTED_EVENT_TOPIC, &event);
        Ok(pid)
    }

    fn remove_exec_cgroup(&self, exec_id: &str) {
        if let Some(folder) = self.created.cgroups.exec(exec_id) {
            self.busy_cgroups.remove(folder);
        }
    }

    /// Forgets an exec that ended or never ran.
    pub fn delete_exec(&self, exec_id: &str) -> Result<Exit, ShimError> {
        let exec = self.exec(exec_id)?;
        let exit = match exec.state() {
            Lifecycle::Stopped(exit) => exit,
            Lifecycle::Added => Exit { pid: 0, status: 0, at: super::log::now() },
            state @ (Lifecycle::Created { .. } | Lifecycle::Running { .. } | Lifecycle::Paused { .. }) => {
                return Err(exec.refuse("delete", state.name()));
            }
        };
        exec.streams.abandon();
        failpoint!("shim.exec.streams_closed");
        self.remove_exec_cgroup(exec_id);
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(exec_id);
        let mut event = events::TaskDelete::new();
        event.container_id.clone_from(&self.id);
        event.id = exec_id.to_owned();
        event.pid = exit.pid.cast_unsigned();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(to_timestamp(exit.at));
        self.around.publisher.send(topics::TASK_DELETE_EVENT_TOPIC, &event);
        Ok(exit)
    }

    pub(super) async fn all_execs_ended(&self) {
        let running: Vec<Arc<Process>> = {
            let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            execs.values().filter(|e| !matches!(e.state(), Lifecycle::Added)).cloned().collect()
        };
        for exec in running {
            exec.wait().await;
        }
    }
}

/// A process of the task, however it is kept.
pub enum ProcessRef<'a> {
    Init(&'a Process),
    Exec(Arc<Process>),
}

impl std::ops::Deref for ProcessRef<'_> {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            ProcessRef::Init(process) => process,
            ProcessRef::Exec(process) => process,
        }
    }
}
