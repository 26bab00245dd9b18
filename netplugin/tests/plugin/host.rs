//! A host and its pods for tests: network namespaces that exist only as open files, so that nothing can be left.

use cofferdam_netplugin::types::{CniArgs, CniResult, IpNet, NetConf, PortMapping, Protocol, Request};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);

/// A network namespace, alive as long as this is.
pub struct Ns(File);

impl Ns {
    pub fn new() -> Self {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("privileged tests need root: run them as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let ns = Self(made.join().unwrap());
        ns.shell("ip link set lo up");
        ns
    }

    /// A namespace as a runtime hands it over: loopback is down.
    pub fn bare() -> Self {
        let ns = Self::new();
        ns.shell("ip link set lo down");
        ns
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()))
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let inside = || {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn shell(&self, script: &str) -> String {
        self.run(|| {
            let output = Command::new("sh").arg("-ec").arg(script).output().unwrap();
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }

    /// Answers each of `count` connections with the client's address as the server sees it.
    pub fn serve(&self, addr: &str, count: usize) -> Server {
        let listener = self.run(|| TcpListener::bind(addr).unwrap());
        Server(Some(std::thread::spawn(move || {
            for _ in 0..count {
                let (mut client, peer) = listener.accept().unwrap();
                client.write_all(peer.ip().to_string().as_bytes()).unwrap();
            }
        })))
    }

    /// The address that a server there sees us come from.
    pub fn ask(&self, addr: &str) -> std::io::Result<IpAddr> {
        let addr: SocketAddr = addr.parse().unwrap();
        self.run(|| {
            let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            text.parse().map_err(|_| std::io::Error::other(text))
        })
    }

    pub fn udp(&self, addr: &str) -> UdpSocket {
        self.run(|| {
            let socket = UdpSocket::bind(addr).unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }
}

/// A server that has to have answered all its clients by the end of the test.
pub struct Server(Option<JoinHandle<()>>);

impl Server {
    pub fn done(mut self) {
        self.0.take().unwrap().join().unwrap();
    }
}

/// A host with a network of its own and a place for its leases.
pub struct Host {
    pub ns: Ns,
    pub dir: tempfile::TempDir,
    pub conf: NetConf,
}

impl Host {
    pub fn new(subnets: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let subnets: Vec<IpNet> = subnets.iter().map(|s| s.parse().unwrap()).collect();
        let mut conf = NetConf::for_bridge("test", "br0", &subnets);
        conf.ipam.data_dir = dir.path().join("leases");
        Self { ns: Ns::new(), dir, conf }
    }

    pub fn dual() -> Self {
        Self::new(&["10.99.0.0/24", "fd99::/64"])
    }

    pub fn request(&self, id: &str, pod: &Ns) -> Request {
        Request {
            container_id: id.to_owned(),
            netns: pod.path(),
            ifname: "eth0".to_owned(),
            config: self.conf.clone(),
            args: CniArgs::default(),
        }
    }

    pub fn with_ports(&self, id: &str, pod: &Ns, ports: &[PortMapping]) -> Request {
        let mut request = self.request(id, pod);
        request.config.runtime_config.port_mappings = ports.to_vec();
        request
    }

    pub fn add(&self, request: &Request) -> Result<CniResult, cofferdam_netplugin::CniError> {
        self.ns.run(|| cofferdam_netplugin::add(request))
    }

    pub fn del(&self, request: &Request) {
        self.ns.run(|| cofferdam_netplugin::del(request)).unwrap();
    }

    /// A pod that is attached.
    pub fn pod(&self, id: &str) -> (Ns, Request) {
        let pod = Ns::bare();
        let request = self.request(id, &pod);
        self.add(&request).unwrap();
        (pod, request)
    }

    pub fn leases(&self) -> String {
        std::fs::read_to_string(self.conf.ipam.data_dir.join("test/leases")).unwrap_or_default()
    }

    /// Links that attachments made, by name.
    pub fn veths(&self) -> Vec<String> {
        let links = self.ns.shell("ip -o link");
        links
            .lines()
            .filter_map(|l| l.split(": ").nth(1))
            .filter(|l| l.starts_with("cfd"))
            .map(str::to_owned)
            .collect()
    }

    pub fn ruleset(&self) -> String {
        self.ns.shell("nft list ruleset")
    }

    /// No trace of an attachment: neither link, nor lease, nor element.
    pub fn assert_no_attachment(&self, id: &str) {
        assert!(!self.ns.shell("ip link").contains(&format!("/{id}/")), "{id}: link");
        assert!(!self.leases().contains(&format!("\"{id}\"")), "{id}: {}", self.leases());
        assert!(!self.ruleset().contains(&format!("/{id}/")), "{id}: {}", self.ruleset());
    }

    /// After the teardown of an unused network nothing at all is left.
    pub fn assert_clean(&self) {
        assert!(
            self.ns.run(|| cofferdam_netplugin::teardown_if_unused(&self.conf)).unwrap(),
            "the network is in use"
        );
        assert_eq!(self.ruleset(), "");
        assert_eq!(self.veths(), Vec::<String>::new());
        assert!(!self.ns.shell("ip -o link").contains("br0"));
        assert_eq!(std::fs::read_dir(self.dir.path()).unwrap().count(), 0);
    }
}

pub fn port(host_port: i32, container_port: i32, protocol: Protocol, host_ip: &str) -> PortMapping {
    PortMapping { host_port, container_port, protocol, host_ip: host_ip.to_owned() }
}
