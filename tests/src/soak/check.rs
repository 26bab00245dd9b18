//! What must hold between two rounds: the daemon's lists, the model and the kernel agree, and no log has a gap.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri::{ContainerState, PodSandboxState};

use super::kernel;
use super::model::{Container, Kind, PodModel, Wanted};
use crate::harness::{Node, eventually, leak, log};

/// How long things may take to settle: exits are noticed, cgroups go, a machine is busy.
const SETTLE: Duration = Duration::from_secs(20);

/// Everything that is wrong now; asked again until nothing is, or for as long as things may take to settle.
pub async fn violations(node: &Node, pods: &[PodModel]) -> Vec<String> {
    let mut wrong = Vec::new();
    let settled = eventually(SETTLE, async || {
        wrong = look(node, pods).await;
        wrong.is_empty()
    });
    settled.await;
    wrong
}

async fn look(node: &Node, pods: &[PodModel]) -> Vec<String> {
    let mut wrong = lists(node, pods).await;
    let known: HashSet<&str> = pods
        .iter()
        .flat_map(|model| {
            let containers = model.containers.iter().map(|container| container.id.as_str());
            containers.chain([model.pod.id.as_str()])
        })
        .collect();
    wrong.extend(strangers(node, &known));
    wrong.extend(network(node, pods).await);
    wrong.extend(processes(node, pods));
    wrong.extend(pods.iter().flat_map(|model| &model.containers).filter_map(|one| counted(one).err()));
    let journal = node.daemon_log();
    wrong.extend(
        journal.lines().filter(|line| line.contains("panicked at")).map(|line| format!("the daemon: {line}")),
    );
    wrong
}

/// The daemon's answers against the model.
async fn lists(node: &Node, pods: &[PodModel]) -> Vec<String> {
    let (listed, containers) = match (node.cri.list_pods(None).await, node.cri.list(None).await) {
        (Ok(pods), Ok(containers)) => (pods, containers),
        (pods, containers) => return vec![format!("lists: {:?} {:?}", pods.err(), containers.err())],
    };
    let mut wrong = Vec::new();
    let told: BTreeMap<_, _> = listed.iter().map(|pod| (pod.id.as_str(), pod.state())).collect();
    let wanted: BTreeMap<_, _> = pods.iter().map(|model| (model.pod.id.as_str(), state(model))).collect();
    if told != wanted {
        wrong.push(format!("pods are {told:?}, not {wanted:?}"));
    }
    let told: BTreeSet<_> = containers.iter().map(|one| one.id.as_str()).collect();
    let all = || pods.iter().flat_map(|model| &model.containers);
    let wanted: BTreeSet<_> = all().map(|one| one.id.as_str()).collect();
    if told != wanted {
        wrong.push(format!("containers are {told:?}, not {wanted:?}"));
    }
    for container in all() {
        match node.cri.status(&container.id).await {
            Ok(status) => {
                let is = match status.state() {
                    ContainerState::ContainerRunning => container.wanted == Wanted::Running,
                    ContainerState::ContainerExited => container.wanted.allows(status.exit_code),
                    _ => false,
                };
                if !is {
                    wrong.push(format!("{container:?} is {:?} {}", status.state(), status.exit_code));
                }
            }
            Err(status) => wrong.push(format!("{container:?}: {status:?}")),
        }
    }
    wrong
}

fn state(model: &PodModel) -> PodSandboxState {
    if model.ready { PodSandboxState::SandboxReady } else { PodSandboxState::SandboxNotready }
}

/// What carries the name of a pod or container that nobody knows: mounts, cgroups, folders.
fn strangers(node: &Node, known: &HashSet<&str>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut see = |kind: &str, path: &str| {
        if let Some(id) = id_in(path).filter(|id| !known.contains(id)) {
            wrong.push(format!("a {kind} of {id}, which is nobody's: {path}"));
        }
    };
    for mount in leak::mounts(node.dir()) {
        see("mount", &mount);
    }
    for cgroup in leak::cgroups(&node.mark(), &[]) {
        see("cgroup", &cgroup.display().to_string());
        if cgroup.iter().any(|part| part.to_string_lossy().starts_with("exec-")) {
            see("cgroup", &format!("{:0>64}", "exec"));
        }
    }
    for folder in
        ["state/sandboxes", "state/containers", "state/netns", "state/cni/results", "root/containers"]
    {
        for entry in fs::read_dir(node.dir().join(folder)).into_iter().flatten().flatten() {
            see("file", &entry.path().display().to_string());
        }
    }
    wrong
}

/// The last id in a path: 64 hexadecimal digits.
fn id_in(path: &str) -> Option<&str> {
    path.split(|letter: char| !letter.is_ascii_hexdigit()).rfind(|run| run.len() == 64)
}

/// Links, addresses, namespaces and rules: one of each for a pod that is ready and has a network of its own.
async fn network(node: &Node, pods: &[PodModel]) -> Vec<String> {
    let mut wrong = Vec::new();
    let own = pods.iter().filter(|model| !model.host_network);
    let ready = own.clone().filter(|model| model.ready).count();
    let pairs = node.netns.links().into_iter().filter(|link| link != "lo" && link != "cft0").count();
    let pinned = fs::read_dir(node.dir().join("state/netns")).map_or(0, Iterator::count);
    let book = node.dir().join("state/cni/networks/cofferdam/leases");
    // There is none before the first pod.
    let leases = if book.exists() { leak::leases(&book) } else { Vec::new() };
    // A pod whose pause process died keeps what it has until it is stopped.
    let all = own.clone().count();
    for (what, count) in [("links", pairs), ("namespaces", pinned), ("leases", leases.len())] {
        if count < ready || count > all {
            wrong.push(format!("{count} {what} of {ready} to {all} pods: {leases:?}"));
        }
    }
    let mut addresses = HashSet::new();
    for model in own {
        if let Ok(status) = node.cri.pod_status(&model.pod.id).await {
            addresses.extend(status.network.map(|network| network.ip));
        }
    }
    for rule in node.netns.ruleset().unwrap_or_default().iter().filter(|rule| leak::belongs_to_a_pod(rule)) {
        if !addresses.iter().any(|address| !address.is_empty() && rule.contains(address.as_str())) {
            wrong.push(format!("a rule of no pod: {rule}"));
        }
    }
    wrong
}

/// Every process belongs to what runs; nothing that ended has one.
fn processes(node: &Node, pods: &[PodModel]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut running = HashSet::new();
    for model in pods {
        running.extend(model.ready.then_some(model.pod.id.as_str()));
        running.extend(model.containers.iter().filter(|one| one.stays()).map(|one| one.id.as_str()));
    }
    for (pid, command) in leak::processes(node.dir(), &node.mark()) {
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let owner = id_in(&command).or_else(|| cgroup.lines().find_map(id_in));
        let expected = match owner {
            Some(id) => running.contains(id),
            None => Some(pid) == node.daemon_pid(),
        };
        // It may have ended since it was listed.
        if !expected && Path::new(&format!("/proc/{pid}")).exists() {
            wrong.push(format!(
                "process {pid} is of nothing that runs: {command} {}",
                cgroup.trim().replace('\n', " ")
            ));
        }
    }
    if let Some(daemon) = node.daemon_pid() {
        wrong.extend(
            kernel::zombies(daemon).into_iter().map(|name| format!("the daemon left a zombie: {name}")),
        );
    }
    wrong
}

/// A log that counts has every number once, over all its files, in whole lines.
fn counted(container: &Container) -> Result<(), String> {
    if container.kind != Kind::Counts {
        return Ok(());
    }
    let mut expected = 1_u64;
    for path in container.rotated.iter().chain([&container.log]) {
        let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        // The last line may be on its way.
        let whole = &text[..text.rfind('\n').map_or(0, |at| at + 1)];
        let entries = log::parse(whole).map_err(|line| format!("{}: no entry: {line:?}", path.display()))?;
        for entry in entries {
            if entry.text != expected.to_string() || entry.partial {
                return Err(format!("{}: wanted {expected}, has {entry:?}", path.display()));
            }
            expected += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_paths() {
        let id = "a".repeat(64);
        assert_eq!(id_in(&format!("/tmp/x/{id}/rootfs")), Some(id.as_str()));
        assert_eq!(id_in(&format!("cri-cofferdam-{id}.scope")), Some(id.as_str()));
        assert_eq!(id_in("/tmp/abc"), None);
    }
}
