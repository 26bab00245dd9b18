//! The pod's network in the guest: cards are found by their addresses, named, and get what the pod's interface has.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use cofferdam_proto::agent::{Interface, Route};
use cofferdam_vm::agent::NETNS;
use cofferdam_vm::sys::netlink::{Message, Netlink, Prefix, family, octets};
use rustix::mount::mount_bind;

use crate::sys;

const CARDS: &str = "/sys/class/net";
/// In every namespace.
const LOOPBACK: i32 = 1;

/// Makes the pod's network namespace, apart from the agent's, and moves the cards there. Loopback, then all interfaces,
/// then the routes in their order.
pub fn set_up(interfaces: &[Interface], routes: &[Route]) -> io::Result<()> {
    let mut first = Netlink::open()?;
    let mut cards = Vec::new();
    for interface in interfaces {
        cards.push((index(&card(&interface.mac)?)?, interface));
    }
    // The thread is in that namespace for good, so it ends with this.
    std::thread::scope(|scope| {
        let work = || {
            let namespace = make_namespace()?;
            for (index, _) in &cards {
                first.request(move_card(*index, namespace.as_fd()))?;
            }
            configure(&cards, routes)
        };
        let thread = std::thread::Builder::new().name("network".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the network's thread died")))
    })
}

/// A new namespace for this thread, kept by a mount.
fn make_namespace() -> io::Result<OwnedFd> {
    const OWN: &str = "/proc/thread-self/ns/net";
    sys::new_network()?;
    File::create(NETNS)?;
    mount_bind(OWN, NETNS)?;
    Ok(File::open(OWN)?.into())
}

fn configure(cards: &[(i32, &Interface)], routes: &[Route]) -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.request(link(LOOPBACK, None, 0))?;
    for (index, interface) in cards {
        netlink.request(link(*index, Some(&interface.name), interface.mtu))?;
        for address in &interface.addresses {
            netlink.request(add_address(*index, address.parse()?))?;
        }
    }
    for route in routes {
        let gateway = match route.gateway.as_str() {
            "" => None,
            text => Some(text.parse::<IpAddr>().map_err(io::Error::other)?),
        };
        let card = cards.iter().find(|(_, interface)| interface.name == route.interface);
        let (index, _) = card.ok_or_else(|| io::Error::other(format!("no interface {}", route.interface)))?;
        netlink.request(add_route(*index, route.destination.parse()?, gateway))?;
    }
    Ok(())
}

fn card(mac: &str) -> io::Result<String> {
    for entry in fs::read_dir(CARDS)? {
        let entry = entry?;
        let address = fs::read_to_string(entry.path().join("address")).unwrap_or_default();
        if address.trim().eq_ignore_ascii_case(mac) {
            return Ok(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no network card {mac}")))
}

fn index(name: &str) -> io::Result<i32> {
    let text = fs::read_to_string(format!("{CARDS}/{name}/ifindex"))
        .map_err(|error| io::Error::new(error.kind(), format!("interface {name}: {error}")))?;
    text.trim().parse().map_err(io::Error::other)
}

fn move_card(index: i32, namespace: BorrowedFd<'_>) -> Message {
    let fixed = [&[0; 4][..], &index.to_ne_bytes(), &[0; 8]].concat();
    Message::new(libc::RTM_NEWLINK, 0)
        .raw(&fixed)
        .attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes())
}

/// `struct ifinfomsg`: up, with another name and size.
fn link(index: i32, name: Option<&str>, mtu: u32) -> Message {
    let up = libc::IFF_UP.to_ne_bytes();
    let fixed = [&[0; 4][..], &index.to_ne_bytes(), &up, &up].concat();
    let mut message = Message::new(libc::RTM_NEWLINK, 0).raw(&fixed);
    if let Some(name) = name {
        message = message.attribute(libc::IFLA_IFNAME, &[name.as_bytes(), &[0]].concat());
    }
    if mtu != 0 {
        message = message.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
    }
    message
}

/// `struct ifaddrmsg`. The host has checked that nobody else has the address.
fn add_address(index: i32, prefix: Prefix) -> Message {
    let no_check =
        if prefix.address.is_ipv6() { u8::try_from(libc::IFA_F_NODAD).unwrap_or_default() } else { 0 };
    let fixed = [&[family(prefix.address), prefix.length, no_check, 0][..], &index.to_ne_bytes()].concat();
    let address = octets(prefix.address);
    Message::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .raw(&fixed)
        .attribute(libc::IFA_LOCAL, &address)
        .attribute(libc::IFA_ADDRESS, &address)
}

/// `struct rtmsg`
fn add_route(index: i32, destination: Prefix, gateway: Option<IpAddr>) -> Message {
    let scope = if gateway.is_some() { libc::RT_SCOPE_UNIVERSE } else { libc::RT_SCOPE_LINK };
    let fixed = [
        family(destination.address),
        destination.length,
        0,
        0,
        libc::RT_TABLE_MAIN,
        libc::RTPROT_BOOT,
        scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let mut message = Message::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE).raw(&fixed);
    if destination.length > 0 {
        message = message.attribute(libc::RTA_DST, &octets(destination.address));
    }
    if let Some(gateway) = gateway {
        message = message.attribute(libc::RTA_GATEWAY, &octets(gateway));
    }
    message.attribute(libc::RTA_OIF, &index.to_ne_bytes())
}
