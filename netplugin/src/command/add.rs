//! ADD: lease, bridge, pair, the pod's side, host ports. Each step that succeeded is undone when a later one fails.

use crate::bridge;
use crate::error::PluginError;
use crate::ipam::{Allocation, Store, requested_addresses};
use crate::link::{self, Link, VethPair};
use crate::names::{host_veth, mac_of, owner};
use crate::nat;
use crate::plan::{Network, attachment, host_ports, requested_mac};
use crate::pod::{self, PodSide};
use crate::sys::netlink::Socket;
use crate::sys::netns::Netns;
use crate::types::{Attachment, CniResult, Dns, Interface, IpConfig, Mac, NetConf, Request, Route};
use cofferdam_failpoints::failpoint;
use nix::errno::Errno;
use std::net::IpAddr;
use std::os::fd::AsFd;

pub fn add(request: &Request) -> Result<CniResult, PluginError> {
    let network = Network::of(&request.config)?;
    let attachment = attachment(request)?;
    let mac = requested_mac(request)?;
    let netns = Netns::open(&request.netns)?;
    if netns.is_current() {
        return Err(PluginError::HostNamespace);
    }
    let allocation = lease(&network, &attachment, request)?;
    let attempt = Attempt { network: &network, attachment: &attachment, netns: &netns, mac, request };
    let outcome = attempt.run(&allocation.ips);
    if outcome.is_err() && allocation.fresh {
        // The failure that led here is the one to report.
        let _ = release(&network, &attachment);
    }
    outcome
}

fn lease(network: &Network<'_>, holder: &Attachment, request: &Request) -> Result<Allocation, PluginError> {
    let requested = requested_addresses(network.conf, &request.args)?;
    let sets = network.sets()?;
    let mut store = Store::open(&network.conf.ipam.data_dir, &network.conf.name)?;
    let allocation = store.leases.allocate(&sets, holder, &requested)?;
    if allocation.changed {
        store.save()?;
    }
    Ok(allocation)
}

fn release(network: &Network<'_>, holder: &Attachment) -> Result<(), PluginError> {
    let mut store = Store::open(&network.conf.ipam.data_dir, &network.conf.name)?;
    store.leases.release(holder);
    Ok(store.save()?)
}

struct Attempt<'a> {
    network: &'a Network<'a>,
    attachment: &'a Attachment,
    netns: &'a Netns,
    mac: Option<Mac>,
    request: &'a Request,
}

/// Both ends of the pair and the bridge, for the result.
struct Wired {
    bridge: Link,
    host_name: String,
    pod_mac: Mac,
}

impl Attempt<'_> {
    fn run(&self, ips: &[IpConfig]) -> Result<CniResult, PluginError> {
        let pod_ips: Vec<IpAddr> = ips.iter().map(|ip| ip.address.addr()).collect();
        failpoint!("plugin.add.leased");
        let ports = host_ports(&self.network.conf.runtime_config.port_mappings, &pod_ips)?;
        let mut socket = Socket::route()?;
        let wired = self.wire(&mut socket, ips, &pod_ips)?;
        let rest = || {
            let (host, mtu) = self.finish(&mut socket, ips, &pod_ips, &ports, &wired)?;
            Ok(self.result(ips, &wired, &host, mtu))
        };
        rest_or_unwire(rest, &wired.host_name)
    }

    fn wire(&self, socket: &mut Socket, ips: &[IpConfig], pod_ips: &[IpAddr]) -> Result<Wired, PluginError> {
        let bridge = bridge::ensure(socket, self.network, ips)?;
        failpoint!("plugin.add.bridge_ready");
        let host_name = host_veth(&self.network.scope, self.attachment);
        let fallback = || pod_ips.first().map_or(Mac([0x0a, 0x58, 0, 0, 0, 1]), |ip| mac_of(*ip));
        let pod_mac = self.mac.unwrap_or_else(fallback);
        let pair = VethPair {
            host_name: &host_name,
            pod_name: &self.attachment.ifname,
            pod_mac,
            netns: self.netns.file().as_fd(),
            mtu: self.network.mtu,
            bridge: bridge.index,
        };
        match link::create_veth(socket, &pair) {
            Ok(()) => Ok(Wired { bridge, host_name, pod_mac }),
            Err(error) if error.is(Errno::EEXIST) => Err(PluginError::AlreadyAttached {
                container: self.attachment.container_id.clone(),
                ifname: self.attachment.ifname.clone(),
            }),
            Err(error) => Err(error.into()),
        }
    }

    /// What comes after the pair: alias, hairpin, the pod's side, host ports.
    fn finish(
        &self,
        socket: &mut Socket,
        ips: &[IpConfig],
        pod_ips: &[IpAddr],
        ports: &[nat::HostPort],
        wired: &Wired,
    ) -> Result<(Link, u32), PluginError> {
        failpoint!("plugin.add.pair_made");
        let conf = self.network.conf;
        let missing = || PluginError::Check { what: format!("{} vanished", wired.host_name) };
        let host = link::find(socket, &wired.host_name)?.ok_or_else(missing)?;
        let owner = owner(&self.network.scope, self.attachment);
        link::set_alias(socket, host.index, &owner)?;
        failpoint!("plugin.add.alias_set");
        if conf.hairpin_mode {
            link::set_hairpin(socket, host.index)?;
        }
        let routes = self.routes(ips);
        let side =
            PodSide { ifname: &self.attachment.ifname, ips, routes: &routes, announce: self.mac.is_some() };
        let mtu = pod::configure(self.netns, &side)?;
        failpoint!("plugin.add.pod_configured");
        if !ports.is_empty() && conf.is_gateway {
            bridge::route_loopback(&conf.bridge)?;
        }
        if conf.ip_masq || !ports.is_empty() {
            let chain = self.network.chain();
            let elements = nat::entries(&owner, &chain, pod_ips, ports);
            nat::publish(&mut Socket::netfilter()?, &chain, &elements)?;
            failpoint!("plugin.add.published", infallible);
        }
        Ok((host, mtu))
    }

    fn routes(&self, ips: &[IpConfig]) -> Vec<Route> {
        pod::routes(self.network.conf.ipam.routes.as_deref(), ips, self.network.conf.is_gateway)
    }

    /// Interfaces and addresses of earlier plugins in a chain come first.
    fn result(&self, ips: &[IpConfig], wired: &Wired, host: &Link, mtu: u32) -> CniResult {
        let mut result = self.network.conf.prev_result.clone().unwrap_or_default();
        let text = |mac: Option<Mac>| mac.map(|m| m.to_string()).unwrap_or_default();
        let on_host = |link: &Link| Interface {
            name: link.name.clone(),
            mac: text(link.mac),
            mtu: Some(link.mtu),
            ..Interface::default()
        };
        result.interfaces.extend([on_host(&wired.bridge), on_host(host)]);
        let index = result.interfaces.len();
        result.interfaces.push(Interface {
            name: self.attachment.ifname.clone(),
            mac: wired.pod_mac.to_string(),
            mtu: Some(mtu),
            sandbox: self.request.netns.display().to_string(),
            ..Interface::default()
        });
        result.ips.extend(ips.iter().map(|ip| IpConfig { interface: Some(index), ..ip.clone() }));
        result.routes.extend(self.routes(ips));
        result.dns = dns(self.network.conf);
        self.network.version.as_str().clone_into(&mut result.cni_version);
        result
    }
}

/// Deleting one end deletes the pair, and with it every address and route.
fn rest_or_unwire<T>(
    rest: impl FnOnce() -> Result<T, PluginError>,
    host_name: &str,
) -> Result<T, PluginError> {
    let outcome = rest();
    if outcome.is_err() {
        // The failure that led here is the one to report.
        let _ = Socket::route().and_then(|mut socket| link::delete(&mut socket, host_name));
    }
    outcome
}

fn dns(conf: &NetConf) -> Dns {
    match &conf.runtime_config.dns {
        None => conf.dns.clone(),
        Some(runtime) => Dns {
            nameservers: runtime.servers.clone(),
            domain: conf.dns.domain.clone(),
            search: runtime.searches.clone(),
            options: runtime.options.clone(),
        },
    }
}
