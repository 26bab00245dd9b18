//! Ranges as configured, checked and with their defaults filled in.

use crate::types::{CniArgs, IpNet, IpamConf, IpamRange, NetConf, RuntimeConfig, from_bits, to_bits};
use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    #[error("ipam has no ranges: give `subnet` or `ranges`")]
    NoRanges,
    #[error("ipam.ranges has an empty set")]
    EmptySet,
    #[error("subnet {0} is too small to have a gateway and a pod")]
    TooSmall(IpNet),
    #[error("subnet {0} is given with host bits set; did you mean {1}?")]
    HostBits(IpNet, IpNet),
    #[error("{what} {addr} is not in subnet {subnet}")]
    Outside { what: &'static str, addr: IpAddr, subnet: IpNet },
    #[error("range of {0} ends before it starts")]
    Backwards(IpNet),
    #[error("one set of ranges mixes IPv4 and IPv6")]
    MixedFamilies,
    #[error("subnets {0} and {1} of different sets overlap")]
    Overlap(IpNet, IpNet),
    #[error("requested address {0:?} is not an address")]
    NotAnAddress(String),
}

/// Addresses from `first` to `last`, both included, as numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    pub subnet: IpNet,
    pub gateway: IpAddr,
    first: u128,
    last: u128,
}

/// One address is given from each set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RangeSet(Vec<Range>);

impl Range {
    fn of(conf: &IpamRange) -> Result<Self, RangeError> {
        let subnet = conf.subnet;
        if subnet != subnet.network() {
            return Err(RangeError::HostBits(subnet, subnet.network()));
        }
        if subnet.prefix() > if subnet.is_ipv4() { 30 } else { 126 } {
            return Err(RangeError::TooSmall(subnet));
        }
        let inside = |what, addr: Option<IpAddr>, default: u128| match addr {
            None => Ok(default),
            Some(addr) if subnet.contains(addr) => Ok(to_bits(addr)),
            Some(addr) => Err(RangeError::Outside { what, addr, subnet }),
        };
        let lowest = to_bits(subnet.addr()) + 1;
        // The last IPv4 address of a subnet is its broadcast address.
        let highest = to_bits(subnet.last()) - u128::from(subnet.is_ipv4());
        let first = inside("rangeStart", conf.range_start, lowest)?.max(lowest);
        let last = inside("rangeEnd", conf.range_end, highest)?.min(highest);
        if first > last {
            return Err(RangeError::Backwards(subnet));
        }
        let gateway = from_bits(inside("gateway", conf.gateway, lowest)?, subnet.is_ipv4());
        Ok(Self { subnet, gateway, first, last })
    }

    fn is_ipv4(&self) -> bool {
        self.subnet.is_ipv4()
    }
}

impl RangeSet {
    pub fn new(confs: &[IpamRange]) -> Result<Self, RangeError> {
        let ranges = confs.iter().map(Range::of).collect::<Result<Vec<_>, _>>()?;
        let first = ranges.first().ok_or(RangeError::EmptySet)?;
        if ranges.iter().any(|r| r.is_ipv4() != first.is_ipv4()) {
            return Err(RangeError::MixedFamilies);
        }
        Ok(Self(ranges))
    }

    pub fn ranges(&self) -> &[Range] {
        &self.0
    }

    /// The range that may give this address to a pod.
    pub fn range_of(&self, addr: IpAddr) -> Option<&Range> {
        let bits = to_bits(addr);
        let holds = |r: &&Range| r.is_ipv4() == addr.is_ipv4() && (r.first..=r.last).contains(&bits);
        self.0.iter().find(holds).filter(|_| self.0.iter().all(|r| r.gateway != addr))
    }

    /// Every address of the set, gateways left out, beginning after `last`.
    pub fn after(&self, last: Option<IpAddr>) -> impl Iterator<Item = IpAddr> {
        let start = last.and_then(|l| {
            let index = self.0.iter().position(|r| (r.first..=r.last).contains(&to_bits(l)))?;
            Some((index, to_bits(l)))
        });
        let (index, from) = start.unwrap_or((0, 0));
        let head = &self.0[index];
        let v4 = head.is_ipv4();
        let rest = self.0[index + 1..].iter().chain(&self.0[..index]).flat_map(|r| r.first..=r.last);
        ((from + 1).max(head.first)..=head.last)
            .chain(rest)
            .chain(head.first..=from.min(head.last))
            .map(move |bits| from_bits(bits, v4))
            .filter(|addr| self.0.iter().all(|r| r.gateway != *addr))
    }
}

/// The sets of a configuration; those that the runtime asks for take the place of the configured ones.
pub fn range_sets(conf: &IpamConf, runtime: &RuntimeConfig) -> Result<Vec<RangeSet>, RangeError> {
    let short = conf.subnet.map(|subnet| {
        vec![IpamRange {
            subnet,
            range_start: conf.range_start,
            range_end: conf.range_end,
            gateway: conf.gateway,
        }]
    });
    let configured = short.iter().chain(&conf.ranges);
    let wanted: Vec<_> =
        if runtime.ip_ranges.is_empty() { configured.collect() } else { runtime.ip_ranges.iter().collect() };
    let sets = wanted.into_iter().map(|s| RangeSet::new(s)).collect::<Result<Vec<_>, _>>()?;
    if sets.is_empty() {
        return Err(RangeError::NoRanges);
    }
    for (index, set) in sets.iter().enumerate() {
        for (one, other) in
            set.0.iter().flat_map(|r| sets[index + 1..].iter().flat_map(|s| &s.0).map(move |o| (r, o)))
        {
            if one.subnet.overlaps(&other.subnet) {
                return Err(RangeError::Overlap(one.subnet, other.subnet));
            }
        }
    }
    Ok(sets)
}

/// The addresses asked for in any of CNI's three ways.
pub fn requested_addresses(conf: &NetConf, args: &CniArgs) -> Result<Vec<IpAddr>, RangeError> {
    let from_args = args.get("IP").into_iter().flat_map(|ips| ips.split(','));
    let from_conf = conf.args.iter().flat_map(|a| &a.cni.ips).map(String::as_str);
    let all = conf.runtime_config.ips.iter().map(String::as_str).chain(from_args).chain(from_conf);
    let mut wanted = Vec::new();
    for text in all.filter(|t| !t.is_empty()) {
        let bare = text.split_once('/').map_or(text, |(addr, _)| addr);
        let addr = bare.parse().map_err(|_| RangeError::NotAnAddress(text.to_owned()))?;
        if !wanted.contains(&addr) {
            wanted.push(addr);
        }
    }
    Ok(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> IpamRange {
        IpamRange::of(subnet.parse().unwrap())
    }

    fn listed(set: &RangeSet, last: Option<&str>) -> Vec<String> {
        set.after(last.map(|l| l.parse().unwrap())).map(|a| a.to_string()).collect()
    }

    #[test]
    fn addresses_go_round_and_skip_gateway_and_broadcast() {
        let set = RangeSet::new(&[range("10.0.0.0/29")]).unwrap();
        let all = ["10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"];
        assert_eq!(listed(&set, None), all);
        assert_eq!(
            listed(&set, Some("10.0.0.5")),
            ["10.0.0.6", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"]
        );
        assert_eq!(listed(&set, Some("10.0.0.6")).len(), 5);
        assert_eq!(listed(&set, Some("192.168.0.1")), all);
    }

    #[test]
    fn a_set_of_several_ranges_gives_each_address_once() {
        let mut second = range("10.0.1.0/30");
        second.gateway = Some("10.0.1.2".parse().unwrap());
        let set = RangeSet::new(&[range("10.0.0.0/30"), second]).unwrap();
        assert_eq!(listed(&set, None), ["10.0.0.2", "10.0.1.1"]);
        assert_eq!(listed(&set, Some("10.0.0.2")), ["10.0.1.1", "10.0.0.2"]);
        assert!(set.range_of("10.0.1.2".parse().unwrap()).is_none());
    }

    #[test]
    fn the_whole_of_ipv6_is_not_walked() {
        let set = RangeSet::new(&[range("fd00::/8")]).unwrap();
        assert_eq!(set.after(None).next().unwrap().to_string(), "fd00::2");
    }

    #[test]
    fn wrong_ranges_are_named() {
        let check = |conf: &IpamRange| RangeSet::new(std::slice::from_ref(conf)).unwrap_err();
        assert!(matches!(check(&range("10.0.0.0/31")), RangeError::TooSmall(_)));
        assert!(matches!(check(&range("10.0.0.1/24")), RangeError::HostBits(..)));
        let mut outside = range("10.0.0.0/24");
        outside.range_end = Some("10.0.1.1".parse().unwrap());
        assert!(matches!(check(&outside), RangeError::Outside { what: "rangeEnd", .. }));
        let mut backwards = range("10.0.0.0/24");
        backwards.range_start = Some("10.0.0.9".parse().unwrap());
        backwards.range_end = Some("10.0.0.8".parse().unwrap());
        assert!(matches!(check(&backwards), RangeError::Backwards(_)));
        let mixed = RangeSet::new(&[range("10.0.0.0/24"), range("fd00::/64")]);
        assert_eq!(mixed, Err(RangeError::MixedFamilies));
        let conf = |sets| IpamConf { ranges: sets, ..IpamConf::default() };
        let overlap = conf(vec![vec![range("10.0.0.0/8")], vec![range("10.1.0.0/16")]]);
        assert!(matches!(range_sets(&overlap, &RuntimeConfig::default()), Err(RangeError::Overlap(..))));
        assert_eq!(range_sets(&conf(vec![]), &RuntimeConfig::default()), Err(RangeError::NoRanges));
    }
}
