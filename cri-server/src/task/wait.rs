//! Waiting for a task's end.
//!
//! The shim tells it. But the daemon looks after both processes itself as well, the container's first one and the shim, so
//! that the end is known in any case: from a shim that has died, and from one that says nothing.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use super::end::{LITTLE_PATIENCE, PATIENCE, force};
use super::{Ending, TaskError};
use crate::ports::Ports;
use crate::runtime::{Exit, HeldProcess, RuntimeError, Shim};

/// How often a lost connection is made anew before the shim counts as lost.
const RECONNECTS: u32 = 3;
/// Before the second attempt, and once more before each further one.
const BETWEEN: Duration = Duration::from_millis(50);
/// A connection that held so long was a good one: its loss is not added to earlier ones.
const STEADY: Duration = Duration::from_secs(10);
/// How long the answer of a shim that has just died may be on its way.
const LAST_WORDS: Duration = Duration::from_millis(200);
/// How long a shim that answers may take to tell the end of a process that has ended: it writes the last output first.
const LAST_OUTPUT: Duration = Duration::from_secs(20);

/// How the waiting for a task's end went.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// The shim told.
    Told(Exit),
    /// The shim is dead.
    ShimDead(Left),
    /// The shim was there, but could not be asked any more; it has been ended.
    ShimSilent(Left),
}

/// What is known of an end that no shim told.
#[derive(Clone, Copy, Debug)]
pub struct Left {
    /// As the kernel or the shim's own command told it.
    pub exit: Option<Exit>,
    /// Read while the cgroup was there.
    pub oom_killed: bool,
}

enum News {
    Exit(Exit),
    /// The process has ended, and the shim does not say so.
    Silence,
    Lost(RuntimeError),
}

/// Waits for the task's end, through lost connections, until the shim tells or cannot be asked any more. The processes of
/// a task without a shim are killed: nobody would keep their exit. `first` is the container's first process.
///
/// A connection made anew takes the place of the lost one in `current`, where all other callers of the shim find it.
///
/// # Errors
/// When the shim is lost and its processes could not be ended.
pub async fn wait(
    ports: &Ports,
    ending: Ending<'_>,
    current: &ArcSwapOption<Shim>,
    first: Option<&HeldProcess>,
) -> Result<End, TaskError> {
    let mut shim = ending.shim.clone();
    let mut left = RECONNECTS;
    let mut dead = true;
    while let Some(connected) = shim {
        let since = Instant::now();
        match news(&connected, first).await {
            News::Exit(exit) => return Ok(End::Told(exit)),
            News::Silence => {
                tracing::warn!(task = ending.id, "its shim does not tell that the task has ended");
                dead = false;
                break;
            }
            News::Lost(error) => {
                tracing::warn!(task = ending.id, error = %crate::report::chain(&error), "waiting for the end");
            }
        }
        dead = connected.process().is_none_or(|process| process.has_ended());
        left = if since.elapsed() > STEADY { RECONNECTS } else { left };
        if left == 0 || connected.process().is_some() && dead {
            break;
        }
        left -= 1;
        let again = ports.launcher.connect(ending.id, connected.endpoint(), ending.bundle).await;
        shim = again.ok().map(Arc::new);
        if shim.is_some() {
            // Not when the task has been ended meanwhile, or somebody else has put a newer one there.
            current.compare_and_swap(&Some(connected), shim.clone());
            tokio::time::sleep(BETWEEN * (RECONNECTS - left)).await;
        }
    }
    // Both are gone once the shim is: its children's exits, and by its command's doing the cgroup.
    let seen = first.and_then(HeldProcess::exit);
    let oom_killed = ports.cgroups.oom_kill_count(ending.cgroups_path).unwrap_or(0) > 0;
    failpoint!("task.wait.exit_read");
    let told = force(ports, &ending).await?;
    failpoint!("task.wait.forced");
    let left = Left { exit: seen.or(told), oom_killed };
    Ok(if dead { End::ShimDead(left) } else { End::ShimSilent(left) })
}

/// What becomes known first.
async fn news(shim: &Shim, first: Option<&HeldProcess>) -> News {
    let told = |told: Result<Exit, RuntimeError>| told.map_or_else(News::Lost, News::Exit);
    let mut waiting = std::pin::pin!(shim.wait(""));
    tokio::select! {
        biased;
        exit = &mut waiting => return told(exit),
        () = end_of(shim.process().map(Arc::as_ref)) => {
            let last = tokio::time::timeout(LAST_WORDS, &mut waiting).await;
            return told(last.unwrap_or(Err(RuntimeError::ConnectionLost { call: "Wait" })));
        }
        () = end_of(first) => {}
    }
    let since = Instant::now();
    let patience = if shim.is_silent() { LITTLE_PATIENCE } else { PATIENCE };
    loop {
        if let Ok(exit) = tokio::time::timeout(patience, &mut waiting).await {
            return told(exit);
        }
        match shim.state_within("", patience).await {
            Ok(_) if since.elapsed() < LAST_OUTPUT => {}
            Ok(state) => return state.exit.map_or(News::Silence, News::Exit),
            Err(error @ RuntimeError::ConnectionLost { .. }) => return News::Lost(error),
            Err(_) => return News::Silence,
        }
    }
}

async fn end_of(process: Option<&HeldProcess>) {
    match process {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}
