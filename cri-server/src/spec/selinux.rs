//! The SELinux labels of a pod and of its containers.
//!
//! What the request says of a label is kept; the rest is the usual: `container_t` at the pod's own level, or `spc_t` for
//! what shares the node's processes anyway. On a node without SELinux a requested label is ignored with a warning.

use cofferdam_proto::cri;

use crate::node::Features;

/// Labels of a process and of its mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SelinuxLabels {
    pub process: Option<String>,
    pub mount: Option<String>,
}

/// The level that the pod asks for by name.
#[must_use]
pub fn asked_level(config: &cri::PodSandboxConfig) -> Option<&str> {
    let options = pod_security(config)?.selinux_options.as_ref()?;
    Some(options.level.as_str()).filter(|level| !level.is_empty())
}

/// The labels of a pod. `level` is the one chosen for it; none where the node's policy tells no containers apart.
#[must_use]
pub fn for_pod(config: &cri::PodSandboxConfig, level: Option<&str>, features: &Features) -> SelinuxLabels {
    let security = pod_security(config);
    let open = security.is_some_and(|s| s.privileged || shares(s.namespace_options.as_ref()));
    labels(security.and_then(|s| s.selinux_options.as_ref()), level, open, features)
}

/// The labels of a container; those of its pod where it asks for none.
#[must_use]
pub fn for_container(
    security: &cri::LinuxContainerSecurityContext,
    pod: &cri::PodSandboxConfig,
    level: Option<&str>,
    features: &Features,
) -> SelinuxLabels {
    let own = security.selinux_options.as_ref().filter(|asked| **asked != cri::SeLinuxOption::default());
    let of_pod = || pod_security(pod).and_then(|security| security.selinux_options.as_ref());
    let open = security.privileged || shares(security.namespace_options.as_ref());
    labels(own.or_else(of_pod), level, open, features)
}

fn pod_security(config: &cri::PodSandboxConfig) -> Option<&cri::LinuxSandboxSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

/// Whether it sees the node's processes or their memory.
fn shares(options: Option<&cri::NamespaceOption>) -> bool {
    let node = cri::NamespaceMode::Node;
    options.is_some_and(|options| options.pid() == node || options.ipc() == node)
}

fn labels(
    asked: Option<&cri::SeLinuxOption>,
    level: Option<&str>,
    open: bool,
    features: &Features,
) -> SelinuxLabels {
    let asked = asked.filter(|asked| **asked != cri::SeLinuxOption::default());
    if asked.is_some() && !features.selinux {
        tracing::warn!("the kernel runs without SELinux: the requested label is ignored");
    }
    if !features.selinux || (asked.is_none() && level.is_none()) {
        return SelinuxLabels::default();
    }
    let none = cri::SeLinuxOption::default();
    let asked = asked.unwrap_or(&none);
    fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
        if text.is_empty() { default } else { text }
    }
    let user = or(&asked.user, "system_u");
    let level = or(&asked.level, level.unwrap_or("s0"));
    let role = or(&asked.role, "system_r");
    let typ = or(&asked.r#type, if open { "spc_t" } else { "container_t" });
    SelinuxLabels {
        process: Some(format!("{user}:{role}:{typ}:{level}")),
        mount: Some(format!("{user}:object_r:container_file_t:{level}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEVEL: Option<&str> = Some("s0:c1,c2");

    fn node() -> Features {
        Features { selinux: true, ..Features::default() }
    }

    fn pod(options: cri::SeLinuxOption) -> cri::PodSandboxConfig {
        let mut pod = cri::PodSandboxConfig::default();
        let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.selinux_options = Some(options);
        pod
    }

    fn process(security: &cri::LinuxContainerSecurityContext, pod: &cri::PodSandboxConfig) -> String {
        for_container(security, pod, LEVEL, &node()).process.unwrap()
    }

    #[test]
    fn labels_are_completed_by_the_pods_level() {
        let plain = cri::PodSandboxConfig::default();
        let labels = for_pod(&plain, LEVEL, &node());
        assert_eq!(labels.process.as_deref(), Some("system_u:system_r:container_t:s0:c1,c2"));
        assert_eq!(labels.mount.as_deref(), Some("system_u:object_r:container_file_t:s0:c1,c2"));
        let named = pod(cri::SeLinuxOption { level: "s0:c8,c9".to_owned(), ..Default::default() });
        assert_eq!(asked_level(&named), Some("s0:c8,c9"));
        let mut container = cri::LinuxContainerSecurityContext::default();
        assert_eq!(process(&container, &plain), "system_u:system_r:container_t:s0:c1,c2");
        assert_eq!(process(&container, &named), "system_u:system_r:container_t:s0:c8,c9");
        container.selinux_options =
            Some(cri::SeLinuxOption { r#type: "own_t".to_owned(), ..Default::default() });
        assert_eq!(process(&container, &named), "system_u:system_r:own_t:s0:c1,c2");
    }

    #[test]
    fn what_shares_the_nodes_processes_is_not_confined() {
        let plain = cri::PodSandboxConfig::default();
        let mut container = cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        assert_eq!(process(&container, &plain), "system_u:system_r:spc_t:s0:c1,c2");
        container.privileged = false;
        container.namespace_options.get_or_insert_default().set_pid(cri::NamespaceMode::Node);
        assert_eq!(process(&container, &plain), "system_u:system_r:spc_t:s0:c1,c2");
    }

    #[test]
    fn without_selinux_or_a_policy_nothing_is_labelled_unasked() {
        let asked = pod(cri::SeLinuxOption { level: "s0:c8,c9".to_owned(), ..Default::default() });
        assert_eq!(for_pod(&asked, None, &Features::default()), SelinuxLabels::default());
        assert_eq!(for_pod(&cri::PodSandboxConfig::default(), None, &node()), SelinuxLabels::default());
        assert!(for_pod(&asked, None, &node()).process.is_some());
    }
}
