//! What happens when a process of the container ends, in the one order that keeps the task's invariant.

use cofferdam_failpoints::failpoint;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use protobuf::MessageField;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Task;
use super::log;
use super::process::Process;
use super::state::Exit;
use crate::cgroup::{kill, oom};
use crate::publish::to_timestamp;

/// The exits of execs are told before that of the container they ran in, unless one hangs.
const EXECS_FIRST: Duration = Duration::from_secs(3);

/// A start is told before the exit, unless a hook that runs after it hangs.
const START_FIRST: Duration = Duration::from_secs(3);

/// Follows the container's first process `pid`. Ends with the process, so nothing needs to hold it. One whose place a
/// restored process has taken is none any more.
pub fn watch_init(task: &Arc<Task>, pid: i32, exited: oneshot::Receiver<u32>) {
    let task = Arc::clone(task);
    tokio::spawn(async move {
        let Ok(status) = exited.await else { return };
        let exit = Exit { pid, status, at: log::now() };
        failpoint!("shim.exit.reaped", infallible);
        if !task.init.mark_stopped(exit) {
            return;
        }
        if let Err(error) = task.bundle.write_json("exit.json", &exit) {
            task.bundle.warn(&format!("keep the exit status: {error}"));
        }
        failpoint!("shim.exit.written", infallible);
        // With a pid namespace of its own the kernel has done this; with a shared one the rest is still there.
        if let Err(error) = kill::signal_all(&task.created.cgroups, libc::SIGKILL) {
            task.bundle.warn(&format!("kill what the container left: {error}"));
        }
        failpoint!("shim.exit.rest_killed", infallible);
        task.init.streams.drain().await;
        failpoint!("shim.exit.drained", infallible);
        drop(timeout(EXECS_FIRST, task.all_execs_ended()).await);
        drop(timeout(START_FIRST, task.init.starting.lock()).await);
        task.tell_oom();
        task.tell_exit("", exit);
        failpoint!("shim.exit.told", infallible);
        task.init.announce(exit);
    });
}

/// Follows an exec in the same way.
pub fn watch_exec(
    task: &Arc<Task>,
    id: String,
    exec: &Arc<Process>,
    pid: i32,
    exited: oneshot::Receiver<u32>,
) {
    let (task, exec) = (Arc::clone(task), Arc::clone(exec));
    tokio::spawn(async move {
        let Ok(status) = exited.await else { return };
        let exit = Exit { pid, status, at: log::now() };
        let _its_own = exec.mark_stopped(exit);
        exec.streams.drain().await;
        drop(timeout(START_FIRST, exec.starting.lock()).await);
        if let Some(folder) = task.created.cgroups.exec(&id) {
            task.busy_cgroups.remove(folder);
        }
        task.tell_oom();
        failpoint!("shim.exec.exited", infallible);
        task.tell_exit(&id, exit);
        exec.announce(exit);
    });
}

/// Tells of out-of-memory kills as they happen; the count at the exit catches the last one.
pub fn watch_memory(task: &Arc<Task>) {
    let Ok(Some(mut watch)) = oom::Watch::new(&task.created.cgroups) else { return };
    let task = Arc::clone(task);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                changed = watch.changed() => if changed.is_err() { return },
                _ = task.init.wait() => return,
            }
            task.tell_oom();
        }
    });
}

impl Task {
    /// Publishes an event for kills nobody has been told of yet.
    pub(super) fn tell_oom(&self) {
        let Some(count) = oom::kills(&self.created.cgroups) else { return };
        let mut told = self.oom_told.lock().unwrap_or_else(PoisonError::into_inner);
        if count > *told {
            *told = count;
            let mut event = events::TaskOOM::new();
            event.container_id.clone_from(&self.id);
            self.around.publisher.send(topics::TASK_OOM_EVENT_TOPIC, &event);
        }
    }

    fn tell_exit(&self, exec_id: &str, exit: Exit) {
        let mut event = events::TaskExit::new();
        event.container_id.clone_from(&self.id);
        // The first process bears the container's own name.
        event.id = if exec_id.is_empty() { self.id.clone() } else { exec_id.to_owned() };
        event.pid = exit.pid.cast_unsigned();
        event.exit_status = exit.status;
        event.exited_at = MessageField::some(to_timestamp(exit.at));
        self.around.publisher.exit(&event);
    }
}
