//! Ending a task.
//!
//! Invariant: when [`end`] succeeds, no process of the task runs, its cgroups are gone, and its shim has ended or
//! has been told to. Absent is done, so it can be repeated.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use super::{Ending, NAMESPACE, TaskError};
use crate::ports::Ports;
use crate::runtime::{Exit, HeldProcess, Launcher, RuntimeError, Shim, ShimKind};

/// How long a shim may take for what one that is well does at once.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);
/// The same for one that did not answer lately.
pub(super) const LITTLE_PATIENCE: Duration = Duration::from_millis(500);
/// How long a killed process may take to be gone, before its shim is no longer relied on.
const KILLED: Duration = Duration::from_secs(5);
/// How long our own shim may take to forget an ended task: it has little to do for that.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// Kills the task if it runs, and lets its shim go.
///
/// # Errors
/// When processes or cgroups are left.
pub async fn end(ports: &Ports, ending: Ending<'_>) -> Result<(), TaskError> {
    let asked = match &ending.shim {
        Some(shim) if !shim.is_gone() => ask(shim).await,
        _ => Err(RuntimeError::ConnectionLost { call: "Kill" }),
    };
    // Without a trace of a shim nothing was ever started, or all of it has ended: nothing to force.
    if let Err(error) = asked
        && Launcher::tried(ending.bundle)
    {
        let error = crate::report::chain(&error);
        if ending.shim.as_ref().is_some_and(|shim| !shim.is_gone()) {
            tracing::warn!(task = ending.id, error, "its shim gives no help: the task is ended without it");
        } else {
            tracing::debug!(task = ending.id, error, "its shim is gone");
        }
        force(ports, &ending).await?;
    }
    failpoint!("task.end.shim_gone");
    ports.cgroups.remove(ending.cgroups_path).await?;
    failpoint!("task.end.cgroups_removed");
    if !ending.shared {
        if let Some(shim) = &ending.shim {
            shim.hang_up();
        }
        // One that was killed left it.
        Launcher::remove_socket(ending.bundle)?;
        failpoint!("task.end.socket_removed");
    }
    // A repetition finds that nothing is left to do, without asking a shim that is gone.
    Launcher::forget(ending.bundle)?;
    failpoint!("task.end.forgotten");
    Ok(())
}

/// Kills through the shim, waits for the end, and has the shim forget the task and go.
async fn ask(shim: &Shim) -> Result<(), RuntimeError> {
    let patience = if shim.is_silent() { LITTLE_PATIENCE } else { PATIENCE };
    match shim.kill_within("", libc::SIGKILL.unsigned_abs(), true, patience).await {
        Ok(()) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => return Err(error),
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
async fn release(shim: &Shim) -> Result<(), RuntimeError> {
    let longest = shim.deadlines().delete;
    let deadline = if shim.endpoint().kind == ShimKind::Own { FORGOTTEN.min(longest) } else { longest };
    match shim.delete_within("", deadline).await {
        Ok(_) | Err(RuntimeError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    failpoint!("task.release.deleted");
    shim.shutdown_within(PATIENCE).await
}

/// Ends a task whose shim does not: kills the cgroup, then the shim, then lets the shim's own command clean up.
pub(super) async fn force(ports: &Ports, ending: &Ending<'_>) -> Result<Option<Exit>, TaskError> {
    ports.cgroups.kill_all(ending.cgroups_path).await?;
    failpoint!("task.force.killed");
    if !ending.shared {
        kill_shim(ending).await;
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

/// Kills a shim that may hang, by the descriptor that its process is held by.
async fn kill_shim(ending: &Ending<'_>) {
    let known = ending.shim.as_ref().and_then(|shim| shim.process().cloned());
    let process = match known.or_else(|| Launcher::process(ending.bundle, ending.id).map(Arc::new)) {
        Some(process) => process,
        // A foreign one that did not introduce itself at its start may do so now.
        None => match &ending.shim {
            Some(shim) if !shim.is_closed() => {
                let told = tokio::time::timeout(PATIENCE, shim.shim_pid()).await;
                let held = told.ok().and_then(Result::ok).and_then(HeldProcess::open);
                let Some(process) = held else { return };
                Arc::new(process)
            }
            _ => return,
        },
    };
    if !process.kill(PATIENCE).await {
        tracing::warn!(task = ending.id, shim = ?process.name(), "the killed shim is still there");
    }
}
