//! Counters of a pod's interfaces, read through its pause process, which lives in the pod's network namespace.

use std::fs;
use std::io;

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

/// The counters of the network namespace that process `pid` lives in.
///
/// # Errors
/// When the process is gone.
pub fn network_of_process(pid: u32) -> io::Result<NetworkSample> {
    fs::read_to_string(format!("/proc/{pid}/net/dev")).map(|text| NetworkSample::parse(&text))
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
        assert!(network_of_process(std::process::id()).is_ok());
    }
}
