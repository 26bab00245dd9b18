//! The pod's network as its guest gets it: for each interface of the pod's namespace a tap, and the kernel hands every
//! packet across (traffic control, `mirred`). The guest's card has the interface's own address, so that neither the CNI
//! plugin nor its peers see a difference.
//!
//! ```text
//!   pod's namespace:   eth0 ⇄ ingress redirect ⇄ vmtap0 ═ descriptor ═ monitor ═ guest's eth0
//! ```
//! Nothing has to be taken away: a tap goes with its monitor, the rest with the namespace.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::agent::{Interface, Route};
use crate::sys::netlink::{Message, Netlink, attributes};
use crate::sys::tap;
use crate::vmm::Nic;

/// More interfaces than any pod has.
const MOST_INTERFACES: usize = 8;
const INGRESS: u32 = 0xffff_fff1;
const INGRESS_HANDLE: u32 = 0xffff_0000;
const ALL_PROTOCOLS: u16 = 0x0003;
const STOLEN: i32 = 4;
const EGRESS_REDIRECT: i32 = 1;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_U32_SEL: u16 = 5;
const TCA_U32_ACT: u16 = 7;
const TERMINAL: u8 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

#[derive(Debug, thiserror::Error)]
#[error("give the guest the network of {}: {step}: {source}", netns.display())]
pub struct NetError {
    netns: PathBuf,
    step: &'static str,
    source: io::Error,
}

/// What the monitor gets, and what the agent is told.
#[derive(Debug, Default)]
pub struct Network {
    pub nics: Vec<Nic>,
    pub interfaces: Vec<Interface>,
    pub routes: Vec<Route>,
}

/// Puts taps in front of the interfaces of the network namespace at `netns`.
///
/// # Errors
/// When the namespace is not there, or the kernel lacks something.
pub fn attach(netns: &Path) -> Result<Network, NetError> {
    let work = || {
        let entered = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)));
        entered.map_err(|errno| ("enter it", errno.into()))?;
        attach_here()
    };
    // The thread is in that namespace for good, so it ends with this.
    let outcome = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error| ("start a thread", error))?;
        thread.join().unwrap_or_else(|_| Err(("join the thread", io::Error::other("it died"))))
    });
    outcome.map_err(|(step, source)| NetError { netns: netns.to_owned(), step, source })
}

type Step<T> = Result<T, (&'static str, io::Error)>;

fn attach_here() -> Step<Network> {
    let mut netlink = Netlink::open().map_err(|error| ("open netlink", error))?;
    let links = links(&mut netlink).map_err(|error| ("list interfaces", error))?;
    if links.len() > MOST_INTERFACES {
        return Err(("list interfaces", io::Error::other("there are too many")));
    }
    let mut network = Network {
        routes: routes(&mut netlink, &links).map_err(|error| ("list routes", error))?,
        ..Network::default()
    };
    let mut addresses = addresses(&mut netlink).map_err(|error| ("list addresses", error))?;
    for (number, (index, link)) in links.iter().enumerate() {
        let name = format!("vmtap{number}");
        let tap = tap::make(&name).map_err(|error| ("make a tap", error))?;
        let tap_index = index_of(&mut netlink, &name).map_err(|error| ("find the tap", error))?;
        netlink.request(up(tap_index, link.mtu)).map_err(|error| ("set the tap up", error))?;
        for (from, to) in [(*index, tap_index), (tap_index, *index)] {
            netlink.request(ingress(from)).map_err(|error| ("watch what comes in", error))?;
            netlink.request(redirect(from, to)).map_err(|error| ("redirect what comes in", error))?;
        }
        network.nics.push(Nic { tap, mac: link.mac.clone() });
        network.interfaces.push(Interface {
            mac: link.mac.clone(),
            name: link.name.clone(),
            mtu: link.mtu,
            addresses: addresses.remove(index).unwrap_or_default(),
        });
    }
    Ok(network)
}

#[derive(Debug)]
struct Link {
    name: String,
    mac: String,
    mtu: u32,
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn index_at(bytes: &[u8], at: usize) -> i32 {
    word(bytes, at).cast_signed()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim_end_matches('\0').to_owned()
}

/// Those that are up and no loopback.
fn links(netlink: &mut Netlink) -> io::Result<BTreeMap<i32, Link>> {
    let mut found = BTreeMap::new();
    netlink.dump(Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP).raw(&[0; 16]), |_, body| {
        let flags = word(body, 8).cast_signed();
        if flags & libc::IFF_LOOPBACK != 0 || flags & libc::IFF_UP == 0 {
            return;
        }
        let mut link = Link { name: String::new(), mac: String::new(), mtu: 0 };
        for (kind, value) in attributes(body.get(16..).unwrap_or_default()) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_MTU => link.mtu = word(value, 0),
                libc::IFLA_ADDRESS if value.len() == 6 => {
                    link.mac = value.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":");
                }
                _ => {}
            }
        }
        // Without an address of its own it is no card: a tunnel, say.
        if !link.mac.is_empty() {
            found.insert(index_at(body, 4), link);
        }
    })?;
    Ok(found)
}

fn index_of(netlink: &mut Netlink, name: &str) -> io::Result<i32> {
    let mut found = None;
    netlink.dump(Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP).raw(&[0; 16]), |_, body| {
        let mut names = attributes(body.get(16..).unwrap_or_default());
        if names.any(|(kind, value)| kind == libc::IFLA_IFNAME && text(value) == name) {
            found = Some(index_at(body, 4));
        }
    })?;
    found.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into()),
        16 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into()),
        _ => None,
    }
}

/// Every interface makes its own link-local address, and the route that belongs to it.
fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local() || v6.is_multicast())
}

fn addresses(netlink: &mut Netlink) -> io::Result<BTreeMap<i32, Vec<String>>> {
    let mut found: BTreeMap<i32, Vec<String>> = BTreeMap::new();
    netlink.dump(Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP).raw(&[0; 8]), |_, body| {
        let length = body.get(1).copied().unwrap_or_default();
        let (mut local, mut address) = (None, None);
        for (kind, value) in attributes(body.get(8..).unwrap_or_default()) {
            match kind {
                libc::IFA_LOCAL => local = ip(value),
                libc::IFA_ADDRESS => address = ip(value),
                _ => {}
            }
        }
        if let Some(own) = local.or(address).filter(|own| !is_link_local(*own)) {
            found.entry(index_at(body, 4)).or_default().push(format!("{own}/{length}"));
        }
    })?;
    Ok(found)
}

/// Those of the main table that do not come with an address. Destinations on a link come first, as gateways rely on them.
fn routes(netlink: &mut Netlink, links: &BTreeMap<i32, Link>) -> io::Result<Vec<Route>> {
    let mut found = Vec::new();
    netlink.dump(Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP).raw(&[0; 12]), |_, body| {
        let [family, length, _, _, table, protocol, _, kind, ..] = body else { return };
        let (mut destination, mut gateway, mut out) = (None, None, None);
        for (kind, value) in attributes(body.get(12..).unwrap_or_default()) {
            match kind {
                libc::RTA_DST => destination = ip(value),
                libc::RTA_GATEWAY => gateway = ip(value),
                libc::RTA_OIF => out = links.get(&index_at(value, 0)),
                _ => {}
            }
        }
        let any: IpAddr = if i32::from(*family) == libc::AF_INET {
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            Ipv6Addr::UNSPECIFIED.into()
        };
        let destination = destination.unwrap_or(any);
        let by_kernel = *protocol == libc::RTPROT_KERNEL && gateway.is_none();
        if *table != libc::RT_TABLE_MAIN
            || *kind != libc::RTN_UNICAST
            || by_kernel
            || is_link_local(destination)
        {
            return;
        }
        let Some(link) = out else { return };
        found.push(Route {
            destination: format!("{destination}/{length}"),
            gateway: gateway.map(|address| address.to_string()).unwrap_or_default(),
            interface: link.name.clone(),
        });
    })?;
    found.sort_by_key(|route| !route.gateway.is_empty());
    Ok(found)
}

fn up(index: i32, mtu: u32) -> Message {
    let up = libc::IFF_UP.to_ne_bytes();
    let fixed = [&[0; 4][..], &index.to_ne_bytes(), &up, &up].concat();
    Message::new(libc::RTM_NEWLINK, 0).raw(&fixed).attribute(libc::IFLA_MTU, &mtu.to_ne_bytes())
}

/// `struct tcmsg`
fn traffic(index: i32, handle: u32, parent: u32, info: u32) -> Vec<u8> {
    [&[0; 4][..], &index.to_ne_bytes(), &handle.to_ne_bytes(), &parent.to_ne_bytes(), &info.to_ne_bytes()]
        .concat()
}

fn ingress(index: i32) -> Message {
    Message::new(libc::RTM_NEWQDISC, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .raw(&traffic(index, INGRESS_HANDLE, INGRESS, 0))
        .attribute(TCA_KIND, b"ingress\0")
}

/// Everything that comes in at one interface leaves by the other. `u32` with a key that fits everything: kernels have it
/// where they have the newer `matchall`, and where they do not.
fn redirect(from: i32, to: i32) -> Message {
    let info = (1 << 16) | u32::from(ALL_PROTOCOLS.to_be());
    // struct tc_u32_sel: the end of the search, one key; struct tc_u32_key: no bit of any word
    let selector = [&[TERMINAL, 0, 1, 0][..], &[0; 12], &[0; 16]].concat();
    // index, capabilities, action, two counters, what the redirection does, the interface
    let parameters = [0, 0, STOLEN, 0, 0, EGRESS_REDIRECT, to].map(i32::to_ne_bytes).concat();
    Message::new(libc::RTM_NEWTFILTER, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .raw(&traffic(from, 0, INGRESS_HANDLE, info))
        .attribute(TCA_KIND, b"u32\0")
        .nested(TCA_OPTIONS, |options| {
            options.attribute(TCA_U32_SEL, &selector).nested(TCA_U32_ACT, |actions| {
                actions.nested(1, |action| {
                    action
                        .attribute(TCA_ACT_KIND, b"mirred\0")
                        .nested(TCA_ACT_OPTIONS, |mirred| mirred.attribute(TCA_MIRRED_PARMS, &parameters))
                })
            })
        })
}

#[cfg(test)]
mod tests;
