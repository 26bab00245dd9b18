//! Inside the pod's namespace: loopback, addresses, routes. Always on a thread of its own that ends there.

use crate::error::PluginError;
use crate::link;
use crate::sys::netlink::{NetlinkError, Socket};
use crate::sys::netns::Netns;
use crate::sys::sysctl;
use crate::types::{IpConfig, IpNet, Mac, Route};
use cofferdam_failpoints::failpoint;
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The loopback link has this number in every namespace.
const LOOPBACK: u32 = 1;

/// What the pod's interface is to have.
#[derive(Debug)]
pub struct PodSide<'a> {
    pub ifname: &'a str,
    pub ips: &'a [IpConfig],
    pub routes: &'a [Route],
    /// Tell the neighbours: needed where the hardware address does not follow from the address.
    pub announce: bool,
}

/// What the kernel says the interface has.
#[derive(Debug)]
pub struct Observed {
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub up: bool,
    pub addresses: Vec<IpNet>,
    pub routes: Vec<(IpNet, Option<IpAddr>)>,
}

fn missing(ifname: &str) -> NetlinkError {
    let operation = format!("look up {ifname} in the pod");
    NetlinkError::Refused { operation, errno: Errno::ENODEV, hint: String::new() }
}

/// Gives the interface its addresses and routes, and brings loopback up. Returns the interface's MTU.
pub fn configure(netns: &Netns, side: &PodSide<'_>) -> Result<u32, PluginError> {
    netns.run(|| {
        let mut socket = Socket::route()?;
        link::set_up(&mut socket, LOOPBACK)?;
        let link = link::find(&mut socket, side.ifname)?.ok_or_else(|| missing(side.ifname))?;
        if side.ips.iter().any(|ip| !ip.address.is_ipv4()) {
            let key = |name: &str| format!("ipv6/conf/{}/{name}", side.ifname);
            sysctl::ensure(&key("disable_ipv6"), "0")?;
            sysctl::ensure(&key("accept_ra"), "0")?;
        }
        if side.announce {
            announce_when_up(side)?;
        }
        for ip in side.ips {
            link::add_address(&mut socket, link.index, ip.address)?;
        }
        failpoint!("plugin.pod.addressed");
        link::set_up(&mut socket, link.index)?;
        for route in side.routes {
            link::add_route(&mut socket, link.index, route)?;
        }
        Ok(link.mtu)
    })?
}

/// The kernel then sends a gratuitous ARP or an unsolicited neighbour advertisement as the link comes up.
fn announce_when_up(side: &PodSide<'_>) -> Result<(), PluginError> {
    for (v4, family, key) in [(true, "ipv4", "arp_notify"), (false, "ipv6", "ndisc_notify")] {
        if side.ips.iter().any(|ip| ip.address.is_ipv4() == v4) {
            sysctl::ensure(&format!("{family}/conf/{}/{key}", side.ifname), "1")?;
        }
    }
    Ok(())
}

pub fn observe(netns: &Netns, ifname: &str) -> Result<Option<Observed>, PluginError> {
    netns.run(|| {
        let mut socket = Socket::route()?;
        let Some(link) = link::find(&mut socket, ifname)? else { return Ok(None) };
        Ok(Some(Observed {
            mac: link.mac,
            mtu: link.mtu,
            up: link.up,
            addresses: link::addresses(&mut socket, link.index)?,
            routes: link::routes(&mut socket, link.index)?,
        }))
    })?
}

/// The configured routes, each through its family's gateway unless it names its own; without a configuration a
/// default route through each gateway.
pub fn routes(configured: Option<&[Route]>, ips: &[IpConfig], is_gateway: bool) -> Vec<Route> {
    let gateway = |v4: bool| ips.iter().filter_map(|ip| ip.gateway).find(|g| g.is_ipv4() == v4);
    match configured {
        Some(routes) => routes
            .iter()
            .map(|route| Route { gw: route.gw.or_else(|| gateway(route.dst.is_ipv4())), ..route.clone() })
            .collect(),
        None if is_gateway => [
            (IpNet::new(Ipv4Addr::UNSPECIFIED.into(), 0), gateway(true)),
            (IpNet::new(Ipv6Addr::UNSPECIFIED.into(), 0), gateway(false)),
        ]
        .into_iter()
        .filter_map(|(dst, gw)| Some(Route::new(dst?, Some(gw?))))
        .collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str, gateway: &str) -> IpConfig {
        IpConfig {
            interface: None,
            address: address.parse().unwrap(),
            gateway: Some(gateway.parse().unwrap()),
        }
    }

    #[test]
    fn routes_default_to_each_gateway_and_can_be_none() {
        let ips = [ip("10.0.0.2/24", "10.0.0.1"), ip("fd00::2/64", "fd00::1")];
        let words = |routes: Vec<Route>| {
            routes.iter().map(|r| format!("{} via {}", r.dst, r.gw.unwrap())).collect::<Vec<_>>()
        };
        assert_eq!(words(routes(None, &ips, true)), ["0.0.0.0/0 via 10.0.0.1", "::/0 via fd00::1"]);
        assert!(routes(None, &ips, false).is_empty());
        assert!(routes(Some(&[]), &ips, true).is_empty());
        let own = [Route::new("192.168.0.0/16".parse().unwrap(), None)];
        assert_eq!(words(routes(Some(&own), &ips, true)), ["192.168.0.0/16 via 10.0.0.1"]);
    }
}
