//! CNI results: what a plugin answers, checked, brought to one version, and the pod's addresses out of it. Pure.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::conf::Version;

/// Reads a plugin's answer to ADD and writes it in the form of `version`, so that the next plugin can read it.
pub(super) fn parse(text: &[u8], version: Version) -> Result<Value, String> {
    if text.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty".to_owned());
    }
    let mut result: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let object = result.as_object_mut().ok_or("it is not a JSON object")?;
    match object.get("cniVersion") {
        None => {}
        Some(Value::String(said)) if Version::parse(said).is_some() => {}
        Some(said) => return Err(format!("its cniVersion is {said}, asked for was {version}")),
    }
    object.insert("cniVersion".to_owned(), json!(version.as_str()));
    for ip in object.get_mut("ips").and_then(Value::as_array_mut).into_iter().flatten() {
        let address = address(ip).ok_or_else(|| format!("it has an address that is none: {ip}"))?;
        if let Some(ip) = ip.as_object_mut() {
            // Before 1.0.0 the family was told.
            if version < Version::V1_0_0 {
                ip.insert("version".to_owned(), json!(if address.is_ipv4() { "4" } else { "6" }));
            } else {
                ip.remove("version");
            }
        }
    }
    Ok(result)
}

/// The pod's addresses: those of `interface` in the sandbox before those of its other interfaces; those of interfaces
/// that stayed on the node count only when there are no others. The first of each family leads.
pub(super) fn addresses(result: &Value, interface: &str) -> Vec<IpAddr> {
    let none = Vec::new();
    let list = |key| result.get(key).and_then(Value::as_array).unwrap_or(&none);
    let interfaces = list("interfaces");
    let mut found: Vec<(u8, IpAddr)> = Vec::new();
    for ip in list("ips") {
        let Some(address) = address(ip) else { continue };
        let of = ip
            .get("interface")
            .and_then(Value::as_u64)
            .and_then(|n| interfaces.get(usize::try_from(n).ok()?));
        let in_sandbox = |of: &Value| of["sandbox"].as_str().is_some_and(|path| !path.is_empty());
        let rank = match of {
            Some(of) if in_sandbox(of) && of["name"] == interface => 0,
            Some(of) if in_sandbox(of) => 1,
            // Without interfaces there is only the pod's.
            None => 1,
            Some(_) => 2,
        };
        found.push((rank, address));
    }
    found.sort_by_key(|(rank, _)| *rank);
    if found.iter().any(|(rank, _)| *rank < 2) {
        found.retain(|(rank, _)| *rank < 2);
    }
    one_per_family_first(found.into_iter().map(|(_, address)| address).collect())
}

fn address(ip: &Value) -> Option<IpAddr> {
    ip.get("address")?.as_str()?.split('/').next()?.parse().ok()
}

fn one_per_family_first(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut ordered: Vec<IpAddr> = Vec::with_capacity(addresses.len());
    let primary = addresses.first().copied();
    let other =
        primary.and_then(|first| addresses.iter().find(|ip| ip.is_ipv4() != first.is_ipv4()).copied());
    for address in primary.into_iter().chain(other).chain(addresses) {
        if !ordered.contains(&address) {
            ordered.push(address);
        }
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(result: Value) -> Vec<String> {
        addresses(&result, "eth0").iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_pods_own_interface_leads() {
        let found = ips(json!({
            "interfaces": [{"name": "br0"}, {"name": "net1", "sandbox": "/ns"}, {"name": "eth0", "sandbox": "/ns"}],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.9.0.2/24", "interface": 1},
                {"address": "10.0.0.2/24", "interface": 2},
                {"address": "10.0.0.3/24", "interface": 2},
                {"address": "fd00::2/64", "interface": 2},
            ]
        }));
        assert_eq!(found, ["10.0.0.2", "fd00::2", "10.0.0.3", "10.9.0.2"]);
    }

    #[test]
    fn results_without_interfaces_still_have_addresses() {
        assert_eq!(ips(json!({"ips": [{"version": "6", "address": "fd00::9/64"}]})), ["fd00::9"]);
        assert_eq!(
            ips(
                json!({"interfaces": [{"name": "veth1"}], "ips": [{"address": "10.0.0.7/8", "interface": 0}]})
            ),
            ["10.0.0.7"]
        );
        assert!(ips(json!({"ips": []})).is_empty());
        assert!(ips(json!({})).is_empty());
    }

    #[test]
    fn an_answer_is_brought_to_the_version_of_the_chain() {
        let text = br#"{"cniVersion":"0.3.1","ips":[{"version":"4","address":"10.0.0.2/24"}]}"#;
        let new = parse(text, Version::V1_0_0).unwrap();
        assert_eq!(new, json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}]}));
        let old = parse(br#"{"ips":[{"address":"fd00::2/64"}]}"#, Version::V0_4_0).unwrap();
        assert_eq!(old, json!({"cniVersion": "0.4.0", "ips": [{"version": "6", "address": "fd00::2/64"}]}));
    }

    #[test]
    fn answers_that_are_no_results_are_refused() {
        for (text, part) in [
            ("", "empty"),
            (" \n", "empty"),
            ("hello", "expected"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion":"0.2.0","ip4":{"ip":"10.0.0.2/24"}}"#, "0.2.0"),
            (r#"{"ips":[{"address":"10.0.0.300/24"}]}"#, "address that is none"),
        ] {
            let problem = parse(text.as_bytes(), Version::V1_0_0).unwrap_err();
            assert!(problem.contains(part), "{text}: {problem}");
        }
    }
}
