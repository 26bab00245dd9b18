//! Attaching and detaching pods: reachability, addresses, concurrency, failures, clean-up.

use crate::host::{Host, Ns};
use cofferdam_netplugin::types::{Attachment, CniError, ErrorCode, IpNet, Route};
use std::collections::HashSet;

fn code(error: &CniError) -> u32 {
    error.code
}

#[test]
fn privileged_pods_reach_each_other_at_once() {
    let host = Host::dual();
    let (one, first) = host.pod("one");
    let (two, second) = host.pod("two");
    let servers = [two.serve("10.99.0.3:80", 2), two.serve("[fd99::3]:80", 2)];
    assert_eq!(one.ask("10.99.0.3:80").unwrap().to_string(), "10.99.0.2");
    assert_eq!(one.ask("[fd99::3]:80").unwrap().to_string(), "fd99::2");
    assert_eq!(host.ns.ask("10.99.0.3:80").unwrap().to_string(), "10.99.0.1");
    assert_eq!(host.ns.ask("[fd99::3]:80").unwrap().to_string(), "fd99::1");
    servers.into_iter().for_each(crate::host::Server::done);
    let local = one.serve("127.0.0.1:80", 1);
    assert_eq!(one.ask("127.0.0.1:80").unwrap().to_string(), "127.0.0.1");
    local.done();
    host.del(&first);
    host.del(&second);
    host.assert_clean();
}

#[test]
fn privileged_result_describes_what_is_there() {
    let mut host = Host::dual();
    host.conf.mtu = Some(1400);
    let pod = Ns::bare();
    let mut request = host.request("one", &pod);
    request.config.runtime_config.mac = Some("02:00:00:00:00:99".parse().unwrap());
    request.config.runtime_config.ips = vec!["10.99.0.77/24".to_owned()];
    let result = host.add(&request).unwrap();
    let addresses: Vec<String> = result.sandbox_ips("eth0").map(|ip| ip.address.to_string()).collect();
    assert_eq!(addresses, ["10.99.0.77/24", "fd99::2/64"]);
    let link = pod.shell("ip -d addr show dev eth0");
    for part in ["mtu 1400", "02:00:00:00:00:99", "10.99.0.77/24", "fd99::2/64"] {
        assert!(link.contains(part), "{part}: {link}");
    }
    assert!(!link.contains("fd99::2/64 scope global tentative"), "{link}");
    assert!(pod.shell("ip route; ip -6 route").contains("default via fd99::1"));
    let port = host.ns.shell("ip -d link show type bridge_slave");
    assert!(port.contains("hairpin on") && port.contains("alias test@br0/one/eth0"), "{port}");
    host.del(&request);
    host.assert_clean();
}

/// The next holder of an address has another hardware address: neighbours that remember the old one must learn it.
#[test]
fn privileged_a_requested_hardware_address_is_announced() {
    let host = Host::new(&["10.99.0.0/24"]);
    for mac in ["02:00:00:00:00:01", "02:00:00:00:00:02"] {
        let pod = Ns::bare();
        let mut request = host.request("one", &pod);
        request.config.runtime_config.mac = Some(mac.parse().unwrap());
        request.config.runtime_config.ips = vec!["10.99.0.9".to_owned()];
        host.add(&request).unwrap();
        let server = pod.serve("10.99.0.9:80", 1);
        host.ns.ask("10.99.0.9:80").unwrap();
        server.done();
        let known = host.ns.shell("ip neigh show 10.99.0.9");
        assert!(known.contains(mac), "{known}");
        host.del(&request);
        // What a neighbour in another namespace would still have.
        host.ns.shell(&format!("ip neigh replace 10.99.0.9 lladdr {mac} dev br0 nud reachable"));
    }
    host.assert_clean();
}

#[test]
fn privileged_own_routes_replace_the_default() {
    let mut host = Host::new(&["10.99.0.0/24"]);
    let mut own = Route::new("192.168.0.0/16".parse::<IpNet>().unwrap(), None);
    (own.priority, own.mtu) = (Some(77), Some(1300));
    host.conf.ipam.routes = Some(vec![own]);
    let (pod, request) = host.pod("one");
    let routes = pod.shell("ip route");
    assert!(routes.contains("192.168.0.0/16 via 10.99.0.1 dev eth0 metric 77 mtu 1300"), "{routes}");
    assert!(!routes.contains("default"), "{routes}");
    host.del(&request);
    host.assert_clean();
}

#[test]
fn privileged_twenty_parallel_adds_and_dels() {
    let host = Host::dual();
    let pods: Vec<(Ns, String)> = (0..20).map(|n| (Ns::bare(), format!("pod{n}"))).collect();
    let requests: Vec<_> = pods.iter().map(|(ns, id)| host.request(id, ns)).collect();
    let results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = requests.iter().map(|r| scope.spawn(|| host.add(r))).collect();
        threads.into_iter().map(|t| t.join().unwrap().unwrap()).collect()
    });
    let addresses: HashSet<_> = results.iter().flat_map(|r| r.ips.iter().map(|ip| ip.address)).collect();
    assert_eq!(addresses.len(), 40);
    assert_eq!(host.veths().len(), 20);
    std::thread::scope(|scope| {
        for request in &requests {
            scope.spawn(|| host.del(request));
        }
    });
    host.assert_clean();
}

#[test]
fn privileged_adds_race_with_teardown() {
    let host = Host::dual();
    let pods: Vec<(Ns, String)> = (0..4).map(|n| (Ns::bare(), format!("pod{n}"))).collect();
    std::thread::scope(|scope| {
        for (ns, id) in &pods {
            let host = &host;
            scope.spawn(move || {
                for _ in 0..10 {
                    let request = host.request(id, ns);
                    host.add(&request).unwrap();
                    host.del(&request);
                    host.ns.run(|| cofferdam_netplugin::teardown_if_unused(&host.conf)).unwrap();
                }
            });
        }
    });
    host.assert_clean();
}

#[test]
fn privileged_del_is_idempotent_and_needs_no_namespace() {
    let host = Host::dual();
    let (pod, request) = host.pod("one");
    drop(pod);
    host.del(&request);
    host.assert_no_attachment("one");
    host.del(&request);
    let mut without = request.clone();
    without.netns.clear();
    host.del(&without);
    host.assert_clean();
    host.del(&without);
    assert!(!host.conf.ipam.data_dir.exists(), "DEL made the data folder");
}

#[test]
fn privileged_a_second_add_leaves_the_first_alone() {
    let host = Host::dual();
    let (pod, request) = host.pod("one");
    let error = host.add(&request).unwrap_err();
    assert_eq!(code(&error), ErrorCode::AlreadyAttached as u32);
    let server = pod.serve("10.99.0.2:80", 1);
    host.ns.ask("10.99.0.2:80").unwrap();
    server.done();
    host.del(&request);
    host.assert_clean();
}

#[test]
fn privileged_failing_half_way_leaves_nothing() {
    let mut host = Host::dual();
    let pod = Ns::bare();
    pod.shell("ip link add eth0 type veth peer name other");
    let error = host.add(&host.request("taken", &pod)).unwrap_err();
    assert_eq!(code(&error), ErrorCode::AlreadyAttached as u32);
    host.assert_no_attachment("taken");

    // The route's gateway is on no network of the pod: refused after the pair, the addresses and the bridge exist.
    let gw = Some("172.30.0.1".parse().unwrap());
    host.conf.ipam.routes = Some(vec![Route::new("0.0.0.0/0".parse().unwrap(), gw)]);
    let error = host.add(&host.request("route", &Ns::bare())).unwrap_err();
    assert_eq!(code(&error), ErrorCode::Kernel as u32, "{error}");
    assert!(error.details.contains("0.0.0.0/0") && error.details.contains("ENETUNREACH"), "{error}");
    host.assert_no_attachment("route");
    host.conf.ipam.routes = None;

    let mut missing = host.request("missing", &pod);
    missing.netns = host.dir.path().join("no-such-file");
    assert_eq!(code(&host.add(&missing).unwrap_err()), ErrorCode::UnknownContainer as u32);
    missing.netns = "/etc/hostname".into();
    assert_eq!(code(&host.add(&missing).unwrap_err()), ErrorCode::UnknownContainer as u32);
    missing.netns = host.ns.path();
    assert_eq!(code(&host.add(&missing).unwrap_err()), ErrorCode::InvalidEnvironment as u32);
    host.assert_clean();
}

#[test]
fn privileged_a_foreign_link_is_not_taken_for_the_bridge() {
    let host = Host::dual();
    host.ns.shell("ip link add br0 type veth peer name other");
    let error = host.add(&host.request("one", &Ns::bare())).unwrap_err();
    assert_eq!(code(&error), ErrorCode::InvalidConfig as u32);
    assert_eq!(code(&host.ns.run(|| cofferdam_netplugin::status(&host.conf)).unwrap_err()), 7);
    host.assert_no_attachment("one");
    host.ns.shell("ip link del br0");
    host.assert_clean();
}

#[test]
fn privileged_a_full_range_is_reported_by_add_and_status() {
    let host = Host::new(&["10.99.0.0/30"]);
    let status = || host.ns.run(|| cofferdam_netplugin::status(&host.conf));
    status().unwrap();
    let (_pod, request) = host.pod("one");
    let error = host.add(&host.request("two", &Ns::bare())).unwrap_err();
    assert_eq!(code(&error), ErrorCode::NoAddress as u32);
    assert!(error.details.contains("10.99.0.0/30"), "{error}");
    assert_eq!(code(&status().unwrap_err()), ErrorCode::NotAvailable as u32);
    host.del(&request);
    status().unwrap();
    host.assert_clean();
}

#[test]
fn privileged_gc_keeps_exactly_the_valid_attachments() {
    let host = Host::dual();
    let (_one, first) = host.pod("one");
    let (two, _second) = host.pod("two");
    let (_three, _) = host.pod("three");
    drop(two);
    let valid = [Attachment { container_id: "one".into(), ifname: "eth0".into() }];
    host.ns.run(|| cofferdam_netplugin::gc(&host.conf, &valid)).unwrap();
    host.assert_no_attachment("two");
    host.assert_no_attachment("three");
    assert_eq!(host.veths().len(), 1);
    let check = || {
        let mut request = first.clone();
        request.config.prev_result = None;
        host.ns.run(|| cofferdam_netplugin::check(&request)).unwrap_err()
    };
    assert_eq!(code(&check()), ErrorCode::InvalidConfig as u32);
    assert!(host.ruleset().contains("test@br0/one/eth0"));
    assert!(!host.ns.run(|| cofferdam_netplugin::teardown_if_unused(&host.conf)).unwrap());
    host.ns.run(|| cofferdam_netplugin::gc(&host.conf, &[])).unwrap();
    assert_eq!(host.ruleset(), "");
    assert!(!host.conf.ipam.data_dir.exists());
    host.assert_clean();
}

/// A disk of a few pages, unmounted whatever happens.
struct SmallDisk<'a>(&'a Host, tempfile::TempDir);

impl<'a> SmallDisk<'a> {
    fn new(host: &'a Host) -> Self {
        let folder = tempfile::tempdir().unwrap();
        host.ns.shell(&format!("mount -t tmpfs -o size=12k none {}", folder.path().display()));
        Self(host, folder)
    }

    fn fill(&self) {
        self.0.ns.shell(&format!("cat /dev/zero > {}/filler 2>/dev/null || true", self.1.path().display()));
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        self.0.ns.shell(&format!("umount {}", self.1.path().display()));
    }
}

#[test]
fn privileged_a_full_disk_refuses_pods_and_lets_them_go() {
    let mut host = Host::new(&["10.99.0.0/24"]);
    let elsewhere = host.conf.ipam.data_dir.clone();
    let place = Host::new(&["10.99.0.0/24"]);
    let disk = SmallDisk::new(&place);
    host.conf.ipam.data_dir = disk.1.path().join("leases");
    let (_pod, request) = host.pod("one");
    disk.fill();
    let other = Ns::bare();
    let error = host.add(&host.request("two", &other)).unwrap_err();
    assert_eq!(code(&error), ErrorCode::Io as u32, "{error}");
    host.assert_no_attachment("two");
    host.del(&request);
    host.assert_no_attachment("one");
    assert!(host.leases().starts_with('{') && host.leases().ends_with('}'), "{}", host.leases());
    assert!(host.ns.run(|| cofferdam_netplugin::teardown_if_unused(&host.conf)).unwrap());
    host.conf.ipam.data_dir = elsewhere;
    host.assert_clean();
}

/// An ADD that was killed between its steps: the pair has no alias yet, nothing is in the maps.
#[test]
fn privileged_gc_finds_what_a_killed_add_left() {
    let host = Host::dual();
    let (_pod, _request) = host.pod("one");
    let veth = host.veths().remove(0);
    let veth = veth.split('@').next().unwrap();
    host.ns.shell(&format!("ip link set {veth} nomaster alias ''; nft delete table inet cofferdam"));
    host.ns.run(|| cofferdam_netplugin::gc(&host.conf, &[])).unwrap();
    assert_eq!(host.veths(), Vec::<String>::new());
    host.assert_clean();
}

#[test]
fn privileged_gc_leaves_other_networks_of_the_bridge_alone() {
    let mut host = Host::new(&["10.99.0.0/24"]);
    let (_one, first) = host.pod("one");
    let name = std::mem::replace(&mut host.conf.name, "other".to_owned());
    host.ns.run(|| cofferdam_netplugin::gc(&host.conf, &[])).unwrap();
    host.conf.name = name;
    assert_eq!(host.veths().len(), 1);
    assert!(host.ruleset().contains("test@br0/one/eth0"));
    host.del(&first);
    host.assert_clean();
}

/// A network that has gained a family gives its old pods one more address, when they are added again; that one is taken
/// as well.
#[test]
fn privileged_an_address_added_to_a_holder_is_kept_for_it() {
    let mut host = Host::new(&["10.99.0.0/24"]);
    let (_one, _) = host.pod("one");
    let veth = host.veths().remove(0);
    host.ns.shell(&format!("ip link del {}", veth.split('@').next().unwrap()));
    let old = std::mem::replace(&mut host.conf, Host::dual().conf);
    host.conf.ipam.data_dir = old.ipam.data_dir;
    host.ns.shell("nft delete table inet cofferdam");
    let (_one, first) = host.pod("one");
    assert!(host.leases().contains("fd99::2"), "{}", host.leases());
    let two = Ns::bare();
    let second = host.request("two", &two);
    let result = host.add(&second).unwrap();
    let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
    assert_eq!(addresses, ["10.99.0.3/24", "fd99::3/64"]);
    host.del(&first);
    host.del(&second);
    host.assert_clean();
}

#[test]
fn privileged_check_sees_what_changed() {
    let host = Host::dual();
    let changes = [
        ("pod", "ip addr del fd99::2/64 dev eth0", "fd99::2/64"),
        ("pod", "ip route del default", "0.0.0.0/0"),
        ("pod", "ip link set eth0 down", "down"),
        ("host", "nft flush map inet cofferdam pods4", "pods4"),
        ("host", "ip link set $(ip -o link | grep -o 'cfd[0-9a-f]*') nomaster", "no port"),
    ];
    for (place, change, word) in changes {
        let pod = Ns::bare();
        // The same address every time.
        let mut request = host.request("one", &pod);
        request.config.runtime_config.ips = vec!["10.99.0.2".into(), "fd99::2".into()];
        request.config.prev_result = None;
        let result = host.add(&request).unwrap();
        request.config.prev_result = Some(result);
        let check = || host.ns.run(|| cofferdam_netplugin::check(&request));
        check().unwrap();
        if place == "pod" { &pod } else { &host.ns }.shell(change);
        let error = check().unwrap_err();
        assert_eq!(code(&error), ErrorCode::CheckFailed as u32, "{change}: {error}");
        assert!(error.msg.contains(word), "{change}: {error}");
        host.del(&request);
    }
    host.assert_clean();
}
