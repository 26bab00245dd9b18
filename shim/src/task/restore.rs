//! A task made from a checkpoint: what criu restores takes the place of the process that the container was made with.
//!
//! Invariant: there is one first process at any time. Until the restored one is known and checked the other one waits, and
//! whichever way the start ends before that, both are gone with the cgroup.

use cofferdam_failpoints::failpoint;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;

use super::state::Lifecycle;
use super::{Record, Task};
use crate::cgroup::{self, kill};
use crate::error::ShimError;
use crate::launch;
use crate::options::Options;
use crate::sys;
use crate::task::exit;
use crate::wire::{Created, Order, RestoreOrder, Restored};

/// The folder of the images that the task is to be restored from, if any.
pub fn images(request: &CreateTaskRequest, options: &Options) -> Result<Option<PathBuf>, ShimError> {
    if request.checkpoint.is_empty() {
        return Ok(None);
    }
    if options.binary.is_some() {
        return Err(ShimError::Unsupported("restoring with an external OCI runtime"));
    }
    if request.terminal {
        return Err(ShimError::Unsupported("restoring a container with a terminal"));
    }
    let images = Path::new(&request.checkpoint);
    if !images.is_absolute() || !images.is_dir() {
        return Err(ShimError::Invalid(format!("{} is not a folder with images", images.display())));
    }
    Ok(Some(images.to_owned()))
}

impl Task {
    /// Restores the processes and lets them run on.
    pub(super) async fn run_restored(
        self: &Arc<Self>,
        images: &Path,
        model: i32,
        limit: Duration,
    ) -> Result<i32, ShimError> {
        match self.restore(images, model, limit).await {
            Ok(pid) => Ok(pid),
            Err(error) => {
                if let Err(left) = kill::signal_all(&self.created.cgroups, libc::SIGKILL) {
                    self.bundle.warn(&format!("kill what was restored: {left}"));
                }
                Err(error)
            }
        }
    }

    async fn restore(self: &Arc<Self>, images: &Path, model: i32, limit: Duration) -> Result<i32, ShimError> {
        let order = Order::Restore(RestoreOrder {
            bundle: self.bundle.path().to_owned(),
            model,
            cgroups: self.created.cgroups.clone(),
            images: images.to_owned(),
            limit,
        });
        let child = launch::spawn(&self.around.reaper, &self.bundle, &order, Default::default())?;
        let launching = self.around.reaper.launching();
        failpoint!("shim.restore.spawned", infallible);
        let restored = child.restored().await?;
        failpoint!("shim.restore.told");
        let pid = restored.pid;
        let exited = self.around.reaper.watch(pid);
        drop(launching);
        // From here on the death of the other process means nothing.
        self.init.transit("restore", |state| state.started(pid))?;
        exit::watch_init(self, pid, exited);
        failpoint!("shim.restore.taken_over");
        let created = Created { pid, ..self.created.clone() };
        let record = Record { created, options: Some(self.options.clone()) };
        let written = self
            .bundle
            .write_json("task.json", &record)
            .and_then(|()| self.bundle.write("init.pid", pid.to_string().as_bytes()));
        written.map_err(ShimError::path("write the task's files in", self.bundle.path()))?;
        failpoint!("shim.restore.recorded");
        sys::kill(model, libc::SIGKILL)
            .map_err(|errno| ShimError::io("end the process that waited")(errno.into()))?;
        failpoint!("shim.restore.model_ended");
        self.run_on(&restored);
        failpoint!("shim.restore.running", infallible);
        Ok(pid)
    }

    /// Continues all that was not stopped when the checkpoint was made.
    fn run_on(&self, restored: &Restored) {
        let Some(folder) = self.created.cgroups.primary() else { return };
        let stopped: HashSet<i32> = restored.stopped.iter().copied().collect();
        for pid in cgroup::processes(folder) {
            if number_inside(pid).is_none_or(|inside| !stopped.contains(&inside)) {
                // One that has ended meanwhile needs no signal.
                let _ = sys::kill(pid, libc::SIGCONT);
            }
        }
    }

    /// Runs what is to be run once the restored processes do.
    pub(super) async fn poststart_restored(&self, pid: i32) -> Result<(), ShimError> {
        if !self.created.start_by_child {
            return Ok(());
        }
        let order = Order::Start(crate::wire::TaskOrder { restored: Some(pid), ..self.order() });
        let child = launch::spawn(&self.around.reaper, &self.bundle, &order, Default::default())?;
        child.done().await
    }

    /// The process that waits for the start.
    pub(super) fn waiting(&self) -> Result<i32, ShimError> {
        match self.init.state() {
            Lifecycle::Created { pid } => Ok(pid),
            state @ (Lifecycle::Added
            | Lifecycle::Running { .. }
            | Lifecycle::Paused { .. }
            | Lifecycle::Stopped(_)) => Err(self.init.refuse("start", state.name())),
        }
    }
}

/// A process's number in its innermost namespace. proc_pid_status(5)
fn number_inside(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}
