//! Watches a running container, and records its exit as soon as it is known.
//!
//! Invariant: whether the kernel's OOM killer struck is read from the cgroup, or asked of the shim where the node has none,
//! before the exit is seen by anyone, and the shim is let go only after the exit is on disk.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Container, ContainerError, ContainerState, Containers, Exit, ExitCause};
use crate::ports::now;
use crate::runtime::{Launcher, Shim};
use crate::stats::told;
use crate::task::{self, End};

/// Between attempts to settle an exit.
const RETRY: Duration = Duration::from_secs(1);
/// How long a shim may take to tell whether the OOM killer struck.
const COUNTED: Duration = Duration::from_secs(2);
/// The exit code of a container whose own one nobody knows.
pub(super) const UNKNOWN_CODE: i32 = 255;

impl Containers {
    /// Watches until the container has ended; the daemon's end ends the task.
    pub(super) fn supervise(self: &Arc<Self>, container: &Arc<Container>, shim: Arc<Shim>) {
        let (containers, container) = (Arc::clone(self), Arc::clone(container));
        self.ports.tracker.spawn(async move {
            let stopping = containers.ports.stopping.clone();
            let watched = stopping.run_until_cancelled(containers.see_off(&container, shim)).await;
            if let Some(Err(error)) = watched {
                tracing::error!(container = %container.id(), error = %crate::report::chain(&error), "exit");
            }
        });
    }

    async fn see_off(
        self: &Arc<Self>,
        container: &Arc<Container>,
        shim: Arc<Shim>,
    ) -> Result<(), ContainerError> {
        let bundle = self.ports.places.container(container.id());
        let ending = task::Ending {
            id: container.id().as_str(),
            bundle: &bundle,
            handler: self.handler(container).ok(),
            shim: Some(shim),
            cgroups_path: container.cgroups_path(),
            shared: self.shares_shim(container),
        };
        let first = self.first_process(container);
        let end = loop {
            match task::wait(&self.ports, ending.clone(), &container.shim, first.as_ref()).await {
                Ok(end) => break end,
                Err(error) => self.not_yet(container, &error).await,
            }
        };
        let oom_killed = self.oom_killed(container, end).await;
        let exit = self.exit_of(container, end, oom_killed);
        failpoint!("container.exit.seen", infallible);
        let exited = |s: &ContainerState| Ok::<_, ContainerError>(s.exited(exit.clone()));
        while let Err(error) = container.change(&self.ports, exited).await {
            self.not_yet(container, &error).await;
        }
        failpoint!("container.exit.recorded", infallible);
        // What is let go here is let go again by the container's removal, if this fails.
        let ended = self.end_task(container).await;
        failpoint!("container.exit.released", infallible);
        self.plugins_stop(container).await;
        ended
    }

    /// An exit is never given up: a full disk gets room, and a process that cannot be killed wakes at last.
    pub(super) async fn not_yet(&self, container: &Container, error: &(dyn std::error::Error + Sync)) {
        let error = crate::report::chain(error);
        tracing::warn!(container = %container.id(), error, "the exit cannot be settled yet; trying again");
        tokio::time::sleep(RETRY).await;
    }

    /// Whether the kernel's OOM killer struck. One whose processes were in no cgroup of the node has a shim that
    /// counts them.
    async fn oom_killed(&self, container: &Container, end: End) -> bool {
        let exit = match end {
            End::Told(exit) => exit,
            End::ShimDead(left) | End::ShimSilent(left) => return left.oom_killed,
        };
        match self.ports.cgroups.oom_kill_count(container.cgroups_path()) {
            Some(kills) if kills > 0 => return true,
            // An empty cgroup of that name counts nothing; nobody is killed with a code of 0.
            Some(_) if !self.shares_shim(container) => return false,
            Some(_) | None if exit.status == 0 => return false,
            Some(_) | None => {}
        }
        let Some(shim) = container.shim.load_full().filter(|shim| !shim.is_gone()) else { return false };
        let answer = shim.usage_within(COUNTED).await.ok().flatten();
        answer.as_ref().and_then(told).is_some_and(|told| told.oom_killed())
    }

    pub(super) fn exit_of(&self, container: &Container, end: End, oom_killed: bool) -> Exit {
        let (exit, message) = match end {
            End::Told(exit) => {
                let why = Launcher::why(&self.ports.places.container(container.id()));
                (Some(exit), why.unwrap_or_default())
            }
            End::ShimDead(left) => (left.exit, "the container's shim died".to_owned()),
            End::ShimSilent(left) => {
                let message = "the container's shim did not answer any more and was ended";
                (left.exit, message.to_owned())
            }
        };
        let finished_at = exit.and_then(|e| e.exited_at).map_or_else(now, nanoseconds);
        match exit {
            Some(exit) => {
                let code = i32::try_from(exit.status).unwrap_or(UNKNOWN_CODE);
                Exit { code, finished_at, cause: ExitCause::of(code, oom_killed), message }
            }
            None => Exit { code: UNKNOWN_CODE, finished_at, cause: ExitCause::Unknown, message },
        }
    }
}

fn nanoseconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
