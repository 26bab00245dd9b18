//! How long ADD and DEL take: in process, as the exec'd binary, and by Debian's bridge and portmap plugins where they
//! are installed. Needs root; works in network namespaces of its own.
//!
//! `cargo run --release -p cofferdam-netplugin --example attach-time -- path/to/cofferdam-bridge [rounds]`

#[path = "../tests/plugin/host.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod host;

use cofferdam_netplugin::types::{NetConf, Protocol, Request};
use host::{Host, Ns, port};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PEERS: &str = "/usr/lib/cni";

fn exec(binary: &Path, command: &str, request: &Request, conf: &Value) -> Value {
    let mut child = Command::new(binary)
        .env_clear()
        .envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", &request.container_id), ("CNI_IFNAME", "eth0")])
        .envs([
            ("CNI_NETNS", request.netns.to_str().unwrap()),
            ("CNI_PATH", PEERS),
            ("PATH", "/usr/sbin:/usr/bin"),
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(conf.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

/// What Debian's plugins need for the same: bridge with host-local, then portmap.
fn debian(conf: &NetConf) -> (Value, Value) {
    let ranges: Vec<Value> =
        conf.ipam.ranges.iter().map(|set| json!([{ "subnet": set[0].subnet.to_string() }])).collect();
    let routes = json!([{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }]);
    let bridge = json!({
        "cniVersion": "1.0.0", "name": "peer", "type": "bridge", "bridge": "peer0", "isGateway": true,
        "ipMasq": true, "hairpinMode": true,
        "ipam": { "type": "host-local", "ranges": ranges, "routes": routes, "dataDir": conf.ipam.data_dir.join("peer") },
    });
    let portmap = json!({
        "cniVersion": "1.0.0", "name": "peer", "type": "portmap",
        "runtimeConfig": { "portMappings": conf.runtime_config.port_mappings },
    });
    (bridge, portmap)
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e3
}

fn measure(
    name: &str,
    rounds: usize,
    add: impl Fn(&Request),
    del: impl Fn(&Request),
    make: impl Fn(usize, &Ns) -> Request,
) {
    let (mut adds, mut dels) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let pod = Ns::bare();
        let request = make(round, &pod);
        let start = Instant::now();
        add(&request);
        adds.push(start.elapsed());
        let start = Instant::now();
        del(&request);
        dels.push(start.elapsed());
    }
    println!("{name:44} ADD {:7.2} ms   DEL {:7.2} ms", median(adds), median(dels));
}

fn main() {
    let mut args = std::env::args_os().skip(1);
    let binary = args.next().expect("the path of cofferdam-bridge");
    let binary = Path::new(&binary);
    let rounds = args.next().and_then(|n| n.to_str()?.parse().ok()).unwrap_or(50);
    for with_port in [false, true] {
        let mut host = Host::dual();
        if with_port {
            host.conf.runtime_config.port_mappings = vec![port(8080, 80, Protocol::Tcp, "")];
        }
        let what = if with_port { "IPv4+IPv6, one host port" } else { "IPv4+IPv6" };
        let make = |round: usize, pod: &Ns| host.request(&format!("pod{round}"), pod);
        host.ns.run(|| {
            let add = |r: &Request| drop(cofferdam_netplugin::add(r).unwrap());
            let del = |r: &Request| cofferdam_netplugin::del(r).unwrap();
            measure(&format!("{what}: in process"), rounds, add, del, make);
            let conf = serde_json::to_value(&host.conf).unwrap();
            let add = |r: &Request| drop(exec(binary, "ADD", r, &conf));
            let del = |r: &Request| drop(exec(binary, "DEL", r, &conf));
            measure(&format!("{what}: cofferdam-bridge"), rounds, add, del, make);
            peers(&host, what, with_port, rounds, &make);
        });
        assert_clean_of_ours(&host);
    }
}

/// Nothing of ours is left; Debian's plugins may have left something.
fn assert_clean_of_ours(host: &Host) {
    let unused = host.ns.run(|| cofferdam_netplugin::teardown_if_unused(&host.conf));
    assert!(unused.unwrap(), "the network is in use");
    assert!(!host.ruleset().contains("cofferdam"));
    assert!(!host.ns.shell("ip -o link").contains("br0"));
}

fn peers(host: &Host, what: &str, with_port: bool, rounds: usize, make: &impl Fn(usize, &Ns) -> Request) {
    let (bridge, portmap) = (Path::new(PEERS).join("bridge"), Path::new(PEERS).join("portmap"));
    if !bridge.exists() || !portmap.exists() {
        println!("{what}: no plugins in {PEERS} to compare with");
        return;
    }
    let (bridge_conf, portmap_conf) = debian(&host.conf);
    let chained = |result: &Value| {
        let mut conf = portmap_conf.clone();
        conf["prevResult"] = result.clone();
        conf
    };
    let add = |r: &Request| {
        let result = exec(&bridge, "ADD", r, &bridge_conf);
        if with_port {
            exec(&portmap, "ADD", r, &chained(&result));
        }
    };
    let del = |r: &Request| {
        if with_port {
            exec(&portmap, "DEL", r, &portmap_conf);
        }
        exec(&bridge, "DEL", r, &bridge_conf);
    };
    measure(&format!("{what}: Debian's bridge and portmap"), rounds, add, del, make);
}
