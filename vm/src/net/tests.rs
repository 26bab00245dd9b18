//! Taps in a network namespace of the test's own; needs root.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// A named namespace with one veth in it; both go with the value.
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

fn ip(arguments: &str) -> bool {
    Command::new("ip").args(arguments.split(' ')).status().is_ok_and(|status| status.success())
}

#[test]
fn an_interface_gets_a_tap_and_what_the_guest_is_told() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network namespaces need root");
        return;
    }
    let namespace = Namespace(format!("cfvm-{}", std::process::id()));
    let name = &namespace.0;
    for command in [
        format!("netns add {name}"),
        format!("-n {name} link add eth0 address 02:00:00:00:00:07 mtu 1400 type veth peer name other"),
        format!("-n {name} link set eth0 up"),
        format!("-n {name} addr add 10.1.2.3/24 dev eth0"),
        format!("-n {name} addr add fd00::3/64 dev eth0 nodad"),
        format!("-n {name} route add default via 10.1.2.1"),
    ] {
        assert!(ip(&command), "ip {command}");
    }
    let path = Path::new("/run/netns").join(name);
    let network = attach(&path).unwrap();
    assert_eq!((network.nics.len(), network.interfaces.len()), (1, 1));
    let interface = &network.interfaces[0];
    assert_eq!((interface.name.as_str(), interface.mtu), ("eth0", 1400));
    assert_eq!(interface.mac, "02:00:00:00:00:07");
    assert_eq!(interface.addresses, ["10.1.2.3/24", "fd00::3/64"]);
    let default =
        Route { destination: "0.0.0.0/0".into(), gateway: "10.1.2.1".into(), interface: "eth0".into() };
    assert_eq!(network.routes, [default]);
    let filters =
        Command::new("tc").args(["-n", name, "filter", "show", "dev", "eth0", "parent", "ffff:"]).output();
    if let Ok(filters) = filters {
        let text = String::from_utf8_lossy(&filters.stdout).into_owned();
        assert!(text.contains("Egress Redirect to device vmtap0"), "{text}");
    }
    drop(network);
    assert!(!ip(&format!("-n {name} link show vmtap0")), "the tap outlives its descriptor");
    assert!(fs::exists(path).unwrap());
}

#[test]
fn a_namespace_that_is_not_there_is_named() {
    let error = attach(Path::new("/no/such/netns")).unwrap_err().to_string();
    assert!(error.contains("/no/such/netns"), "{error}");
}
