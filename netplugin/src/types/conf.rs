//! The network configuration and what the runtime adds to it. The crate's documentation lists the keys.

use super::{CniResult, Dns, IpNet, Mac, Route};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;

/// One plugin's configuration, as it arrives on standard input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetConf {
    /// Free text, so that an unknown version gets its own error and not a decoding error.
    #[serde(default)]
    pub cni_version: String,
    #[serde(default)]
    pub name: String,
    #[serde(rename = "type", default)]
    pub plugin: String,
    #[serde(default = "default_bridge")]
    pub bridge: String,
    /// 0 or absent: the kernel's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Give the bridge the gateway's addresses and forward.
    #[serde(default = "yes")]
    pub is_gateway: bool,
    #[serde(default = "yes")]
    pub ip_masq: bool,
    #[serde(default = "yes")]
    pub hairpin_mode: bool,
    #[serde(default)]
    pub ipam: IpamConf,
    #[serde(default, skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
    #[serde(default)]
    pub runtime_config: RuntimeConfig,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<ConfArgs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prev_result: Option<CniResult>,
    /// GC: what is still attached.
    #[serde(rename = "cni.dev/valid-attachments", default, skip_serializing_if = "Option::is_none")]
    pub valid_attachments: Option<Vec<Attachment>>,
}

fn yes() -> bool {
    true
}

fn default_bridge() -> String {
    "cofferdam0".to_owned()
}

impl NetConf {
    /// A configuration with the defaults, one range set per subnet: what the daemon's built-in network uses.
    pub fn for_bridge(name: &str, bridge: &str, subnets: &[IpNet]) -> Self {
        let range = |subnet: &IpNet| vec![IpamRange::of(*subnet)];
        Self {
            cni_version: super::CniVersion::LATEST.as_str().to_owned(),
            name: name.to_owned(),
            plugin: crate::PLUGIN_TYPE.to_owned(),
            bridge: bridge.to_owned(),
            mtu: None,
            is_gateway: true,
            ip_masq: true,
            hairpin_mode: true,
            ipam: IpamConf { ranges: subnets.iter().map(range).collect(), ..IpamConf::default() },
            dns: Dns::default(),
            runtime_config: RuntimeConfig::default(),
            args: None,
            prev_result: None,
            valid_attachments: None,
        }
    }
}

/// Address management, in host-local's vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpamConf {
    #[serde(rename = "type")]
    pub plugin: String,
    /// One address is given from each set; a set may have several ranges.
    pub ranges: Vec<Vec<IpamRange>>,
    /// With the next three the short form: a set of one range, before those of `ranges`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<IpNet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Absent: a default route through each gateway. `[]`: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<Vec<Route>>,
    /// Where the leases lie, a folder per network name below it.
    pub data_dir: PathBuf,
}

impl Default for IpamConf {
    fn default() -> Self {
        Self {
            plugin: "host-local".to_owned(),
            ranges: Vec::new(),
            subnet: None,
            range_start: None,
            range_end: None,
            gateway: None,
            routes: None,
            data_dir: PathBuf::from("/var/lib/cni/cofferdam"),
        }
    }
}

/// Part of a subnet out of which addresses are given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpamRange {
    pub subnet: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_start: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range_end: Option<IpAddr>,
    /// Absent: the first address of the subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

impl IpamRange {
    /// The whole subnet, its first address being the gateway.
    pub fn of(subnet: IpNet) -> Self {
        Self { subnet, range_start: None, range_end: None, gateway: None }
    }
}

/// What the runtime fills in for the capabilities that this plugin declares.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RuntimeConfig {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub port_mappings: Vec<PortMapping>,
    /// Requested addresses; a prefix length is allowed and ignored.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
    /// Ranges that take the place of the configured ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_ranges: Vec<Vec<IpamRange>>,
    /// Name servers that take the place of the configured ones (`servers`, `searches`, `options`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dns: Option<RuntimeDns>,
}

/// The `dns` capability, whose keys are not those of the result's `dns`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimeDns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[default]
    #[serde(alias = "TCP")]
    Tcp,
    #[serde(alias = "UDP")]
    Udp,
    #[serde(alias = "SCTP")]
    Sctp,
}

/// One port of the host that leads to the container. Mappings with `hostPort` 0 or less are ignored, as runtimes
/// pass those for ports that are only declared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortMapping {
    #[serde(default)]
    pub host_port: i32,
    pub container_port: i32,
    #[serde(default)]
    pub protocol: Protocol,
    /// Empty or an unspecified address: every address of the host. The unspecified address of one family limits
    /// the mapping to that family.
    #[serde(rename = "hostIP", default, skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
}

/// The `args` key of a configuration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfArgs {
    pub cni: ConfArgsCni,
}

/// `args.cni`: the older way to ask for addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfArgsCni {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// One interface of one container.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Attachment {
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub ifname: String,
}

/// The pairs of `CNI_ARGS`, in order: `IP`, `MAC`, `IgnoreUnknown`, `K8S_POD_NAME` and whatever the runtime adds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CniArgs(pub Vec<(String, String)>);

impl CniArgs {
    /// Reads `KEY=VALUE;KEY=VALUE`. `None` when a pair has no `=`.
    pub fn parse(text: &str) -> Option<Self> {
        let pair = |p: &str| p.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        text.split(';').filter(|p| !p.is_empty()).map(pair).collect::<Option<_>>().map(Self)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }
}

/// One call of the plugin for one interface of one container.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    pub container_id: String,
    /// Path of the container's network namespace. May be empty for DEL.
    pub netns: PathBuf,
    pub ifname: String,
    pub config: NetConf,
    pub args: CniArgs,
}
