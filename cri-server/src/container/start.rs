//! StartContainer: lets the prepared process run.
//!
//! A container that cannot be started has exited: code 128, reason StartError, and the runtime's words as message.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use super::{Container, ContainerError, ContainerState, Containers, Exit, ExitCause, Shared, restore};
use crate::operation::Stage;
use crate::ports::now;
use crate::runtime::Shim;

/// What users of containerd know for a container that could not be started.
pub(super) const START_ERROR: i32 = 128;

impl Containers {
    /// Starts a created container, or joins its start.
    ///
    /// # Errors
    /// When it is in another state, or the runtime refuses; then it has exited.
    pub async fn start(self: &Arc<Self>, container: &Arc<Container>) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let begin = |stage| async move { containers.begin(&target, &stage).await.map_err(Arc::new) };
        let joined = self.starts.join(container.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn begin(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stage: &Stage,
    ) -> Result<(), ContainerError> {
        // Refuses early, with the state's own words.
        container.state().started(0, 0)?;
        let sandbox = self.sandboxes.find(container.sandbox().as_str())?;
        if !sandbox.is_ready() {
            let state = sandbox.status().state.name();
            return Err(ContainerError::SandboxNotReady { id: sandbox.id().to_string(), state });
        }
        stage.within("waiting for the task", self.making());
        match self.run_task(container, stage).await {
            Ok((shim, pid)) => {
                stage.set("recording");
                let started = |s: &ContainerState| Ok::<_, ContainerError>(s.started(pid, now())?);
                if let Err(error) = container.change(&self.ports, started).await {
                    // It was removed or its record cannot be kept: it must not run unseen.
                    self.end_task(container).await?;
                    return Err(error);
                }
                failpoint!("container.start.recorded", infallible);
                // As it is now: it may have ended by the time that a plugin reads it.
                let news = self.start_for_plugins(container).await;
                self.supervise(container, shim);
                stage.set("telling NRI plugins");
                self.plugins_started(news).await;
                failpoint!("container.start.plugins_told", infallible);
                Ok(())
            }
            Err(error) => {
                // That it runs since an earlier daemon started it may have been found out meanwhile.
                let state = container.state();
                if matches!(state, ContainerState::Running { .. }) {
                    state.started(0, 0)?;
                }
                stage.set("ending what was made");
                let message = crate::report::chain(&*error);
                self.never_ran(container, &message).await?;
                Err(ContainerError::Start { message, fault: error.fault() })
            }
        }
    }

    async fn run_task(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stage: &Stage,
    ) -> Shared<(Arc<Shim>, u32)> {
        if self.ports.snapshots.is_spoiled(container.id()) {
            return Err(Arc::new(ContainerError::Spoiled));
        }
        let shim = self.prepared(container).await?;
        container.state().started(0, 0).map_err(|e| Arc::new(e.into()))?;
        failpoint!("container.start.prepared", infallible);
        stage.set("asking NRI plugins");
        self.plugins_start(container).await.map_err(Arc::new)?;
        let ordinary = self.ports.launcher.deadlines().heavy;
        let limit = if container.made().restored { restore::LIMIT } else { ordinary };
        stage.within("starting the process", limit);
        let pid = match container.made().restored {
            true => shim.start_restored(restore::LIMIT).await,
            false => shim.start("").await,
        };
        let pid = pid.map_err(|e| Arc::new(e.into()))?;
        failpoint!("container.start.started", infallible);
        self.forget_restore(container).await;
        Ok((shim, pid))
    }

    async fn never_ran(&self, container: &Arc<Container>, message: &str) -> Result<(), ContainerError> {
        let exit = Exit {
            code: START_ERROR,
            finished_at: now(),
            cause: ExitCause::StartError,
            message: message.to_owned(),
        };
        container.change(&self.ports, |s| Ok::<_, ContainerError>(s.exited(exit))).await?;
        failpoint!("container.start.failure_recorded");
        self.plugins_stop(container).await;
        self.end_task(container).await
    }
}
