//! What has happened before the daemon that meets the point begins: deaths, losses, damage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_tests::client::build;
use cofferdam_tests::harness::faults::Records;
use cofferdam_tests::harness::{Node, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::life::{Life, Until};
use crate::plan::{Before, Part};
use crate::trial::Stage;

/// Brings the node to where the case begins: without a daemon.
pub async fn prepare(stage: &mut Stage, before: Before, life: &mut Life) {
    let until = match before {
        Before::Nothing => return,
        Before::DeathAt(point) => return death_at(stage, point, life).await,
        Before::LostLayer
        | Before::Orphans
        | Before::Damaged(Part::Layer | Part::Description | Part::Blob | Part::Owner) => Until::Pulled,
        Before::Death
        | Before::ShimOf(_)
        | Before::HungShimOf(_)
        | Before::StaleLease
        | Before::Exec
        | Before::Damaged(Part::Store | Part::Substituted) => Until::Running,
    };
    stage.node.disarm();
    stage.node.begin();
    assert!(stage.node.serves().await);
    life.go(until).await.expect("a life without faults fails");
    let node = &mut stage.node;
    match before {
        Before::ShimOf("") => {
            let shim = life.pods.last().map(|pod| shim_of(node, pod));
            node.kill9();
            shim.into_iter().for_each(|pid| kill(pid, Signal::SIGKILL).expect("cannot kill the shim"));
        }
        Before::ShimOf(name) | Before::HungShimOf(name) => {
            let pid = shim_of(node, &container_of(node, name).await);
            node.kill9();
            let hangs = matches!(before, Before::HungShimOf(_));
            kill(pid, if hangs { Signal::SIGSTOP } else { Signal::SIGKILL }).expect("cannot signal the shim");
        }
        Before::Orphans => orphans(node, &stage.material.image).await,
        Before::Exec => exec(node).await,
        Before::Nothing
        | Before::Death
        | Before::DeathAt(_)
        | Before::LostLayer
        | Before::StaleLease
        | Before::Damaged(_) => node.kill9(),
    }
    let root = node.dir().join("root");
    match before {
        Before::LostLayer => {
            std::fs::remove_dir_all(&entries(&root.join("layers"))[0]).expect("cannot remove a layer");
        }
        Before::StaleLease => add_lease(&node.dir().join("state/cni/networks/cofferdam/leases")),
        Before::Damaged(part) => damage(&root, part),
        _ => {}
    }
}

/// What is kept of what was damaged, for a person to look at.
pub fn clear_away(stage: &Stage) {
    for path in entries(&stage.node.dir().join("root")) {
        if path.to_string_lossy().contains(".damaged-") {
            std::fs::remove_file(path).expect("cannot remove a damaged store");
        }
    }
}

async fn death_at(stage: &mut Stage, point: &str, life: &mut Life) {
    stage.node.arm(&format!("{point}=kill"));
    stage.node.begin();
    let went = if stage.node.serves().await { life.go(Until::Gone).await } else { Ok(()) };
    let node = &mut stage.node;
    let died = eventually(Duration::from_secs(2), async || node.ended().is_some()).await;
    assert!(died, "the daemon did not die at {point}: {went:?}");
}

/// A pod with a container, and no record of either.
async fn orphans(node: &mut Node, image: &str) {
    let pod = node.run_pod(&node.pod("orphan")).await;
    let id = node.run_container(&pod, build::container("orphan", image, &["sleep", "100000"])).await;
    node.kill9();
    let records = Records::open(node);
    records.remove("sandboxes", &pod.id);
    records.remove("containers", &id);
    let state = node.dir().join("state");
    for bundle in [state.join("sandboxes").join(&pod.id), state.join("containers").join(&id)] {
        for name in ["record.json", "shim.json"] {
            std::fs::remove_file(bundle.join(name)).expect("cannot remove a record");
        }
    }
}

/// Kills the daemon in the middle of an exec.
async fn exec(node: &mut Node) {
    let id = container_of(node, "server").await;
    let (cri, server) = (node.cri.clone(), id.clone());
    let running = tokio::spawn(async move { cri.exec_sync(&server, &["sleep", "1000"], 100).await });
    let io = node.dir().join("state/containers").join(id).join("io");
    let begun = eventually(Duration::from_secs(5), async || entries(&io).iter().any(|path| path.is_dir()));
    assert!(begun.await, "there are no streams of an exec in {}", io.display());
    tokio::time::sleep(Duration::from_millis(100)).await;
    node.kill9();
    running.await.expect("the exec panicked").expect_err("the exec has ended");
}

fn damage(root: &Path, part: Part) {
    let layers = || entries(&root.join("layers"));
    let written = match part {
        Part::Layer => {
            let file =
                layers().into_iter().map(|layer| layer.join("fs/etc/extra")).find(|file| file.exists());
            std::fs::write(file.expect("no layer has the file"), "other bytes")
        }
        Part::Description => std::fs::write(layers()[0].join("layer.json"), "half of a descr"),
        Part::Blob => {
            let blobs = entries(&root.join("content/blobs/sha256"));
            let largest = blobs.into_iter().max_by_key(|path| path.metadata().map_or(0, |file| file.len()));
            std::fs::write(largest.expect("no blob"), "other bytes")
        }
        Part::Owner => std::fs::remove_file(root.join("owner")),
        Part::Store => std::fs::write(root.join("metadata.redb"), vec![0xa5; 100_000]),
        Part::Substituted => {
            let substitute = root.join("metadata.substitute.redb");
            std::fs::rename(root.join("metadata.redb"), substitute).expect("cannot rename the store");
            std::fs::write(root.join("metadata.redb"), vec![0xa5; 100_000])
        }
    };
    written.expect("cannot do damage");
}

/// What is in a folder; nothing, where there is none.
fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

async fn container_of(node: &Node, name: &str) -> String {
    let all = node.cri.list(None).await.expect("ListContainers failed");
    let found = all.into_iter().find(|one| one.metadata.as_ref().is_some_and(|m| m.name == name));
    found.expect("no such container").id
}

fn shim_of(node: &Node, id: &str) -> Pid {
    let state = node.dir().join("state");
    let file = ["sandboxes", "containers"].map(|kind| state.join(kind).join(id).join("shim.pid"));
    let text = file.iter().find_map(|path| std::fs::read_to_string(path).ok()).expect("no shim.pid");
    Pid::from_raw(text.trim().parse().expect("no pid"))
}

/// A lease that no pod has: what a lost record leaves.
fn add_lease(book: &Path) {
    let text = std::fs::read(book).expect("no book of leases");
    let mut value: serde_json::Value = serde_json::from_slice(&text).expect("no book of leases");
    let leases = value["leases"].as_array_mut().expect("no leases");
    let mut stale = leases.first().expect("no lease").clone();
    stale["ip"] = "10.88.7.222".into();
    let holder = stale.as_object_mut().expect("no lease");
    for (key, value) in holder.iter_mut() {
        if key.to_lowercase().starts_with("container") {
            *value = "0123456789abcdef".into();
        }
    }
    leases.push(stale);
    std::fs::write(book, value.to_string()).expect("cannot write the leases");
}
