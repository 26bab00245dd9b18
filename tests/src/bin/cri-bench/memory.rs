//! What the processes of a runtime weigh.
//!
//! The daemon is who listens on the socket. The helpers (shims, pause) are found from the pods: every process in a
//! cgroup of ours that is not the workload, and every parent of a process in there up to the daemon or init. So no
//! name of a runtime's helper is needed, and a second runtime on the machine is never counted.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde::Serialize;

use super::endpoint::{Endpoint, WORKLOAD};

/// The weight of some processes in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Weight {
    pub processes: usize,
    /// Each page divided by how many processes map it.
    pub pss: u64,
    /// Pages that no other process maps.
    pub private: u64,
    pub rss: u64,
}

/// A runtime with a number of idle pods.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    pub pods: u32,
    /// Without any of our pods; `None` when the daemon cannot be told.
    pub daemon_idle: Option<Weight>,
    pub daemon: Option<Weight>,
    pub helpers: Weight,
}

impl Memory {
    /// A share of the helpers for each pod, in bytes: PSS and private memory.
    pub fn per_pod(&self) -> (u64, u64) {
        let pods = u64::from(self.pods.max(1));
        (self.helpers.pss / pods, self.helpers.private / pods)
    }
}

struct Process {
    parent: u32,
    ours: bool,
    workload: bool,
}

/// The process that listens on the endpoint's socket.
pub async fn daemon(endpoint: &Endpoint) -> Option<u32> {
    let stream = tokio::net::UnixStream::connect(endpoint.cri.socket()).await.ok()?;
    let pid = stream.peer_cred().ok()?.pid()?;
    u32::try_from(pid).ok().filter(|pid| *pid > 1)
}

/// What one process weighs; `None` when it is gone.
pub fn weigh(pid: u32) -> Option<Weight> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    Some(parse(&text))
}

fn parse(text: &str) -> Weight {
    let mut weight = Weight { processes: 1, ..Weight::default() };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(name), Some(value)) = (words.next(), words.next()) else { continue };
        let bytes = value.parse::<u64>().unwrap_or_default() * 1024;
        match name {
            "Rss:" => weight.rss += bytes,
            "Pss:" => weight.pss += bytes,
            "Private_Clean:" | "Private_Dirty:" => weight.private += bytes,
            _ => {}
        }
    }
    weight
}

/// What the helpers of the endpoint's pods weigh together.
pub fn helpers(endpoint: &Endpoint, daemon: Option<u32>) -> Weight {
    let processes = processes(&endpoint.mark);
    let mut sum = Weight::default();
    for weight in of_pods(&processes, daemon).into_iter().filter_map(weigh) {
        sum.processes += weight.processes;
        sum.pss += weight.pss;
        sum.private += weight.private;
        sum.rss += weight.rss;
    }
    sum
}

fn of_pods(processes: &BTreeMap<u32, Process>, daemon: Option<u32>) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for (pid, process) in processes.iter().filter(|(_, process)| process.ours) {
        if !process.workload {
            found.insert(*pid);
        }
        let mut parent = process.parent;
        while parent > 1 && Some(parent) != daemon {
            let Some(next) = processes.get(&parent) else { break };
            if !next.workload {
                found.insert(parent);
            }
            parent = next.parent;
        }
    }
    found
}

fn processes(mark: &str) -> BTreeMap<u32, Process> {
    let mut found = BTreeMap::new();
    let own = std::process::id();
    let workload = WORKLOAD.join("\0");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let parent = read("status").lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok());
        let Some(parent) = parent.filter(|_| pid != own) else { continue };
        let command = read("cmdline");
        let workload = command.trim_end_matches('\0').ends_with(&workload);
        found.insert(pid, Process { parent, ours: read("cgroup").contains(mark), workload });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollup_is_summed() {
        let text = "00400000-7ffe ---p 00000000 00:00 0 [rollup]\nRss: 100 kB\nPss: 40 kB\n\
                    Pss_Dirty: 10 kB\nPrivate_Clean: 3 kB\nPrivate_Dirty: 4 kB\n";
        assert_eq!(parse(text), Weight { processes: 1, pss: 40 << 10, private: 7 << 10, rss: 100 << 10 });
    }

    #[test]
    fn helpers_are_the_parents_of_pod_processes_without_daemon_and_workload() {
        let process = |parent, ours, workload| Process { parent, ours, workload };
        // 10 daemon; 20 a shim with pause 21 and workload 22; 30 a shim that is the daemon's child; 40 a stranger.
        let table = BTreeMap::from([
            (10, process(1, false, false)),
            (20, process(1, false, false)),
            (21, process(20, true, false)),
            (22, process(20, true, true)),
            (30, process(10, false, false)),
            (31, process(30, true, true)),
            (40, process(1, false, false)),
        ]);
        assert_eq!(of_pods(&table, Some(10)), BTreeSet::from([20, 21, 30]));
    }
}
