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

use crate::conntrack;
use crate::nft::{self, DROP, DataSpec, Element, Expression as E, Hook, RETURN, SetSpec, Value, slot};
use crate::sys::netlink::{Message, NetlinkError, Socket};
use crate::types::{IpNet, Protocol};
use nix::errno::Errno;
use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

pub const TABLE: &str = "cofferdam";
const TRIES: usize = 32;

const IP4: u32 = 7;
const IP6: u32 = 8;
const PROTO: u32 = 12;
const PORT: u32 = 13;
const IFNAME: u32 = 41;
const LOCAL_ROUTE: u32 = 2;
const CT_STATUS_DNAT: u32 = 1 << 5;
const IPV4: u8 = 2;
const IPV6: u8 = 10;

const fn join(types: &[u32]) -> u32 {
    let (mut joined, mut i) = (0, 0);
    while i < types.len() {
        joined = joined << 6 | types[i];
        i += 1;
    }
    joined
}

/// The sets of one address family.
struct Family {
    number: u8,
    addr_len: u32,
    /// Where the network header has the source and the destination.
    source: u32,
    destination: u32,
    pods: SetSpec,
    ports: SetSpec,
    addrports: SetSpec,
    exposed: SetSpec,
}

const fn family(number: u8, names: [&'static str; 4]) -> Family {
    let four = number == IPV4;
    let (kind, len) = if four { (IP4, 4) } else { (IP6, 16) };
    let target = DataSpec::Value { kind: join(&[kind, PORT]), len: len + 4 };
    let full = join(&[kind, PROTO, PORT]);
    Family {
        number,
        addr_len: len,
        source: if four { 12 } else { 8 },
        destination: if four { 16 } else { 24 },
        pods: SetSpec {
            name: names[0],
            key_type: kind,
            key_len: len,
            data: DataSpec::Verdict,
            host_order: false,
        },
        ports: SetSpec {
            name: names[1],
            key_type: join(&[PROTO, PORT]),
            key_len: 8,
            data: target,
            host_order: false,
        },
        addrports: SetSpec {
            name: names[2],
            key_type: full,
            key_len: len + 8,
            data: target,
            host_order: false,
        },
        exposed: SetSpec {
            name: names[3],
            key_type: full,
            key_len: len + 8,
            data: DataSpec::None,
            host_order: false,
        },
    }
}

const V4: Family = family(IPV4, ["pods4", "ports4", "addrports4", "exposed4"]);
const V6: Family = family(IPV6, ["pods6", "ports6", "addrports6", "exposed6"]);
const BRIDGES: SetSpec =
    SetSpec { name: "bridges", key_type: IFNAME, key_len: 16, data: DataSpec::None, host_order: true };

impl Family {
    fn of(addr: IpAddr) -> &'static Self {
        if addr.is_ipv4() { &V4 } else { &V6 }
    }

    fn sets(&self) -> [SetSpec; 4] {
        [self.pods, self.ports, self.addrports, self.exposed]
    }
}

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

impl NetworkChain {
    pub fn name(&self) -> String {
        let mut words = vec![self.masquerade.to_string()];
        words.extend(self.subnets.iter().map(|s| s.network().to_string()));
        let digest = crate::names::digest(words.iter().map(String::as_str)) as u32;
        format!("{}-{digest:08x}", self.bridge)
    }

    /// The chain with its rules, and the bridge's entry in the guard.
    fn messages(&self) -> Vec<Message> {
        let name = self.name();
        let mut messages = vec![nft::new_chain(TABLE, &name, None)];
        let mut rule = |expressions: &[E]| messages.push(nft::new_rule(TABLE, &name, expressions));
        for family in [&V4, &V6] {
            let mut through_host_port = to_exposed(family);
            through_host_port.push(E::Masquerade);
            rule(&through_host_port);
        }
        if self.masquerade {
            let mut near = self.subnets.clone();
            near.extend(multicast());
            for net in near {
                rule(&to_network(net));
            }
            rule(&[E::Masquerade]);
        }
        messages.push(nft::new_element(TABLE, &self.guard(), false));
        messages
    }

    fn guard(&self) -> Element {
        let mut key = self.bridge.as_bytes().to_vec();
        key.resize(16, 0);
        Element { set: BRIDGES.name, key, value: Value::None, comment: String::new() }
    }
}

fn multicast() -> Vec<IpNet> {
    [("224.0.0.0", 4), ("ff00::", 8)]
        .into_iter()
        .filter_map(|(addr, prefix)| IpNet::new(addr.parse().ok()?, prefix))
        .collect()
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn is_family(family: &Family) -> [E; 2] {
    [E::LoadFamily(slot(0)), E::Equal { at: slot(0), value: vec![family.number] }]
}

fn load_destination(family: &Family) -> E {
    E::LoadNetwork { to: slot(0), offset: family.destination, len: family.addr_len }
}

/// Protocol and destination port, from slot `at` on.
fn load_ports(at: u32) -> [E; 2] {
    [E::LoadL4Proto(slot(at)), E::LoadTransport { to: slot(at + 1), offset: 2, len: 2 }]
}

/// Packets whose destination was rewritten to something that a host port leads to.
fn to_exposed(family: &Family) -> Vec<E> {
    let mut rule = is_family(family).to_vec();
    rule.extend([
        E::LoadCtStatus(slot(0)),
        E::Mask { at: slot(0), mask: CT_STATUS_DNAT.to_ne_bytes().to_vec() },
        E::NotEqual { at: slot(0), value: vec![0; 4] },
        load_destination(family),
    ]);
    rule.extend(load_ports(family.addr_len / 4));
    rule.push(E::Lookup { set: family.exposed.name, key: slot(0) });
    rule
}

/// Packets to this network are left as they are.
fn to_network(net: IpNet) -> Vec<E> {
    let family = Family::of(net.addr());
    let ones = u128::MAX.checked_shl(128 - u32::from(net.prefix())).unwrap_or(0);
    let mask = ones.to_be_bytes()[..family.addr_len as usize].to_vec();
    let mut rule = is_family(family).to_vec();
    rule.extend([
        load_destination(family),
        E::Mask { at: slot(0), mask },
        E::Equal { at: slot(0), value: octets(net.network().addr()) },
        E::Verdict(RETURN),
    ]);
    rule
}

fn from_loopback() -> Vec<E> {
    let mut rule = is_family(&V4).to_vec();
    rule.extend([
        E::LoadNetwork { to: slot(0), offset: V4.source, len: 1 },
        E::Equal { at: slot(0), value: vec![127] },
    ]);
    rule.extend(to_exposed(&V4));
    rule.push(E::Masquerade);
    rule
}

/// The table with everything that does not depend on a network.
fn base() -> Vec<Message> {
    let hook = |kind, number, priority| Some(Hook { kind, number, priority });
    let mut messages = vec![nft::new_table(TABLE)];
    let sets = V4.sets().into_iter().chain(V6.sets()).chain([BRIDGES]);
    messages.extend(sets.zip(1..).map(|(set, id)| nft::new_set(TABLE, &set, id)));
    messages.extend([
        nft::new_chain(TABLE, "hostports", None),
        nft::new_chain(TABLE, "guard", hook("filter", libc::NF_INET_PRE_ROUTING as u32, -300)),
        nft::new_chain(TABLE, "prerouting", hook("nat", libc::NF_INET_PRE_ROUTING as u32, -100)),
        nft::new_chain(TABLE, "output", hook("nat", libc::NF_INET_LOCAL_OUT as u32, -100)),
        nft::new_chain(TABLE, "postrouting", hook("nat", libc::NF_INET_POST_ROUTING as u32, 100)),
    ]);
    let mut rule = |chain: &str, expressions: &[E]| messages.push(nft::new_rule(TABLE, chain, expressions));
    let mut guard = vec![E::LoadInputName(slot(0)), E::Lookup { set: BRIDGES.name, key: slot(0) }];
    guard.extend(is_family(&V4));
    guard.extend([
        E::LoadNetwork { to: slot(0), offset: V4.destination, len: 1 },
        E::Equal { at: slot(0), value: vec![127] },
        E::Verdict(DROP),
    ]);
    rule("guard", &guard);
    let local = [
        E::LoadDestinationType(slot(0)),
        E::Equal { at: slot(0), value: LOCAL_ROUTE.to_ne_bytes().to_vec() },
        E::Jump("hostports"),
    ];
    rule("prerouting", &local);
    rule("output", &local);
    // The kernel cannot route ::1 out of another interface, so that address stays the host's own.
    rule("hostports", &to_network(IpNet::single(Ipv6Addr::LOCALHOST.into())));
    for family in [&V4, &V6] {
        for by_address in [true, false] {
            rule("hostports", &to_pod(family, by_address));
        }
    }
    rule("postrouting", &from_loopback());
    for family in [&V4, &V6] {
        let mut to_chain = is_family(family).to_vec();
        to_chain.extend([
            E::LoadNetwork { to: slot(0), offset: family.source, len: family.addr_len },
            E::LookupVerdict { set: family.pods.name, key: slot(0) },
        ]);
        rule("postrouting", &to_chain);
    }
    messages
}

fn to_pod(family: &Family, by_address: bool) -> Vec<E> {
    let mut rule = is_family(family).to_vec();
    let slots = family.addr_len / 4;
    let set = if by_address {
        rule.push(load_destination(family));
        rule.extend(load_ports(slots));
        family.addrports.name
    } else {
        rule.extend(load_ports(0));
        family.ports.name
    };
    rule.extend([
        E::LookupValue { set, key: slot(0), to: slot(0) },
        E::Dnat { family: family.number, addr: slot(0), port: slot(slots) },
    ]);
    rule
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
pub fn publish(socket: &mut Socket, chain: &NetworkChain, elements: &[Element]) -> Result<(), NatError> {
    for _ in 0..TRIES {
        let messages = elements.iter().map(|e| nft::new_element(TABLE, e, true)).collect();
        match nft::commit(socket, messages, None).map_err(|e| (e.errno(), e)) {
            Ok(()) => {
                forget_flows(socket, elements);
                return Ok(());
            }
            Err((Some(Errno::ENOENT), _)) => {
                create(socket, base())?;
                create(socket, chain.messages())?;
            }
            Err((Some(Errno::EEXIST | Errno::EBUSY), _)) => displace(socket, elements)?,
            Err((Some(errno), _)) if is_passing(errno) => {}
            Err((_, error)) => return Err(error.into()),
        }
    }
    Err(NatError::Contended)
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
        remove(socket, &stale)?;
        forget_flows(socket, &stale);
    }
    Err(NatError::Contended)
}

/// Removes the network's chain unless a pod uses it, and the table when no pod of any network is left in it. The
/// guard goes with the bridge.
pub fn retire(socket: &mut Socket, chain: &NetworkChain, bridge_is_gone: bool) -> Result<(), NatError> {
    for _ in 0..TRIES {
        let generation = nft::generation(socket)?;
        let used = all_elements(socket)?;
        let name = chain.name();
        let messages = if used.is_empty() {
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
