//! Who has which address: pure bookkeeping, no files.

use super::range::RangeSet;
use crate::types::{Attachment, IpConfig, IpNet};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    #[error("no address is left in {subnets}")]
    Exhausted { subnets: String },
    #[error("requested address {addr} is taken by container {container}")]
    Taken { addr: IpAddr, container: String },
    #[error("requested address {0} is in no range of the network")]
    OutOfRange(IpAddr),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    ip: IpAddr,
    #[serde(flatten)]
    holder: Attachment,
}

/// The leases of one network, and where each set's round goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leases {
    version: u32,
    last: BTreeMap<String, IpAddr>,
    leases: Vec<Lease>,
}

/// What [`Leases::allocate`] gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocation {
    pub ips: Vec<IpConfig>,
    /// Whether these addresses were given by this call: only then may a failing caller give them back.
    pub fresh: bool,
    /// Whether there are new leases to be saved: also where a holder of old ones got one more, from a set that the
    /// configuration has gained since.
    pub changed: bool,
}

impl Default for Leases {
    fn default() -> Self {
        Self { version: Self::VERSION, last: BTreeMap::new(), leases: Vec::new() }
    }
}

impl Leases {
    const VERSION: u32 = 1;

    pub fn is_known_version(&self) -> bool {
        self.version == Self::VERSION
    }

    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    pub fn of<'a>(&'a self, holder: &'a Attachment) -> impl Iterator<Item = IpAddr> + 'a {
        self.leases.iter().filter(move |l| l.holder == *holder).map(|l| l.ip)
    }

    /// One address from each set. A holder that has addresses keeps exactly those.
    pub fn allocate(
        &mut self,
        sets: &[RangeSet],
        holder: &Attachment,
        requested: &[IpAddr],
    ) -> Result<Allocation, LeaseError> {
        let held: Vec<IpAddr> = self.of(holder).collect();
        if let Some(addr) = requested.iter().find(|r| sets.iter().all(|s| s.range_of(**r).is_none())) {
            return Err(LeaseError::OutOfRange(*addr));
        }
        let mut ips = Vec::new();
        let mut given = Vec::new();
        for set in sets {
            let addr = match held.iter().find(|h| set.range_of(**h).is_some()) {
                Some(addr) => *addr,
                None => {
                    let addr = self.choose(set, requested)?;
                    given.push((set.clone(), addr));
                    addr
                }
            };
            ips.extend(set.range_of(addr).and_then(|range| {
                let address = IpNet::new(addr, range.subnet.prefix())?;
                Some(IpConfig { interface: None, address, gateway: Some(range.gateway) })
            }));
        }
        let (fresh, changed) = (held.is_empty(), !given.is_empty());
        for (set, ip) in given {
            self.last.insert(key_of(&set), ip);
            self.leases.push(Lease { ip, holder: holder.clone() });
        }
        Ok(Allocation { ips, fresh, changed })
    }

    fn choose(&self, set: &RangeSet, requested: &[IpAddr]) -> Result<IpAddr, LeaseError> {
        if let Some(addr) = requested.iter().find(|r| set.range_of(**r).is_some()) {
            return match self.leases.iter().find(|l| l.ip == *addr) {
                None => Ok(*addr),
                Some(lease) => {
                    Err(LeaseError::Taken { addr: *addr, container: lease.holder.container_id.clone() })
                }
            };
        }
        let taken: HashSet<IpAddr> = self.leases.iter().map(|l| l.ip).collect();
        let last = self.last.get(&key_of(set)).copied();
        set.after(last).find(|addr| !taken.contains(addr)).ok_or_else(|| {
            let subnets: Vec<String> = set.ranges().iter().map(|r| r.subnet.to_string()).collect();
            LeaseError::Exhausted { subnets: subnets.join(", ") }
        })
    }

    /// Whether each set still has an address to give.
    pub fn has_room(&self, sets: &[RangeSet]) -> Result<(), LeaseError> {
        sets.iter().try_for_each(|set| self.choose(set, &[]).map(drop))
    }

    pub fn release(&mut self, holder: &Attachment) {
        self.leases.retain(|l| l.holder != *holder);
    }

    /// Gives back every lease that `keep` does not want, and names their holders.
    pub fn retain(&mut self, keep: impl Fn(&Attachment) -> bool) -> Vec<Attachment> {
        let mut gone: Vec<Attachment> =
            self.leases.iter().map(|l| l.holder.clone()).filter(|h| !keep(h)).collect();
        self.leases.retain(|l| keep(&l.holder));
        gone.sort();
        gone.dedup();
        gone
    }
}

/// A set is known by its first subnet, so that adding another set does not restart its round.
fn key_of(set: &RangeSet) -> String {
    set.ranges().first().map(|r| r.subnet.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IpamRange;

    fn sets(subnets: &[&str]) -> Vec<RangeSet> {
        subnets.iter().map(|s| RangeSet::new(&[IpamRange::of(s.parse().unwrap())]).unwrap()).collect()
    }

    fn holder(id: &str) -> Attachment {
        Attachment { container_id: id.into(), ifname: "eth0".into() }
    }

    fn addrs(allocation: &Allocation) -> Vec<String> {
        allocation.ips.iter().map(|ip| ip.address.to_string()).collect()
    }

    #[test]
    fn a_holder_keeps_its_addresses() {
        let sets = sets(&["10.0.0.0/24", "fd00::/64"]);
        let mut leases = Leases::default();
        let first = leases.allocate(&sets, &holder("a"), &[]).unwrap();
        assert_eq!(addrs(&first), ["10.0.0.2/24", "fd00::2/64"]);
        assert!(first.fresh);
        let again = leases.allocate(&sets, &holder("a"), &[]).unwrap();
        assert_eq!(addrs(&again), addrs(&first));
        assert!(!again.fresh);
        assert_eq!(leases.of(&holder("a")).count(), 2);
    }

    #[test]
    fn a_released_address_is_not_given_again_at_once() {
        let sets = sets(&["10.0.0.0/29"]);
        let mut leases = Leases::default();
        leases.allocate(&sets, &holder("a"), &[]).unwrap();
        leases.release(&holder("a"));
        assert_eq!(addrs(&leases.allocate(&sets, &holder("b"), &[]).unwrap()), ["10.0.0.3/29"]);
    }

    #[test]
    fn a_full_range_says_so_and_takes_nothing() {
        let sets = sets(&["fd00::/64", "10.0.0.0/30"]);
        let mut leases = Leases::default();
        leases.allocate(&sets, &holder("a"), &[]).unwrap();
        let before = leases.clone();
        let error = leases.allocate(&sets, &holder("b"), &[]).unwrap_err();
        assert_eq!(error, LeaseError::Exhausted { subnets: "10.0.0.0/30".into() });
        assert_eq!(leases, before);
        assert!(leases.has_room(&sets).is_err());
    }

    #[test]
    fn requested_addresses_are_given_or_refused() {
        let sets = sets(&["10.0.0.0/24"]);
        let mut leases = Leases::default();
        let wanted = ["10.0.0.77".parse().unwrap()];
        assert_eq!(addrs(&leases.allocate(&sets, &holder("a"), &wanted).unwrap()), ["10.0.0.77/24"]);
        let taken = leases.allocate(&sets, &holder("b"), &wanted).unwrap_err();
        assert!(matches!(taken, LeaseError::Taken { container, .. } if container == "a"));
        let outside = leases.allocate(&sets, &holder("b"), &["10.0.1.1".parse().unwrap()]).unwrap_err();
        assert!(matches!(outside, LeaseError::OutOfRange(_)));
        let gateway = leases.allocate(&sets, &holder("b"), &["10.0.0.1".parse().unwrap()]).unwrap_err();
        assert!(matches!(gateway, LeaseError::OutOfRange(_)));
    }

    #[test]
    fn retain_names_the_holders_that_are_gone() {
        let sets = sets(&["10.0.0.0/24", "fd00::/64"]);
        let mut leases = Leases::default();
        for id in ["a", "b", "c"] {
            leases.allocate(&sets, &holder(id), &[]).unwrap();
        }
        assert_eq!(leases.retain(|h| h.container_id == "b"), [holder("a"), holder("c")]);
        assert_eq!(leases.of(&holder("b")).count(), 2);
        assert_eq!(leases.of(&holder("a")).count(), 0);
    }

    #[test]
    fn the_record_survives_its_file_form() {
        let mut leases = Leases::default();
        leases.allocate(&sets(&["10.0.0.0/24"]), &holder("a"), &[]).unwrap();
        let text = serde_json::to_vec(&leases).unwrap();
        assert_eq!(serde_json::from_slice::<Leases>(&text).unwrap(), leases);
    }
}
