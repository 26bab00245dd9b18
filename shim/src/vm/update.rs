//! Other limits for what runs already.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxMemory, LinuxResources};
use protobuf::well_known_types::any::Any;

use super::spec;
use super::task::VmTask;
use crate::error::ShimError;

const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

impl VmTask {
    /// Changes its limits: a container's in the guest, those of the pod itself as far as its machine can have others.
    pub async fn update(&self, json: &[u8], annotations: &HashMap<String, String>) -> Result<(), ShimError> {
        let invalid = |error: serde_json::Error| ShimError::Invalid(format!("resources: {error}"));
        let mut limits: LinuxResources = serde_json::from_slice(json).map_err(invalid)?;
        let pod = self.pod();
        if self.id == pod.id {
            return pod.resize(&limits, annotations).await;
        }
        let asked = limits.memory().as_ref().and_then(LinuxMemory::limit).unwrap_or(0);
        if u64::try_from(asked).is_ok_and(|bytes| bytes > pod.size.bytes()) {
            return Err(ShimError::Limit(format!(
                "the pod's machine has {} MiB and cannot grow: {asked} bytes are more",
                pod.size.memory
            )));
        }
        spec::guests(&mut limits);
        let value = serde_json::to_vec(&limits).map_err(invalid)?;
        let resources = Any { type_url: RESOURCES.to_owned(), value, ..Any::default() };
        Ok(pod.guest.update(&self.id, resources).await?)
    }
}
