//! Builders for the CRI messages that a kubelet would send.
//!
//! They fill what every request needs; a test changes the fields it is about.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};

use cofferdam_proto::cri;

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// A word that no other call of this process, and no other process of this machine, gives.
pub fn unique() -> String {
    format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

pub fn image(reference: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: reference.into(), user_specified_image: reference.into(), ..Default::default() }
}

/// A pod with a network of its own. `cgroup_parent` is the folder of the pod's cgroup, `logs` that of its logs.
pub fn pod(name: &str, cgroup_parent: &str, logs: &str) -> cri::PodSandboxConfig {
    let uid = format!("{name}-{}", unique());
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: "test".into(),
            attempt: 0,
        }),
        hostname: name.into(),
        log_directory: logs.into(),
        labels: HashMap::from([("app".into(), name.into())]),
        annotations: HashMap::from([("example.com/note".into(), "made by a test".into())]),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{cgroup_parent}/pod{uid}"),
            security_context: Some(cri::LinuxSandboxSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// What a kubelet asks for by default: a pid namespace for each container, the rest shared by the pod.
pub fn namespaces() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

/// A container that runs `command` of `image` and logs to `NAME/0.log`.
pub fn container(name: &str, image_ref: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(image(image_ref)),
        command: command.iter().map(|part| (*part).to_owned()).collect(),
        labels: HashMap::from([("container".into(), name.into())]),
        log_path: format!("{name}/0.log"),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(cri::LinuxContainerResources::default()),
            security_context: Some(cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces()),
                ..Default::default()
            }),
        }),
        ..Default::default()
    }
}

/// A container that runs a shell script.
pub fn shell(name: &str, image_ref: &str, script: &str) -> cri::ContainerConfig {
    container(name, image_ref, &["/bin/sh", "-c", script])
}

/// The security context of a container made by [`container`], to be changed.
pub fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// The security context of a pod made by [`pod`], to be changed.
pub fn pod_security(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// Puts the pod on the node's network.
pub fn host_network(config: &mut cri::PodSandboxConfig) {
    let options = pod_security(config).namespace_options.get_or_insert_default();
    options.network = cri::NamespaceMode::Node.into();
    config.hostname = String::new();
}
