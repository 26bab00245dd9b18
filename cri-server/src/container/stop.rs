//! StopContainer: asks with the stop signal, then forces with SIGKILL, then does without the shim's help.
//!
//! Nothing here takes a lock: stops of one container with different grace periods run beside each other, just send their
//! signals and wait for the same end; one with the same period joins. A caller that goes away does not end the escalation.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use super::start::START_ERROR;
use super::{Container, ContainerError, ContainerState, Containers, Exit, ExitCause, Shared};
use crate::operation::Stage;
use crate::ports::now;
use crate::runtime::{HeldProcess, RuntimeError};

/// How long one request to a shim may take before the next means is used.
const SIGNAL: Duration = Duration::from_secs(2);
/// The same for a shim that did not answer lately.
const SIGNAL_TO_SILENT: Duration = Duration::from_millis(500);
/// How long a container may take to be gone after SIGKILL before the next means is used.
const KILLED: Duration = Duration::from_secs(3);
/// How long an end without the shim's help may take to be settled and recorded: by then the processes are dead.
const SETTLED: Duration = Duration::from_secs(10);

impl Containers {
    /// Stops the container; one that does not run is stopped already. `grace` is the time between the stop signal and
    /// SIGKILL; none kills at once.
    ///
    /// # Errors
    /// When it still runs after every means.
    pub async fn stop(self: &Arc<Self>, container: &Arc<Container>, grace: Duration) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let begin = |stage: Stage| async move {
            containers.halt(&target, grace, &stage).await?;
            if !matches!(target.state(), ContainerState::Creating) {
                stage.set("telling NRI plugins");
                containers.plugins_stop(&target).await;
            }
            Ok(())
        };
        let joined = self.stops.join((container.id().as_str(), grace.as_secs().to_string()), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn halt(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Duration,
        stage: &Stage,
    ) -> Result<(), ContainerError> {
        match container.state() {
            ContainerState::Running { .. } => {}
            ContainerState::Created => {
                stage.set("taking back its preparation");
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
            stage.within("waiting for its end after the stop signal", grace + SIGNAL);
            let asking = async {
                self.signal(container, container.made.stop_signal, false).await;
                failpoint!("container.stop.signalled");
                std::future::pending::<Result<(), ContainerError>>().await
            };
            let ended = async {
                tokio::select! { failed = asking => failed, () = container.ended() => Ok(()) }
            };
            if let Ok(ended) = tokio::time::timeout(grace, ended).await {
                return ended;
            }
        }
        stage.within("waiting for its end after SIGKILL", SIGNAL + KILLED);
        let sent = self.signal(container, libc::SIGKILL, true).await;
        failpoint!("container.stop.killed");
        if sent && tokio::time::timeout(KILLED, container.ended()).await.is_ok() {
            return Ok(());
        }
        stage.set("ending it without its shim");
        self.end_without_shim(container).await
    }

    /// Kills the cgroup. The supervisor sees the first process end, gives a shim that hangs up, and records the exit.
    async fn end_without_shim(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), ContainerError> {
        let killed = self.ports.cgroups.kill_all(container.cgroups_path()).await;
        failpoint!("container.stop.forced");
        // What the kernel holds may wake at any time; its caller asks again.
        let patience = if killed.is_ok() { SETTLED } else { Duration::ZERO };
        if tokio::time::timeout(patience, container.ended()).await.is_ok() {
            return Ok(());
        }
        killed.map_err(|source| ContainerError::Survives { source })?;
        // Whatever the supervisor waits for, it is not the processes.
        self.end_task(container).await?;
        let waited = tokio::time::timeout(SETTLED, container.ended()).await;
        waited.map_err(|_| ContainerError::Unkillable { after: SETTLED })
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
        self.forestall(container).await;
        self.end_task(container).await
    }

    /// Sends a signal through the shim, or without it: whether it was sent.
    async fn signal(&self, container: &Container, signal: i32, all: bool) -> bool {
        let Some(shim) = container.shim.load_full() else { return self.signal_directly(container, signal) };
        let patience = if shim.is_silent() { SIGNAL_TO_SILENT } else { SIGNAL };
        match shim.kill_within("", signal.unsigned_abs(), all, patience).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => true,
            Err(error) => {
                let error = crate::report::chain(&error);
                tracing::warn!(container = %container.id(), signal, error, "the shim did not pass the signal on");
                self.signal_directly(container, signal)
            }
        }
    }

    /// Sends a signal to the container's first process, if that is where it should be. SIGKILL is for the cgroup.
    fn signal_directly(&self, container: &Container, signal: i32) -> bool {
        if signal == libc::SIGKILL {
            return false;
        }
        let Some(process) = self.first_process(container) else { return false };
        let sent = process.signal_number(signal);
        failpoint!("container.stop.signalled_directly", infallible);
        sent.is_ok()
    }

    /// The first process of a running container whose processes are the host's.
    pub(super) fn first_process(&self, container: &Container) -> Option<HeldProcess> {
        let process = HeldProcess::open(container.pid()?)?;
        // Its number may be another's by now.
        self.ports.cgroups.hold(container.cgroups_path(), process.name().pid).then_some(process)
    }
}
