//! Addresses with a prefix length, and hardware addresses, as CNI writes them.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address and the length of its network's prefix, such as `10.85.0.7/16`. The host part may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IpNet {
    addr: IpAddr,
    prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length, such as 10.85.0.0/16")]
pub struct IpNetError(pub String);

impl IpNet {
    /// `None` when the prefix is longer than the address.
    pub fn new(addr: IpAddr, prefix: u8) -> Option<Self> {
        (prefix <= width(addr)).then_some(Self { addr, prefix })
    }

    /// The address alone: /32 or /128.
    pub fn single(addr: IpAddr) -> Self {
        Self { addr, prefix: width(addr) }
    }

    pub fn addr(&self) -> IpAddr {
        self.addr
    }

    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    pub fn is_ipv4(&self) -> bool {
        self.addr.is_ipv4()
    }

    /// The network's own address, host part cleared.
    pub fn network(&self) -> Self {
        let host = u32::from(width(self.addr) - self.prefix);
        let bits = to_bits(self.addr).checked_shr(host).and_then(|b| b.checked_shl(host)).unwrap_or(0);
        Self { addr: from_bits(bits, self.addr.is_ipv4()), prefix: self.prefix }
    }

    /// The last address of the network (for IPv4 the broadcast address).
    pub fn last(&self) -> IpAddr {
        let host = u32::from(width(self.addr) - self.prefix);
        let mask = 1u128.checked_shl(host).map_or(u128::MAX, |b| b - 1);
        from_bits(to_bits(self.network().addr) | mask, self.addr.is_ipv4())
    }

    pub fn contains(&self, addr: IpAddr) -> bool {
        addr.is_ipv4() == self.is_ipv4() && Self { addr, prefix: self.prefix }.network() == self.network()
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network().addr) || other.contains(self.network().addr)
    }
}

fn width(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

pub(crate) fn to_bits(addr: IpAddr) -> u128 {
    match addr {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The inverse of [`to_bits`]; bits above an IPv4 address are dropped.
pub(crate) fn from_bits(bits: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from_bits(bits as u32)) } else { IpAddr::V6(Ipv6Addr::from_bits(bits)) }
}

impl FromStr for IpNet {
    type Err = IpNetError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || IpNetError(text.to_owned());
        let (addr, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let addr = addr.parse().map_err(|_| wrong())?;
        Self::new(addr, prefix.parse().map_err(|_| wrong())?).ok_or_else(wrong)
    }
}

impl TryFrom<String> for IpNet {
    type Error = IpNetError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IpNet> for String {
    fn from(net: IpNet) -> Self {
        net.to_string()
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.prefix)
    }
}

/// An Ethernet address, written `0a:58:0a:55:00:07`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an Ethernet address, such as 0a:58:0a:55:00:07")]
pub struct MacError(pub String);

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || MacError(text.to_owned());
        let mut octets = [0u8; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = u8::from_str_radix(part.ok_or_else(wrong)?, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(octets)) }
    }
}

impl TryFrom<String> for Mac {
    type Error = MacError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_read_and_bounded() {
        let net: IpNet = "10.85.3.7/16".parse().unwrap();
        assert_eq!(net.network().to_string(), "10.85.0.0/16");
        assert_eq!(net.last().to_string(), "10.85.255.255");
        assert!(net.contains("10.85.200.1".parse().unwrap()));
        assert!(!net.contains("10.86.0.1".parse().unwrap()));
        assert!(!net.contains("::1".parse().unwrap()));
        let six: IpNet = "fd00::5/64".parse().unwrap();
        assert_eq!(six.last().to_string(), "fd00::ffff:ffff:ffff:ffff");
        for whole in ["0.0.0.0/0", "::/0"] {
            let net: IpNet = whole.parse().unwrap();
            assert_eq!(net.network(), net);
            assert!(net.contains(net.last()));
        }
        for bad in ["10.0.0.0", "10.0.0.0/33", "::/129", "x/8", "10.0.0.0/-1", ""] {
            assert!(bad.parse::<IpNet>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hardware_addresses_are_read_strictly() {
        let mac: Mac = "0A:58:0a:55:00:07".parse().unwrap();
        assert_eq!(mac.to_string(), "0a:58:0a:55:00:07");
        for bad in ["", "0a:58", "0a:58:0a:55:00:07:08", "0a:58:0a:55:00:zz", "+a:58:0a:55:00:07"] {
            assert!(bad.parse::<Mac>().is_err(), "{bad}");
        }
    }
}
