//! The node as NRI plugins see and change it.

use async_trait::async_trait;
use cofferdam_proto::nri;
use futures::future::join_all;
use std::time::Duration;

use super::Pods;
use crate::container::ContainerState;
use crate::nri::Node;
use crate::report::chain;
use crate::sandbox::SandboxState;

#[async_trait]
impl Node for Pods {
    async fn snapshot(&self) -> (Vec<nri::PodSandbox>, Vec<nri::Container>) {
        let ports = self.sandboxes.ports();
        let there = |state: &SandboxState| matches!(state, SandboxState::Ready { .. } | SandboxState::NotReady);
        let sandboxes = self.sandboxes.all();
        let pods = sandboxes.iter().filter(|sandbox| there(&sandbox.status().state));
        let alive =
            |state: &ContainerState| matches!(state, ContainerState::Created | ContainerState::Running { .. });
        let containers = self.containers.all();
        let containers = containers.iter().filter(|container| alive(&container.state()));
        tokio::join!(
            join_all(pods.map(|sandbox| sandbox.for_plugins(ports))),
            join_all(containers.map(|container| container.for_plugins(ports))),
        )
    }

    async fn update(&self, container: &str, resources: &nri::LinuxResources) -> Result<(), String> {
        let container = self.containers.find(container).map_err(|error| error.to_string())?;
        self.containers.update_for_plugin(&container, resources).await.map_err(|error| chain(&error))
    }

    async fn evict(&self, container: &str) -> Result<(), String> {
        let container = self.containers.find(container).map_err(|error| error.to_string())?;
        self.containers.stop(&container, Duration::ZERO).await.map_err(|error| chain(&*error))
    }
}
