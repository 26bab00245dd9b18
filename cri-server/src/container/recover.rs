//! After the daemon's start: finds the containers again that the last one left, and their exits.
//!
//! Invariant: as with sandboxes, nothing here waits for a shim that hangs or a process that must be ended; that goes on in
//! the background. After a reboot no shim is asked, and what ran has ended.

use cofferdam_failpoints::failpoint;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;

use super::{Container, ContainerError, ContainerRecord, ContainerState, Containers, Exit, ExitCause};
use crate::event::Phase;
use crate::model::ContainerId;
use crate::ports::now;
use crate::runtime::{Launcher, RuntimeError, Shim, TaskState, TaskStatus};
use crate::store::{Table, copy};
use crate::task::{self, End, Left};

/// How many containers are settled at the same time: each may run a shim's command.
const AT_ONCE: usize = 8;
/// How long the daemon's start waits for a shim that should tell how far a container is.
const TELLS: Duration = Duration::from_millis(500);
/// How long one may take that holds up nothing but its own container.
const TELLS_AT_LAST: Duration = Duration::from_secs(10);

impl Containers {
    /// Loads the records, and finds containers whose records are lost; the sandboxes' must be there. Running containers are
    /// watched again, the exits of others are taken from their shims, half-made ones go away.
    ///
    /// # Errors
    /// When the records cannot be read.
    pub async fn recover(self: &Arc<Self>) -> Result<(), ContainerError> {
        let paused = Arc::new(self.interrupted_checkpoints());
        self.sweep_checkpoints();
        failpoint!("container.recover.begun", infallible);
        let mut records: Vec<ContainerRecord> = Vec::new();
        for (_, record) in self.ports.store.load::<ContainerRecord>(Table::Containers)? {
            records.push(record);
        }
        records.extend(self.found_in_bundles(&records).await);
        let recoveries = records.into_iter().map(|record| {
            let container = Container::new(record);
            self.all.insert(container.id().as_str(), Arc::clone(&container));
            self.recall(&container);
            self.ports.snapshots.stand(container.id(), &container.made().layers);
            self.recover_one(container, Arc::clone(&paused))
        });
        let unsettled: Vec<_> = join_all(recoveries).await.into_iter().flatten().collect();
        let stopping = self.ports.stopping.clone();
        let jobs = unsettled.into_iter().map(|(container, why)| {
            let containers = Arc::clone(self);
            async move { containers.settle(container, why).await }
        });
        let settling = futures::stream::iter(jobs.collect::<Vec<_>>()).buffer_unordered(AT_ONCE);
        self.ports.tracker.spawn(async move {
            // What is not settled when the daemon ends is found again by the next one.
            let _ = stopping.run_until_cancelled(settling.for_each(async |()| ())).await;
        });
        self.sweep_restores();
        Ok(())
    }

    /// The containers there are, for what sweeps the remains of all others.
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

    /// The records of containers that the store does not know, as their bundles hold them; stored again. One whose pod is
    /// lost is nobody's.
    async fn found_in_bundles(&self, known: &[ContainerRecord]) -> Vec<ContainerRecord> {
        let ports = &self.ports;
        let unreadable = ports.store.unreadable();
        let newer = unreadable.iter().filter(|u| u.is_newer).map(|u| u.key.as_str());
        let known: HashSet<&str> = known.iter().map(|r| r.id.as_str()).chain(newer).collect();
        let mut found = Vec::new();
        for name in ports.places.container_names() {
            let Ok(id) = ContainerId::parse(&name) else { continue };
            if known.contains(name.as_str()) {
                continue;
            }
            let Some(copy) = copy::read::<ContainerRecord>(&ports.places.container(&id)) else { continue };
            let mut record = copy.record;
            if record.id != id || self.sandboxes.find(record.sandbox.as_str()).is_err() {
                continue;
            }
            if copy.boot != ports.boot && matches!(record.state, ContainerState::Running { .. }) {
                record.state = record.state.exited(lost_exit("the node was restarted"));
            }
            ports.notices.add(format!("the record of container {id} was lost; found again in its bundle"));
            if let Err(error) = ports.store.put(Table::Containers, id.as_str(), &record).await {
                tracing::warn!(container = %id, error = %crate::report::chain(&error), "record");
            }
            found.push(record);
        }
        found
    }

    /// Answers the container when something is left to do about it, and what became of its shim.
    async fn recover_one(
        self: &Arc<Self>,
        container: Arc<Container>,
        paused: Arc<HashSet<String>>,
    ) -> Option<(Arc<Container>, String)> {
        let mut why = "the container's shim died while the daemon was away".to_owned();
        let bundle = self.ports.places.container(container.id());
        if self.ports.past.rebooted {
            // Whatever it says of a shim is of before.
            if let Err(error) = Launcher::forget(&bundle) {
                tracing::warn!(container = %container.id(), error = %crate::report::chain(&error), "bundle");
            }
        } else if let Some(endpoint) = Launcher::recorded(&bundle) {
            match self.ports.launcher.connect(container.id().as_str(), &endpoint, &bundle).await {
                Ok(shim) => container.shim.store(Some(Arc::new(shim))),
                Err(error) if Launcher::process(&bundle, container.id().as_str()).is_some() => {
                    why = format!(
                        "the container's shim could not be reached after a restart of the daemon, and was ended with it: {}",
                        crate::report::chain(&error)
                    );
                }
                Err(_) => {}
            }
        }
        failpoint!("container.recover.connected", infallible);
        let settled = match (container.state(), container.shim.load_full()) {
            (ContainerState::Running { .. }, Some(shim)) => {
                if paused.contains(container.id().as_str()) {
                    let (container, shim) = (Arc::clone(&container), Arc::clone(&shim));
                    self.ports.tracker.spawn(async move {
                        Self::resume_if_paused(&container, &shim).await;
                    });
                }
                self.supervise(&container, shim);
                true
            }
            (ContainerState::Running { .. }, None) if self.ports.past.rebooted => {
                let exit = lost_exit("the node was restarted");
                let exited = |s: &ContainerState| Ok::<_, ContainerError>(s.exited(exit));
                container.change(&self.ports, exited).await.is_ok()
            }
            (ContainerState::Created, Some(shim)) => {
                let told = shim.state_within("", TELLS).await;
                self.recover_created(&container, shim, told).await
            }
            (ContainerState::Created | ContainerState::Exited { .. }, _) => !Launcher::tried(&bundle),
            (
                ContainerState::Running { .. } | ContainerState::Creating | ContainerState::Removing { .. },
                _,
            ) => false,
        };
        // A start that comes as soon as the daemon serves must not take it as it is.
        let is_half_made = !settled && container.state() == ContainerState::Created;
        container.is_half_made.store(is_half_made, Ordering::Release);
        failpoint!("container.recover.done", infallible);
        (!settled).then_some((container, why))
    }

    /// Between the task's start and its record the daemon may have died: the shim knows.
    async fn recover_created(
        self: &Arc<Self>,
        container: &Arc<Container>,
        shim: Arc<Shim>,
        told: Result<TaskState, RuntimeError>,
    ) -> bool {
        match told {
            Ok(task) if matches!(task.status, TaskStatus::Created) => true,
            Ok(task) if matches!(task.status, TaskStatus::Running | TaskStatus::Stopped) => {
                let started = |s: &ContainerState| Ok::<_, ContainerError>(s.started(task.pid, now())?);
                let changed = container.change(&self.ports, started).await;
                failpoint!("container.recover.start_recorded", infallible);
                if changed.is_ok() {
                    self.supervise(container, shim);
                }
                changed.is_ok()
            }
            // Half made: the start makes it anew.
            Ok(_) | Err(_) => false,
        }
    }

    async fn settle(self: &Arc<Self>, container: Arc<Container>, why: String) {
        let done = match container.state() {
            ContainerState::Running { .. } => self.settle_running(&container, why).await.map_err(Arc::new),
            ContainerState::Created => self.settle_created(&container).await,
            ContainerState::Creating => self.unmake(&container).await,
            ContainerState::Removing { .. } => self.remove(&container).await,
            ContainerState::Exited { .. } => self.end_task(&container).await.map_err(Arc::new),
        };
        if let Err(error) = done {
            tracing::warn!(container = %container.id(), error = %crate::report::chain(&*error), "recovery; the sweep tries again");
        }
    }

    /// Its shim is gone, or out of reach: what it wrote down is the exit.
    async fn settle_running(
        self: &Arc<Self>,
        container: &Arc<Container>,
        why: String,
    ) -> Result<(), ContainerError> {
        let exit = match self.exit_left(container).await {
            Some(left) => {
                Exit { message: why, ..self.exit_of(container, End::ShimDead(left), left.oom_killed) }
            }
            None => lost_exit(&why),
        };
        let exited = |s: &ContainerState| Ok::<_, ContainerError>(s.exited(exit.clone()));
        while let Err(error) = container.change(&self.ports, exited).await {
            self.not_yet(container, &error).await;
        }
        failpoint!("container.recover.exit_recorded");
        self.end_task(container).await
    }

    /// Finds out in good time how far its task is, for a start that may come meanwhile.
    async fn settle_created(self: &Arc<Self>, container: &Arc<Container>) -> super::Shared<()> {
        self.prepared(container).await.map(drop)
    }

    /// Its shim is gone, or did not tell at once: one that tells now is believed, and otherwise whatever was begun goes.
    pub(super) async fn find_half_made(
        self: &Arc<Self>,
        container: &Arc<Container>,
    ) -> Result<(), ContainerError> {
        if let Some(shim) = container.shim.load_full() {
            let told = shim.state_within("", TELLS_AT_LAST).await;
            if self.recover_created(container, shim, told).await {
                return Ok(());
            }
        }
        self.end_task(container).await
    }

    /// The exit that a dead shim wrote down, as its own command tells it.
    async fn exit_left(&self, container: &Container) -> Option<Left> {
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
        Some(Left { exit: Some(exit), oom_killed })
    }
}

/// An exit of which nothing is known but that it was.
fn lost_exit(message: &str) -> Exit {
    Exit {
        code: super::supervise::UNKNOWN_CODE,
        finished_at: now(),
        cause: ExitCause::Unknown,
        message: message.to_owned(),
    }
}
