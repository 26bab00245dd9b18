//! Whole pods: a sandbox with its containers, where the kubelet stops and removes both in one call.

mod nri;

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::container::{ContainerError, Containers};
use crate::index::LookupError;
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
}

/// The pods of the node.
#[derive(Clone)]
pub struct Pods {
    pub sandboxes: Arc<Sandboxes>,
    pub containers: Arc<Containers>,
}

impl Pods {
    /// Stops the pod's containers, all at once and without grace (the kubelet gave it before), then its sandbox.
    /// Idempotent.
    ///
    /// # Errors
    /// The first that could not be stopped; the others were.
    pub async fn stop(&self, sandbox: &Arc<Sandbox>) -> Result<(), PodError> {
        // No container begins in it from here on.
        self.sandboxes.mark_ended(sandbox).await.map_err(Arc::new)?;
        let containers = self.containers.of_sandbox(sandbox.id());
        let stops = containers.iter().map(|container| async {
            let stopped = self.containers.stop(container, Duration::ZERO).await;
            stopped.map_err(|source| PodError::Container { id: container.id().to_string(), source })
        });
        join_all(stops).await.into_iter().collect::<Result<(), _>>()?;
        Ok(self.sandboxes.stop(sandbox).await?)
    }

    /// Stops the pod if need be, and removes its containers and its sandbox. Idempotent.
    ///
    /// # Errors
    /// The first that could not be removed; the next call tries again.
    pub async fn remove(&self, sandbox: &Arc<Sandbox>) -> Result<(), PodError> {
        // No container begins in it from here on.
        self.sandboxes.mark_ended(sandbox).await.map_err(Arc::new)?;
        let containers = self.containers.of_sandbox(sandbox.id());
        let removals = containers.iter().map(|container| async {
            let removed = self.containers.remove(container).await;
            removed.map_err(|source| PodError::Container { id: container.id().to_string(), source })
        });
        join_all(removals).await.into_iter().collect::<Result<(), _>>()?;
        Ok(self.sandboxes.remove(sandbox).await?)
    }
}
