//! Whole pods: a sandbox with its containers, where the kubelet stops and removes both in one call.

mod nri;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::container::{ContainerError, Containers};
use crate::index::LookupError;
use crate::operation::{Lost, Operations, Stage, UnderWay};
use crate::sandbox::{Sandbox, SandboxError, Sandboxes};

/// Why a pod could not be stopped or removed.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("container {id} of the pod")]
    Container { id: String, source: Arc<ContainerError> },
    #[error("pod sandbox")]
    Sandbox(#[from] Arc<SandboxError>),
    #[error(transparent)]
    Lost(#[from] Lost),
}

/// A result that several callers wait for.
pub type Shared = Result<(), Arc<PodError>>;

/// How long the ends of a pod's containers may take: without grace, but by every means.
const ENDS: Duration = Duration::from_secs(30);

/// The pods of the node.
#[derive(Clone)]
pub struct Pods {
    pub sandboxes: Arc<Sandboxes>,
    pub containers: Arc<Containers>,
    stops: Arc<Operations<Shared>>,
    removals: Arc<Operations<Shared>>,
}

impl Pods {
    /// The pods that these make up.
    #[must_use]
    pub fn new(sandboxes: Arc<Sandboxes>, containers: Arc<Containers>) -> Self {
        let tracker = || sandboxes.ports().tracker.clone();
        Self {
            stops: Arc::new(Operations::new("StopPodSandbox", tracker())),
            removals: Arc::new(Operations::new("RemovePodSandbox", tracker())),
            sandboxes,
            containers,
        }
    }

    /// Stops the pod's containers, all at once and without grace (the kubelet gave it before), then its sandbox, or joins
    /// the stop that is under way. Idempotent.
    ///
    /// # Errors
    /// The first that could not be stopped; the others were.
    pub async fn stop(&self, sandbox: &Arc<Sandbox>) -> Shared {
        let (pods, target) = (self.clone(), Arc::clone(sandbox));
        let begin = |stage| async move { pods.halt(&target, &stage).await.map_err(Arc::new) };
        let joined = self.stops.join(sandbox.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn halt(&self, sandbox: &Arc<Sandbox>, stage: &Stage) -> Result<(), PodError> {
        stage.set("recording");
        // No container begins in it from here on.
        self.sandboxes.mark_ended(sandbox).await.map_err(Arc::new)?;
        stage.within("ending its containers", ENDS);
        let containers = self.containers.of_sandbox(sandbox.id());
        let stops = containers.iter().map(|container| async {
            let stopped = self.containers.stop(container, Duration::ZERO).await;
            stopped.map_err(|source| PodError::Container { id: container.id().to_string(), source })
        });
        join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
        stage.within("stopping the sandbox", self.sandboxes.teardown_limit());
        Ok(self.sandboxes.stop(sandbox).await?)
    }

    /// Stops the pod if need be, and removes its containers and its sandbox, or joins the removal that is under way.
    /// Idempotent.
    ///
    /// # Errors
    /// The first that could not be removed; the next call tries again.
    pub async fn remove(&self, sandbox: &Arc<Sandbox>) -> Shared {
        let (pods, target) = (self.clone(), Arc::clone(sandbox));
        let begin = |stage| async move { pods.take_away(&target, &stage).await.map_err(Arc::new) };
        let joined = self.removals.join(sandbox.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn take_away(&self, sandbox: &Arc<Sandbox>, stage: &Stage) -> Result<(), PodError> {
        stage.set("recording");
        // No container begins in it from here on.
        self.sandboxes.mark_ended(sandbox).await.map_err(Arc::new)?;
        stage.within("removing its containers", ENDS);
        let containers = self.containers.of_sandbox(sandbox.id());
        let removals = containers.iter().map(|container| async {
            let removed = self.containers.remove(container).await;
            removed.map_err(|source| PodError::Container { id: container.id().to_string(), source })
        });
        join_all(removals).await.into_iter().collect::<Result<(), _>>()?;
        stage.within("removing the sandbox", self.sandboxes.teardown_limit());
        Ok(self.sandboxes.remove(sandbox).await?)
    }

    /// All that is being done to pods and containers now.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        let own = [self.stops.under_way(), self.removals.under_way()].concat();
        [own, self.sandboxes.under_way(), self.containers.under_way()].concat()
    }

    /// What of it has just been found to be over its stage's deadline.
    #[must_use]
    pub fn newly_overdue(&self) -> Vec<UnderWay> {
        let own = [self.stops.newly_overdue(), self.removals.newly_overdue()].concat();
        [own, self.sandboxes.newly_overdue(), self.containers.newly_overdue()].concat()
    }
}
