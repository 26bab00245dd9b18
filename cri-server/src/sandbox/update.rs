//! UpdatePodSandboxResources: the kubelet has changed the size of a pod, and tells.
//!
//! The pod's own cgroup is the kubelet's, which has changed it already. Ours is to keep the sizes for whoever asks, to
//! bound the pause container by the new overhead, and to let the shim know, as one that runs a machine sizes it by them.

use cofferdam_failpoints::failpoint;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{LinuxResources, Spec};

use super::{PodResources, Sandbox, SandboxError, SandboxState, SandboxStatus, Sandboxes, Shared};
use crate::operation::Stage;
use crate::runtime::RuntimeError;
use crate::spec::{annotations, resources};

impl Sandboxes {
    /// Takes over the sizes that the request gives; one that it does not give stays.
    ///
    /// # Errors
    /// When the sandbox is not ready, the sizes contradict themselves, or the pause container cannot be bound by
    /// them; then nothing is changed.
    pub async fn update(self: &Arc<Self>, sandbox: &Arc<Sandbox>, size: PodResources) -> Shared<()> {
        let (sandboxes, target) = (Arc::clone(self), Arc::clone(sandbox));
        let key = (sandbox.id().as_str(), format!("{size:?}"));
        let begin = |stage| async move { sandboxes.resize(&target, size, &stage).await.map_err(Arc::new) };
        self.updates.join(key, begin).await.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn resize(
        &self,
        sandbox: &Sandbox,
        asked: PodResources,
        stage: &Stage,
    ) -> Result<(), SandboxError> {
        stage.set("waiting for another change of its size");
        let _one_at_a_time = sandbox.spec.lock().await;
        let state = sandbox.status().state;
        if !matches!(state, SandboxState::Ready { .. }) {
            return Err(SandboxError::NotUpdatable { state: state.name() });
        }
        let old = sandbox.resources();
        let size = PodResources {
            resources: asked.resources.or_else(|| old.resources.clone()),
            overhead: asked.overhead.or_else(|| old.overhead.clone()),
        };
        for one in size.resources.iter().chain(&size.overhead) {
            resources::build(one, None, &self.ports.features)?;
        }
        stage.set("asking NRI plugins");
        self.plugins_update(sandbox, &size).await?;
        stage.set("telling the shim");
        let file = self.ports.places.sandbox(sandbox.id()).join("config.json");
        let before = Spec::load(&file).map_err(SandboxError::SpecFile)?;
        let after = self.resized(&before, &size)?;
        let done = self.put_into_force(sandbox, &file, &after, &size).await;
        if let Err(error) = done {
            if let Err(left) = undo(sandbox, &file, &before, &old).await {
                tracing::warn!(sandbox = %sandbox.id(), error = %crate::report::chain(&left), "undo");
            }
            return Err(error);
        }
        self.plugins_updated(sandbox).await;
        Ok(())
    }

    async fn put_into_force(
        &self,
        sandbox: &Sandbox,
        file: &Path,
        after: &Spec,
        size: &PodResources,
    ) -> Result<(), SandboxError> {
        tell(sandbox, after, size).await?;
        failpoint!("sandbox.update.told");
        save(after, file)?;
        failpoint!("sandbox.update.spec_saved");
        let resized = |s: &SandboxStatus| {
            Ok::<_, SandboxError>(SandboxStatus { resized: Some(size.clone()), ..s.clone() })
        };
        sandbox.change(&self.ports, resized).await?;
        failpoint!("sandbox.update.recorded", infallible);
        Ok(())
    }

    /// The pause container's spec for a pod of this size.
    fn resized(&self, before: &Spec, size: &PodResources) -> Result<Spec, SandboxError> {
        let mut after = before.clone();
        if let (Some(linux), Some(overhead)) = (after.linux_mut(), &size.overhead) {
            let old = linux.resources().clone().unwrap_or_default();
            linux.set_resources(Some(resources::updated(&old, overhead, &self.ports.features)?));
        }
        let sizes = annotations::sizes(size.resources.as_ref());
        after.annotations_mut().get_or_insert_default().extend(sizes);
        Ok(after)
    }
}

/// Brings back the spec and the limits of before, whatever of the change was done.
async fn undo(sandbox: &Sandbox, file: &Path, before: &Spec, old: &PodResources) -> Result<(), SandboxError> {
    let saved = save(before, file);
    tell(sandbox, before, old).await.and(saved)
}

/// A reader meets the old spec or the new one, never a half.
fn save(spec: &Spec, file: &Path) -> Result<(), SandboxError> {
    let fresh = file.with_extension("json.new");
    spec.save(&fresh).map_err(SandboxError::SpecFile)?;
    std::fs::rename(&fresh, file).map_err(|source| SandboxError::File {
        operation: "replace",
        path: file.to_owned(),
        source,
    })
}

async fn tell(sandbox: &Sandbox, spec: &Spec, size: &PodResources) -> Result<(), SandboxError> {
    let Some(shim) = sandbox.shim.load_full() else {
        return Err(RuntimeError::ConnectionLost { call: "Update" }.into());
    };
    let none = LinuxResources::default();
    let limits = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
    Ok(shim.update(limits, annotations::sizes(size.resources.as_ref())).await?)
}
