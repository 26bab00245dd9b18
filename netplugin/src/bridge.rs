//! The bridge of a network: made by whoever comes first, found by everyone else.

use crate::error::PluginError;
use crate::link::{self, Link};
use crate::names::mac_of;
use crate::plan::Network;
use crate::sys::netlink::{NetlinkError, Socket};
use crate::sys::sysctl;
use crate::types::{IpConfig, IpNet};
use cofferdam_failpoints::failpoint;
use nix::errno::Errno;

/// The gateways' addresses, as the bridge carries them.
pub fn gateways(ips: &[IpConfig]) -> Vec<IpNet> {
    ips.iter().filter_map(|ip| IpNet::new(ip.gateway?, ip.address.prefix())).collect()
}

/// Finds or makes the bridge, up, with the gateways' addresses if it is one, and the host forwarding.
pub fn ensure(socket: &mut Socket, network: &Network<'_>, ips: &[IpConfig]) -> Result<Link, PluginError> {
    let name = &network.conf.bridge;
    let bridge = match link::find(socket, name)? {
        Some(link) => link,
        None => create(socket, network, ips)?,
    };
    if bridge.kind != "bridge" {
        return Err(PluginError::NotABridge { name: name.clone(), kind: bridge.kind });
    }
    let v6 = ips.iter().any(|ip| !ip.address.is_ipv4());
    if v6 {
        quiet_ipv6(name)?;
    }
    if !bridge.up {
        link::set_up(socket, bridge.index)?;
    }
    failpoint!("plugin.bridge.up");
    if network.conf.is_gateway {
        for address in gateways(ips) {
            link::add_address(socket, bridge.index, address)?;
        }
        if ips.iter().any(|ip| ip.address.is_ipv4()) {
            sysctl::ensure("ipv4/ip_forward", "1")?;
        }
        if v6 {
            sysctl::ensure("ipv6/conf/all/forwarding", "1")?;
        }
    }
    Ok(bridge)
}

/// The bridge gets a hardware address of its own: without one it would take its lowest port's and change it
/// whenever ports come and go.
fn create(socket: &mut Socket, network: &Network<'_>, ips: &[IpConfig]) -> Result<Link, PluginError> {
    let name = &network.conf.bridge;
    let mac = gateways(ips).first().map(|gateway| mac_of(gateway.addr()));
    match link::create_bridge(socket, name, mac, network.mtu) {
        Err(error) if !error.is(Errno::EEXIST) => return Err(error.into()),
        _ => {}
    }
    failpoint!("plugin.bridge.made");
    let gone = || NetlinkError::Refused {
        operation: format!("look up new bridge {name}"),
        errno: Errno::ENODEV,
        hint: String::new(),
    };
    Ok(link::find(socket, name)?.ok_or_else(gone)?)
}

/// No duplicate address detection, which would wait for a first port, and no router's advice on our own bridge.
fn quiet_ipv6(bridge: &str) -> Result<(), PluginError> {
    for (key, value) in [("disable_ipv6", "0"), ("accept_dad", "0"), ("accept_ra", "0")] {
        sysctl::ensure(&format!("ipv6/conf/{bridge}/{key}"), value)?;
    }
    Ok(())
}

/// Lets the host's 127.0.0.1 reach pods through host ports. The guard in `nat` keeps the other direction shut.
pub fn route_loopback(bridge: &str) -> Result<(), PluginError> {
    Ok(sysctl::ensure(&format!("ipv4/conf/{bridge}/route_localnet"), "1")?)
}
