//! A request, checked once: what follows works on these types and checks nothing again.

use crate::error::PluginError;
use crate::ipam::{RangeSet, range_sets};
use crate::names;
use crate::nat::{HostPort, NetworkChain};
use crate::types::{Attachment, CniVersion, IpNet, Mac, NetConf, PortMapping, Request};
use std::net::IpAddr;

/// The MTU of the smallest IPv4 datagram that every host must accept, and the largest Ethernet knows.
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;
/// So that network, bridge, container and interface fit the comment of an nf_tables element.
const NAME_MAX: usize = 100;

/// The network's side of a request: what all its attachments share.
#[derive(Debug, Clone)]
pub struct Network<'a> {
    pub conf: &'a NetConf,
    pub version: CniVersion,
    pub scope: String,
    pub mtu: Option<u32>,
}

impl<'a> Network<'a> {
    pub fn of(conf: &'a NetConf) -> Result<Self, PluginError> {
        let wrong = |key: &'static str, why: String| PluginError::Config { key, why };
        let version = CniVersion::parse(&conf.cni_version)
            .ok_or_else(|| PluginError::Version { asked: conf.cni_version.clone() })?;
        if !names::is_cni_name(&conf.name) || conf.name.len() > NAME_MAX {
            return Err(wrong("name", format!("{:?} is not a network's name", conf.name)));
        }
        if !names::is_link_name(&conf.bridge) {
            return Err(wrong("bridge", format!("{:?} cannot be a link's name", conf.bridge)));
        }
        let mtu = conf.mtu.filter(|mtu| *mtu != 0);
        if let Some(mtu) = mtu.filter(|mtu| !MTU.contains(mtu)) {
            return Err(wrong("mtu", format!("{mtu} is out of bounds")));
        }
        if conf.ipam.plugin != "host-local" {
            return Err(PluginError::UnsupportedField {
                key: "ipam.type",
                why: format!("{:?} is not built in; only host-local is", conf.ipam.plugin),
            });
        }
        if conf.ipam.data_dir.as_os_str().is_empty() {
            return Err(wrong("ipam.dataDir", "is empty".to_owned()));
        }
        Ok(Self { conf, version, scope: names::scope(&conf.name, &conf.bridge), mtu })
    }

    pub fn sets(&self) -> Result<Vec<RangeSet>, PluginError> {
        let sets = range_sets(&self.conf.ipam, &self.conf.runtime_config)?;
        for range in sets.iter().flat_map(RangeSet::ranges) {
            let family = if range.subnet.is_ipv4() { "ipv4" } else { "ipv6" };
            if !crate::sys::sysctl::exists(&format!("{family}/conf/all/forwarding")) {
                return Err(PluginError::NoFamily { subnet: range.subnet });
            }
        }
        Ok(sets)
    }

    /// The chain depends on the configured subnets only, so that every attachment of the network shares it.
    pub fn chain(&self) -> NetworkChain {
        let ipam = &self.conf.ipam;
        let subnets: Vec<IpNet> =
            ipam.subnet.into_iter().chain(ipam.ranges.iter().flatten().map(|r| r.subnet)).collect();
        NetworkChain { bridge: self.conf.bridge.clone(), masquerade: self.conf.ip_masq, subnets }
    }
}

/// One attachment of that network.
pub fn attachment(request: &Request) -> Result<Attachment, PluginError> {
    if !names::is_cni_name(&request.container_id) || request.container_id.len() > NAME_MAX {
        return Err(PluginError::Environment {
            name: "CNI_CONTAINERID",
            why: format!("{:?} is not a container's id", request.container_id),
        });
    }
    if !names::is_link_name(&request.ifname) {
        return Err(PluginError::Environment {
            name: "CNI_IFNAME",
            why: format!("{:?} cannot be a link's name", request.ifname),
        });
    }
    Ok(Attachment { container_id: request.container_id.clone(), ifname: request.ifname.clone() })
}

/// The hardware address asked for in any of CNI's three ways.
pub fn requested_mac(request: &Request) -> Result<Option<Mac>, PluginError> {
    let conf = &request.config;
    if let Some(mac) = conf.runtime_config.mac.or(conf.args.as_ref().and_then(|a| a.cni.mac)) {
        return Ok(Some(mac));
    }
    let parse = |text: &str| {
        text.parse().map_err(|e| PluginError::Environment { name: "CNI_ARGS", why: format!("MAC: {e}") })
    };
    request.args.get("MAC").map(parse).transpose()
}

/// The mappings as host ports of these pod addresses.
pub fn host_ports(mappings: &[PortMapping], pod_ips: &[IpAddr]) -> Result<Vec<HostPort>, PluginError> {
    let wrong = |why: String| PluginError::Config { key: "runtimeConfig.portMappings", why };
    let port = |number: i32| {
        u16::try_from(number).ok().filter(|p| *p > 0).ok_or_else(|| wrong(format!("{number} is not a port")))
    };
    let mut ports = Vec::new();
    for mapping in mappings.iter().filter(|m| m.host_port > 0) {
        let host_ip: Option<IpAddr> = match mapping.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| wrong(format!("hostIP {text:?} is not an address")))?),
        };
        let wanted: Vec<IpAddr> = pod_ips
            .iter()
            .copied()
            .filter(|ip| host_ip.is_none_or(|h| h.is_ipv4() == ip.is_ipv4()))
            .collect();
        if wanted.is_empty() {
            return Err(wrong(format!("the pod has no address for hostIP {}", mapping.host_ip)));
        }
        for pod_ip in wanted {
            ports.push(HostPort {
                protocol: mapping.protocol,
                host_ip: host_ip.filter(|ip| !ip.is_unspecified()),
                host_port: port(mapping.host_port)?,
                pod_ip,
                pod_port: port(mapping.container_port)?,
            });
        }
    }
    Ok(ports)
}
