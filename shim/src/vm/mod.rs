//! Pods in a virtual machine of their own: one shim for the pod, whose containers are made by the same code in the guest.
//!
//! ```text
//!  daemon ──Task──▶ service ─▶ task ──Task, over the machine's channel──▶ this same program, in the guest
//!                     │         └ streams ◀──── standard streams ────────┘
//!                     └ pod: machine (QEMU, virtiofsd), its cgroup
//! ```
//! The host keeps what must be right whatever the guest does: names, states, logs, exits. Invariant: nothing that the
//! guest answers is used on the host but as a number or a text to show; pids that are told are the monitor's.

mod error;
mod events;
mod forward;
mod guest;
mod place;
mod pod;
mod saying;
mod service;
mod sizes;
mod spec;
mod streams;
mod task;
mod update;
mod usage;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::bundle::Bundle;
use crate::error::ShimError;

pub use error::VmError;
pub use service::Service;

const SANDBOX_ID: &str = "io.kubernetes.cri.sandbox-id";
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// What a bundle's specification says of its place in a pod.
#[derive(Debug, PartialEq, Eq)]
pub enum Membership {
    /// The pod itself: its machine is to be made.
    Pod,
    /// A container of the pod of this id, which has a shim.
    Container(String),
}

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Membership {
    pub fn of(bundle: &Bundle) -> Result<Self, ShimError> {
        let failed = ShimError::path("read", bundle.join("config.json"));
        let config: Annotated = bundle.read_json("config.json").map_err(failed)?;
        Ok(Self::from(&config.annotations))
    }

    fn from(annotations: &HashMap<String, String>) -> Self {
        let kind = annotations.get(CONTAINER_TYPE).map(String::as_str);
        match (kind, annotations.get(SANDBOX_ID)) {
            (Some("container"), Some(id)) => Membership::Container(id.clone()),
            _ => Membership::Pod,
        }
    }
}

/// Where the shim of a pod listens, whichever of its containers asks.
pub fn socket(folder: &Path, namespace: &str, pod: &str) -> PathBuf {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (namespace, pod).hash(&mut hasher);
    folder.join(format!("vm-{:016x}.sock", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_join_the_pod_that_their_annotations_name() {
        let annotations = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<HashMap<_, _>>()
        };
        let container = annotations(&[(SANDBOX_ID, "p"), (CONTAINER_TYPE, "container")]);
        assert_eq!(Membership::from(&container), Membership::Container("p".into()));
        let sandbox = annotations(&[(SANDBOX_ID, "p"), (CONTAINER_TYPE, "sandbox")]);
        assert_eq!(Membership::from(&sandbox), Membership::Pod);
        assert_eq!(Membership::from(&HashMap::new()), Membership::Pod);
    }

    #[test]
    fn pods_have_sockets_of_their_own() {
        let folder = Path::new("/s");
        assert_ne!(socket(folder, "k8s.io", "a"), socket(folder, "k8s.io", "b"));
        assert_ne!(socket(folder, "k8s.io", "a"), socket(folder, "other", "a"));
    }
}
