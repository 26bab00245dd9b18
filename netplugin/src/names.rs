//! Names given to things in the kernel, derived so that DEL and GC find them without any record.

use crate::types::{Attachment, Mac};
use std::net::IpAddr;

/// FNV-1a over the words, each ended by a byte that no word has. Stable across versions: names depend on it.
pub fn digest<'a>(words: impl IntoIterator<Item = &'a str>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for word in words {
        for byte in word.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    hash
}

/// The host's end of the pair: 15 characters, the longest that the kernel takes.
pub fn host_veth(scope: &str, attachment: &Attachment) -> String {
    let hash = digest([scope, &attachment.container_id, &attachment.ifname]);
    format!("cfd{:012x}", hash & 0xffff_ffff_ffff)
}

/// What marks everything of one network on one bridge.
pub fn scope(network: &str, bridge: &str) -> String {
    format!("{network}@{bridge}")
}

/// The comment on nf_tables elements and the alias of the host's end.
pub fn owner(scope: &str, attachment: &Attachment) -> String {
    format!("{scope}/{}/{}", attachment.container_id, attachment.ifname)
}

/// A locally administered address that an IP address always has, so that no neighbour's cache is ever wrong when
/// the address is given to another pod.
pub fn mac_of(addr: IpAddr) -> Mac {
    let [a, b, c, d] = match addr {
        IpAddr::V4(addr) => addr.octets(),
        IpAddr::V6(addr) => (digest([addr.to_string().as_str()]) as u32).to_be_bytes(),
    };
    Mac([0x0a, 0x58, a, b, c, d])
}

/// The names of CNI: a letter or digit first, then also `_`, `.` and `-`.
pub fn is_cni_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// What the kernel takes as a link's name.
pub fn is_link_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && !matches!(text, "." | "..")
        && text.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(container_id: &str, ifname: &str) -> Attachment {
        Attachment { container_id: container_id.into(), ifname: ifname.into() }
    }

    #[test]
    fn link_names_fit_the_kernel_and_differ() {
        let one = host_veth("net@br0", &attachment("abc", "eth0"));
        assert_eq!(one.len(), 15);
        assert!(is_link_name(&one));
        assert_eq!(one, host_veth("net@br0", &attachment("abc", "eth0")));
        assert_ne!(one, host_veth("net@br0", &attachment("abce", "th0")));
        assert_ne!(one, host_veth("net@br1", &attachment("abc", "eth0")));
    }

    #[test]
    fn hostile_names_are_refused() {
        for bad in ["", "../x", "a/b", "-a", "a b", "a\n", ".hidden"] {
            assert!(!is_cni_name(bad), "{bad:?}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "0123456789abcdef"] {
            assert!(!is_link_name(bad), "{bad:?}");
        }
        assert!(is_cni_name("pod-1_a.b"));
        assert!(is_link_name("eth0"));
    }

    #[test]
    fn an_address_keeps_its_hardware_address() {
        assert_eq!(mac_of("10.85.0.7".parse().unwrap()).to_string(), "0a:58:0a:55:00:07");
        assert_eq!(mac_of("fd00::1".parse().unwrap()), mac_of("fd00::1".parse().unwrap()));
    }
}
