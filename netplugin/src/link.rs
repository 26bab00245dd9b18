//! Links, addresses and routes in rtnetlink's words. Every function speaks to the namespace that its socket is in.

use crate::sys::netlink::{Message, NetlinkError, Socket, attr, read_u32, text};
use crate::types::{IpNet, Mac, Route};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

const VETH_INFO_PEER: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;

/// A link as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    pub mtu: u32,
    pub kind: String,
    pub master: Option<u32>,
    pub up: bool,
    /// Free text; ours names the owner.
    pub alias: String,
}

/// The pair to make: one end on the bridge here, the other in `netns` under the container's name for it.
#[derive(Debug)]
pub struct VethPair<'a> {
    pub host_name: &'a str,
    pub pod_name: &'a str,
    pub pod_mac: Mac,
    pub netns: BorrowedFd<'a>,
    pub mtu: Option<u32>,
    pub bridge: u32,
}

fn link_header(index: u32, flags: i32, change: i32, family: i32) -> [u8; 16] {
    let mut header = [0; 16];
    header[0] = family as u8;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&(flags as u32).to_ne_bytes());
    header[12..16].copy_from_slice(&(change as u32).to_ne_bytes());
    header
}

fn parse_link(body: &[u8]) -> Option<Link> {
    let attrs = body.get(16..)?;
    let info = attr(attrs, libc::IFLA_LINKINFO).unwrap_or(&[]);
    let mac = attr(attrs, libc::IFLA_ADDRESS).and_then(|m| <[u8; 6]>::try_from(m).ok());
    Some(Link {
        index: read_u32(body, 4)?,
        name: text(attr(attrs, libc::IFLA_IFNAME)?),
        mac: mac.map(Mac),
        mtu: read_u32(attr(attrs, libc::IFLA_MTU)?, 0)?,
        kind: attr(info, libc::IFLA_INFO_KIND).map(text).unwrap_or_default(),
        master: attr(attrs, libc::IFLA_MASTER).and_then(|m| read_u32(m, 0)),
        up: read_u32(body, 8)? & libc::IFF_UP as u32 != 0,
        alias: attr(attrs, libc::IFLA_IFALIAS).map(text).unwrap_or_default(),
    })
}

/// The link of this name, if there is one.
pub fn find(socket: &mut Socket, name: &str) -> Result<Option<Link>, NetlinkError> {
    let operation = format!("look up link {name}");
    let message = Message::new(operation.clone(), libc::RTM_GETLINK, 0)
        .raw(&link_header(0, 0, 0, libc::AF_UNSPEC))
        .attr_str(libc::IFLA_IFNAME, name);
    match socket.fetch(message) {
        Ok(body) => parse_link(&body).map(Some).ok_or(NetlinkError::Malformed { operation }),
        Err(error) if error.is(Errno::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The links that have this one as their master.
pub fn ports(socket: &mut Socket, bridge: u32) -> Result<Vec<Link>, NetlinkError> {
    let message = Message::new("list the bridge's ports", libc::RTM_GETLINK, 0)
        .raw(&link_header(0, 0, 0, libc::AF_UNSPEC))
        .attr_u32(libc::IFLA_MASTER, bridge);
    let links = socket.dump(&message)?;
    Ok(links.iter().filter_map(|body| parse_link(body)).filter(|l| l.master == Some(bridge)).collect())
}

/// `EEXIST` when a link of that name is there.
pub fn create_bridge(
    socket: &mut Socket,
    name: &str,
    mac: Option<Mac>,
    mtu: Option<u32>,
) -> Result<(), NetlinkError> {
    let mut message = Message::new(
        format!("create bridge {name}"),
        libc::RTM_NEWLINK,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
    )
    .raw(&link_header(0, 0, 0, libc::AF_UNSPEC))
    .attr_str(libc::IFLA_IFNAME, name);
    if let Some(mac) = mac {
        message = message.attr(libc::IFLA_ADDRESS, &mac.0);
    }
    if let Some(mtu) = mtu {
        message = message.attr_u32(libc::IFLA_MTU, mtu);
    }
    socket.request(message.nested(libc::IFLA_LINKINFO, |m| m.attr_str(libc::IFLA_INFO_KIND, "bridge")))
}

/// Makes the pair in one step, the host's end up and a port of the bridge. The pod's end cannot be up yet: the
/// kernel configures it before the two know each other.
pub fn create_veth(socket: &mut Socket, pair: &VethPair<'_>) -> Result<(), NetlinkError> {
    let operation = format!("create {} and {} in the container", pair.host_name, pair.pod_name);
    let with_mtu = |message: Message| match pair.mtu {
        Some(mtu) => message.attr_u32(libc::IFLA_MTU, mtu),
        None => message,
    };
    let peer = |message: Message| {
        let message = message
            .raw(&link_header(0, 0, 0, libc::AF_UNSPEC))
            .attr_str(libc::IFLA_IFNAME, pair.pod_name)
            .attr(libc::IFLA_ADDRESS, &pair.pod_mac.0)
            .attr_u32(libc::IFLA_NET_NS_FD, pair.netns.as_raw_fd() as u32);
        with_mtu(message)
    };
    let message = Message::new(operation, libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL)
        .raw(&link_header(0, libc::IFF_UP, libc::IFF_UP, libc::AF_UNSPEC))
        .attr_str(libc::IFLA_IFNAME, pair.host_name)
        .attr_u32(libc::IFLA_MASTER, pair.bridge);
    socket.request(with_mtu(message).nested(libc::IFLA_LINKINFO, |m| {
        m.attr_str(libc::IFLA_INFO_KIND, "veth")
            .nested(libc::IFLA_INFO_DATA, |m| m.nested(VETH_INFO_PEER, peer))
    }))
}

/// Lets the bridge send a frame back out of the port it came from.
pub fn set_hairpin(socket: &mut Socket, port: u32) -> Result<(), NetlinkError> {
    let message = Message::new("switch hairpin mode on", libc::RTM_SETLINK, 0)
        .raw(&link_header(port, 0, 0, libc::AF_BRIDGE))
        .nested(libc::IFLA_PROTINFO, |m| m.attr_u8(IFLA_BRPORT_MODE, 1));
    socket.request(message)
}

/// Names the owner of the host's end.
pub fn set_alias(socket: &mut Socket, index: u32, alias: &str) -> Result<(), NetlinkError> {
    let message = Message::new("name the owner of the host's end", libc::RTM_SETLINK, 0)
        .raw(&link_header(index, 0, 0, libc::AF_UNSPEC))
        .attr_str(libc::IFLA_IFALIAS, alias);
    socket.request(message)
}

pub fn set_up(socket: &mut Socket, index: u32) -> Result<(), NetlinkError> {
    let header = link_header(index, libc::IFF_UP, libc::IFF_UP, libc::AF_UNSPEC);
    socket.request(Message::new("bring the link up", libc::RTM_NEWLINK, 0).raw(&header))
}

/// Whether there was such a link.
pub fn delete(socket: &mut Socket, name: &str) -> Result<bool, NetlinkError> {
    let message = Message::new(format!("delete link {name}"), libc::RTM_DELLINK, 0)
        .raw(&link_header(0, 0, 0, libc::AF_UNSPEC))
        .attr_str(libc::IFLA_IFNAME, name);
    match socket.request(message) {
        Ok(()) => Ok(true),
        Err(error) if error.is(Errno::ENODEV) => Ok(false),
        Err(error) => Err(error),
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn family(addr: IpAddr) -> u8 {
    (if addr.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// Adds an address that is usable at once: no duplicate address detection. An address that is there already is fine.
pub fn add_address(socket: &mut Socket, index: u32, address: IpNet) -> Result<(), NetlinkError> {
    let flags = if address.is_ipv4() { 0 } else { libc::IFA_F_NODAD as u8 };
    let mut header = vec![family(address.addr()), address.prefix(), flags, 0];
    header.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(
        format!("add address {address}"),
        libc::RTM_NEWADDR,
        libc::NLM_F_CREATE | libc::NLM_F_EXCL,
    )
    .raw(&header)
    .attr(libc::IFA_LOCAL, &octets(address.addr()))
    .attr(libc::IFA_ADDRESS, &octets(address.addr()));
    if address.is_ipv4() && address.prefix() < 31 {
        message = message.attr(libc::IFA_BROADCAST, &octets(address.last()));
    }
    match socket.request(message) {
        Err(error) if error.is(Errno::EEXIST) => Ok(()),
        outcome => outcome,
    }
}

/// The addresses of a link.
pub fn addresses(socket: &mut Socket, index: u32) -> Result<Vec<IpNet>, NetlinkError> {
    let message = Message::new("list addresses", libc::RTM_GETADDR, 0).raw(&[0; 8]);
    let parse = |body: &Vec<u8>| {
        let attrs = body.get(8..).filter(|_| read_u32(body, 4) == Some(index))?;
        let bytes = attr(attrs, libc::IFA_LOCAL).or_else(|| attr(attrs, libc::IFA_ADDRESS))?;
        IpNet::new(parse_addr(bytes)?, *body.get(1)?)
    };
    Ok(socket.dump(&message)?.iter().filter_map(parse).collect())
}

fn parse_addr(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|b| Ipv4Addr::from(b).into()),
        16 => <[u8; 16]>::try_from(bytes).ok().map(|b| Ipv6Addr::from(b).into()),
        _ => None,
    }
}

/// Adds a route out of a link, or puts it in the place of one with the same destination and priority.
pub fn add_route(socket: &mut Socket, index: u32, route: &Route) -> Result<(), NetlinkError> {
    let dst = route.dst.network();
    let table = route.table.unwrap_or(u32::from(libc::RT_TABLE_MAIN));
    let scope = match (route.scope, route.gw, dst.is_ipv4()) {
        (Some(scope), _, _) => scope,
        (None, None, true) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let header = [
        family(dst.addr()),
        dst.prefix(),
        0,
        0,
        u8::try_from(table).unwrap_or(libc::RT_TABLE_UNSPEC),
        libc::RTPROT_BOOT,
        scope,
        libc::RTN_UNICAST,
        0,
        0,
        0,
        0,
    ];
    let operation = format!("add route to {dst}");
    let mut message = Message::new(operation, libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE)
        .raw(&header)
        .attr_u32(libc::RTA_TABLE, table)
        .attr_u32(libc::RTA_OIF, index);
    if dst.prefix() > 0 {
        message = message.attr(libc::RTA_DST, &octets(dst.addr()));
    }
    if let Some(gw) = route.gw {
        message = message.attr(libc::RTA_GATEWAY, &octets(gw));
    }
    if let Some(priority) = route.priority {
        message = message.attr_u32(libc::RTA_PRIORITY, priority);
    }
    if route.mtu.is_some() || route.advmss.is_some() {
        message = message.nested(libc::RTA_METRICS, |mut m| {
            if let Some(mtu) = route.mtu {
                m = m.attr_u32(RTAX_MTU, mtu);
            }
            if let Some(advmss) = route.advmss {
                m = m.attr_u32(RTAX_ADVMSS, advmss);
            }
            m
        });
    }
    socket.request(message)
}

/// The destinations of the routes out of a link, with their gateways.
pub fn routes(socket: &mut Socket, index: u32) -> Result<Vec<(IpNet, Option<IpAddr>)>, NetlinkError> {
    let message = Message::new("list routes", libc::RTM_GETROUTE, 0).raw(&[0; 12]);
    let parse = |body: &Vec<u8>| {
        let attrs = body.get(12..)?;
        let oif = attr(attrs, libc::RTA_OIF).and_then(|o| read_u32(o, 0))?;
        let any: IpAddr = match i32::from(*body.first()?) {
            libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return None,
        };
        let dst = attr(attrs, libc::RTA_DST).map_or(Some(any), parse_addr)?;
        let net = IpNet::new(dst, *body.get(1)?)?;
        (oif == index).then_some((net, attr(attrs, libc::RTA_GATEWAY).and_then(parse_addr)))
    };
    Ok(socket.dump(&message)?.iter().filter_map(parse).collect())
}
