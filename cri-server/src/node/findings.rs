//! What a node lacks, judged from facts: each finding says why it matters and what to do.
//!
//! Invariant: a judgement is a pure function of [`Facts`]; nothing is found that an operator cannot act on.

use oci_spec::runtime::Capability;
use serde::Serialize;

use super::Features;
use crate::cgroup::Layout;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Info,
    /// Some pods will not work as asked.
    Degraded,
    /// Pods cannot run.
    Blocking,
}

/// Something the kernel or the environment lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// What was found, in a few words.
    pub what: String,
    /// What it means for pods.
    pub why: String,
    /// What an operator can do.
    pub fix: String,
}

/// What was seen on the node. An unknown number is `None` and is not judged.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub features: Features,
    /// Controllers, wherever they are mounted.
    pub controllers: Vec<String>,
    /// The v2 root's `cgroup.subtree_control`; `None` where v2 is not the layout in use.
    pub delegated: Option<Vec<String>>,
    /// Names in /proc/filesystems.
    pub filesystems: Vec<String>,
    /// Names in /proc/self/ns.
    pub namespaces: Vec<String>,
    pub is_root: bool,
    /// nf_tables is built in or loaded; `None` where that cannot be told without trying.
    pub nf_tables: Option<bool>,
    pub ip_forward: Option<bool>,
    pub sysctls_writable: bool,
    pub inotify_instances: Option<u64>,
    pub inotify_watches: Option<u64>,
    pub pid_max: Option<u64>,
    /// `bridge-nf-call-iptables`; `None` while br_netfilter is not loaded.
    pub bridge_filter: Option<bool>,
    /// Bytes of swap that are switched on.
    pub swap_bytes: Option<u64>,
}

/// Controllers without which limits of a pod mean nothing; by their v2 names.
const CONTROLLERS: [(&str, Severity, &str); 5] = [
    (
        "memory",
        Severity::Blocking,
        "memory limits cannot be enforced, and one container can take the node down",
    ),
    ("cpu", Severity::Degraded, "CPU requests and limits are not enforced"),
    ("cpuset", Severity::Degraded, "containers cannot be pinned to processors"),
    ("pids", Severity::Degraded, "limits of processes are not enforced: one fork bomb fills the node"),
    ("hugetlb", Severity::Info, "limits of huge pages are left out"),
];

/// Every capability whose absence shows, and how.
const CAPABILITIES: [(Capability, Severity, &str); 8] = [
    (Capability::SysAdmin, Severity::Blocking, "namespaces and mounts cannot be made"),
    (Capability::NetAdmin, Severity::Blocking, "pod networks cannot be set up"),
    (Capability::SysChroot, Severity::Blocking, "a container's root cannot be entered"),
    (Capability::Setuid, Severity::Blocking, "containers cannot run as another user"),
    (
        Capability::Mknod,
        Severity::Degraded,
        "layers with device nodes cannot be unpacked and devices not be given",
    ),
    (Capability::SysPtrace, Severity::Degraded, "namespaces of other users' processes cannot be joined"),
    (
        Capability::SysResource,
        Severity::Degraded,
        "OOM scores below the daemon's own and higher hard limits cannot be given; they are raised or left out",
    ),
    (Capability::Bpf, Severity::Info, "containers that ask for CAP_BPF are refused"),
];

fn finding(severity: Severity, what: impl Into<String>, why: &str, fix: &str) -> Finding {
    Finding { severity, what: what.into(), why: why.to_owned(), fix: fix.to_owned() }
}

fn cgroups(facts: &Facts, out: &mut Vec<Finding>) {
    if facts.controllers.is_empty() {
        out.push(finding(
            Severity::Blocking,
            "no cgroup is mounted",
            "containers can be neither limited nor counted",
            "mount cgroup2 at /sys/fs/cgroup",
        ));
        return;
    }
    for (name, severity, why) in CONTROLLERS {
        if !facts.controllers.iter().any(|known| known == name) {
            let fix = "boot a kernel with this controller and without cgroup_disable= for it";
            out.push(finding(severity, format!("cgroup controller {name} is missing"), why, fix));
        } else if facts.delegated.as_ref().is_some_and(|passed| !passed.iter().any(|known| known == name)) {
            let fix = format!("echo +{name} > /sys/fs/cgroup/cgroup.subtree_control");
            out.push(finding(
                Severity::Info,
                format!("cgroup controller {name} is not passed on yet"),
                "it is switched on with the first pod",
                &fix,
            ));
        }
    }
    if facts.features.layout != Layout::Unified {
        out.push(finding(
            Severity::Info,
            "cgroup v1 is in use",
            "Kubernetes only maintains it; pressure figures and memory.high need v2",
            "boot with systemd.unified_cgroup_hierarchy=1",
        ));
    }
    if !facts.features.swap_accounting {
        let swaps = facts.swap_bytes.is_some_and(|bytes| bytes > 0);
        out.push(finding(
            if swaps { Severity::Degraded } else { Severity::Info },
            "the memory controller does not count swap",
            "a container at its memory limit swaps instead of being stopped, where the node has swap",
            "boot with swapaccount=1, or switch swap off",
        ));
    }
}

fn kernel(facts: &Facts, out: &mut Vec<Finding>) {
    if !facts.filesystems.iter().any(|name| name == "overlay") {
        out.push(finding(
            Severity::Blocking,
            "overlayfs is missing",
            "images cannot be stacked into root file systems",
            "modprobe overlay",
        ));
    }
    let needed = [
        ("mnt", Severity::Blocking),
        ("pid", Severity::Blocking),
        ("net", Severity::Blocking),
        ("ipc", Severity::Blocking),
        ("uts", Severity::Blocking),
        ("cgroup", Severity::Info),
        ("user", Severity::Info),
    ];
    for (name, severity) in needed {
        if !facts.namespaces.iter().any(|known| known == name) {
            out.push(finding(
                severity,
                format!("{name} namespaces are missing"),
                "the kernel is built without them, and pods cannot be kept apart in this respect",
                "boot a kernel with this namespace",
            ));
        }
    }
    if !facts.features.seccomp {
        out.push(finding(
            Severity::Degraded,
            "seccomp filters are missing",
            "containers that ask for RuntimeDefault or a profile of their own are refused",
            "boot a kernel with CONFIG_SECCOMP_FILTER",
        ));
    }
    let module = match (facts.features.apparmor, facts.features.selinux) {
        (false, false) => Some("neither AppArmor nor SELinux is on"),
        (true, _) | (_, true) => None,
    };
    if let Some(what) = module {
        out.push(finding(
            Severity::Info,
            what,
            "containers that ask for an AppArmor profile are refused, SELinux labels are ignored",
            "boot with lsm=apparmor, or lsm=selinux",
        ));
    }
}

fn privilege(facts: &Facts, out: &mut Vec<Finding>) {
    if !facts.is_root {
        out.push(finding(
            Severity::Blocking,
            "the daemon does not run as root",
            "namespaces, mounts and cgroups are root's",
            "start it as root",
        ));
    }
    for (cap, severity, why) in CAPABILITIES {
        if !facts.features.capabilities.contains(&cap) {
            let what = format!("the daemon lacks CAP_{cap}");
            out.push(finding(severity, what, why, "start it with this capability in its bounding set"));
        }
    }
    if !facts.sysctls_writable {
        out.push(finding(
            Severity::Degraded,
            "/proc/sys is not writable",
            "forwarding cannot be switched on and pods' sysctls cannot be set",
            "mount /proc read-write for the daemon",
        ));
    }
}

fn network(facts: &Facts, out: &mut Vec<Finding>) {
    if facts.nf_tables == Some(false) {
        out.push(finding(
            Severity::Degraded,
            "nf_tables is missing",
            "the built-in bridge can neither masquerade nor map host ports",
            "modprobe nf_tables nft_chain_nat nft_masq",
        ));
    }
    if facts.ip_forward == Some(false) {
        out.push(finding(
            Severity::Info,
            "IP forwarding is off",
            "pods cannot reach other nodes; the built-in bridge switches it on, other CNI plugins may not",
            "sysctl -w net.ipv4.ip_forward=1",
        ));
    }
    if facts.bridge_filter == Some(false) {
        out.push(finding(
            Severity::Info,
            "bridged traffic passes the packet filter by",
            "with a bridge plugin and kube-proxy, pods of one node cannot reach each other through services",
            "sysctl -w net.bridge.bridge-nf-call-iptables=1",
        ));
    }
}

fn limits(facts: &Facts, out: &mut Vec<Finding>) {
    let low = [
        (
            "fs.inotify.max_user_instances",
            facts.inotify_instances,
            512,
            "programs that watch files fail in some pods",
        ),
        (
            "fs.inotify.max_user_watches",
            facts.inotify_watches,
            65_536,
            "programs that watch files fail in some pods",
        ),
        ("kernel.pid_max", facts.pid_max, 65_536, "a node full of pods runs out of process ids"),
    ];
    for (name, value, wanted, why) in low {
        if let Some(value) = value.filter(|value| *value < wanted) {
            let fix = format!("sysctl -w {name}={wanted}");
            out.push(finding(Severity::Info, format!("{name} is {value}"), why, &fix));
        }
    }
    if facts.swap_bytes.is_some_and(|bytes| bytes > 0) {
        out.push(finding(
            Severity::Info,
            "swap is on",
            "the kubelet refuses to start unless it is told otherwise (failSwapOn)",
            "swapoff -a, or configure the kubelet",
        ));
    }
}

/// The findings, the worst first.
#[must_use]
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut out = Vec::new();
    for part in [privilege, cgroups, kernel, network, limits] {
        part(facts, &mut out);
    }
    out.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn perfect() -> Facts {
        Facts {
            features: Features {
                layout: Layout::Unified,
                swap_accounting: true,
                seccomp: true,
                apparmor: true,
                capabilities: super::super::CAPABILITIES.into_iter().collect(),
                ..Features::default()
            },
            controllers: owned(&["cpu", "cpuset", "hugetlb", "io", "memory", "pids"]),
            delegated: Some(owned(&["cpu", "cpuset", "hugetlb", "io", "memory", "pids"])),
            filesystems: owned(&["overlay", "tmpfs"]),
            namespaces: owned(&["mnt", "pid", "net", "ipc", "uts", "cgroup", "user"]),
            is_root: true,
            nf_tables: Some(true),
            ip_forward: Some(true),
            sysctls_writable: true,
            inotify_instances: Some(8192),
            inotify_watches: Some(524_288),
            pid_max: Some(4_194_304),
            bridge_filter: Some(true),
            swap_bytes: Some(0),
        }
    }

    #[test]
    fn a_perfect_node_has_no_findings() {
        assert_eq!(judge(&perfect()), []);
    }

    #[test]
    fn each_lack_is_found_and_weighed() {
        type Break = fn(&mut Facts);
        let table: [(&str, Severity, Break); 16] = [
            ("no cgroup is mounted", Severity::Blocking, |facts| facts.controllers.clear()),
            ("controller memory is missing", Severity::Blocking, |facts| {
                facts.controllers.retain(|c| c != "memory")
            }),
            ("controller pids is missing", Severity::Degraded, |facts| {
                facts.controllers.retain(|c| c != "pids")
            }),
            ("cpu is not passed on", Severity::Info, |facts| {
                facts.delegated.as_mut().unwrap().retain(|c| c != "cpu");
            }),
            ("cgroup v1", Severity::Info, |facts| facts.features.layout = Layout::Hybrid),
            ("overlayfs", Severity::Blocking, |facts| facts.filesystems.clear()),
            ("net namespaces", Severity::Blocking, |facts| facts.namespaces.retain(|ns| ns != "net")),
            ("seccomp", Severity::Degraded, |facts| facts.features.seccomp = false),
            ("AppArmor", Severity::Info, |facts| facts.features.apparmor = false),
            ("root", Severity::Blocking, |facts| facts.is_root = false),
            ("CAP_SYS_RESOURCE", Severity::Degraded, |facts| {
                facts.features.capabilities.remove(&Capability::SysResource);
            }),
            ("/proc/sys", Severity::Degraded, |facts| facts.sysctls_writable = false),
            ("nf_tables", Severity::Degraded, |facts| facts.nf_tables = Some(false)),
            ("forwarding", Severity::Info, |facts| facts.ip_forward = Some(false)),
            ("max_user_instances is 128", Severity::Info, |facts| facts.inotify_instances = Some(128)),
            ("swap is on", Severity::Info, |facts| facts.swap_bytes = Some(1)),
        ];
        for (words, severity, break_it) in table {
            let mut facts = perfect();
            break_it(&mut facts);
            let found = judge(&facts);
            let hit = found.iter().find(|finding| finding.what.contains(words));
            assert_eq!(hit.map(|finding| finding.severity), Some(severity), "{words}: {found:?}");
            assert!(found.iter().all(|finding| !finding.why.is_empty() && !finding.fix.is_empty()));
        }
    }

    #[test]
    fn unknown_numbers_are_not_judged_and_the_worst_come_first() {
        let mut facts = perfect();
        (facts.nf_tables, facts.ip_forward, facts.pid_max, facts.bridge_filter) = (None, None, None, None);
        assert_eq!(judge(&facts), []);
        let found = judge(&Facts::default());
        assert_eq!(found[0].severity, Severity::Blocking);
        assert!(found.windows(2).all(|pair| pair[0].severity >= pair[1].severity));
    }
}
