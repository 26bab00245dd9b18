//! Events of pods and containers on their way to the plugins, and what plugins want in answer.
//!
//! Of every pod and container a plugin hears of its stop once, and of its stop before its removal.

use std::sync::Arc;

use cofferdam_proto::nri::{self, Event};

use super::collect::{Creation, Owners, Updates, overlay};
use super::plugin::Plugin;
use super::{Nri, NriError, Order, Stage, validate};

/// The call of an event that is only told.
fn method(event: Event) -> &'static str {
    match event {
        Event::RunPodSandbox => "RunPodSandbox",
        Event::StopPodSandbox => "StopPodSandbox",
        Event::RemovePodSandbox => "RemovePodSandbox",
        Event::CreateContainer => "CreateContainer",
        Event::PostCreateContainer => "PostCreateContainer",
        Event::StartContainer => "StartContainer",
        Event::PostStartContainer => "PostStartContainer",
        Event::UpdateContainer => "UpdateContainer",
        Event::PostUpdateContainer => "PostUpdateContainer",
        Event::StopContainer => "StopContainer",
        Event::RemoveContainer => "RemoveContainer",
        Event::UpdatePodSandbox => "UpdatePodSandbox",
        Event::PostUpdatePodSandbox => "PostUpdatePodSandbox",
        Event::ValidateContainerAdjustment => "ValidateContainerAdjustment",
        Event::Unknown | Event::Last => "StateChange",
    }
}

impl Order {
    /// Tells all plugins of an event, until one refuses.
    async fn tell(
        &self,
        event: Event,
        pod: &nri::PodSandbox,
        container: Option<&nri::Container>,
    ) -> Result<(), NriError> {
        for plugin in &self.plugins {
            // The requests of all these events have this form, those of pods without a container.
            let request =
                nri::StartContainerRequest { pod: Some(pod.clone()), container: container.cloned() };
            let change = || nri::StateChangeEvent {
                event: event.into(),
                pod: Some(pod.clone()),
                container: container.cloned(),
            };
            plugin.tell(event, method(event), &request, change).await?;
        }
        Ok(())
    }

    /// Whether a stop is news; it is told once.
    fn stops(&mut self, id: &str) -> bool {
        match self.stages.get_mut(id) {
            Some(stage @ Stage::Live) => {
                *stage = Stage::Stopped;
                true
            }
            Some(Stage::Stopped) | None => false,
        }
    }
}

/// Events about a pod.
impl Nri {
    /// A pod runs; a plugin that refuses ends it.
    ///
    /// # Errors
    /// When a plugin refuses.
    pub async fn run_pod_sandbox(&self, pod: nri::PodSandbox) -> Result<(), NriError> {
        let mut order = self.order.lock().await;
        order.stages.insert(pod.id.clone(), Stage::Live);
        order.tell(Event::RunPodSandbox, &pod, None).await
    }

    /// The resources of a pod change.
    ///
    /// # Errors
    /// When a plugin refuses.
    pub async fn update_pod_sandbox(
        &self,
        pod: nri::PodSandbox,
        overhead: Option<nri::LinuxResources>,
        resources: Option<nri::LinuxResources>,
    ) -> Result<(), NriError> {
        let order = self.order.lock().await;
        let request = nri::UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        let event = Event::UpdatePodSandbox;
        for plugin in &order.plugins {
            plugin.ask::<nri::UpdatePodSandboxResponse>(event, method(event), &request).await?;
        }
        Ok(())
    }

    /// The resources of a pod have changed. What plugins say to it changes nothing.
    pub async fn post_update_pod_sandbox(&self, pod: nri::PodSandbox) {
        let order = self.order.lock().await;
        report(order.tell(Event::PostUpdatePodSandbox, &pod, None).await);
    }

    /// A pod's containers are stopped, and it stops. What plugins say to it changes nothing.
    pub async fn stop_pod_sandbox(&self, pod: nri::PodSandbox) {
        let mut order = self.order.lock().await;
        if order.stops(&pod.id) {
            report(order.tell(Event::StopPodSandbox, &pod, None).await);
        }
    }

    /// A pod goes. What plugins say to it changes nothing.
    pub async fn remove_pod_sandbox(&self, pod: nri::PodSandbox) {
        let mut order = self.order.lock().await;
        if order.stops(&pod.id) {
            report(order.tell(Event::StopPodSandbox, &pod, None).await);
        }
        if order.stages.remove(&pod.id).is_some() {
            report(order.tell(Event::RemovePodSandbox, &pod, None).await);
        }
    }
}

/// Events about a container.
impl Nri {
    /// A container is being created: what the plugins want changed in it, and in others. To be called with the gate held;
    /// the others wait until neither the gate nor the order is held: see [`Self::carry_out`].
    ///
    /// # Errors
    /// When a plugin refuses, two contradict each other, or a validator refuses.
    pub async fn create_container(
        &self,
        pod: nri::PodSandbox,
        container: nri::Container,
    ) -> Result<(nri::ContainerAdjustment, OfOthers), NriError> {
        let mut order = self.order.lock().await;
        order.stages.insert(container.id.clone(), Stage::Live);
        let pristine = container.clone();
        let mut creation = Creation::new(container);
        let event = Event::CreateContainer;
        for plugin in &order.plugins {
            let request = nri::CreateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(creation.container.clone()),
            };
            let answer = plugin.ask::<nri::CreateContainerResponse>(event, method(event), &request).await?;
            creation.add(&plugin.name, answer.unwrap_or_default())?;
        }
        self.validate(&order, pod, pristine, &creation).await?;
        Ok((creation.adjust, OfOthers(creation.updates)))
    }

    /// Does what plugins wanted of other containers when one was created. One that is stuck holds up nobody else.
    pub async fn carry_out(&self, OfOthers(wanted): OfOthers) {
        self.update_all(&wanted.updates).await;
        self.evict_all(&wanted.evictions).await;
    }

    async fn validate(
        &self,
        order: &Order,
        pod: nri::PodSandbox,
        pristine: nri::Container,
        creation: &Creation,
    ) -> Result<(), NriError> {
        // One that was let go meanwhile has not looked at this container.
        let here: Vec<_> = order.plugins.iter().filter(|plugin| !plugin.is_closed()).collect();
        let asked: Vec<_> = here.iter().map(|plugin| plugin.identity.clone()).collect();
        if let Some(reason) = validate::refusal(&self.config.default_validator, &pod, creation, &asked) {
            return Err(NriError::Rejected { plugin: "default-validator".to_owned(), reason });
        }
        let event = Event::ValidateContainerAdjustment;
        let validates = |plugin: &&Arc<Plugin>| plugin.subscribes(event) && !plugin.is_closed();
        let validators: Vec<_> = order.plugins.iter().filter(validates).collect();
        if validators.is_empty() {
            return Ok(());
        }
        let instance = |plugin: &&Arc<Plugin>| nri::PluginInstance {
            name: plugin.identity.base.clone(),
            index: plugin.identity.index.clone(),
        };
        let request = nri::ValidateContainerAdjustmentRequest {
            pod: Some(pod),
            container: Some(pristine),
            adjust: Some(creation.adjust.clone()),
            update: creation.updates.updates.clone(),
            owners: Some(creation.owners.to_wire()),
            plugins: here.iter().map(instance).collect(),
        };
        for plugin in validators {
            type Answer = nri::ValidateContainerAdjustmentResponse;
            let rejected =
                |reason: &str| NriError::Rejected { plugin: plugin.name.clone(), reason: reason.to_owned() };
            match plugin.ask::<Answer>(event, method(event), &request).await? {
                // What nobody has validated is not made.
                None => return Err(rejected("it does not answer")),
                Some(answer) if answer.reject => {
                    let reason = if answer.reason.is_empty() { "it gives none" } else { &answer.reason };
                    return Err(rejected(reason));
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// A container is created. What plugins say to it changes nothing.
    pub async fn post_create_container(&self, pod: nri::PodSandbox, container: nri::Container) {
        let order = self.order.lock().await;
        report(order.tell(Event::PostCreateContainer, &pod, Some(&container)).await);
    }

    /// A container is about to start.
    ///
    /// # Errors
    /// When a plugin refuses; then it must not start.
    pub async fn start_container(
        &self,
        pod: nri::PodSandbox,
        container: nri::Container,
    ) -> Result<(), NriError> {
        self.order.lock().await.tell(Event::StartContainer, &pod, Some(&container)).await
    }

    /// A container runs. What plugins say to it changes nothing.
    pub async fn post_start_container(&self, pod: nri::PodSandbox, container: nri::Container) {
        let order = self.order.lock().await;
        report(order.tell(Event::PostStartContainer, &pod, Some(&container)).await);
    }

    /// The resources of a container change: what the plugins want instead, where they want something.
    ///
    /// # Errors
    /// When a plugin refuses, or two contradict each other.
    pub async fn update_container(
        &self,
        pod: nri::PodSandbox,
        container: nri::Container,
        resources: nri::LinuxResources,
    ) -> Result<Option<nri::LinuxResources>, NriError> {
        let order = self.order.lock().await;
        let mut owners = Owners::default();
        let mut updates = Updates::default();
        let id = container.id.clone();
        let mut request = nri::UpdateContainerRequest {
            pod: Some(pod),
            container: Some(container),
            linux_resources: Some(resources),
        };
        let event = Event::UpdateContainer;
        for plugin in &order.plugins {
            let answer = plugin.ask::<nri::UpdateContainerResponse>(event, method(event), &request).await?;
            let Some(answer) = answer else { continue };
            updates.add(&mut owners, &plugin.name, answer.update, answer.evict)?;
            if let Some(own) = updates.of(&id) {
                // The next plugin sees the request as it is by now.
                let shown = request.linux_resources.get_or_insert_default();
                overlay(&own, shown);
            }
        }
        // This container's is the caller's to carry out.
        let own = updates.take(&id);
        // Another container may be stuck, and an eviction is an event of its own.
        drop(order);
        self.update_all(&updates.updates).await;
        self.evict_all(&updates.evictions).await;
        Ok(own.and_then(|own| own.linux).and_then(|linux| linux.resources))
    }

    /// The resources of a container have changed. What plugins say to it changes nothing.
    pub async fn post_update_container(&self, pod: nri::PodSandbox, container: nri::Container) {
        let order = self.order.lock().await;
        report(order.tell(Event::PostUpdateContainer, &pod, Some(&container)).await);
    }

    /// A container has ended. What plugins say to it changes nothing but other containers.
    pub async fn stop_container(&self, pod: nri::PodSandbox, container: nri::Container) {
        let mut order = self.order.lock().await;
        let wanted = Self::stopped(&mut order, &pod, &container).await;
        drop(order);
        self.update_all(&wanted).await;
    }

    /// A container goes. What plugins say to it changes nothing.
    pub async fn remove_container(&self, pod: nri::PodSandbox, container: nri::Container) {
        let mut order = self.order.lock().await;
        let wanted = Self::stopped(&mut order, &pod, &container).await;
        if order.stages.remove(&container.id).is_some() {
            report(order.tell(Event::RemoveContainer, &pod, Some(&container)).await);
        }
        drop(order);
        self.update_all(&wanted).await;
    }

    /// What plugins want of other containers when this one stops.
    async fn stopped(
        order: &mut Order,
        pod: &nri::PodSandbox,
        container: &nri::Container,
    ) -> Vec<nri::ContainerUpdate> {
        if !order.stops(&container.id) {
            return Vec::new();
        }
        let request =
            nri::StopContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        let mut owners = Owners::default();
        let mut updates = Updates::default();
        let event = Event::StopContainer;
        for plugin in &order.plugins {
            let answer = plugin.ask::<nri::StopContainerResponse>(event, method(event), &request).await;
            let added = answer.and_then(|answer| {
                let wanted = answer.unwrap_or_default().update;
                updates.add(&mut owners, &plugin.name, wanted, Vec::new())
            });
            report(added);
        }
        updates.updates
    }
}

/// What plugins want of containers that exist.
impl Nri {
    /// Changes containers; gives those updates that failed and whose failure matters.
    pub(super) async fn update_all(&self, updates: &[nri::ContainerUpdate]) -> Vec<nri::ContainerUpdate> {
        let mut failed = Vec::new();
        for update in updates {
            let resources = update.linux.as_ref().and_then(|linux| linux.resources.clone());
            let (Some(node), Some(resources)) = (self.node.get(), resources) else { continue };
            if let Err(error) = node.update(&update.container_id, &resources).await {
                let container = &update.container_id;
                tracing::warn!(container, error, "an NRI plugin's update of a container failed");
                if !update.ignore_failure {
                    failed.push(update.clone());
                }
            }
        }
        failed
    }

    /// Stops containers.
    pub(super) async fn evict_all(&self, evictions: &[nri::ContainerEviction]) {
        for eviction in evictions {
            let Some(node) = self.node.get() else { continue };
            let (container, reason) = (&eviction.container_id, &eviction.reason);
            tracing::info!(container, reason, "an NRI plugin evicts a container");
            if let Err(error) = node.evict(container).await {
                tracing::warn!(container, error, "the eviction failed");
            }
        }
    }
}

/// What plugins want of other containers when one is created.
#[derive(Debug, Default)]
pub struct OfOthers(Updates);

/// Of an event that cannot be undone.
fn report(told: Result<(), NriError>) {
    if let Err(error) = told {
        tracing::warn!(error = %crate::report::chain(&error), "an NRI plugin refuses what has happened");
    }
}
