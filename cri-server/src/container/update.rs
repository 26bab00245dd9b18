//! UpdateContainerResources: the limits of a container that was not started yet or runs.
//!
//! Invariant: the spec, the record and the cgroup say the same. The spec is changed first, as it is what a task that is
//! still to be made begins with; when the cgroup refuses, it is put back.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use cofferdam_proto::cri;
use oci_spec::runtime::{LinuxResources, Process, Spec};

use super::{Container, ContainerError, ContainerState, Containers, Shared};
use crate::operation::Stage;
use crate::ports::Ports;
use crate::runtime::RuntimeError;
use crate::spec::resources;

impl Containers {
    /// Changes what the request names, and leaves the rest as it is. A caller that goes away does not end it half-way.
    ///
    /// # Errors
    /// When the container has ended, or the request cannot be put into force; then nothing is changed.
    pub async fn update(
        self: &Arc<Self>,
        container: &Arc<Container>,
        request: cri::LinuxContainerResources,
        annotations: HashMap<String, String>,
    ) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let mut told: Vec<_> = annotations.iter().collect();
        told.sort_unstable();
        let key = (container.id().as_str(), format!("{request:?} {told:?}"));
        let begin = |stage: Stage| async move {
            stage.set("asking NRI plugins");
            let request = containers.plugins_update(&target, request).await?;
            stage.set("putting it into force");
            containers.change_resources(&target, &request, annotations).await?;
            stage.set("telling NRI plugins");
            containers.plugins_updated(&target).await;
            Ok(())
        };
        let joined = self.updates.join(key, begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    /// [`Self::update`] without a word to plugins, for what plugins themselves ask for.
    pub(super) async fn change_resources(
        &self,
        container: &Container,
        request: &cri::LinuxContainerResources,
        annotations: HashMap<String, String>,
    ) -> Result<(), ContainerError> {
        let _one_at_a_time = container.spec.lock().await;
        match container.state() {
            ContainerState::Created | ContainerState::Running { .. } => {}
            state @ (ContainerState::Creating
            | ContainerState::Exited { .. }
            | ContainerState::Removing { .. }) => {
                return Err(ContainerError::NotUpdatable { state: state.name() });
            }
        }
        let file = self.ports.places.container(container.id()).join("config.json");
        let before = Spec::load(&file).map_err(ContainerError::SpecFile)?;
        let after = self.changed(container, &before, request)?;
        save(&after, &file)?;
        failpoint!("container.update.spec_replaced", infallible);
        let mut done = self.put_into_force(container, &before, &after, annotations).await;
        failpoint!("container.update.in_force", infallible);
        if done.is_ok() {
            done = container.record_resources(&self.ports, resources::in_effect(&after)).await;
            if done.is_err()
                && let Err(left) = self.put_into_force(container, &after, &before, HashMap::new()).await
            {
                tracing::warn!(container = %container.id(), error = %crate::report::chain(&left), "undo");
            }
        }
        if done.is_err() {
            save(&before, &file)?;
        }
        done
    }

    /// The spec after the change: the one place where what is asked for becomes what is put into force.
    fn changed(
        &self,
        container: &Container,
        before: &Spec,
        request: &cri::LinuxContainerResources,
    ) -> Result<Spec, ContainerError> {
        let features = &self.ports.features_of(self.handler(container)?);
        let mut after = before.clone();
        if let Some(linux) = after.linux_mut() {
            let old = linux.resources().clone().unwrap_or_default();
            linux.set_resources(Some(resources::updated(&old, request, features)?));
        }
        if let (Some(process), true) = (after.process_mut(), request.oom_score_adj != 0) {
            process.set_oom_score_adj(Some(resources::oom_score_adj(request.oom_score_adj, features)?));
        }
        Ok(after)
    }

    /// Gives the container's task the limits of `after`. One that has no task yet will be made with them.
    async fn put_into_force(
        &self,
        container: &Container,
        before: &Spec,
        after: &Spec,
        annotations: HashMap<String, String>,
    ) -> Result<(), ContainerError> {
        let Some(shim) = container.shim.load_full() else {
            return match container.state() {
                ContainerState::Running { .. } => {
                    Err(ContainerError::Update(RuntimeError::ConnectionLost { call: "Update" }))
                }
                _ => Ok(()),
            };
        };
        let none = LinuxResources::default();
        let limits = after.linux().as_ref().and_then(|linux| linux.resources().as_ref()).unwrap_or(&none);
        if let Err(error) = shim.update(limits, annotations).await {
            return Err(match container.state() {
                state @ ContainerState::Exited { .. } => ContainerError::NotUpdatable { state: state.name() },
                _ => ContainerError::Update(error),
            });
        }
        let score = |spec: &Spec| spec.process().as_ref().and_then(Process::oom_score_adj).unwrap_or(0);
        if score(before) != score(after) {
            let path = container.cgroups_path();
            self.ports.cgroups.change_oom_score(path, score(before), score(after)).await?;
        }
        Ok(())
    }
}

impl Container {
    /// Stores the resources, then shows them.
    async fn record_resources(
        &self,
        ports: &Ports,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), ContainerError> {
        let _one_at_a_time = self.change.lock().await;
        let record = self.record(self.state(), Some(resources.clone()));
        self.keep(ports, &record).await?;
        failpoint!("container.update.recorded", infallible);
        self.resources.store(Some(Arc::new(resources)));
        Ok(())
    }
}

/// A reader meets the old spec or the new one, never a half.
fn save(spec: &Spec, file: &Path) -> Result<(), ContainerError> {
    let fresh = file.with_extension("json.new");
    spec.save(&fresh).map_err(ContainerError::SpecFile)?;
    failpoint!("container.update.spec_written");
    std::fs::rename(&fresh, file).map_err(|source| ContainerError::File {
        operation: "replace",
        path: file.to_owned(),
        source,
    })
}
