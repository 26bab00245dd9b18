//! After the daemon's start: finds the containers again that the last one left, and their exits.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use super::{Container, ContainerError, ContainerRecord, ContainerState, Containers, Exit, ExitCause};
use crate::event::Phase;
use crate::model::ContainerId;
use crate::ports::now;
use crate::runtime::{Launcher, TaskStatus};
use crate::store::Table;
use crate::task::{self, End, Left};

/// How long the daemon's start waits for a shim that should tell how far a container is.
const TELLS: Duration = Duration::from_millis(500);

impl Containers {
    /// Loads the records; the sandboxes' must be there. Running containers are watched again, the exits of others
    /// are taken from their shims, half-made ones go away.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), ContainerError> {
        self.sweep_checkpoints();
        failpoint!("container.recover.begun", infallible);
        let records = self.ports.store.load::<ContainerRecord>(Table::Containers)?;
        let recoveries = records.into_iter().map(|(_, record)| {
            let container = Container::new(record);
            self.all.insert(container.id().as_str(), Arc::clone(&container));
            self.recall(&container);
            self.recover_one(container)
        });
        join_all(recoveries).await;
        self.sweep_restores();
        Ok(())
    }

    /// The containers there are, for what sweeps the writable layers of all others.
    #[must_use]
    pub fn ids(&self) -> Vec<ContainerId> {
        self.all().iter().map(|c| c.id().clone()).collect()
    }

    /// What was told of it before the restart is not told again.
    fn recall(&self, container: &Container) {
        let phase = match container.state().told() {
            ContainerState::Creating | ContainerState::Removing { .. } => return,
            ContainerState::Created => Phase::Created,
            ContainerState::Running { .. } => Phase::Started,
            ContainerState::Exited { .. } => Phase::Stopped,
        };
        self.ports.events.recovered(container.id().as_str(), phase);
    }

    async fn recover_one(self: &Arc<Self>, container: Arc<Container>) {
        let bundle = self.ports.places.container(container.id());
        if let Some(endpoint) = Launcher::recorded(&bundle) {
            let shim = self.ports.launcher.connect(container.id().as_str(), &endpoint, &bundle).await;
            container.shim.store(shim.ok().map(Arc::new));
        }
        failpoint!("container.recover.connected", infallible);
        let done = match container.state() {
            ContainerState::Running { .. } => self.recover_running(&container).await,
            ContainerState::Created => self.recover_created(&container).await,
            ContainerState::Creating | ContainerState::Removing { .. } => self
                .remove(&container)
                .await
                .map_err(|error| ContainerError::Shared(crate::report::chain(&*error))),
            ContainerState::Exited { .. } => self.end_task(&container).await,
        };
        failpoint!("container.recover.done", infallible);
        if let Err(error) = done {
            tracing::warn!(container = %container.id(), error = %crate::report::chain(&error), "recovery");
        }
    }

    async fn recover_running(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), ContainerError> {
        if let Some(shim) = container.shim.load_full() {
            let (target, asked) = (Arc::clone(container), Arc::clone(&shim));
            // In the background, as a shim that hangs answers nothing.
            self.ports.tracker.spawn(async move { Self::resume_if_paused(&target, &asked).await });
            self.supervise(container, shim);
            return Ok(());
        }
        let exit = match self.exit_left(container).await {
            Some(end) => self.exit_of(container, end),
            None => Exit {
                code: super::supervise::UNKNOWN_CODE,
                finished_at: now(),
                cause: ExitCause::Unknown,
                message: "the node restarted or the container's shim died while the daemon was away"
                    .to_owned(),
            },
        };
        container.change(&self.ports, |s| Ok::<_, ContainerError>(s.exited(exit))).await?;
        failpoint!("container.recover.exit_recorded");
        self.end_task(container).await
    }

    /// The exit that a dead shim wrote down, as its own command tells it.
    async fn exit_left(&self, container: &Container) -> Option<End> {
        let bundle = self.ports.places.container(container.id());
        Launcher::recorded(&bundle)?;
        let handler = self.handler(container).ok()?;
        if let Err(error) = self.ports.cgroups.kill_all(container.cgroups_path()).await {
            tracing::warn!(container = %container.id(), error = %crate::report::chain(&error), "kill");
        }
        let id = container.id().as_str();
        // The shim's command takes the cgroup away, and with it the count.
        let oom_killed = self.ports.cgroups.oom_kill_count(container.cgroups_path()).unwrap_or(0) > 0;
        let exit = self.ports.launcher.delete(handler, id, task::NAMESPACE, &bundle).await.ok()?;
        Some(End::ShimDead(Left { exit: Some(exit), oom_killed }))
    }

    /// Between the task's start and its record the daemon may have died: the shim knows.
    async fn recover_created(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), ContainerError> {
        // Without a shim that answers, whatever a start had begun goes: the next one makes it anew.
        let Some(shim) = container.shim.load_full() else { return self.end_task(container).await };
        match shim.state_within("", TELLS).await {
            Ok(task) if matches!(task.status, TaskStatus::Created) => Ok(()),
            Ok(task) if matches!(task.status, TaskStatus::Running | TaskStatus::Stopped) => {
                let started = |s: &ContainerState| Ok::<_, ContainerError>(s.started(task.pid, now())?);
                container.change(&self.ports, started).await?;
                failpoint!("container.recover.start_recorded");
                self.supervise(container, shim);
                Ok(())
            }
            // Half made: the start makes it anew.
            Ok(_) | Err(_) => self.end_task(container).await,
        }
    }
}
