//! StopContainer: asks with the stop signal, then forces with SIGKILL, then does without the shim's help.
//!
//! Nothing here takes a lock: several stops of one container, also with different grace periods, just send their
//! signals and wait for the same end. A caller that goes away does not end the escalation.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use super::start::START_ERROR;
use super::{Container, ContainerError, ContainerState, Containers, Exit, ExitCause, Shared};
use crate::ports::now;
use crate::runtime::RuntimeError;

/// How long one request to a shim may take before the next means is used.
const SIGNAL: Duration = Duration::from_secs(2);
/// How long a killed container may take to be gone before the next means is used.
const KILLED: Duration = Duration::from_secs(10);

impl Containers {
    /// Stops the container; one that does not run is stopped already. `grace` is the time between the stop signal and
    /// SIGKILL; none kills at once.
    ///
    /// # Errors
    /// When it still runs after every means.
    pub async fn stop(self: &Arc<Self>, container: &Arc<Container>, grace: Duration) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let task = self.ports.tracker.spawn(async move {
            containers.halt(&target, grace).await?;
            if !matches!(target.state(), ContainerState::Creating) {
                containers.plugins_stop(&target).await;
            }
            Ok(())
        });
        match task.await {
            Ok(result) => result.map_err(Arc::new),
            Err(error) => Err(Arc::new(error.into())),
        }
    }

    async fn halt(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
    ) -> Result<(), ContainerError> {
        match container.state() {
            ContainerState::Running { .. } => {}
            ContainerState::Created => {
                self.cancel(container).await?;
                // Its start may have been quicker; then it is stopped like any other.
                if !container.is_running() {
                    return Ok(());
                }
            }
            ContainerState::Creating | ContainerState::Exited { .. } | ContainerState::Removing { .. } => {
                return Ok(());
            }
        }
        if !grace.is_zero() {
            self.signal(container, container.made.stop_signal, false).await;
            failpoint!("container.stop.signalled");
            if tokio::time::timeout(grace, container.ended()).await.is_ok() {
                return Ok(());
            }
        }
        self.signal(container, libc::SIGKILL, true).await;
        failpoint!("container.stop.killed");
        if tokio::time::timeout(KILLED, container.ended()).await.is_ok() {
            return Ok(());
        }
        tracing::warn!(container = %container.id(), "still runs after SIGKILL through its shim; ending it without");
        self.ports.cgroups.kill_all(container.cgroups_path()).await?;
        failpoint!("container.stop.forced");
        if tokio::time::timeout(SIGNAL, container.ended()).await.is_err() {
            self.end_task(container).await?;
            // The shim is gone now, and the container's supervisor records the exit.
            let waited = tokio::time::timeout(KILLED, container.ended()).await;
            waited.map_err(|_| ContainerError::Unkillable { after: KILLED })?;
        }
        Ok(())
    }

    /// A container that was never started will never run.
    async fn cancel(&self, container: &Arc<Container>) -> Result<(), ContainerError> {
        let exit = Exit {
            code: START_ERROR,
            finished_at: now(),
            cause: ExitCause::StartError,
            message: "stopped before its start".to_owned(),
        };
        let cancelled = |s: &ContainerState| {
            Ok::<_, ContainerError>(match s {
                ContainerState::Created => s.exited(exit),
                ContainerState::Creating
                | ContainerState::Running { .. }
                | ContainerState::Exited { .. }
                | ContainerState::Removing { .. } => s.clone(),
            })
        };
        container.change(&self.ports, cancelled).await?;
        failpoint!("container.cancel.recorded");
        if container.is_running() {
            return Ok(());
        }
        // A preparation under way ends first: it would make a task after this.
        self.preparations.ended(container.id().as_str()).await;
        self.end_task(container).await
    }

    /// Sends a signal through the shim; what keeps it from arriving is for the escalation to overcome.
    async fn signal(&self, container: &Container, signal: i32, all: bool) {
        let Some(shim) = container.shim.load_full() else { return };
        let sent = tokio::time::timeout(SIGNAL, shim.kill("", signal.unsigned_abs(), all)).await;
        let error = match sent {
            Ok(Ok(()) | Err(RuntimeError::NotFound { .. })) => return,
            Ok(Err(error)) => crate::report::chain(&error),
            Err(_) => format!("no answer within {SIGNAL:?}"),
        };
        tracing::warn!(container = %container.id(), signal, error, "the shim did not pass the signal on");
    }
}
