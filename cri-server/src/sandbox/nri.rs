//! What NRI plugins hear of a sandbox. Without plugins each of these is one look at a number.

use std::net::IpAddr;
use std::path::Path;

use cofferdam_proto::nri;
use oci_spec::runtime::Spec;

use super::{PodResources, Sandbox, SandboxError, Sandboxes};
use crate::nri::convert;
use crate::ports::Ports;

impl Sandbox {
    /// The sandbox in plugins' words.
    pub async fn for_plugins(&self, ports: &Ports) -> nri::PodSandbox {
        let (config, metadata) = (self.config(), self.metadata());
        let size = self.resources();
        let cgroup_parent = config.linux.as_ref().map(|l| l.cgroup_parent.clone()).unwrap_or_default();
        let spec = tokio::fs::read(ports.places.sandbox(self.id()).join("config.json")).await;
        // The folder is gone after a reboot; then the rest has to do.
        let spec = spec.ok().and_then(|text| serde_json::from_slice::<Spec>(&text).ok()).unwrap_or_default();
        let mut annotations = config.annotations.clone();
        annotations.extend(spec.annotations().clone().unwrap_or_default());
        let of_spec = spec.linux().as_ref();
        let mut namespaces = of_spec.map(convert::namespaces).unwrap_or_default();
        // The network goes before the pod does.
        namespaces.retain(|n| n.r#type != "network" || Path::new(&n.path).exists());
        nri::PodSandbox {
            id: self.id().to_string(),
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            labels: config.labels.clone(),
            annotations,
            runtime_handler: self.made().requested_handler.clone(),
            linux: Some(nri::LinuxPodSandbox {
                pod_overhead: size.overhead.as_ref().map(convert::cri_resources),
                pod_resources: size.resources.as_ref().map(convert::cri_resources),
                cgroup_parent,
                cgroups_path: self.cgroups_path(ports).unwrap_or_default(),
                namespaces,
                resources: of_spec.and_then(|linux| linux.resources().as_ref()).map(convert::resources),
            }),
            pid: self.pid().unwrap_or_default(),
            ips: self.status().ips.iter().map(ToString::to_string).collect(),
        }
    }
}

impl Sandboxes {
    /// The pause process runs; a plugin may refuse the pod.
    pub(super) async fn plugins_run(
        &self,
        sandbox: &Sandbox,
        pid: u32,
        ips: &[IpAddr],
    ) -> Result<(), SandboxError> {
        if self.ports.nri.is_active() {
            let mut pod = sandbox.for_plugins(&self.ports).await;
            pod.pid = pid;
            pod.ips = ips.iter().map(ToString::to_string).collect();
            self.ports.nri.run_pod_sandbox(pod).await?;
        }
        Ok(())
    }

    /// The kubelet changes the size of the pod; a plugin may refuse.
    pub(super) async fn plugins_update(
        &self,
        sandbox: &Sandbox,
        size: &PodResources,
    ) -> Result<(), SandboxError> {
        if self.ports.nri.is_active() {
            let pod = sandbox.for_plugins(&self.ports).await;
            let overhead = size.overhead.as_ref().map(convert::cri_resources);
            let resources = size.resources.as_ref().map(convert::cri_resources);
            self.ports.nri.update_pod_sandbox(pod, overhead, resources).await?;
        }
        Ok(())
    }

    /// The size has changed.
    pub(super) async fn plugins_updated(&self, sandbox: &Sandbox) {
        if self.ports.nri.is_active() {
            self.ports.nri.post_update_pod_sandbox(sandbox.for_plugins(&self.ports).await).await;
        }
    }

    /// The containers are stopped; the pod is about to lose what it has.
    pub(super) async fn plugins_stop(&self, sandbox: &Sandbox) {
        if self.ports.nri.is_active() {
            self.ports.nri.stop_pod_sandbox(sandbox.for_plugins(&self.ports).await).await;
        }
    }

    /// The pod has nothing left but its record.
    pub(super) async fn plugins_remove(&self, sandbox: &Sandbox) {
        if self.ports.nri.is_active() {
            self.ports.nri.remove_pod_sandbox(sandbox.for_plugins(&self.ports).await).await;
        }
    }
}
