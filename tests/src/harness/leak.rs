//! What a node has left behind, and sweeping it away when a test failed.
//!
//! Everything is told apart by the node's folder, its mark in cgroup names, its network namespace or the ids of its
//! pods: what other nodes or other programs do at the same time is never taken for a leak.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Node, eventually};
use crate::client::Cri;

const CGROUPS: &str = "/sys/fs/cgroup";

/// The state of a node that has served nothing yet.
#[derive(Debug)]
pub struct Baseline {
    mounts: BTreeSet<String>,
    links: BTreeSet<String>,
    ruleset: Option<BTreeSet<String>>,
    descriptors: BTreeMap<String, usize>,
    files: BTreeSet<PathBuf>,
}

impl Baseline {
    pub fn of(node: &Node) -> Self {
        Self {
            mounts: mounts(node.dir()).into_iter().collect(),
            links: node.netns.links().into_iter().collect(),
            ruleset: node.netns.ruleset().map(|rules| rules.into_iter().collect()),
            descriptors: node.daemon_pid().map(descriptors).unwrap_or_default(),
            files: files(node.dir()),
        }
    }
}

/// See [`Node::assert_clean`].
pub async fn assert_clean(node: &Node, pods: &[String]) {
    let mine = |id: &str| pods.iter().any(|pod| pod == id);
    let listed = node.cri.list_pods(None).await.expect("ListPodSandbox failed");
    let left: Vec<_> = listed.iter().filter(|pod| mine(&pod.id)).map(|pod| pod.id.as_str()).collect();
    assert!(left.is_empty(), "the test left pods: {left:?}");
    let listed = node.cri.list(None).await.expect("ListContainers failed");
    let left: Vec<_> = listed.iter().filter(|one| mine(&one.pod_sandbox_id)).map(|one| &one.id).collect();
    assert!(left.is_empty(), "the test left containers: {left:?}");
    let Some(baseline) = &node.baseline else { return };
    for image in node.cri.list_images().await.expect("ListImages failed") {
        node.cri.remove_image(&image.id).await.expect("RemoveImage failed");
    }
    let mut left = Vec::new();
    let clean = eventually(Duration::from_secs(5), async || {
        left = leaks(node, baseline, pods);
        left.is_empty()
    })
    .await;
    assert!(clean, "{} things are left behind:\n{}", left.len(), left.join("\n"));
}

fn leaks(node: &Node, baseline: &Baseline, pods: &[String]) -> Vec<String> {
    let mut left = Vec::new();
    let mut add = |kind: &str, what: String| left.push(format!("  {kind}: {what}"));
    for mount in mounts(node.dir()).into_iter().filter(|mount| !baseline.mounts.contains(mount)) {
        add("mount", mount);
    }
    // The bridge itself stays, as with every CNI plugin: it is the node's, not a pod's.
    let bridges = |link: &str| link == "cft0" || link.starts_with("cni-");
    for link in node.netns.links().into_iter().filter(|link| !baseline.links.contains(link)) {
        if !bridges(&link) {
            add("link", link);
        }
    }
    if let (Some(before), Some(now)) = (&baseline.ruleset, node.netns.ruleset()) {
        for rule in now.into_iter().filter(|rule| !before.contains(rule) && belongs_to_a_pod(rule)) {
            add("nft", rule);
        }
    }
    for cgroup in cgroups(&node.mark(), pods) {
        add("cgroup", cgroup.display().to_string());
    }
    for (pid, command) in processes(node.dir(), &node.mark()) {
        if Some(pid) != node.daemon_pid() {
            add("process", format!("{pid} {command}"));
        }
    }
    for (kind, count) in node.daemon_pid().map(descriptors).unwrap_or_default() {
        let before = baseline.descriptors.get(&kind).copied().unwrap_or_default();
        if count > before + allowance(&kind) {
            add("descriptors of the daemon", format!("{kind}: {before} at first, now {count}"));
        }
    }
    for file in files(node.dir()).difference(&baseline.files) {
        if file.ends_with("cni/networks/cofferdam/leases") {
            leases(file).into_iter().for_each(|lease| add("lease", lease));
        } else if !kept_on_purpose(file) {
            add("file", file.display().to_string());
        }
    }
    left
}

/// Tables, base chains and the node-wide masquerade may stay; a rule or element that names a pod's address may not.
pub fn belongs_to_a_pod(entry: &str) -> bool {
    let holds = entry.starts_with("{\"rule\"") || entry.contains("\"elem\"");
    // An address of the test subnet that is neither the subnet nor the bridge's own.
    holds
        && entry.match_indices("10.88.7.").any(|(at, prefix)| {
            let rest = &entry[at + prefix.len()..];
            let octet: String = rest.chars().take_while(char::is_ascii_digit).collect();
            !matches!(octet.as_str(), "0" | "1")
        })
}

/// The addresses that the built-in network's book still holds: the book stays, its leases do not.
pub fn leases(book: &Path) -> Vec<String> {
    let text = fs::read(book).unwrap_or_default();
    let value: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    match value["leases"].as_array() {
        Some(leases) => leases.iter().map(ToString::to_string).collect(),
        None => vec![format!("{} is no book of leases: {value}", book.display())],
    }
}

/// Connections come and go with idle pools; everything else must be back where it was.
fn allowance(kind: &str) -> usize {
    match kind {
        "socket" => 8,
        _ => 0,
    }
}

/// Databases, their locks, the build-up of empty folders, IPAM's own books, the CIDR that the kubelet gave, what
/// a probe of KVM found, and what shims say of the machines of a configuration.
fn kept_on_purpose(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let book =
        ["last_reserved_ip.0", "lock", "pod-cidr", "kvm-probe.json"].iter().any(|suffix| name == *suffix);
    let said = name.starts_with("said-");
    book || said
        || name.ends_with(".redb")
        || name.ends_with(".lock")
        || (path.is_dir() && !looks_like_an_id(&name))
}

fn looks_like_an_id(name: &str) -> bool {
    name.split(|letter: char| !letter.is_ascii_hexdigit()).any(|run| run.len() >= 12)
}

/// Mount points at or below `dir`.
pub fn mounts(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("cannot read the mount table");
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| Path::new(point).starts_with(dir)).map(str::to_owned).collect()
}

/// The cgroups below the node's pods (a pod's own is the kubelet's to remove), and any named after a pod.
pub fn cgroups(mark: &str, pods: &[String]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    walk(Path::new(CGROUPS), &mut |path| {
        let names: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
        let depth = names.iter().position(|name| *name == mark).map(|at| names.len() - at);
        let last = names.last().map(AsRef::as_ref).unwrap_or_default();
        if depth.is_some_and(|depth| depth > 2) || pods.iter().any(|pod| last.contains(pod.as_str())) {
            found.push(path.to_owned());
        }
    });
    found
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            visit(&entry.path());
            walk(&entry.path(), visit);
        }
    }
}

/// The processes that have to do with the node: their command, folder or cgroup names it.
pub fn processes(dir: &Path, mark: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    let word = dir.display().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let proc = entry.path();
        let command = fs::read(proc.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let below = |link: &str| fs::read_link(proc.join(link)).is_ok_and(|target| target.starts_with(dir));
        let cgroup = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        if command.contains(&word) || below("cwd") || below("root") || cgroup.contains(&format!("/{mark}")) {
            found.push((pid, command));
        }
    }
    found
}

/// How many descriptors of each kind a process holds.
fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy();
        let kind = match target.split_once(":[") {
            Some((kind, _)) => kind.to_owned(),
            None => target.into_owned(),
        };
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Everything under the daemon's root and state.
fn files(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut queue = vec![dir.join("root"), dir.join("state")];
    while let Some(folder) = queue.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Ends what is left of a node: processes, mounts, cgroups. Best effort, for a test that failed before it cleaned up.
pub fn sweep(dir: &Path, mark: &str) {
    for _ in 0..50 {
        let left = processes(dir, mark);
        for (pid, _) in &left {
            // It may be gone by now.
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        if left.is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut points = mounts(dir);
    points.reverse();
    for point in points {
        let _ = umount2(Path::new(&point), MntFlags::MNT_DETACH);
    }
    let mut folders = Vec::new();
    walk(Path::new(CGROUPS), &mut |path| {
        if path.iter().any(|part| part.to_string_lossy() == mark) {
            folders.push(path.to_owned());
        }
    });
    for folder in folders.iter().rev() {
        let _ = fs::remove_dir(folder);
    }
}

/// Removes a node's pods from a runtime that is not its own, from a place that cannot await.
pub fn destroy_pods(socket: &Path, pods: Vec<String>) {
    let socket = socket.display().to_string();
    let work = move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let cri = Cri::new(&socket);
            for pod in pods {
                if let Err(status) = cri.destroy_pod(&pod).await {
                    eprintln!("pod {pod} stays: {status}");
                }
            }
        });
    };
    // A panic in there has already been printed.
    let _ = std::thread::spawn(work).join();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pods_addresses_count_as_its_rules() {
        assert!(belongs_to_a_pod(r#"{"rule":{"expr":"10.88.7.12"}}"#));
        assert!(!belongs_to_a_pod(r#"{"rule":{"expr":"10.88.7.0"}}"#));
        assert!(!belongs_to_a_pod(r#"{"rule":{"expr":"10.88.7.1"}}"#));
        assert!(!belongs_to_a_pod(r#"{"chain":{"name":"10.88.7.12"}}"#));
    }

    #[test]
    fn ids_are_told_from_words() {
        assert!(looks_like_an_id("0123456789abcdef"));
        assert!(looks_like_an_id("cri-0123456789ab.scope"));
        assert!(!looks_like_an_id("snapshots"));
    }
}
