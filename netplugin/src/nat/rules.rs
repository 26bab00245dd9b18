//! The table's fixed part and each network's chain: what nf_tables does with the maps that `nat` fills.

use super::{NetworkChain, TABLE};
use crate::nft::{self, DROP, DataSpec, Element, Expression as E, Hook, RETURN, SetSpec, Value, slot};
use crate::sys::netlink::Message;
use crate::types::IpNet;
use std::net::{IpAddr, Ipv6Addr};

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
pub(super) struct Family {
    number: u8,
    addr_len: u32,
    /// Where the network header has the source and the destination.
    source: u32,
    destination: u32,
    pub(super) pods: SetSpec,
    pub(super) ports: SetSpec,
    pub(super) addrports: SetSpec,
    pub(super) exposed: SetSpec,
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

pub(super) const V4: Family = family(IPV4, ["pods4", "ports4", "addrports4", "exposed4"]);
pub(super) const V6: Family = family(IPV6, ["pods6", "ports6", "addrports6", "exposed6"]);
pub(super) const BRIDGES: SetSpec =
    SetSpec { name: "bridges", key_type: IFNAME, key_len: 16, data: DataSpec::None, host_order: true };

impl Family {
    pub(super) fn of(addr: IpAddr) -> &'static Self {
        if addr.is_ipv4() { &V4 } else { &V6 }
    }

    pub(super) fn sets(&self) -> [SetSpec; 4] {
        [self.pods, self.ports, self.addrports, self.exposed]
    }
}

impl NetworkChain {
    pub fn name(&self) -> String {
        let mut words = vec![self.masquerade.to_string()];
        words.extend(self.subnets.iter().map(|s| s.network().to_string()));
        let digest = crate::names::digest(words.iter().map(String::as_str)) as u32;
        format!("{}-{digest:08x}", self.bridge)
    }

    /// The chain with its rules, and the bridge's entry in the guard.
    pub(super) fn messages(&self) -> Vec<Message> {
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

    pub(super) fn guard(&self) -> Element {
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

pub(super) fn octets(addr: IpAddr) -> Vec<u8> {
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
pub(super) fn base() -> Vec<Message> {
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
