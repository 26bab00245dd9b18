//! Counters of a pod's interfaces, read through its pause process, which lives in the pod's network namespace; where it
//! does not, as the monitor of a machine, from inside of that namespace.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::net::Ipv6Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::ifaddrs::getifaddrs;
use nix::sched::{CloneFlags, setns};

/// One interface since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceCounters {
    pub name: String,
    pub rx_bytes: u64,
    pub rx_packets: u64,
    pub rx_errors: u64,
    pub rx_dropped: u64,
    pub tx_bytes: u64,
    pub tx_packets: u64,
    pub tx_errors: u64,
    pub tx_dropped: u64,
}

/// The interfaces of a pod, without its loopback.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkSample(pub Vec<InterfaceCounters>);

impl NetworkSample {
    /// The interface that Kubernetes looks at: eth0, else the first.
    #[must_use]
    pub fn default_interface(&self) -> Option<&InterfaceCounters> {
        self.0.iter().find(|interface| interface.name == "eth0").or_else(|| self.0.first())
    }

    /// Reads the text of a `/proc/<pid>/net/dev` file.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let one = |line: &str| {
            let (name, counters) = line.split_once(':')?;
            let counters: Vec<u64> =
                counters.split_whitespace().map_while(|field| field.parse().ok()).collect();
            // Receiving: bytes, packets, errors, dropped, and four more; then the same for sending.
            let (received, sent) = counters.split_at_checked(8)?;
            let &[rx_bytes, rx_packets, rx_errors, rx_dropped, ..] = received else { return None };
            let &[tx_bytes, tx_packets, tx_errors, tx_dropped, ..] = sent else { return None };
            let name = name.trim().to_owned();
            (name != "lo").then_some(InterfaceCounters {
                name,
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            })
        };
        Self(text.lines().filter_map(one).collect())
    }
}

/// The counters of the pod whose first process is `pid`, and whose network namespace is pinned at `netns`.
///
/// # Errors
/// When both are gone.
pub fn network_of_pod(pid: u32, netns: &Path) -> io::Result<NetworkSample> {
    let theirs = fs::metadata(format!("/proc/{pid}/ns/net"))?;
    let another = |pinned: fs::Metadata| pinned.dev() == theirs.dev() && pinned.ino() != theirs.ino();
    if fs::metadata(netns).is_ok_and(another) {
        return network_inside(netns);
    }
    fs::read_to_string(format!("/proc/{pid}/net/dev")).map(|text| NetworkSample::parse(&text))
}

/// Of the interfaces that have addresses: a tap that hands on what one of them gets would count it once more.
fn network_inside(netns: &Path) -> io::Result<NetworkSample> {
    let namespace = File::open(netns)?;
    // The thread that enters it does nothing else and ends.
    let thread = std::thread::Builder::new().name("counters".to_owned()).spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        let text = fs::read_to_string("/proc/thread-self/net/dev")?;
        Ok::<_, io::Error>((NetworkSample::parse(&text), addressed()?))
    })?;
    let (mut read, addressed) =
        thread.join().map_err(|_| io::Error::other("the thread that reads the counters panicked"))??;
    read.0.retain(|interface| addressed.contains(&interface.name));
    Ok(read)
}

/// The interfaces of this thread's network namespace that have an address which is more than a link's own.
fn addressed() -> io::Result<BTreeSet<String>> {
    let is_address = |address: &nix::sys::socket::SockaddrStorage| {
        let own = |ip: Ipv6Addr| ip.is_unicast_link_local();
        address.as_sockaddr_in().is_some() || address.as_sockaddr_in6().is_some_and(|v6| !own(v6.ip()))
    };
    let all = getifaddrs()?;
    let named = all.filter(|one| one.address.as_ref().is_some_and(is_address));
    Ok(named.map(|one| one.interface_name).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
        net1: 5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\n  eth0:    2000      20    3    1    0     0          0         0     4000      40    5    2    0     0       0          0\nbad: 1 2\n";

    #[test]
    fn interfaces_are_read_without_loopback() {
        let read = NetworkSample::parse(DEV);
        let names: Vec<_> = read.0.iter().map(|interface| interface.name.as_str()).collect();
        assert_eq!(names, ["net1", "eth0"]);
        let eth0 = read.default_interface().unwrap();
        assert_eq!((eth0.rx_bytes, eth0.rx_errors, eth0.tx_bytes, eth0.tx_errors), (2000, 3, 4000, 5));
        assert_eq!((eth0.rx_packets, eth0.rx_dropped, eth0.tx_packets, eth0.tx_dropped), (20, 1, 40, 2));
        assert_eq!(NetworkSample::parse("").default_interface(), None);
        let own = std::process::id();
        assert!(network_of_pod(own, Path::new("/proc/self/ns/net")).is_ok());
        assert!(network_of_pod(own, Path::new("/nonexistent")).is_ok(), "then the process tells");
    }
}
