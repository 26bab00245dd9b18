//! Upgrades: a new daemon takes over the pods of an older shim, and says in words what it cannot do with a newer one's.
//!
//! The older shim is a real one, built from an earlier commit: `COFFERDAM_TEST_OLD_SHIM` is its path.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, eventually, log, shim};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

const COUNT: &str = "trap 'exit 9' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";

fn record(node: &Node, container: &str) -> PathBuf {
    node.dir().join("state/containers").join(container).join("shim.json")
}

fn protocol(file: &Path) -> u64 {
    let record: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    record["protocol"].as_u64().unwrap_or(1)
}

async fn reopen(node: &Node, container: &str) -> Result<(), tonic::Status> {
    let request = cri::ReopenContainerLogRequest { container_id: container.into() };
    node.cri.runtime.clone().reopen_container_log(request).await.map(drop)
}

fn old_shim() -> Option<PathBuf> {
    let path = std::env::var_os("COFFERDAM_TEST_OLD_SHIM").map(PathBuf::from);
    if path.is_none() {
        println!("skipped: COFFERDAM_TEST_OLD_SHIM names no older shim");
    }
    path
}

#[tokio::test]
async fn the_pods_of_an_older_shim_are_taken_over() {
    let Some(old) = old_shim() else { return };
    let own = "type = \"io.containerd.cofferdam.v1\"\n";
    let line = format!("path = {old:?}\n");
    let builder = Node::builder().config("runtimes.cofferdam", &format!("{own}{line}"));
    let Some(mut node) = builder.start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("old")).await;
    let id = node.run_container(&pod, build::shell("main", &image, COUNT)).await;
    let dies = node.run_container(&pod, build::container("dies", &image, &["sleep", "31337"])).await;
    assert_eq!(protocol(&record(&node, &id)), 1, "that is no older shim");
    node.kill9();
    // The older daemon's record has neither the protocol nor the process.
    for bundle in [&id, &dies] {
        let file = record(&node, bundle);
        let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        let fields = text.as_object_mut().unwrap();
        fields.remove("protocol");
        fields.remove("process");
        std::fs::write(&file, text.to_string()).unwrap();
    }
    let config = node.dir().join("config.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace(&line, "")).unwrap();
    node.restart().await;

    assert!(node.cri.pod_ready(&pod.id).await);
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.exec_sync(&id, &["echo", "old"], 10).await.unwrap().stdout, b"old\n");
    let rotated = format!("{}.1", status.log_path);
    std::fs::rename(&status.log_path, &rotated).unwrap();
    reopen(&node, &id).await.unwrap();
    // The new shim's command cleans up after the old one.
    kill(shim::of(&dies), Signal::SIGKILL).unwrap();
    let dead = node.cri.wait_exited(&dies, Duration::from_secs(10)).await.unwrap();
    assert_eq!((dead.state(), dead.exit_code), (ContainerState::ContainerExited, 137));
    // And a new one runs beside it, in its pod.
    let new = node.run_container(&pod, build::container("new", &image, &["sleep", "31337"])).await;
    assert!(protocol(&record(&node, &new)) > 1);
    // One of the old that hangs is ended like any other.
    shim::hang(&id);
    node.cri.stop(&id, 20).await.unwrap();
    assert_eq!(node.cri.status(&id).await.unwrap().exit_code, 9);
    let mut entries = log::read(Path::new(&rotated));
    entries.extend(log::read(Path::new(&status.log_path)));
    let numbers: Vec<u32> = entries.iter().map(|entry| entry.text.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>(), "the log has gaps");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn of_a_newer_shim_only_what_every_shim_serves_is_asked() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("newer")).await;
    let id = node.run_container(&pod, build::shell("main", &image, COUNT)).await;
    node.kill9();
    let file = record(&node, &id);
    let mut text: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    text["protocol"] = 99.into();
    std::fs::write(&file, text.to_string()).unwrap();
    node.restart().await;
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    assert_eq!(node.cri.exec_sync(&id, &["echo", "newer"], 10).await.unwrap().stdout, b"newer\n");
    let refused = reopen(&node, &id).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    assert!(refused.message().contains("protocol 99") && refused.message().contains("update the daemon"));
    let told = eventually(Duration::from_secs(5), async || {
        node.daemon_log().contains("a newer daemon has started its shim")
    });
    assert!(told.await, "the log does not tell");
    node.cri.stop(&id, 20).await.unwrap();
    assert_eq!(node.cri.status(&id).await.unwrap().exit_code, 9);
    node.destroy(&pod).await;
    node.assert_clean().await;
}
