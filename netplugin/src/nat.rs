//! Masquerade and host ports: the table `inet cofferdam`, shared by every network of the host.
//!
//! The table is made once, with chains that look pods up in maps; a pod is only ever elements of those maps, each
//! with its owner as a comment. Adding, finding and removing a pod therefore never touches a rule.
//!
//! ```text
//! pods4/6      pod address                       -> goto the network's chain (masquerade or not)
//! ports4/6     protocol . host port              -> pod address . container port
//! addrports4/6 host address . protocol . port    -> pod address . container port
//! exposed4/6   pod address . protocol . port     (what host ports lead to; for hairpin and loopback)
//! bridges      our bridges: nothing on the wire there may speak to 127.0.0.0/8
//! ```

mod rules;

use crate::conntrack;
use crate::nft::{self, Element, SetSpec, Value};
use crate::sys::netlink::{Message, NetlinkError, Socket};
use crate::types::{IpNet, Protocol};
use cofferdam_failpoints::failpoint;
use nix::errno::Errno;
use rules::{BRIDGES, Family, V4, V6, base, octets};
use std::collections::HashSet;
use std::net::IpAddr;

pub const TABLE: &str = "cofferdam";
const TRIES: usize = 32;
/// Bytes of protocol and port, with which every host port's key ends.
const SERVICE: usize = 8;
/// So that one transaction fits a socket's send buffer however many pods go at once.
const REMOVED_AT_ONCE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum NatError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("host port {port} is taken by {owner}")]
    PortTaken { port: String, owner: String },
    #[error("nf_tables kept changing while the host's rules were being updated")]
    Contended,
}

/// The chain that decides on masquerading for one network. Its name carries a digest of what it does, so that a
/// chain of that name always has the right rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkChain {
    pub bridge: String,
    pub masquerade: bool,
    pub subnets: Vec<IpNet>,
}

/// One host port of one pod address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    pub protocol: Protocol,
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub pod_ip: IpAddr,
    pub pod_port: u16,
}

fn service(protocol: Protocol, port: u16) -> Vec<u8> {
    let number = match protocol {
        Protocol::Tcp => libc::IPPROTO_TCP,
        Protocol::Udp => libc::IPPROTO_UDP,
        Protocol::Sctp => libc::IPPROTO_SCTP,
    };
    let mut bytes = vec![number as u8, 0, 0, 0];
    bytes.extend(padded_port(port));
    bytes
}

fn padded_port(port: u16) -> [u8; 4] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

/// Everything that a pod is in the table.
pub fn entries(owner: &str, chain: &NetworkChain, pod_ips: &[IpAddr], ports: &[HostPort]) -> Vec<Element> {
    let element =
        |set: &SetSpec, key, value| Element { set: set.name, key, value, comment: owner.to_owned() };
    let mut all: Vec<Element> = pod_ips
        .iter()
        .map(|ip| element(&Family::of(*ip).pods, octets(*ip), Value::Goto(chain.name())))
        .collect();
    for port in ports {
        let family = Family::of(port.pod_ip);
        let target = [octets(port.pod_ip), padded_port(port.pod_port).to_vec()].concat();
        let wanted = service(port.protocol, port.host_port);
        all.push(match port.host_ip {
            None => element(&family.ports, wanted, Value::Bytes(target)),
            Some(ip) => element(&family.addrports, [octets(ip), wanted].concat(), Value::Bytes(target)),
        });
        let exposed = [octets(port.pod_ip), service(port.protocol, port.pod_port)].concat();
        all.push(element(&family.exposed, exposed, Value::None));
    }
    let mut seen = HashSet::new();
    all.retain(|e| seen.insert((e.set, e.key.clone())));
    all
}

/// Makes a pod's elements, and before that the table and the network's chain where they are missing. All or
/// nothing: after a failure none of the elements is there.
///
/// The kernel refuses a key that is there, but a port of one address and the same port of all addresses are different
/// keys: that nobody has the other is looked up first, and the commit fails when anything has changed since.
pub fn publish(socket: &mut Socket, chain: &NetworkChain, elements: &[Element]) -> Result<(), NatError> {
    for _ in 0..TRIES {
        let mut seen = None;
        if elements.iter().any(|e| is_port(e.set)) {
            seen = Some(nft::generation(socket)?);
            refuse_overlaps(elements, &all_elements(socket)?)?;
        }
        let messages = elements.iter().map(|e| nft::new_element(TABLE, e, true)).collect();
        match nft::commit(socket, messages, seen).map_err(|e| (e.errno(), e)) {
            Ok(()) => {
                forget_flows(socket, elements);
                return Ok(());
            }
            Err((Some(Errno::ENOENT), _)) => {
                create(socket, base())?;
                failpoint!("plugin.nat.table_made");
                create(socket, chain.messages())?;
                failpoint!("plugin.nat.chain_made");
            }
            Err((Some(Errno::EEXIST | Errno::EBUSY), _)) => displace(socket, elements)?,
            Err((Some(errno), _)) if is_passing(errno) => {}
            Err((_, error)) => return Err(error.into()),
        }
    }
    Err(NatError::Contended)
}

/// A host port of all addresses and the same one of a single address cannot belong to two pods: which of them a packet
/// meant, nobody could tell.
fn refuse_overlaps(wanted: &[Element], there: &[Element]) -> Result<(), NatError> {
    let of_family = |set: &str, family: &Family| set == family.ports.name || set == family.addrports.name;
    let overlap = |ours: &Element, other: &Element| {
        ours.set != other.set
            && ours.comment != other.comment
            && [&V4, &V6].iter().any(|f| of_family(ours.set, f) && of_family(other.set, f))
            && ours.key.last_chunk::<SERVICE>() == other.key.last_chunk::<SERVICE>()
    };
    match there.iter().find(|other| wanted.iter().any(|ours| overlap(ours, other))) {
        Some(other) => Err(NatError::PortTaken { port: port_text(&other.key), owner: other.comment.clone() }),
        None => Ok(()),
    }
}

/// Flows that are not forgotten end by themselves when they are idle, so a kernel without that service is no
/// reason to fail.
fn forget_flows(socket: &mut Socket, elements: &[Element]) {
    let ports: Vec<u16> =
        elements.iter().filter(|e| is_port(e.set)).filter_map(|e| udp_port(&e.key)).collect();
    if !ports.is_empty() {
        let _ = conntrack::forget_udp(socket, &ports);
    }
}

fn is_port(set: &str) -> bool {
    [V4.ports, V6.ports, V4.addrports, V6.addrports].iter().any(|s| s.name == set)
}

/// The host port at the end of a host port's key, if it is one of UDP.
fn udp_port(key: &[u8]) -> Option<u16> {
    match key.last_chunk()? {
        [proto, _, _, _, high, low, _, _] if i32::from(*proto) == libc::IPPROTO_UDP => {
            Some(u16::from_be_bytes([*high, *low]))
        }
        _ => None,
    }
}

/// ERESTART is what a changed generation gives.
fn is_passing(errno: Errno) -> bool {
    matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::EBUSY)
        || errno as i32 == 0
        || errno == Errno::ERESTART
}

/// Whoever comes second finds everything made by the first.
fn create(socket: &mut Socket, messages: Vec<Message>) -> Result<(), NatError> {
    match nft::commit(socket, messages, None) {
        Err(error)
            if !error.errno().is_some_and(|e| e == Errno::EEXIST || e == Errno::ENOENT || is_passing(e)) =>
        {
            Err(error.into())
        }
        _ => Ok(()),
    }
}

/// Removes elements that stand in the way and are this owner's own, or are of an address that was given to this
/// owner since; a host port of somebody else is refused.
fn displace(socket: &mut Socket, wanted: &[Element]) -> Result<(), NatError> {
    let mut stale = Vec::new();
    for there in all_elements(socket)? {
        let Some(ours) = wanted.iter().find(|w| w.set == there.set && w.key == there.key) else { continue };
        if is_port(there.set) && there.comment != ours.comment {
            return Err(NatError::PortTaken { port: port_text(&there.key), owner: there.comment });
        }
        stale.push(there);
    }
    remove(socket, &stale)
}

/// The last 8 bytes of a host port's key, in words.
fn port_text(key: &[u8]) -> String {
    let Some([proto, _, _, _, high, low, _, _]) = key.last_chunk() else { return String::new() };
    let name = match i32::from(*proto) {
        libc::IPPROTO_TCP => "tcp",
        libc::IPPROTO_UDP => "udp",
        _ => "sctp",
    };
    format!("{}/{name}", u16::from_be_bytes([*high, *low]))
}

fn remove(socket: &mut Socket, stale: &[Element]) -> Result<(), NatError> {
    if stale.is_empty() {
        return Ok(());
    }
    let messages = stale.iter().map(|e| nft::delete_element(TABLE, e.set, &e.key)).collect();
    match nft::commit(socket, messages, None) {
        Err(error) if error.errno().is_some_and(|e| e == Errno::ENOENT || is_passing(e)) => Ok(()),
        outcome => Ok(outcome?),
    }
}

/// Every element of every pod; none when there is no table.
pub fn all_elements(socket: &mut Socket) -> Result<Vec<Element>, NatError> {
    let mut all = Vec::new();
    for set in V4.sets().iter().chain(&V6.sets()) {
        match nft::elements(socket, TABLE, set.name) {
            Ok(elements) => all.extend(elements),
            Err(error) if error.is(Errno::ENOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// Whether the table is there.
pub fn exists(socket: &mut Socket) -> Result<bool, NatError> {
    match nft::elements(socket, TABLE, BRIDGES.name) {
        Ok(_) => Ok(true),
        Err(error) if error.is(Errno::ENOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Removes the elements whose owner `is_stale`. None left of those is success.
pub fn withdraw(socket: &mut Socket, is_stale: impl Fn(&str) -> bool) -> Result<(), NatError> {
    for _ in 0..TRIES {
        let mut stale = all_elements(socket)?;
        stale.retain(|e| is_stale(&e.comment));
        if stale.is_empty() {
            return Ok(());
        }
        for some in stale.chunks(REMOVED_AT_ONCE) {
            remove(socket, some)?;
        }
        forget_flows(socket, &stale);
    }
    Err(NatError::Contended)
}

/// Removes the network's chain unless a pod uses it, and the table when no pod of any network is left in it and none of
/// the bridges that it guards `stands` any more.
pub fn retire(
    socket: &mut Socket,
    chain: &NetworkChain,
    mut stands: impl FnMut(&str) -> Result<bool, NetlinkError>,
) -> Result<(), NatError> {
    let bridge_is_gone = !stands(&chain.bridge)?;
    for _ in 0..TRIES {
        let generation = nft::generation(socket)?;
        let used = all_elements(socket)?;
        let name = chain.name();
        let mut guarded = false;
        if used.is_empty() {
            for bridge in guarded_bridges(socket)? {
                guarded |= stands(&bridge)?;
            }
        }
        let messages = if used.is_empty() && !guarded {
            vec![nft::delete_table(TABLE)]
        } else if used.iter().any(|e| e.value == Value::Goto(name.clone())) {
            return Ok(());
        } else {
            let mut messages = nft::delete_chain(TABLE, &name).to_vec();
            if bridge_is_gone {
                let guard = chain.guard();
                messages.push(nft::delete_element(TABLE, guard.set, &guard.key));
            }
            messages
        };
        match nft::commit(socket, messages, Some(generation)).map_err(|e| (e.errno(), e)) {
            Ok(()) | Err((Some(Errno::ENOENT), _)) => return Ok(()),
            Err((Some(errno), _)) if is_passing(errno) => {}
            Err((_, error)) => return Err(error.into()),
        }
    }
    Err(NatError::Contended)
}

/// The bridges that have an entry in the guard.
fn guarded_bridges(socket: &mut Socket) -> Result<Vec<String>, NatError> {
    let name = |e: Element| e.key.split(|b| *b == 0).next().map(|n| String::from_utf8_lossy(n).into_owned());
    match nft::elements(socket, TABLE, BRIDGES.name) {
        Ok(elements) => Ok(elements.into_iter().filter_map(name).collect()),
        Err(error) if error.is(Errno::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain() -> NetworkChain {
        let subnets = ["10.99.0.0/24", "fd99::/64"].map(|s| s.parse().unwrap()).to_vec();
        NetworkChain { bridge: "br0".to_owned(), masquerade: true, subnets }
    }

    fn port(host_port: u16, host_ip: Option<&str>) -> HostPort {
        HostPort {
            protocol: Protocol::Tcp,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
            host_port,
            pod_ip: "10.99.0.2".parse().unwrap(),
            pod_port: 80,
        }
    }

    #[test]
    fn a_chains_name_says_what_it_does() {
        let name = chain().name();
        assert_eq!(name, chain().name());
        assert!(name.starts_with("br0-") && name.len() <= 31, "{name}");
        assert_ne!(name, NetworkChain { masquerade: false, ..chain() }.name());
        assert_ne!(name, NetworkChain { subnets: Vec::new(), ..chain() }.name());
    }

    #[test]
    fn two_host_ports_of_one_pod_port_expose_it_once() {
        let ip = "10.99.0.2".parse().unwrap();
        let all = entries("o", &chain(), &[ip], &[port(8080, None), port(8081, Some("192.0.2.1"))]);
        let sets: Vec<&str> = all.iter().map(|e| e.set).collect();
        assert_eq!(sets, ["pods4", "ports4", "exposed4", "addrports4"]);
        assert_eq!(all[1].key, [6, 0, 0, 0, 0x1f, 0x90, 0, 0]);
        assert_eq!(all[1].value, Value::Bytes(vec![10, 99, 0, 2, 0, 80, 0, 0]));
        assert_eq!(all[3].key, [192, 0, 2, 1, 6, 0, 0, 0, 0x1f, 0x91, 0, 0]);
        assert_eq!(port_text(&all[3].key), "8081/tcp");
        assert_eq!(udp_port(&all[1].key), None);
    }
}
