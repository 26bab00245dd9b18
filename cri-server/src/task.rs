//! Ending a task, whatever state its shim is in: asked first, forced then, without its help at last.
//!
//! Invariant: when [`end`] succeeds, no process of the task runs, its cgroups are gone, and its shim has ended or
//! has been told to. Absent is done, so it can be repeated.

use cofferdam_failpoints::failpoint;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::cgroup::CgroupError;
use crate::ports::Ports;
use crate::runtime::{Exit, Handler, Launcher, RuntimeError, Shim};

/// The namespace of tasks in shims: the one that other tools know for Kubernetes.
pub const NAMESPACE: &str = "k8s.io";
/// How long a killed process may take to be gone, before its shim is no longer relied on.
const KILLED: Duration = Duration::from_secs(5);
/// How often a lost connection is made anew before the shim counts as dead.
const RECONNECTS: u32 = 3;
/// A connection that held so long was a good one: its loss is not added to earlier ones.
const STEADY: Duration = Duration::from_secs(10);

/// What is left of a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("shim")]
    Runtime(#[from] RuntimeError),
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
}

/// The task to end.
#[derive(Clone)]
pub struct Ending<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// None when it is not configured any more: then the task is ended without its shim's own clean-up.
    pub handler: Option<&'a Handler>,
    pub shim: Option<Arc<Shim>>,
    /// As in the task's spec.
    pub cgroups_path: &'a str,
}

/// Kills the task if it runs, and lets its shim go.
///
/// # Errors
/// When processes or cgroups are left.
pub async fn end(ports: &Ports, ending: Ending<'_>) -> Result<(), TaskError> {
    let asked = match &ending.shim {
        Some(shim) => ask(shim).await,
        None => Err(RuntimeError::ConnectionLost { call: "Kill" }),
    };
    // Without a trace of a shim nothing was ever started, or all of it has ended: nothing to force.
    if let Err(error) = asked
        && Launcher::tried(ending.bundle)
    {
        tracing::debug!(task = ending.id, error = %crate::report::chain(&error), "the shim gives no help");
        force(ports, &ending).await?;
    }
    failpoint!("task.end.shim_gone");
    ports.cgroups.remove(ending.cgroups_path).await?;
    failpoint!("task.end.cgroups_removed");
    // A repetition finds that nothing is left to do, without asking a shim that is gone.
    Launcher::forget(ending.bundle)?;
    Ok(())
}

/// Kills through the shim, waits for the end, and has the shim forget the task and go.
async fn ask(shim: &Shim) -> Result<(), RuntimeError> {
    match tokio::time::timeout(KILLED, shim.kill("", libc::SIGKILL.unsigned_abs(), true)).await {
        Ok(Ok(()) | Err(RuntimeError::NotFound { .. })) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(RuntimeError::Timeout { call: "Kill", after: KILLED }),
    }
    failpoint!("task.end.killed");
    match tokio::time::timeout(KILLED, shim.wait("")).await {
        Ok(Ok(_) | Err(RuntimeError::NotFound { .. })) => {}
        Ok(Err(error)) => return Err(error),
        Err(_) => return Err(RuntimeError::Timeout { call: "Wait", after: KILLED }),
    }
    failpoint!("task.end.waited");
    release(shim).await
}

/// Has the shim forget an ended task, and go.
///
/// # Errors
/// When the shim does not do so.
pub async fn release(shim: &Shim) -> Result<(), RuntimeError> {
    match shim.delete("").await {
        Ok(_) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    failpoint!("task.release.deleted");
    shim.shutdown().await
}

/// Ends a task whose shim does not: kills the cgroup, then the shim, then lets the shim's own command clean up.
async fn force(ports: &Ports, ending: &Ending<'_>) -> Result<Option<Exit>, TaskError> {
    ports.cgroups.kill_all(ending.cgroups_path).await?;
    failpoint!("task.force.killed");
    if let Some(shim) = &ending.shim {
        kill_shim(shim).await;
    }
    failpoint!("task.force.shim_killed");
    let Some(handler) = ending.handler else {
        tracing::warn!(task = ending.id, "its runtime handler is not configured any more; ended without it");
        return Ok(None);
    };
    let deleted = ports.launcher.delete(handler, ending.id, NAMESPACE, ending.bundle).await;
    failpoint!("task.force.deleted");
    match deleted {
        Ok(exit) => Ok(Some(exit)),
        Err(error) => {
            tracing::warn!(task = ending.id, error = %crate::report::chain(&error), "shim delete failed");
            Ok(None)
        }
    }
}

/// Kills a shim that may hang. One that answers who it is gets the signal; a dead one needs none.
async fn kill_shim(shim: &Shim) {
    if shim.is_closed() {
        return;
    }
    if let Ok(pid) = shim.shim_pid().await {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap_or(0));
        if pid.as_raw() > 1 {
            // It may have ended by itself since it answered.
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// How the waiting for a task's end went.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The shim told.
    Told(Exit),
    /// The shim is dead; its command may know, from what the shim wrote down.
    ShimDead(Option<Exit>),
}

/// Waits for the task's end, through lost connections, until the shim tells or is known to be dead. A dead shim's
/// processes are killed: nobody would keep their exit.
///
/// A connection made anew takes the place of the lost one in `current`, where all other callers of the shim find it.
///
/// # Errors
/// When the shim is dead and its processes could not be ended.
pub async fn wait(
    ports: &Ports,
    ending: Ending<'_>,
    current: &ArcSwapOption<Shim>,
) -> Result<End, TaskError> {
    let mut shim = ending.shim.clone();
    let mut left = RECONNECTS;
    while let Some(connected) = shim {
        let since = Instant::now();
        match connected.wait("").await {
            Ok(exit) => return Ok(End::Told(exit)),
            Err(error) => {
                tracing::warn!(task = ending.id, error = %crate::report::chain(&error), "waiting for the end");
            }
        }
        left = if since.elapsed() > STEADY { RECONNECTS } else { left };
        if left == 0 {
            break;
        }
        left -= 1;
        let again = ports.launcher.connect(ending.id, connected.endpoint(), ending.bundle).await;
        shim = again.ok().map(Arc::new);
        if shim.is_some() {
            // Not when the task has been ended meanwhile, or somebody else has put a newer one there.
            current.compare_and_swap(&Some(connected), shim.clone());
        }
    }
    Ok(End::ShimDead(force(ports, &ending).await?))
}
