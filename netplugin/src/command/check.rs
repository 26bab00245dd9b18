//! CHECK: the attachment is still what ADD's result said.

use crate::error::PluginError;
use crate::ipam::Store;
use crate::link;
use crate::names::{host_veth, owner};
use crate::nat;
use crate::plan::{Network, attachment, host_ports};
use crate::pod;
use crate::sys::netlink::Socket;
use crate::sys::netns::Netns;
use crate::types::{Attachment, CniResult, Request};
use std::net::IpAddr;

fn wrong<T>(what: impl Into<String>) -> Result<T, PluginError> {
    Err(PluginError::Check { what: what.into() })
}

pub fn check(request: &Request) -> Result<(), PluginError> {
    let network = Network::of(&request.config)?;
    if !network.version.has_check() {
        let asked = request.config.cni_version.clone();
        return Err(PluginError::CommandVersion { command: "CHECK", needed: "0.4.0", asked });
    }
    let attachment = attachment(request)?;
    let Some(expected) = &request.config.prev_result else {
        return Err(PluginError::Config { key: "prevResult", why: "CHECK needs it".to_owned() });
    };
    let netns = Netns::open(&request.netns)?;
    check_host(&network, &attachment)?;
    check_pod(&netns, &attachment, expected)?;
    let held = check_leases(&network, &attachment, expected)?;
    check_nat(&network, &attachment, &held)
}

fn check_host(network: &Network<'_>, attachment: &Attachment) -> Result<(), PluginError> {
    let mut socket = Socket::route()?;
    let (bridge, veth) = (&network.conf.bridge, host_veth(&network.scope, attachment));
    let Some(link) = link::find(&mut socket, bridge)? else {
        return wrong(format!("bridge {bridge} is gone"));
    };
    match link::find(&mut socket, &veth)? {
        None => wrong(format!("{veth} is gone")),
        Some(port) if port.master != Some(link.index) => wrong(format!("{veth} is no port of {bridge}")),
        Some(port) if !port.up => wrong(format!("{veth} is down")),
        Some(_) => Ok(()),
    }
}

fn check_pod(netns: &Netns, attachment: &Attachment, expected: &CniResult) -> Result<(), PluginError> {
    let ifname = &attachment.ifname;
    let Some(seen) = pod::observe(netns, ifname)? else { return wrong(format!("{ifname} is gone")) };
    if !seen.up {
        return wrong(format!("{ifname} is down"));
    }
    let interface = expected.interfaces.iter().find(|i| i.name == *ifname && !i.sandbox.is_empty());
    let mac = seen.mac.map(|m| m.to_string()).unwrap_or_default();
    if let Some(i) = interface.filter(|i| !i.mac.is_empty() && !i.mac.eq_ignore_ascii_case(&mac)) {
        return wrong(format!("{ifname} has hardware address {mac}, not {}", i.mac));
    }
    if let Some(mtu) = interface.and_then(|i| i.mtu).filter(|mtu| *mtu != seen.mtu) {
        return wrong(format!("{ifname} has MTU {}, not {mtu}", seen.mtu));
    }
    if let Some(ip) = expected.sandbox_ips(ifname).find(|ip| !seen.addresses.contains(&ip.address)) {
        return wrong(format!("{ifname} lacks address {}", ip.address));
    }
    // A route that other plugins of the chain put on another interface is theirs to check.
    let gateways: Vec<IpAddr> = expected.sandbox_ips(ifname).filter_map(|ip| ip.gateway).collect();
    let ours = expected.routes.iter().filter(|r| r.gw.is_some_and(|gw| gateways.contains(&gw)));
    match ours.into_iter().find(|r| !seen.routes.contains(&(r.dst.network(), r.gw))) {
        Some(route) => wrong(format!("{ifname} lacks the route to {}", route.dst)),
        None => Ok(()),
    }
}

fn check_leases(
    network: &Network<'_>,
    holder: &Attachment,
    expected: &CniResult,
) -> Result<Vec<IpAddr>, PluginError> {
    let Some(store) = Store::open_existing(&network.conf.ipam.data_dir, &network.conf.name)? else {
        return wrong("the record of leases is gone");
    };
    let held: Vec<IpAddr> = store.leases.of(holder).collect();
    match held.iter().find(|ip| expected.sandbox_ips(&holder.ifname).all(|e| e.address.addr() != **ip)) {
        Some(ip) => wrong(format!("{ip} is leased, but not in the result")),
        None if held.is_empty() => wrong("no address is leased to the container"),
        None => Ok(held),
    }
}

fn check_nat(network: &Network<'_>, attachment: &Attachment, held: &[IpAddr]) -> Result<(), PluginError> {
    let ports = host_ports(&network.conf.runtime_config.port_mappings, held)?;
    if !network.conf.ip_masq && ports.is_empty() {
        return Ok(());
    }
    let owner = owner(&network.scope, attachment);
    let there = nat::all_elements(&mut Socket::netfilter()?)?;
    let expected = nat::entries(&owner, &network.chain(), held, &ports);
    match expected.iter().find(|e| !there.contains(e)) {
        Some(missing) => wrong(format!("nf_tables set {} lacks the container's entry", missing.set)),
        None => Ok(()),
    }
}
