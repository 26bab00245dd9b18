//! Retries: whoever asks again joins what is under way; whoever hangs up changes nothing; what takes long says so.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::fuse::{Fuse, HANG};
use cofferdam_tests::fixtures::catalog;
use cofferdam_tests::harness::{Node, cli, eventually, log};
use serde_json::Value;

/// A CNI plugin that notes its calls and waits as long as a file of the command's name is there.
const PLUGIN: &str = r#"#!/bin/sh
dir="$(dirname "$0")"
echo "$CNI_COMMAND" >> "$dir/calls"
while [ -e "$dir/hold-$CNI_COMMAND" ]; do sleep 0.05; done
[ "$CNI_COMMAND" = ADD ] && echo '{"cniVersion":"1.0.0","ips":[{"address":"10.5.0.2/24"}]}'
exit 0
"#;

/// A node whose network is that plugin.
async fn with_plugin(limit: u32) -> Option<Node> {
    let builder = Node::builder()
        .config("network", &format!("bin_dirs = [\"@DIR@/cni-bin\"]\ntimeout_seconds = {limit}"))
        .cni("10-own.conflist", r#"{"cniVersion":"1.0.0","name":"own","plugins":[{"type":"waiting"}]}"#);
    let node = builder.start().await?;
    let plugin = node.dir().join("cni-bin/waiting");
    std::fs::create_dir_all(plugin.parent().unwrap()).unwrap();
    std::fs::write(&plugin, PLUGIN).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    Some(node)
}

fn hold(node: &Node, command: &str, held: bool) {
    let file = node.dir().join("cni-bin").join(format!("hold-{command}"));
    if held { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
}

fn calls(node: &Node, command: &str) -> usize {
    let text = std::fs::read_to_string(node.dir().join("cni-bin/calls")).unwrap_or_default();
    text.lines().filter(|line| *line == command).count()
}

async fn info(node: &Node) -> Value {
    let answer = node.cri.runtime.clone().status(cri::StatusRequest { verbose: true }).await.unwrap();
    serde_json::from_str(&answer.into_inner().info["info"]).unwrap()
}

/// The operations of a kind that are under way.
async fn under_way(node: &Node, kind: &str) -> Vec<Value> {
    let all = info(node).await["operations"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|one| one["operation"] == kind).collect()
}

async fn begins(node: &Node, kind: &str) -> Value {
    let begun = eventually(Duration::from_secs(10), async || !under_way(node, kind).await.is_empty()).await;
    assert!(begun, "no {kind} is under way");
    under_way(node, kind).await.remove(0)
}

/// Makes the call, and hangs up when the operation is under way.
async fn hang_up<T>(node: &Node, kind: &str, call: impl Future<Output = T>) -> Value {
    tokio::select! {
        _ = call => panic!("{kind} answered"),
        row = begins(node, kind) => row,
    }
}

#[tokio::test]
async fn a_retry_joins_the_run_of_its_pod() {
    let Some(node) = with_plugin(60).await else { return };
    hold(&node, "ADD", true);
    let config = node.pod("patient");
    let row = hang_up(&node, "RunPodSandbox", node.cri.run_pod(&config, "")).await;
    assert!(row["key"].as_str().unwrap().contains("patient"), "{row}");
    let attaching =
        async || under_way(&node, "RunPodSandbox").await.iter().any(|row| row["deadline"]["secs"] == 60);
    assert!(eventually(Duration::from_secs(5), attaching).await, "the plugin's deadline is not the stage's");
    let retry = {
        let (cri, config) = (node.cri.clone(), config.clone());
        tokio::spawn(async move { cri.run_pod(&config, "").await })
    };
    assert!(eventually(Duration::from_secs(5), async || calls(&node, "ADD") > 0).await);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let shown = cli::cofferdam(&node, &["info"]).await.expect_ok();
    let line = shown.lines().find(|line| line.contains("RunPodSandbox")).expect("info does not show it");
    assert!(line.contains("attaching the network") && line.contains("in all"), "{line}");
    assert_eq!(under_way(&node, "RunPodSandbox").await.len(), 1);
    hold(&node, "ADD", false);
    let id = retry.await.unwrap().unwrap();
    assert_eq!(node.cri.run_pod(&config, "").await.unwrap(), id, "asked once more, it is the same");
    assert_eq!((calls(&node, "ADD"), node.cri.list_pods(None).await.unwrap().len()), (1, 1));
    node.cri.destroy_pod(&id).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pods_stop_and_removal_go_on_without_their_callers() {
    let Some(node) = with_plugin(60).await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("left")).await;
    node.run_container(&pod, build::container("main", &image, &["sleep", "31337"])).await;
    hold(&node, "DEL", true);
    hang_up(&node, "StopPodSandbox", node.cri.stop_pod(&pod.id)).await;
    let retry = {
        let (cri, id) = (node.cri.clone(), pod.id.clone());
        tokio::spawn(async move { cri.stop_pod(&id).await })
    };
    assert!(eventually(Duration::from_secs(15), async || calls(&node, "DEL") > 0).await, "it did not go on");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(under_way(&node, "StopPodSandbox").await.len(), 1);
    hold(&node, "DEL", false);
    retry.await.unwrap().unwrap();
    assert_eq!(calls(&node, "DEL"), 1, "the retry did not join");
    assert!(!node.cri.pod_ready(&pod.id).await);
    drop(tokio::time::timeout(Duration::from_millis(2), node.cri.remove_pod(&pod.id)).await);
    let gone = eventually(Duration::from_secs(15), async || {
        // Where the call was cut off before it arrived, this is the first.
        node.cri.remove_pod(&pod.id).await.unwrap();
        node.cri.list_pods(None).await.unwrap().is_empty()
    });
    assert!(gone.await);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_for_good_ends_the_run_in_time_and_is_asked_to_delete_later() {
    let Some(node) = with_plugin(2).await else { return };
    hold(&node, "ADD", true);
    hold(&node, "DEL", true);
    let since = Instant::now();
    let refused = node.cri.run_pod(&node.pod("hanging"), "").await.unwrap_err();
    assert!(refused.message().contains("did not finish ADD within 2 s"), "{refused:?}");
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    let left = node.cri.list_pods(None).await.unwrap();
    assert_eq!(left.len(), 1, "its network could not be taken back: it stays, to be removed");
    assert_eq!(left[0].state(), cri::PodSandboxState::SandboxNotready);
    let mut host = node.pod("host");
    build::host_network(&mut host);
    let other = node.run_pod(&host).await;
    node.destroy(&other).await;
    hold(&node, "ADD", false);
    hold(&node, "DEL", false);
    let asked = calls(&node, "DEL");
    node.cri.destroy_pod(&left[0].id).await.unwrap();
    assert!(calls(&node, "DEL") > asked, "DEL was not tried again");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_retry_joins_the_stop_of_its_container_and_a_shorter_one_does_not_wait() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stops")).await;
    let script = "trap 'echo asked' TERM; while :; do sleep 0.1; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let row = hang_up(&node, "StopContainer", node.cri.stop(&id, 6)).await;
    assert_eq!(row["key"], id.as_str());
    let since = Instant::now();
    node.cri.stop(&id, 6).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(12), "{:?}", since.elapsed());
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
    let entries = log::read(std::path::Path::new(&status.log_path));
    assert_eq!(log::joined(&entries, "stdout"), "asked\n", "the retry was a stop of its own");

    let id = node.run_container(&pod, build::shell("second", &image, script)).await;
    hang_up(&node, "StopContainer", node.cri.stop(&id, 600)).await;
    let since = Instant::now();
    node.cri.stop(&id, 0).await.unwrap();
    assert!(since.elapsed() < Duration::from_secs(8), "it waited for the longer one: {:?}", since.elapsed());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_stage_over_its_deadline_is_told_everywhere_and_once() {
    let Some(node) = Node::builder().config("metrics", "address = \"127.0.0.1:0\"").start().await else {
        return;
    };
    let image = node.base_image().await;
    let fuse = Fuse::mount(&node.dir().join("fuse"));
    let pod = node.run_pod(&node.pod("overdue")).await;
    let mut config = build::container("stuck", &image, &["sleep", "31337"]);
    config.mounts = vec![cri::Mount {
        host_path: node.dir().join("fuse").join(HANG).display().to_string(),
        container_path: "/mnt".into(),
        ..Default::default()
    }];
    let create = || {
        let (cri, pod, config) = (node.cri.clone(), pod.clone(), config.clone());
        async move { cri.create(&pod.id, &pod.config, config).await }
    };
    hang_up(&node, "CreateContainer", create()).await;
    let retry = tokio::spawn(create());
    let overdue = eventually(Duration::from_secs(20), async || {
        under_way(&node, "CreateContainer").await.iter().any(|row| row["overdue"] == true)
    });
    assert!(overdue.await, "{:?}", under_way(&node, "CreateContainer").await);
    // The log is written by the next look.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let rows = under_way(&node, "CreateContainer").await;
    assert_eq!(rows.len(), 1);
    let id = rows[0]["id"].as_str().expect("the row has no id");
    let log = node.daemon_log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("takes longer than it should")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(id) && told[0].contains("CreateContainer"), "{told:?}");
    let shown = cli::cofferdam(&node, &["info"]).await.expect_ok();
    assert!(
        shown.lines().any(|line| line.contains("CreateContainer") && line.contains("OVERDUE")),
        "{shown}"
    );
    let address = info(&node).await["metrics"]["at"].as_str().unwrap().to_owned();
    let text = node.netns.http_get(&address, "/metrics").unwrap();
    for name in ["cofferdam_operations_overdue", "cofferdam_operation_stages_overdue_total"] {
        let told = text.lines().any(|line| {
            line.starts_with(name) && line.contains("\"CreateContainer\"") && line.trim_end().ends_with(" 1")
                || line.starts_with(name) && line.contains("\"CreateContainer\"") && line.ends_with(" 1.0")
        });
        assert!(told, "no {name}: {text}");
    }
    fuse.release();
    retry.await.unwrap().unwrap_err();
    node.destroy(&pod).await;
    drop(fuse);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_registry_that_stalls_holds_up_its_own_pull_alone() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let listener = node.netns.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let host = listener.local_addr().unwrap().to_string();
    // Takes connections and says nothing.
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept() {
            held.push(stream);
        }
    });
    node.write_hosts(&host, &format!("server = \"http://{host}\"\n"));
    let stalled = format!("{host}/never/answers:1");
    let pulls: Vec<_> = (0..2)
        .map(|_| {
            let (cri, stalled) = (node.cri.clone(), stalled.clone());
            tokio::spawn(async move { cri.pull(&stalled, None).await })
        })
        .collect();
    let begun = eventually(Duration::from_secs(10), async || {
        info(&node).await["pulls"].as_array().is_some_and(|pulls| !pulls.is_empty())
    });
    assert!(begun.await, "the pull is not shown");
    let said = eventually(Duration::from_secs(20), async || {
        node.daemon_log().lines().any(|line| line.contains("pulling") && line.contains("never/answers"))
    });
    assert!(said.await, "the log does not tell of the pull");
    assert_eq!(info(&node).await["pulls"].as_array().unwrap().len(), 1, "the second pull did not join");
    let pod = node.run_pod(&node.pod("beside")).await;
    assert_eq!(node.output(&pod, build::shell("main", &image, "echo on")).await, "on\n");
    node.destroy(&pod).await;
    for pull in &pulls {
        pull.abort();
    }
}

#[tokio::test]
async fn the_command_shows_how_far_a_pull_is() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.registry.push("shown", "1", &catalog::base().unwrap());
    let shown = cli::cofferdam(&node, &["pull", &image]).await;
    for word in [": done", "pulled, "] {
        assert!(shown.stderr.contains(word), "{word}: {shown:?}");
    }
    assert!(shown.expect_ok().contains("sha256:"));
    let quiet = cli::cofferdam(&node, &["pull", "--quiet", &image]).await;
    assert_eq!(quiet.stderr, "");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_log_is_rotated_while_its_container_stops() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("rotates")).await;
    let script =
        "trap 'end=1' TERM; n=0; while [ $n -lt 400 ]; do n=$((n+1)); echo $n; sleep 0.01; done; exit 3";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    let path = node.cri.status(&id).await.unwrap().log_path;
    let stopping = {
        let (cri, id) = (node.cri.clone(), id.clone());
        tokio::spawn(async move { cri.stop(&id, 60).await })
    };
    begins(&node, "StopContainer").await;
    let mut files = Vec::new();
    for round in 0..5 {
        let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
        let rotated = format!("{path}.{round}");
        std::fs::rename(&path, &rotated).unwrap();
        let since = Instant::now();
        let answer = node.cri.runtime.clone().reopen_container_log(request).await;
        assert!(since.elapsed() < Duration::from_secs(5), "it waits for the stop: {:?}", since.elapsed());
        files.push(rotated);
        if answer.is_err() {
            // It has ended meanwhile.
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(files.len() > 1, "the container ended too soon");
    stopping.await.unwrap().unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.exit_code, 3);
    if std::fs::exists(&path).unwrap() {
        files.push(path);
    }
    let entries: Vec<_> = files.iter().flat_map(|file| log::read(std::path::Path::new(file))).collect();
    let numbers: Vec<u32> = entries.iter().map(|entry| entry.text.parse().unwrap()).collect();
    assert_eq!(numbers, (1..=400).collect::<Vec<u32>>(), "lines are lost, doubled or out of order");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
