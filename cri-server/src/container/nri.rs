//! What NRI plugins hear of a container and may change in it. Without plugins each of these is one look at a number.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_proto::{cri, nri};
use oci_spec::runtime::Spec;

use super::{Container, ContainerError, ContainerState, Containers};
use crate::cdi::{self, DeviceName};
use crate::nri::{NriError, OfOthers, adjust, convert, overlay};
use crate::ports::Ports;
use crate::sandbox::Sandbox;
use crate::spec::host::LinuxHost;

impl Container {
    /// The container in plugins' words.
    pub async fn for_plugins(&self, ports: &Ports) -> nri::Container {
        let spec = tokio::fs::read(ports.places.container(self.id()).join("config.json")).await;
        // The folder is gone after a reboot; then the rest has to do.
        let spec = spec.ok().and_then(|text| serde_json::from_slice::<Spec>(&text).ok());
        self.with_spec(spec.as_ref())
    }

    fn with_spec(&self, spec: Option<&Spec>) -> nri::Container {
        let (made, config) = (self.made(), self.config());
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let profile = security.and_then(|security| security.seccomp.as_ref());
        let mut container = nri::Container {
            id: made.id.to_string(),
            pod_sandbox_id: made.sandbox.to_string(),
            name: config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            linux: Some(nri::LinuxContainer {
                seccomp_profile: profile.map(convert::seccomp_profile),
                ..Default::default()
            }),
            pid: self.pid().unwrap_or_default(),
            created_at: made.created_at,
            cdi_devices: config
                .cdi_devices
                .iter()
                .map(|device| nri::CdiDevice { name: device.name.clone() })
                .collect(),
            image: Some(nri::Image {
                name: config.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
                digest: made
                    .image_ref
                    .split_once('@')
                    .map(|(_, digest)| digest.to_owned())
                    .unwrap_or_default(),
                config_digest: made.image_id.clone(),
            }),
            ..Default::default()
        };
        if let Some(spec) = spec {
            convert::with_spec(&mut container, spec);
        }
        with_state(&mut container, self.state());
        container
    }
}

fn with_state(container: &mut nri::Container, state: ContainerState) {
    let word = match state {
        ContainerState::Creating => nri::ContainerState::ContainerUnknown,
        ContainerState::Created => nri::ContainerState::ContainerCreated,
        ContainerState::Running { started_at, .. } => {
            container.started_at = started_at;
            nri::ContainerState::ContainerRunning
        }
        ContainerState::Exited { started_at, exit } => {
            container.started_at = started_at;
            container.finished_at = exit.finished_at;
            container.exit_code = exit.code;
            container.status_reason = exit.cause.reason().to_owned();
            container.status_message = exit.message;
            nri::ContainerState::ContainerStopped
        }
        ContainerState::Removing { .. } => nri::ContainerState::ContainerStopped,
    };
    container.state = word.into();
}

impl Containers {
    /// The container's pod; no more than its id where the pod is gone.
    async fn pod_for_plugins(&self, container: &Container) -> nri::PodSandbox {
        match self.sandboxes.find(container.sandbox().as_str()) {
            Ok(sandbox) => sandbox.for_plugins(&self.ports).await,
            Err(_) => nri::PodSandbox { id: container.sandbox().to_string(), ..Default::default() },
        }
    }

    /// Asks the plugins about the spec in the container's bundle and carries out what they want of it. To be called with
    /// the gate held. Answers what they want of others.
    pub(super) async fn plugins_create(
        &self,
        sandbox: &Sandbox,
        container: &Arc<Container>,
    ) -> Result<OfOthers, ContainerError> {
        if !self.ports.nri.is_active() {
            return Ok(OfOthers::default());
        }
        let pod = sandbox.for_plugins(&self.ports).await;
        let (wanted, others) =
            self.ports.nri.create_container(pod, container.for_plugins(&self.ports).await).await?;
        if wanted != nri::ContainerAdjustment::default() {
            self.adjust(sandbox, container, wanted).await?;
        }
        Ok(others)
    }

    async fn adjust(
        &self,
        sandbox: &Sandbox,
        container: &Arc<Container>,
        mut wanted: nri::ContainerAdjustment,
    ) -> Result<(), ContainerError> {
        let devices = std::mem::take(&mut wanted.cdi_devices);
        let devices = devices.iter().map(|device| DeviceName::parse(&device.name));
        let devices = devices.collect::<Result<Vec<_>, _>>()?;
        let (users, ports, container) = (sandbox.users()?, Arc::clone(&self.ports), Arc::clone(container));
        tokio::task::spawn_blocking(move || {
            let path = ports.places.container(container.id()).join("config.json");
            let mut spec = Spec::load(&path).map_err(ContainerError::SpecFile)?;
            let edits = cdi::resolve(&ports.cdi.spec_dirs, &devices)?;
            cdi::apply(&mut spec, &edits, &LinuxHost, users)?;
            let selinux = ports.spec_defaults.selinux;
            let node = adjust::Node { features: &ports.features, selinux, host: &LinuxHost };
            adjust::apply(&mut spec, &wanted, node).map_err(NriError::from)?;
            let cgroups_path = spec.linux().as_ref().and_then(|linux| linux.cgroups_path().as_ref());
            if let Some(path) = cgroups_path.map(|path| path.display().to_string()) {
                container.move_cgroup(path);
            }
            // Stored with the state that follows.
            container.resources.store(Some(Arc::new(crate::spec::resources::in_effect(&spec))));
            spec.save(&path).map_err(ContainerError::SpecFile)
        })
        .await?
    }

    pub(super) async fn plugins_created(&self, container: &Container) {
        if self.ports.nri.is_active() {
            let pod = self.pod_for_plugins(container).await;
            self.ports.nri.post_create_container(pod, container.for_plugins(&self.ports).await).await;
        }
    }

    /// The task waits for its start; a plugin may refuse it.
    pub(super) async fn plugins_start(&self, container: &Container) -> Result<(), ContainerError> {
        if self.ports.nri.is_active() {
            let pod = self.pod_for_plugins(container).await;
            self.ports.nri.start_container(pod, container.for_plugins(&self.ports).await).await?;
        }
        Ok(())
    }

    /// What plugins are told of a container that runs now.
    pub(super) async fn start_for_plugins(
        &self,
        container: &Container,
    ) -> Option<(nri::PodSandbox, nri::Container)> {
        if !self.ports.nri.is_active() {
            return None;
        }
        Some((self.pod_for_plugins(container).await, container.for_plugins(&self.ports).await))
    }

    pub(super) async fn plugins_started(&self, news: Option<(nri::PodSandbox, nri::Container)>) {
        if let Some((pod, container)) = news {
            self.ports.nri.post_start_container(pod, container).await;
        }
    }

    /// The container has ended, by itself or not; told once.
    pub(super) async fn plugins_stop(&self, container: &Container) {
        if self.ports.nri.is_active() {
            let pod = self.pod_for_plugins(container).await;
            self.ports.nri.stop_container(pod, container.for_plugins(&self.ports).await).await;
        }
    }

    /// The container goes.
    pub(super) async fn plugins_remove(&self, container: &Container) {
        if self.ports.nri.is_active() {
            let pod = self.pod_for_plugins(container).await;
            self.ports.nri.remove_container(pod, container.for_plugins(&self.ports).await).await;
        }
    }

    /// Changes the resources of a container as a plugin wants it; plugins are not asked about it.
    ///
    /// # Errors
    /// When it is no container that can be changed, or the node cannot do it.
    pub async fn update_for_plugin(
        &self,
        container: &Container,
        wanted: &nri::LinuxResources,
    ) -> Result<(), ContainerError> {
        adjust::checked_update(wanted, &self.ports.features).map_err(NriError::from)?;
        self.change_resources(container, &adjust::to_cri(wanted), HashMap::new()).await
    }

    /// The kubelet changes the resources of a container: what is to be done, as the plugins see it.
    pub(super) async fn plugins_update(
        &self,
        container: &Container,
        request: cri::LinuxContainerResources,
    ) -> Result<cri::LinuxContainerResources, ContainerError> {
        if !self.ports.nri.is_active() {
            return Ok(request);
        }
        let pod = self.pod_for_plugins(container).await;
        let mut resources = convert::cri_resources(&request);
        let container = container.for_plugins(&self.ports).await;
        let Some(wanted) = self.ports.nri.update_container(pod, container, resources.clone()).await? else {
            return Ok(request);
        };
        adjust::checked_update(&wanted, &self.ports.features).map_err(NriError::from)?;
        overlay(&wanted, &mut resources);
        Ok(cri::LinuxContainerResources {
            oom_score_adj: request.oom_score_adj,
            ..adjust::to_cri(&resources)
        })
    }

    /// The resources have changed.
    pub(super) async fn plugins_updated(&self, container: &Container) {
        if self.ports.nri.is_active() {
            let pod = self.pod_for_plugins(container).await;
            self.ports.nri.post_update_container(pod, container.for_plugins(&self.ports).await).await;
        }
    }
}
