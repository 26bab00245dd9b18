//! Masquerade and host ports, seen from every side.

use crate::host::{Host, Ns, port};
use cofferdam_netplugin::types::{ErrorCode, NetConf, Protocol};

/// A machine beyond the host's uplink, with no route to the pods unless it is given one.
fn outside(host: &Host) -> Ns {
    let outside = Ns::new();
    let path = outside.path();
    host.ns.shell(&format!(
        "ip link add up0 type veth peer name out0 netns {}
         ip addr add 192.168.7.1/24 dev up0; ip addr add fd77::1/64 dev up0 nodad; ip link set up0 up",
        path.display()
    ));
    outside.shell(
        "ip addr add 192.168.7.2/24 dev out0; ip addr add fd77::2/64 dev out0 nodad
         ip link set out0 up; ip -6 addr flush dev out0 scope link",
    );
    outside
}

#[test]
fn privileged_pods_leave_the_host_masqueraded() {
    let mut host = Host::dual();
    let outside = outside(&host);
    let (pod, request) = host.pod("one");
    let servers = [outside.serve("192.168.7.2:80", 1), outside.serve("[fd77::2]:80", 1)];
    assert_eq!(pod.ask("192.168.7.2:80").unwrap().to_string(), "192.168.7.1");
    assert_eq!(pod.ask("[fd77::2]:80").unwrap().to_string(), "fd77::1");
    servers.into_iter().for_each(crate::host::Server::done);
    host.del(&request);

    host.conf.ip_masq = false;
    outside.shell("ip route add 10.99.0.0/24 via 192.168.7.1");
    let (pod, request) = host.pod("two");
    let server = outside.serve("192.168.7.2:80", 1);
    assert_eq!(pod.ask("192.168.7.2:80").unwrap().to_string(), "10.99.0.3");
    server.done();
    host.del(&request);
    drop(outside);
    host.assert_clean();
}

#[test]
fn privileged_host_ports_work_from_everywhere() {
    let host = Host::dual();
    let outside = outside(&host);
    let (other, neighbour) = host.pod("other");
    let pod = Ns::bare();
    let request = host.with_ports("web", &pod, &[port(8080, 80, Protocol::Tcp, "")]);
    host.add(&request).unwrap();
    let four = pod.serve("10.99.0.3:80", 6);
    let asked = |ns: &Ns, addr: &str| ns.ask(addr).unwrap_or_else(|e| panic!("{addr}: {e}")).to_string();
    assert_eq!(asked(&outside, "192.168.7.1:8080"), "192.168.7.2");
    assert_eq!(asked(&host.ns, "127.0.0.1:8080"), "10.99.0.1");
    assert_eq!(asked(&host.ns, "127.9.9.9:8080"), "10.99.0.1");
    asked(&host.ns, "192.168.7.1:8080");
    assert_eq!(asked(&pod, "192.168.7.1:8080"), "10.99.0.1");
    assert_eq!(asked(&other, "10.99.0.1:8080"), "10.99.0.1");
    four.done();
    let six = pod.serve("[fd99::3]:80", 4);
    assert_eq!(asked(&outside, "[fd77::1]:8080"), "fd77::2");
    asked(&host.ns, "[fd77::1]:8080");
    assert_eq!(asked(&pod, "[fd77::1]:8080"), "fd99::1");
    assert_eq!(asked(&other, "[fd99::1]:8080"), "fd99::1");
    six.done();
    host.del(&request);
    assert!(outside.ask("192.168.7.1:8080").is_err());
    host.del(&neighbour);
    drop(outside);
    host.assert_clean();
}

#[test]
fn privileged_a_host_ip_limits_the_port() {
    let host = Host::dual();
    host.ns.shell("ip addr add 192.168.8.1/32 dev lo; ip addr add 192.168.8.2/32 dev lo");
    let pods = [Ns::bare(), Ns::bare()];
    let ips = ["192.168.8.1", "192.168.8.2"];
    let requests: Vec<_> = (0..2)
        .map(|n| host.with_ports(&format!("pod{n}"), &pods[n], &[port(8080, 80, Protocol::Tcp, ips[n])]))
        .collect();
    requests.iter().for_each(|r| drop(host.add(r).unwrap()));
    for (n, pod) in pods.iter().enumerate() {
        let server = pod.serve("0.0.0.0:80", 1);
        host.ns.ask(&format!("{}:8080", ips[n])).unwrap();
        server.done();
    }
    assert!(host.ns.ask("127.0.0.1:8080").is_err());
    requests.iter().for_each(|r| host.del(r));
    host.assert_clean();
}

#[test]
fn privileged_udp_ports_answer_from_where_they_were_asked() {
    let host = Host::dual();
    let pod = Ns::bare();
    let request = host.with_ports("dns", &pod, &[port(5300, 53, Protocol::Udp, "")]);
    host.add(&request).unwrap();
    let server = pod.udp("0.0.0.0:53");
    let client = host.ns.udp("127.0.0.1:0");
    client.connect("127.0.0.1:5300").unwrap();
    client.send(b"question").unwrap();
    let mut buffer = [0; 32];
    let (length, peer) = server.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], peer.ip().to_string().as_str()), (&b"question"[..], "10.99.0.1"));
    server.send_to(b"answer", peer).unwrap();
    assert_eq!(client.recv(&mut buffer).unwrap(), 6);
    host.del(&request);
    host.assert_clean();
}

/// A client that keeps its socket must find the new pod behind the port, not the old one's address.
#[test]
fn privileged_a_udp_port_moves_to_its_next_pod() {
    let host = Host::new(&["10.99.0.0/24"]);
    let client = host.ns.udp("127.0.0.1:0");
    client.connect("127.0.0.1:5300").unwrap();
    for id in ["first", "second"] {
        let pod = Ns::bare();
        let request = host.with_ports(id, &pod, &[port(5300, 53, Protocol::Udp, "")]);
        host.add(&request).unwrap();
        let server = pod.udp("0.0.0.0:53");
        client.send(b"question").unwrap();
        server.recv_from(&mut [0; 32]).unwrap_or_else(|e| panic!("{id}: {e}"));
        host.del(&request);
    }
    host.assert_clean();
}

#[test]
fn privileged_sctp_ports_are_rules_as_well() {
    let host = Host::dual();
    let pod = Ns::bare();
    let ports = [port(9000, 90, Protocol::Sctp, ""), port(9000, 90, Protocol::Tcp, "0.0.0.0")];
    let request = host.with_ports("sctp", &pod, &ports);
    host.add(&request).unwrap();
    let rules = host.ruleset();
    for part in ["sctp . 9000", "10.99.0.2 . sctp . 90", "fd99::2 . sctp . 90", "tcp . 9000"] {
        assert!(rules.contains(part), "{part}: {rules}");
    }
    assert!(!rules.contains("fd99::2 . tcp"), "0.0.0.0 is IPv4 only: {rules}");
    host.del(&request);
    host.assert_clean();
}

#[test]
fn privileged_a_taken_port_is_refused_and_leaves_nothing() {
    let host = Host::dual();
    let (one, two) = (Ns::bare(), Ns::bare());
    let first = host.with_ports("one", &one, &[port(8080, 80, Protocol::Tcp, "")]);
    host.add(&first).unwrap();
    let ports = [port(8081, 80, Protocol::Tcp, ""), port(8080, 80, Protocol::Tcp, "")];
    let error = host.add(&host.with_ports("two", &two, &ports)).unwrap_err();
    assert_eq!(error.code, ErrorCode::HostPortTaken as u32);
    assert!(error.details.contains("8080/tcp") && error.details.contains("one"), "{error}");
    host.assert_no_attachment("two");
    let bad = host.with_ports("two", &two, &[port(70000, 80, Protocol::Tcp, "")]);
    assert_eq!(host.add(&bad).unwrap_err().code, ErrorCode::InvalidConfig as u32);
    host.assert_no_attachment("two");
    host.del(&first);
    host.assert_clean();
}

/// Host ports need loopback addresses to be routed on the bridge; pods must not profit from it.
#[test]
fn privileged_pods_cannot_reach_the_hosts_loopback() {
    let host = Host::new(&["10.99.0.0/24"]);
    let pod = Ns::bare();
    let request = host.with_ports("evil", &pod, &[port(8080, 80, Protocol::Tcp, "")]);
    host.add(&request).unwrap();
    pod.shell(
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.99.0.1",
    );
    let secret = host.ns.serve("127.0.0.1:9", 1);
    assert!(pod.ask("127.0.0.1:9").is_err(), "the pod reached a service on the host's loopback");
    // Without the guard it would have: the test is able to fail.
    host.ns.shell("nft flush chain inet cofferdam guard");
    pod.ask("127.0.0.1:9").unwrap();
    secret.done();
    host.del(&request);
    host.assert_clean();
}

/// The end of one network must not open the host's loopback to the pods of another.
#[test]
fn privileged_another_bridge_stays_guarded() {
    let mut host = Host::new(&["10.99.0.0/24"]);
    host.conf.ip_masq = false;
    let web = Ns::bare();
    let request = host.with_ports("web", &web, &[port(8080, 80, Protocol::Tcp, "")]);
    host.add(&request).unwrap();
    host.del(&request);
    let mut other = NetConf::for_bridge("other", "br1", &["10.98.0.0/24".parse().unwrap()]);
    other.ipam.data_dir = host.conf.ipam.data_dir.clone();
    let first = std::mem::replace(&mut host.conf, other);
    let (_pod, request) = host.pod("there");
    host.del(&request);
    assert!(host.ns.run(|| cofferdam_netplugin::teardown_if_unused(&host.conf)).unwrap());
    host.conf = first;

    let (pod, request) = host.pod("evil");
    pod.shell(
        "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
         ip addr del 127.0.0.1/8 dev lo; ip route add 127.0.0.0/8 via 10.99.0.1",
    );
    let _secret = host.ns.run(|| std::net::TcpListener::bind("127.0.0.1:9").unwrap());
    let rules = host.ruleset();
    assert!(rules.contains("br0") && !rules.contains("br1"), "{rules}");
    let timed_out = pod.ask("127.0.0.1:9").unwrap_err().kind();
    assert_eq!(timed_out, std::io::ErrorKind::TimedOut, "the pod reached the host's loopback");
    host.del(&request);
    host.assert_clean();
}

#[test]
fn privileged_a_port_of_all_addresses_and_of_one_exclude_each_other() {
    let host = Host::dual();
    let (one, two) = (Ns::bare(), Ns::bare());
    let all = [port(8080, 80, Protocol::Tcp, "")];
    let single = [port(8080, 80, Protocol::Tcp, "10.99.0.1")];
    for (first, second) in [(&all, &single), (&single, &all)] {
        let first = host.with_ports("one", &one, first);
        host.add(&first).unwrap();
        let error = host.add(&host.with_ports("two", &two, second)).unwrap_err();
        assert_eq!(error.code, ErrorCode::HostPortTaken as u32);
        assert!(error.details.contains("8080/tcp") && error.details.contains("one"), "{error}");
        host.assert_no_attachment("two");
        // Another protocol, another port and another family are other ports.
        let others = [port(8080, 80, Protocol::Udp, "10.99.0.1"), port(8081, 80, Protocol::Tcp, "")];
        let beside = host.with_ports("two", &two, &others);
        host.add(&beside).unwrap();
        host.del(&beside);
        host.del(&first);
    }
    // One pod may have both.
    let both = host.with_ports("one", &one, &[all, single].concat());
    host.add(&both).unwrap();
    host.del(&both);
    host.assert_clean();
}
