//! Pod sandboxes: a pause process with the pod's namespaces, a network and the files its containers share.
//!
//! [`Sandboxes`] owns every [`Sandbox`]; a sandbox's changes are stored before they are seen. Reads take no lock that
//! is held while anything waits.

mod error;
pub(crate) mod files;
mod nri;
pub mod record;
mod recover;
mod remove;
mod run;
pub(crate) mod selinux;
mod stop;
mod supervise;
mod update;

use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use cofferdam_proto::cri;
use tokio::sync::{Mutex, watch};

pub use error::SandboxError;
pub use files::SandboxFiles;
pub use record::{PodResources, SandboxRecord, SandboxState, SandboxStatus};

use crate::cgroup::Form;
use crate::event::Phase;
use crate::index::{Index, LookupError};
use crate::lsm::selinux::{Held, Levels};
use crate::model::SandboxId;
use crate::network::PodAttachment;
use crate::operation::{Operations, UnderWay};
use crate::ports::Ports;
use crate::runtime::{Shim, ShimKind};
use crate::spec::{SandboxNamespaces, SpecError, UserNamespace, resources};
use crate::store::{StoreError, Table, copy};

/// A result that several callers wait for.
pub type Shared<T> = Result<T, Arc<SandboxError>>;

/// One pod sandbox.
pub struct Sandbox {
    /// As it was made; its `status` is the first one.
    made: SandboxRecord,
    status: watch::Sender<SandboxStatus>,
    /// Held while a change is stored; nothing else waits for it.
    change: Mutex<()>,
    /// Held while the pause container's spec is changed.
    spec: Mutex<()>,
    shim: ArcSwapOption<Shim>,
    /// Its SELinux level, which nobody else is given.
    level: Option<Held>,
}

impl Sandbox {
    fn new(record: SandboxRecord, level: Option<Held>) -> Arc<Self> {
        let (status, _) = watch::channel(record.status.clone());
        Arc::new(Self {
            made: record,
            status,
            change: Mutex::new(()),
            spec: Mutex::new(()),
            shim: ArcSwapOption::empty(),
            level,
        })
    }

    #[must_use]
    pub fn id(&self) -> &SandboxId {
        &self.made.id
    }

    #[must_use]
    pub fn config(&self) -> &cri::PodSandboxConfig {
        &self.made.config
    }

    #[must_use]
    pub fn selinux_level(&self) -> Option<&str> {
        self.level.as_ref().map(Held::level)
    }

    /// The record as it was made; for the status see [`Self::status`].
    #[must_use]
    pub fn made(&self) -> &SandboxRecord {
        &self.made
    }

    #[must_use]
    pub fn status(&self) -> SandboxStatus {
        self.status.borrow().clone()
    }

    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self.status.borrow().state, SandboxState::Ready { .. })
    }

    /// The size of the pod, as the kubelet has told it last.
    #[must_use]
    pub fn resources(&self) -> PodResources {
        let linux = self.made.config.linux.as_ref();
        self.status.borrow().resized.clone().unwrap_or_else(|| PodResources {
            resources: linux.and_then(|linux| linux.resources.clone()),
            overhead: linux.and_then(|linux| linux.overhead.clone()),
        })
    }

    /// The pause process of a ready sandbox.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match self.status.borrow().state {
            SandboxState::Ready { pid } => Some(pid),
            SandboxState::Creating | SandboxState::NotReady | SandboxState::Removing => None,
        }
    }

    /// Waits until it is not ready, whatever comes then.
    pub async fn ended(&self) {
        let mut status = self.status.subscribe();
        // The sender lives in `self`: it cannot be gone.
        let _ = status.wait_for(|s| !matches!(s.state, SandboxState::Ready { .. })).await;
    }

    /// Whether the pod has an ipc namespace, and with it shared memory, of its own.
    #[must_use]
    pub fn own_ipc(&self) -> bool {
        let security = self.made.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let options = security.and_then(|s| s.namespace_options.as_ref());
        options.is_none_or(|o| o.ipc() != cri::NamespaceMode::Node)
    }

    /// The pod's own users, if it has any.
    ///
    /// # Errors
    /// When the request's are none; a sandbox of such a request is never made.
    pub fn users(&self) -> Result<Option<UserNamespace>, SpecError> {
        let security = self.made.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        security.and_then(|s| s.namespace_options.as_ref()).map_or(Ok(None), UserNamespace::of)
    }

    /// Where the pause container's cgroup is, as its spec names it.
    ///
    /// # Errors
    /// When the kubelet's parent is none.
    pub fn cgroups_path(&self, ports: &Ports) -> Result<String, SpecError> {
        // Records of before have it not.
        self.made.cgroups_path.clone().map_or_else(|| self.path_below(ports, self.id().as_str()), Ok)
    }

    /// Where the cgroup of a container of this pod is, as its spec names it.
    ///
    /// # Errors
    /// When the kubelet's parent is none.
    pub fn path_below(&self, ports: &Ports, container: &str) -> Result<String, SpecError> {
        let parent = self.made.config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
        let kind = ports.handlers.handler(&self.made.handler).map_or(ShimKind::Own, |handler| handler.kind);
        let form = if kind == ShimKind::Own { Form::Folder } else { Form::Unit };
        resources::cgroups_path(&ports.features, form, parent, self.id().as_str(), container)
    }

    /// Where containers of a ready sandbox join its namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Option<SandboxNamespaces> {
        self.pid().map(SandboxNamespaces::of_process)
    }

    /// The metadata of the kubelet's request; empty where it gave none.
    #[must_use]
    pub fn metadata(&self) -> cri::PodSandboxMetadata {
        self.made.config.metadata.clone().unwrap_or_default()
    }

    /// Stores the status that `next` makes of the present one, then shows it.
    async fn change<E: From<StoreError>>(
        &self,
        ports: &Ports,
        next: impl FnOnce(&SandboxStatus) -> Result<SandboxStatus, E>,
    ) -> Result<(), E> {
        let _one_at_a_time = self.change.lock().await;
        let status = next(&self.status())?;
        if status != *self.status.borrow() {
            let record = SandboxRecord { status: status.clone(), ..self.made.clone() };
            ports.store.put(Table::Sandboxes, self.made.id.as_str(), &record).await?;
            if let Err(error) = copy::write(&ports.places.sandbox(&self.made.id), &ports.boot, &record) {
                tracing::debug!(sandbox = %self.made.id, %error, "no copy of the record in the bundle");
            }
            self.status.send_replace(status);
            self.tell(ports, self.phase());
        }
        Ok(())
    }

    /// The step of its life that readers of events know it by.
    fn phase(&self) -> Option<Phase> {
        match self.status.borrow().state {
            SandboxState::Ready { .. } => Some(Phase::Started),
            SandboxState::NotReady => Some(Phase::Stopped),
            SandboxState::Creating | SandboxState::Removing => None,
        }
    }

    /// Its shim, where the daemon is connected to it.
    #[must_use]
    pub fn shim(&self) -> Option<Arc<Shim>> {
        self.shim.load_full().filter(|shim| !shim.is_closed())
    }

    /// Whether the daemon is connected to its shim.
    #[must_use]
    pub fn has_shim(&self) -> bool {
        self.shim.load().as_ref().is_some_and(|shim| !shim.is_closed())
    }

    fn tell(&self, ports: &Ports, phase: Option<Phase>) {
        if let Some(phase) = phase {
            ports.events.reached(self.made.id.as_str(), &self.made.id, phase);
        }
    }

    fn attachment(&self, ports: &Ports) -> PodAttachment {
        let metadata = self.metadata();
        let mut pod = PodAttachment::new(self.made.id.clone(), run::netns_path(ports, &self.made.id));
        pod.name = metadata.name;
        pod.namespace = metadata.namespace;
        pod.uid = metadata.uid;
        pod
    }
}

/// All sandboxes of the node.
pub struct Sandboxes {
    ports: Arc<Ports>,
    all: Index<Sandbox>,
    levels: Levels,
    runs: Operations<Shared<SandboxId>>,
    stops: Operations<Shared<()>>,
    removals: Operations<Shared<()>>,
    updates: Operations<Shared<()>>,
}

impl Sandboxes {
    /// No sandboxes yet; see [`Self::recover`].
    #[must_use]
    pub fn new(ports: Arc<Ports>) -> Arc<Self> {
        let tracker = || ports.tracker.clone();
        Arc::new(Self {
            all: Index::new("pod sandbox"),
            levels: Levels::default(),
            runs: Operations::new("RunPodSandbox", tracker()),
            stops: Operations::new("stop sandbox", tracker()),
            removals: Operations::new("remove sandbox", tracker()),
            updates: Operations::new("UpdatePodSandboxResources", tracker()),
            ports: Arc::clone(&ports),
        })
    }

    /// What sandboxes are made with.
    #[must_use]
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// All sandboxes, those being made or removed among them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Sandbox>> {
        self.all.all()
    }

    /// The sandbox with this id, or whose id alone begins so.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn find(&self, id: &str) -> Result<Arc<Sandbox>, LookupError> {
        self.all.find(id)
    }

    /// The pod's own network namespace; none for one that lives in the node's.
    #[must_use]
    pub fn network_namespace(&self, sandbox: &Sandbox) -> Option<PathBuf> {
        sandbox.made.own_network.then(|| run::netns_path(&self.ports, sandbox.id()))
    }

    /// The pod's folder, its shim's bundle.
    #[must_use]
    pub fn folder(&self, sandbox: &Sandbox) -> PathBuf {
        self.ports.places.sandbox(sandbox.id())
    }

    /// What is being done to sandboxes now.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        let others = [&self.stops, &self.removals, &self.updates];
        [self.runs.under_way(), others.iter().flat_map(|kind| kind.under_way()).collect()].concat()
    }

    /// What has just been found to be over its stage's deadline.
    #[must_use]
    pub fn newly_overdue(&self) -> Vec<UnderWay> {
        let others = [&self.stops, &self.removals, &self.updates];
        [self.runs.newly_overdue(), others.iter().flat_map(|kind| kind.newly_overdue()).collect()].concat()
    }
}
