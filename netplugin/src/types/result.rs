//! The result of ADD, in memory in the newest shape, on the wire in the shape of the version asked for.

use super::{CniVersion, IpNet};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// What a network attached: interfaces, addresses, routes, name servers.
///
/// Reads every version from 0.3.1 on. Write it with [`CniResult::to_json`]: `Serialize` writes the newest shape.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CniResult {
    pub cni_version: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpConfig>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Interface {
    pub name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Path of the namespace; empty for an interface of the host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// Since 1.1.0.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Since 1.1.0.
    #[serde(rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IpConfig {
    /// Index into the result's interfaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
    pub address: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    pub dst: IpNet,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// This and the following are since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u8>,
}

impl Route {
    pub fn new(dst: IpNet, gw: Option<IpAddr>) -> Self {
        Self { dst, gw, mtu: None, advmss: None, priority: None, table: None, scope: None }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// The wire form for `version`: what that version does not know is left out, what it demands is added.
    pub fn to_json(&self, version: CniVersion) -> serde_json::Value {
        let mut shape = self.clone();
        version.as_str().clone_into(&mut shape.cni_version);
        if version < CniVersion::V1_1_0 {
            for interface in &mut shape.interfaces {
                interface.mtu = None;
                interface.socket_path.clear();
                interface.pci_id.clear();
            }
            for route in &mut shape.routes {
                *route = Route::new(route.dst, route.gw);
            }
        }
        let mut json = serde_json::json!({ "cniVersion": shape.cni_version, "dns": shape.dns });
        json["interfaces"] = serde_json::json!(shape.interfaces);
        json["ips"] = shape.ips.iter().map(|ip| ip_json(ip, version)).collect();
        json["routes"] = serde_json::json!(shape.routes);
        json
    }

    /// Addresses of the interface `ifname` inside a sandbox; addresses that name no interface count too.
    pub fn sandbox_ips<'a>(&'a self, ifname: &'a str) -> impl Iterator<Item = &'a IpConfig> {
        self.ips.iter().filter(move |ip| match ip.interface {
            None => true,
            Some(index) => {
                self.interfaces.get(index).is_some_and(|i| i.name == ifname && !i.sandbox.is_empty())
            }
        })
    }
}

fn ip_json(ip: &IpConfig, version: CniVersion) -> serde_json::Value {
    let mut json = serde_json::json!(ip);
    if version.names_ip_version() {
        json["version"] = if ip.address.is_ipv4() { "4" } else { "6" }.into();
    }
    json
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> CniResult {
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mtu: Some(1400),
                sandbox: "/run/netns/a".into(),
                ..Interface::default()
            }],
            ips: vec![IpConfig {
                interface: Some(0),
                address: "10.85.0.2/16".parse().unwrap(),
                gateway: Some("10.85.0.1".parse().unwrap()),
            }],
            routes: vec![Route { priority: Some(7), ..Route::new("0.0.0.0/0".parse().unwrap(), None) }],
            ..CniResult::default()
        }
    }

    #[test]
    fn each_version_gets_its_own_shape() {
        for version in CniVersion::ALL {
            let json = sample().to_json(version);
            assert_eq!(json["cniVersion"], version.as_str());
            let old = version < CniVersion::V1_0_0;
            assert_eq!(json["ips"][0].get("version").is_some(), old, "{version}");
            let newest = version == CniVersion::V1_1_0;
            assert_eq!(json["interfaces"][0].get("mtu").is_some(), newest, "{version}");
            assert_eq!(json["routes"][0].get("priority").is_some(), newest, "{version}");
            let back: CniResult = serde_json::from_value(json).unwrap();
            assert_eq!(back.ips, sample().ips);
            assert_eq!(back.sandbox_ips("eth0").count(), 1);
        }
    }

    #[test]
    fn an_index_that_points_nowhere_is_no_sandbox_address() {
        let mut result = sample();
        result.ips[0].interface = Some(9);
        assert_eq!(result.sandbox_ips("eth0").count(), 0);
    }
}
