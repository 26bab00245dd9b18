//! Containers: one task of one pod each, from CreateContainer to RemoveContainer.
//!
//! [`Containers`] owns every [`Container`]; a container's changes are stored before they are seen. The task itself is
//! prepared in the background once the container is created, so that its start has little left to do: see `prepare`.

mod checkpoint;
mod create;
mod error;
mod exec;
mod log;
mod nri;
mod prepare;
pub mod record;
mod recover;
mod remove;
mod restore;
mod selinux;
mod start;
mod stop;
mod supervise;
mod update;

use cofferdam_failpoints::failpoint;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use cofferdam_proto::cri;
use tokio::sync::{Mutex, watch};

pub use error::{ContainerError, Fault};
pub use exec::{AttachTarget, ExecTarget};
pub use record::{ContainerRecord, ContainerState, Exit, ExitCause};

use crate::event::Phase;
use crate::index::{Index, LookupError};
use crate::model::{ContainerId, SandboxId};
use crate::operation::{Operations, UnderWay};
use crate::ports::Ports;
use crate::runtime::{Handler, Launcher, Shim, ShimKind};
use crate::sandbox::Sandboxes;
use crate::store::{StoreError, Table, copy};
use crate::task;

/// How long a preparation goes on that nobody wants any more.
const UNWANTED: Duration = Duration::from_secs(2);

/// A result that several callers wait for.
pub type Shared<T> = Result<T, Arc<ContainerError>>;

/// One container.
pub struct Container {
    /// As it was made; its `state` is the first one.
    made: ContainerRecord,
    state: watch::Sender<ContainerState>,
    /// Held while a change is stored; nothing else waits for it.
    change: Mutex<()>,
    resources: ArcSwapOption<cri::LinuxContainerResources>,
    /// Held while its spec is changed, and while its task is made from it.
    spec: Mutex<()>,
    /// Held while a checkpoint is made.
    checkpoint: Mutex<()>,
    shim: ArcSwapOption<Shim>,
    /// An earlier daemon began its task, and how far that went is not known: it is found out, or all of it ended, before
    /// anything is done with it.
    is_half_made: AtomicBool,
    /// Where the cgroup is, if an NRI plugin moved it while the container was created.
    moved_cgroup: OnceLock<String>,
}

impl Container {
    fn new(record: ContainerRecord) -> Arc<Self> {
        let (state, _) = watch::channel(record.state.clone());
        Arc::new(Self {
            resources: ArcSwapOption::from_pointee(record.resources.clone()),
            made: record,
            state,
            change: Mutex::new(()),
            spec: Mutex::new(()),
            checkpoint: Mutex::new(()),
            shim: ArcSwapOption::empty(),
            is_half_made: AtomicBool::new(false),
            moved_cgroup: OnceLock::new(),
        })
    }

    /// Its shim, while there is one.
    #[must_use]
    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.shim.load_full()
    }

    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.made.id
    }

    #[must_use]
    pub fn sandbox(&self) -> &SandboxId {
        &self.made.sandbox
    }

    #[must_use]
    pub fn config(&self) -> &cri::ContainerConfig {
        &self.made.config
    }

    /// The record as it was made; for the state see [`Self::state`].
    #[must_use]
    pub fn made(&self) -> &ContainerRecord {
        &self.made
    }

    /// Where its cgroup is, as the OCI specification names it.
    #[must_use]
    pub fn cgroups_path(&self) -> &str {
        self.moved_cgroup.get().unwrap_or(&self.made.cgroups_path)
    }

    /// Settles another place for the cgroup, before there is one; stored with the next change.
    fn move_cgroup(&self, path: String) {
        // A creation settles it once.
        let _ = self.moved_cgroup.set(path);
    }

    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// What its spec puts into force now; what was asked for where that is not known, as of records of before.
    #[must_use]
    pub fn resources(&self) -> Option<cri::LinuxContainerResources> {
        let asked = || self.made.config.linux.as_ref()?.resources.clone();
        self.resources.load().as_deref().cloned().or_else(asked)
    }

    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(*self.state.borrow(), ContainerState::Running { .. })
    }

    /// The first process of a running container.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match *self.state.borrow() {
            ContainerState::Running { pid, .. } => Some(pid),
            ContainerState::Creating
            | ContainerState::Created
            | ContainerState::Exited { .. }
            | ContainerState::Removing { .. } => None,
        }
    }

    /// Waits until it does not run, whatever comes then.
    pub async fn ended(&self) {
        let mut state = self.state.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = state.wait_for(|s| !matches!(s, ContainerState::Running { .. })).await;
    }

    /// Shows that its removal has begun. An exit stays the record: nothing would be known better after a crash.
    async fn begin_removal(&self, ports: &Ports) -> Result<(), StoreError> {
        let exited = |s: &ContainerState| matches!(s, ContainerState::Exited { .. });
        if !exited(&self.state()) {
            return self.change(ports, |s| Ok(s.removing())).await;
        }
        let _one_at_a_time = self.change.lock().await;
        self.state.send_modify(|state| *state = state.removing());
        Ok(())
    }

    /// Stores the state that `next` makes of the present one, then shows it.
    async fn change<E: From<StoreError>>(
        &self,
        ports: &Ports,
        next: impl FnOnce(&ContainerState) -> Result<ContainerState, E>,
    ) -> Result<(), E> {
        let _one_at_a_time = self.change.lock().await;
        let state = next(&self.state())?;
        if state != *self.state.borrow() {
            let record = self.record(state.clone(), self.resources());
            self.keep(ports, &record).await?;
            failpoint!("container.change.stored", infallible);
            self.state.send_replace(state);
            self.tell(ports, self.phase());
            failpoint!("container.change.told", infallible);
        }
        Ok(())
    }

    /// Stores the record, and a copy in the bundle.
    async fn keep(&self, ports: &Ports, record: &ContainerRecord) -> Result<(), StoreError> {
        ports.store.put(Table::Containers, self.made.id.as_str(), record).await?;
        if let Err(error) = copy::write(&ports.places.container(&self.made.id), &ports.boot, record) {
            tracing::debug!(container = %self.made.id, %error, "no copy of the record in the bundle");
        }
        Ok(())
    }

    /// The whole of what is stored, with these of the parts that change.
    fn record(
        &self,
        state: ContainerState,
        resources: Option<cri::LinuxContainerResources>,
    ) -> ContainerRecord {
        let cgroups_path = self.cgroups_path().to_owned();
        ContainerRecord { state, resources, cgroups_path, ..self.made.clone() }
    }

    /// The step of its life that readers of events know it by.
    fn phase(&self) -> Option<Phase> {
        match *self.state.borrow() {
            ContainerState::Created => Some(Phase::Created),
            ContainerState::Running { .. } => Some(Phase::Started),
            ContainerState::Exited { .. } => Some(Phase::Stopped),
            ContainerState::Creating | ContainerState::Removing { .. } => None,
        }
    }

    /// Whether the daemon is connected to its shim.
    #[must_use]
    pub fn has_shim(&self) -> bool {
        self.shim.load().as_ref().is_some_and(|shim| !shim.is_closed())
    }

    fn tell(&self, ports: &Ports, phase: Option<Phase>) {
        if let Some(phase) = phase {
            ports.events.reached(self.made.id.as_str(), &self.made.sandbox, phase);
        }
    }
}

/// All containers of the node.
pub struct Containers {
    ports: Arc<Ports>,
    sandboxes: Arc<Sandboxes>,
    all: Index<Container>,
    creates: Operations<Shared<ContainerId>>,
    preparations: Operations<Shared<Arc<Shim>>>,
    starts: Operations<Shared<()>>,
    stops: Operations<Shared<()>>,
    removals: Operations<Shared<()>>,
    updates: Operations<Shared<()>>,
    checkpoints: Operations<Shared<()>>,
    reopens: Operations<Shared<()>>,
    /// Numbers the reopenings of logs.
    reopened: AtomicU64,
}

impl Containers {
    /// No containers yet; see [`Self::recover`].
    #[must_use]
    pub fn new(ports: Arc<Ports>, sandboxes: Arc<Sandboxes>) -> Arc<Self> {
        let tracker = || ports.tracker.clone();
        Arc::new(Self {
            all: Index::new("container"),
            creates: Operations::new("CreateContainer", tracker()),
            preparations: Operations::new("prepare container", tracker()),
            starts: Operations::new("StartContainer", tracker()),
            stops: Operations::new("StopContainer", tracker()),
            removals: Operations::new("RemoveContainer", tracker()),
            updates: Operations::new("UpdateContainerResources", tracker()),
            checkpoints: Operations::new("CheckpointContainer", tracker()),
            reopens: Operations::new("ReopenContainerLog", tracker()),
            reopened: AtomicU64::new(0),
            ports: Arc::clone(&ports),
            sandboxes,
        })
    }

    /// All containers, those being made or removed among them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Container>> {
        self.all.all()
    }

    /// Those of one pod.
    #[must_use]
    pub fn of_sandbox(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        self.all().into_iter().filter(|c| c.sandbox() == sandbox).collect()
    }

    /// The container with this id, or whose id alone begins so.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        self.all.find(id)
    }

    /// What is being done to containers now.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        let mut rows = [self.creates.under_way(), self.preparations.under_way()].concat();
        rows.extend(self.others().iter().flat_map(|kind| kind.under_way()));
        rows
    }

    /// What has just been found to be over its stage's deadline.
    #[must_use]
    pub fn newly_overdue(&self) -> Vec<UnderWay> {
        let mut rows = [self.creates.newly_overdue(), self.preparations.newly_overdue()].concat();
        rows.extend(self.others().iter().flat_map(|kind| kind.newly_overdue()));
        rows
    }

    /// The kinds of operations that answer nothing but how they went.
    fn others(&self) -> [&Operations<Shared<()>>; 6] {
        [&self.starts, &self.stops, &self.removals, &self.updates, &self.checkpoints, &self.reopens]
    }

    /// The handler of a container: its pod's.
    fn handler(&self, container: &Container) -> Result<&Handler, ContainerError> {
        let sandbox = self.sandboxes.find(container.sandbox().as_str())?;
        Ok(self.ports.handlers.handler(&sandbox.made().handler)?)
    }

    /// Whether the container's shim may serve others of its pod as well; ours does so for machines alone.
    fn shares_shim(&self, container: &Container) -> bool {
        let alone = |handler: &Handler| handler.kind == ShimKind::Own && handler.isolation.is_empty();
        self.handler(container).is_ok_and(|handler| !alone(handler))
    }

    /// Waits until no preparation of the container is under way: it would make a task afterwards.
    /// One whose shim takes long for a task that nobody wants any more is ended.
    async fn forestall(&self, container: &Container) {
        let id = container.id().as_str();
        if tokio::time::timeout(UNWANTED, self.preparations.ended(id)).await.is_ok() {
            return;
        }
        let shim = Launcher::process(&self.ports.places.container(container.id()), id);
        if let Some(shim) = shim.filter(|_| !self.shares_shim(container)) {
            tracing::warn!(
                container = id,
                "its shim is still making a task that nobody wants any more: it is ended"
            );
            shim.kill(UNWANTED).await;
        }
        self.preparations.ended(id).await;
    }

    /// Ends what is left of the task of a container that has ended.
    ///
    /// # Errors
    /// When something stays.
    pub async fn end_leftover(&self, container: &Container) -> Result<(), ContainerError> {
        self.end_task(container).await
    }

    /// Ends the container's task and its shim, whatever state they are in.
    async fn end_task(&self, container: &Container) -> Result<(), ContainerError> {
        self.end_task_of(container, container.shim.load_full()).await
    }

    async fn end_task_of(
        &self,
        container: &Container,
        shim: Option<Arc<Shim>>,
    ) -> Result<(), ContainerError> {
        let bundle = self.ports.places.container(container.id());
        let ending = task::Ending {
            id: container.id().as_str(),
            bundle: &bundle,
            handler: self.handler(container).ok(),
            shim,
            cgroups_path: container.cgroups_path(),
            shared: self.shares_shim(container),
        };
        task::end(&self.ports, ending).await?;
        container.shim.store(None);
        Ok(())
    }
}
