//! The annotations of a spec: how shims and runtimes learn which pod a container belongs to.
//!
//! Invariant: a pod's author can neither forge the keys that group containers into pods nor reach the knobs that OCI
//! runtimes read from annotations (systemd properties, crun's handlers).

use std::collections::HashMap;

use cofferdam_proto::cri;

const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";
const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const SANDBOX_NAME: &str = "io.kubernetes.cri.sandbox-name";
const SANDBOX_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const SANDBOX_UID: &str = "io.kubernetes.cri.sandbox-uid";
const SANDBOX_LOG_DIRECTORY: &str = "io.kubernetes.cri.sandbox-log-directory";
const SANDBOX_CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SANDBOX_CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const SANDBOX_CPU_SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const SANDBOX_MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CONTAINER_NAME: &str = "io.kubernetes.cri.container-name";
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// Keys that steer an OCI runtime or a shim, never passed through from a request.
const RESERVED: [&str; 4] =
    ["io.kubernetes.cri.", "org.systemd.property.", "run.oci.", "org.opencontainers.runtime."];

fn pass_through(from: &HashMap<String, String>) -> HashMap<String, String> {
    let allowed = |key: &str| !RESERVED.iter().any(|prefix| key.starts_with(prefix));
    from.iter().filter(|(key, _)| allowed(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn of_pod(out: &mut HashMap<String, String>, id: &str, config: &cri::PodSandboxConfig) {
    let metadata = config.metadata.clone().unwrap_or_default();
    let pairs = [
        (SANDBOX_ID, id.to_owned()),
        (SANDBOX_NAME, metadata.name),
        (SANDBOX_NAMESPACE, metadata.namespace),
        (SANDBOX_UID, metadata.uid),
    ];
    out.extend(pairs.map(|(key, value)| (key.to_owned(), value)));
}

/// The annotations of a pod's pause container.
#[must_use]
pub fn for_sandbox(id: &str, config: &cri::PodSandboxConfig) -> HashMap<String, String> {
    let mut out = pass_through(&config.annotations);
    of_pod(&mut out, id, config);
    out.insert(CONTAINER_TYPE.to_owned(), "sandbox".to_owned());
    out.insert(SANDBOX_LOG_DIRECTORY.to_owned(), config.log_directory.clone());
    out.extend(sizes(config.linux.as_ref().and_then(|linux| linux.resources.as_ref())));
    out
}

/// The size of a pod: a VM's shim sizes the machine by these.
#[must_use]
pub fn sizes(resources: Option<&cri::LinuxContainerResources>) -> HashMap<String, String> {
    let Some(resources) = resources else { return HashMap::new() };
    let sizes = [
        (SANDBOX_CPU_PERIOD, resources.cpu_period),
        (SANDBOX_CPU_QUOTA, resources.cpu_quota),
        (SANDBOX_CPU_SHARES, resources.cpu_shares),
        (SANDBOX_MEMORY, resources.memory_limit_in_bytes),
    ];
    sizes.into_iter().map(|(key, value)| (key.to_owned(), value.to_string())).collect()
}

/// The annotations of a container of the pod `sandbox_id`.
#[must_use]
pub fn for_container(
    sandbox_id: &str,
    sandbox: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
    image_name: &str,
) -> HashMap<String, String> {
    let mut out = pass_through(&config.annotations);
    of_pod(&mut out, sandbox_id, sandbox);
    let name = config.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    out.insert(CONTAINER_TYPE.to_owned(), "container".to_owned());
    out.insert(CONTAINER_NAME.to_owned(), name);
    out.insert(IMAGE_NAME.to_owned(), image_name.to_owned());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_cannot_forge_the_keys_that_runtimes_obey() {
        let mut config = cri::ContainerConfig::default();
        for key in
            ["io.kubernetes.cri.container-type", "org.systemd.property.CPUQuota", "run.oci.handler", "mine"]
        {
            config.annotations.insert(key.to_owned(), "forged".to_owned());
        }
        let out = for_container("s1", &cri::PodSandboxConfig::default(), &config, "busybox");
        assert_eq!(out[CONTAINER_TYPE], "container");
        assert_eq!(out["mine"], "forged");
        assert!(!out.contains_key("org.systemd.property.CPUQuota"));
        assert!(!out.contains_key("run.oci.handler"));
        assert_eq!(out[SANDBOX_ID], "s1");
    }
}
