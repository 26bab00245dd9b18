//! What the sandbox code says about a pod that is to be attached, and what it gets back. Stored in the cache as it is, so
//! that a pod is detached with exactly what it was attached with: fields may be added, never renamed.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::NetworkError;
use crate::model::SandboxId;

/// The protocol of a host port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of the node that leads to the pod, in the form of the CNI convention `portMappings`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    /// The node's port.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// Of both.
    pub protocol: Protocol,
    /// The node's address; all of them when absent.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

impl PortMapping {
    /// The mappings that a pod asks for; those without a host port only document the pod and are skipped.
    ///
    /// # Errors
    /// When a port is no port.
    pub fn from_cri(mappings: &[cofferdam_proto::cri::PortMapping]) -> Result<Vec<Self>, NetworkError> {
        use cofferdam_proto::cri::Protocol as Cri;
        let wanted = mappings.iter().filter(|mapping| mapping.host_port != 0);
        wanted
            .map(|mapping| {
                let port = |number: i32| u16::try_from(number).ok().filter(|port| *port != 0);
                let wrong = || NetworkError::Port {
                    host_port: mapping.host_port,
                    container_port: mapping.container_port,
                };
                Ok(Self {
                    host_port: port(mapping.host_port).ok_or_else(wrong)?,
                    container_port: port(mapping.container_port).ok_or_else(wrong)?,
                    protocol: match mapping.protocol() {
                        Cri::Tcp => Protocol::Tcp,
                        Cri::Udp => Protocol::Udp,
                        Cri::Sctp => Protocol::Sctp,
                    },
                    host_ip: mapping.host_ip.clone(),
                })
            })
            .collect()
    }
}

/// The pod's resolver, in the form of the CNI convention `dns`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub servers: Vec<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub searches: Vec<String>,
    /// Resolver options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A pod sandbox as the network sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodAttachment {
    /// The sandbox; CNI's container id.
    pub sandbox_id: SandboxId,
    /// The pod's name.
    #[serde(default)]
    pub name: String,
    /// The pod's namespace in Kubernetes.
    #[serde(default)]
    pub namespace: String,
    /// The pod's uid.
    #[serde(default)]
    pub uid: String,
    /// The pinned network namespace.
    pub netns: PathBuf,
    /// Host ports.
    #[serde(default)]
    pub port_mappings: Vec<PortMapping>,
    /// The pod's annotations; bandwidth limits are read from them.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// The pod's resolver.
    #[serde(default)]
    pub dns: Dns,
    /// The pod's cgroup; empty when it has none.
    #[serde(default)]
    pub cgroup_parent: String,
    /// Fixed addresses with prefix length, where a plugin can give them; usually none.
    #[serde(default)]
    pub ips: Vec<String>,
    /// A fixed MAC address, where a plugin can give it; usually none.
    #[serde(default)]
    pub mac: Option<String>,
}

impl PodAttachment {
    /// An attachment of which only the sandbox and its namespace are known: enough to detach, and a start to fill.
    #[must_use]
    pub fn new(sandbox_id: SandboxId, netns: PathBuf) -> Self {
        Self {
            sandbox_id,
            name: String::new(),
            namespace: String::new(),
            uid: String::new(),
            netns,
            port_mappings: Vec::new(),
            annotations: BTreeMap::new(),
            dns: Dns::default(),
            cgroup_parent: String::new(),
            ips: Vec::new(),
            mac: None,
        }
    }
}

/// What a pod got.
#[derive(Debug, Clone, PartialEq)]
pub struct AttachResult {
    /// The pod's addresses: the primary one, then the first of the other family, then the rest. Never empty.
    pub ips: Vec<IpAddr>,
    /// The CNI result.
    pub result: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cri(protocol: i32, host_port: i32, container_port: i32) -> cofferdam_proto::cri::PortMapping {
        cofferdam_proto::cri::PortMapping { protocol, host_port, container_port, host_ip: String::new() }
    }

    #[test]
    fn mappings_without_host_port_are_skipped() {
        let mapped = PortMapping::from_cri(&[cri(0, 0, 80), cri(1, 5353, 53), cri(2, 1, 2)]).unwrap();
        assert_eq!(mapped.len(), 2);
        assert_eq!(
            serde_json::to_value(&mapped[0]).unwrap(),
            serde_json::json!({"hostPort": 5353, "containerPort": 53, "protocol": "udp"})
        );
        assert_eq!(mapped[1].protocol, Protocol::Sctp);
    }

    #[test]
    fn ports_out_of_range_are_refused() {
        for (host, container) in [(-1, 80), (70000, 80), (80, 0), (80, 65536)] {
            assert!(PortMapping::from_cri(&[cri(0, host, container)]).is_err(), "{host}:{container}");
        }
    }
}
