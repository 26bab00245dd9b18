//! Gathers the facts that [`super::findings`] judges, from /proc and /sys alone.

use std::fs;
use std::path::Path;

use super::features::status_field;
use super::{Facts, Features, Finding, judge};
use crate::cgroup::Mounts;

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn number(path: &str) -> Option<u64> {
    text(path).trim().parse().ok()
}

fn switch(path: &str) -> Option<bool> {
    number(path).map(|value| value != 0)
}

/// The names of /proc/filesystems; the first column says `nodev`.
fn filesystems(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().last()).map(str::to_owned).collect()
}

/// Bytes of swap that are on, from /proc/meminfo.
fn swap_bytes(meminfo: &str) -> Option<u64> {
    let kilobytes: u64 = status_field(meminfo, "SwapTotal")?.split_whitespace().next()?.parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The netfilter netlink protocol is listed once nf_tables' base is there; a kernel with modules may still load it.
fn nf_tables() -> Option<bool> {
    let loaded = Path::new("/sys/module/nf_tables").exists() || Path::new("/proc/net/netfilter").exists();
    let can_load = Path::new("/proc/modules").exists();
    match (loaded, can_load) {
        (true, _) => Some(true),
        (false, true) => None,
        (false, false) => Some(false),
    }
}

/// Whether the mount of /proc/sys lets itself be written, asked without writing.
fn sysctls_writable() -> bool {
    let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
    rustix::fs::access(forward, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Whether depmod's list of modules has one of this name, in whatever compression.
fn has_module(list: &str, name: &str) -> bool {
    let files = list.lines().filter_map(|line| line.split(':').next()?.rsplit('/').next());
    files.filter_map(|file| file.split_once(".ko")).any(|(module, _)| module == name)
}

/// What can be mounted now, and overlay where the first mount of it loads its module: a fresh node has not done so.
fn mountable() -> Vec<String> {
    let mut names = filesystems(&text("/proc/filesystems"));
    let release = text("/proc/sys/kernel/osrelease");
    if !names.iter().any(|name| name == "overlay")
        && has_module(&text(&format!("/lib/modules/{}/modules.dep", release.trim())), "overlay")
    {
        names.push("overlay".to_owned());
    }
    names
}

fn facts() -> Facts {
    let features = Features::probe();
    let mounts = Mounts::read().unwrap_or_default();
    let delegated = mounts.unified.as_ref().filter(|_| features.layout.is_unified()).map(|unified| {
        let passed = fs::read_to_string(unified.join("cgroup.subtree_control")).unwrap_or_default();
        passed.split_whitespace().map(str::to_owned).collect()
    });
    let namespaces = fs::read_dir("/proc/self/ns").into_iter().flatten().flatten();
    Facts {
        controllers: mounts.available().unwrap_or_default(),
        delegated,
        filesystems: mountable(),
        namespaces: namespaces.filter_map(|entry| entry.file_name().into_string().ok()).collect(),
        is_root: rustix::process::geteuid().is_root(),
        nf_tables: nf_tables(),
        ip_forward: switch("/proc/sys/net/ipv4/ip_forward"),
        sysctls_writable: sysctls_writable(),
        inotify_instances: number("/proc/sys/fs/inotify/max_user_instances"),
        inotify_watches: number("/proc/sys/fs/inotify/max_user_watches"),
        pid_max: number("/proc/sys/kernel/pid_max"),
        bridge_filter: switch("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        swap_bytes: swap_bytes(&text("/proc/meminfo")),
        features,
    }
}

/// Names what the node lacks, the worst first. Reads only; takes a few milliseconds.
#[must_use]
pub fn preflight() -> Vec<Finding> {
    judge(&facts())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_found_by_its_whole_name() {
        let list = "kernel/fs/overlayfs/overlay.ko.zst: kernel/lib/x.ko\nkernel/net/bridge/bridge.ko: kernel/net/llc/llc.ko\n";
        assert!(has_module(list, "overlay") && has_module(list, "bridge"));
        assert!(!has_module(list, "llc") && !has_module(list, "over") && !has_module("", "overlay"));
    }

    #[test]
    fn the_formats_of_proc_are_read() {
        assert_eq!(filesystems("nodev\tsysfs\n\text4\nnodev\toverlay\n"), ["sysfs", "ext4", "overlay"]);
        assert_eq!(swap_bytes("MemTotal:  10 kB\nSwapTotal:      2 kB\n"), Some(2048));
        assert_eq!(swap_bytes("MemTotal: 10 kB\n"), None);
    }

    #[test]
    fn this_node_is_judged() {
        let facts = facts();
        assert!(facts.namespaces.iter().any(|name| name == "mnt") && !facts.filesystems.is_empty());
        for finding in preflight() {
            println!("{finding:?}");
        }
    }
}
