//! Starts after everything was killed, after a reboot, and with many pods.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use cofferdam_proto::cri::{ContainerState, PodSandboxState};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::faults::{Records, kill_everything, lose_state};
use cofferdam_tests::harness::{Node, Pod, binaries, eventually};

/// A pod with a container that runs, one that has ended with 9 and one that waits for its start.
struct Busy {
    pod: Pod,
    running: String,
    ended: String,
    created: String,
}

async fn busy(node: &Node, name: &str) -> Busy {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod(name)).await;
    let running = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    let (ended, _) = node.run_to_end(&pod, build::shell("old", &image, "exit 9")).await;
    let waits = build::container("new", &image, &["sleep", "100000"]);
    let created = node.cri.create(&pod.id, &pod.config, waits).await.unwrap();
    Busy { pod, running, ended: ended.id, created }
}

async fn assert_all_has_ended(node: &Node, busy: &Busy) {
    let pod = node.cri.pod_status(&busy.pod.id).await.unwrap();
    assert_eq!(pod.state(), PodSandboxState::SandboxNotready);
    let running = node.cri.status(&busy.running).await.unwrap();
    assert_eq!((running.state(), running.exit_code), (ContainerState::ContainerExited, 255));
    assert_eq!(running.reason, "Unknown");
    assert!(running.message.contains("the node was restarted"), "{:?}", running.message);
    assert!(running.finished_at >= running.started_at);
    assert_eq!(node.cri.status(&busy.ended).await.unwrap().exit_code, 9);
    let created = node.cri.status(&busy.created).await.unwrap();
    assert_eq!(created.state(), ContainerState::ContainerCreated);
    node.cri.start(&busy.created).await.unwrap_err();
}

#[tokio::test]
async fn after_a_reboot_all_has_ended_at_once_and_no_shim_is_asked() {
    let Some(mut node) = Node::builder().start().await else { return };
    let busy = busy(&node, "rebooted").await;
    kill_everything(&mut node).await;
    Records::open(&node).of_another_boot();
    // Whoever asked for a shim would be heard here, and would wait for an answer.
    let state = node.dir().join("state");
    let mut doors = Vec::new();
    for (number, bundle) in
        [state.join("containers").join(&busy.running), state.join("sandboxes").join(&busy.pod.id)]
            .iter()
            .enumerate()
    {
        let door = node.dir().join(format!("door{number}.sock"));
        let listener = UnixListener::bind(&door).unwrap();
        listener.set_nonblocking(true).unwrap();
        let record = bundle.join("shim.json");
        let mut endpoint: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&record).unwrap()).unwrap();
        endpoint["address"] = format!("unix://{}", door.display()).into();
        std::fs::write(record, endpoint.to_string()).unwrap();
        doors.push(listener);
    }
    node.restart().await;
    assert_all_has_ended(&node, &busy).await;
    for door in doors {
        assert!(door.accept().is_err(), "a shim of before the reboot was asked");
    }
    let again = node.run_pod(&node.pod("after")).await;
    node.destroy(&again).await;
    node.destroy(&busy.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_reboot_that_took_the_state_folder_leaves_pods_that_can_be_removed() {
    let Some(mut node) = Node::builder().start().await else { return };
    let busy = busy(&node, "emptied").await;
    kill_everything(&mut node).await;
    Records::open(&node).of_another_boot();
    lose_state(&node);
    node.restart().await;
    assert_all_has_ended(&node, &busy).await;
    node.destroy(&busy.pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn after_kill_9_of_everything_pods_are_not_ready_at_once_and_every_exit_is_told() {
    let Some(mut node) = Node::builder().start().await else { return };
    let busy = busy(&node, "killed").await;
    let other = node.run_pod(&node.pod("other")).await;
    kill_everything(&mut node).await;
    node.restart().await;
    for pod in node.cri.list_pods(None).await.unwrap() {
        assert_eq!(pod.state(), PodSandboxState::SandboxNotready, "{}", pod.id);
    }
    let status = node.cri.wait_exited(&busy.running, Duration::from_secs(10)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited);
    assert_ne!(status.exit_code, 0);
    assert_eq!(node.cri.status(&busy.ended).await.unwrap().exit_code, 9);
    for pod in [&busy.pod, &other] {
        node.destroy(pod).await;
    }
    node.assert_clean().await;
}

/// What a daemon without optimisation may take in place of one with it, on a machine that others use as well.
fn slowness() -> u32 {
    if binaries().ends_with("debug") { 10 } else { 1 }
}

#[tokio::test]
async fn three_hundred_pods_are_found_again_in_half_a_second() {
    const PODS: usize = 300;
    const WORKERS: usize = 8;
    const LIMIT: Duration = Duration::from_millis(500);
    let Some(mut node) = Node::builder().start().await else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for worker in 0..WORKERS {
        let cri = node.cri.clone();
        let configs: Vec<_> = (worker..PODS)
            .step_by(WORKERS)
            .map(|number| {
                let mut config = node.pod(&format!("many{number}"));
                build::host_network(&mut config);
                config
            })
            .collect();
        tasks.spawn(async move {
            for config in configs {
                cri.run_pod(&config, "").await.expect("RunPodSandbox failed");
            }
        });
    }
    tasks.join_all().await;
    node.kill9();
    let begun = Instant::now();
    node.restart().await;
    let pods = node.cri.list_pods(None).await.unwrap();
    let took = begun.elapsed();
    println!("{} pods were found again in {took:?}", pods.len());
    assert_eq!(pods.len(), PODS);
    for pod in &pods {
        assert_eq!(pod.state(), PodSandboxState::SandboxReady, "{}", pod.id);
    }
    assert!(took < LIMIT * slowness(), "{took:?}");
    let ids: Vec<String> = pods.into_iter().map(|pod| pod.id).collect();
    let mut tasks = tokio::task::JoinSet::new();
    for chunk in ids.chunks(PODS.div_ceil(WORKERS)) {
        let (cri, chunk) = (node.cri.clone(), chunk.to_vec());
        tasks.spawn(async move {
            for id in chunk {
                cri.destroy_pod(&id).await.expect("the pod cannot be removed");
            }
        });
    }
    tasks.join_all().await;
    let empty =
        eventually(Duration::from_secs(5), async || node.cri.list_pods(None).await.unwrap().is_empty());
    assert!(empty.await);
    node.assert_clean().await;
}
