//! What the command line says of one port: `[[ADDRESS:]LOCAL:]REMOTE`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Where to listen for which port of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    /// None for the loopback of both families.
    pub(super) address: Option<IpAddr>,
    /// 0 for any free one.
    pub(super) local: u16,
    pub(super) remote: u16,
}

impl Mapping {
    /// The addresses, the one that must do first.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        match self.address {
            Some(address) => vec![address],
            None => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        }
    }
}

/// Reads one; IPv6 addresses stand in brackets.
pub(super) fn parse(text: &str) -> Result<Mapping, String> {
    let expected = || "expected [[ADDRESS:]LOCAL:]REMOTE, as 8080, 8080:80, :80 or [::1]:8080:80".to_owned();
    let port = |text: &str| text.parse::<u16>().ok().filter(|port| *port != 0).ok_or_else(expected);
    let Some((rest, remote)) = text.rsplit_once(':') else {
        let port = port(text)?;
        return Ok(Mapping { address: None, local: port, remote: port });
    };
    let remote = port(remote)?;
    let (address, local) =
        rest.rsplit_once(':').map_or((None, rest), |(address, local)| (Some(address), local));
    let address = match address {
        None | Some("localhost") => None,
        Some(text) => Some(address_of(text).ok_or_else(expected)?),
    };
    let local = if local.is_empty() { 0 } else { port(local)? };
    Ok(Mapping { address, local, remote })
}

fn address_of(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_are_read() {
        let table = [
            ("80", None, 80, 80),
            ("8080:80", None, 8080, 80),
            (":80", None, 0, 80),
            ("localhost:1:80", None, 1, 80),
            ("127.0.0.2:8080:80", Some("127.0.0.2"), 8080, 80),
            ("0.0.0.0::80", Some("0.0.0.0"), 0, 80),
            ("[::1]:8080:80", Some("::1"), 8080, 80),
            ("[fe80::1]::80", Some("fe80::1"), 0, 80),
        ];
        for (text, address, local, remote) in table {
            let address = address.map(|text| text.parse().unwrap());
            assert_eq!(parse(text).unwrap(), Mapping { address, local, remote }, "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_refused() {
        for text in [
            "",
            "0",
            "65536",
            "8080:",
            "8080:0",
            "0:80",
            "a:80",
            "host:1:80",
            "::1:80:80",
            "[::1:1:80",
            "1.2.3:1:2",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
