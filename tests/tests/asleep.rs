//! Containers whose processes the kernel holds in a sleep that no signal ends: their pods wait, nobody else does, and they
//! go away when they wake.

use std::time::{Duration, Instant};

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::fuse::{Fuse, HANG};
use cofferdam_tests::harness::{Node, eventually, leak, shim};
use tonic::Code;

/// What a stop may take until it says that it cannot, on a busy machine.
const SOON: Duration = Duration::from_secs(20);

fn shows(host: &std::path::Path, container: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_container_in_uninterruptible_sleep_holds_up_nobody_and_goes_when_it_wakes() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let fuse = Fuse::mount(&node.dir().join("fuse"));
    let mut asleep = Vec::new();
    for name in ["one", "two", "three"] {
        let pod = node.run_pod(&node.pod(name)).await;
        // Each its own: the kernel asks for a name once.
        let script = format!("cat /mnt/{HANG}-{name}; sleep 31337");
        let mut config = build::shell("main", &image, &script);
        config.mounts = vec![shows(&node.dir().join("fuse"), "/mnt")];
        let id = node.run_container(&pod, config).await;
        asleep.push((pod, id));
    }
    let fell = eventually(Duration::from_secs(10), async || fuse.sleepers() >= asleep.len()).await;
    assert!(fell, "they do not sleep");

    let others = async {
        for round in 0..3 {
            let since = Instant::now();
            let pod = node.run_pod(&node.pod(&format!("other{round}"))).await;
            let said = node.output(&pod, build::shell("main", &image, "echo awake")).await;
            assert_eq!(said, "awake\n");
            assert!(node.cri.list(None).await.unwrap().len() > asleep.len());
            node.destroy(&pod).await;
            assert!(since.elapsed() < SOON, "another pod waits: {:?}", since.elapsed());
        }
    };
    let all = async {
        let mut set = tokio::task::JoinSet::new();
        for (pod, id) in asleep.clone() {
            let cri = node.cri.clone();
            set.spawn(async move {
                let since = Instant::now();
                let refused = cri.stop(&id, 1).await.unwrap_err();
                assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
                assert!(refused.message().contains("sleeps uninterruptibly"), "{refused:?}");
                assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
                let refused = cri.stop_pod(&pod.id).await.unwrap_err();
                assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
                assert!(since.elapsed() < 2 * SOON, "{:?}", since.elapsed());
            });
        }
        while let Some(ended) = set.join_next().await {
            ended.unwrap();
        }
    };
    tokio::join!(all, others);
    for (_, id) in &asleep {
        assert_eq!(node.cri.status(id).await.unwrap().state(), ContainerState::ContainerRunning);
    }

    fuse.release();
    for (pod, id) in &asleep {
        let status = node.cri.wait_exited(id, Duration::from_secs(10)).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137));
        node.destroy(pod).await;
    }
    drop(fuse);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_volume_that_does_not_answer_holds_up_its_own_container_alone() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let fuse = Fuse::mount(&node.dir().join("fuse"));
    let pod = node.run_pod(&node.pod("volume")).await;
    let mut config = build::container("stuck", &image, &["sleep", "31337"]);
    config.mounts = vec![shows(&node.dir().join("fuse").join(HANG), "/mnt")];
    let creating = {
        let (cri, pod) = (node.cri.clone(), pod.clone());
        tokio::spawn(async move { cri.create(&pod.id, &pod.config, config).await })
    };
    assert!(
        eventually(Duration::from_secs(10), async || fuse.sleepers() > 0).await,
        "nothing asks the volume"
    );
    let beside = node.run_container(&pod, build::container("beside", &image, &["sleep", "31337"])).await;
    assert_eq!(node.cri.exec_sync(&beside, &["echo", "well"], 10).await.unwrap().stdout, b"well\n");
    let since = Instant::now();
    node.destroy(&pod).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    fuse.release();
    creating.await.unwrap().unwrap_err();
    drop(fuse);
    node.assert_clean().await;
}

/// The runtime sleeps while it makes a place for a mount, in the container's cgroup already; then daemon and shim die.
#[tokio::test]
async fn of_a_creation_that_is_cut_off_in_a_dead_file_system_no_cgroup_is_left() {
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let fuse = Fuse::mount(&node.dir().join("fuse"));
    let other = node.dir().join("other");
    std::fs::create_dir(&other).unwrap();
    let pod = node.run_pod(&node.pod("cut-off")).await;
    let mut config = build::container("stuck", &image, &["sleep", "31337"]);
    config.mounts =
        vec![shows(&node.dir().join("fuse"), "/mnt"), shows(&other, &format!("/mnt/{HANG}/below"))];
    let id = node.cri.create(&pod.id, &pod.config, config).await.unwrap();
    assert!(
        eventually(Duration::from_secs(10), async || fuse.sleepers() > 0).await,
        "nothing asks the volume"
    );
    let left = || leak::cgroups(&node.mark(), &[]).into_iter().filter(|path| path.ends_with(&id)).count();
    assert!(left() > 0, "it sleeps outside of the container's cgroup");
    let shim = shim::of(&id);
    node.kill9();
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGKILL).unwrap();
    node.restart().await;
    let beside = node.run_pod(&node.pod("beside")).await;
    assert_eq!(node.output(&beside, build::shell("main", &image, "echo well")).await, "well\n");
    node.destroy(&beside).await;
    let left = || leak::cgroups(&node.mark(), &[]).into_iter().filter(|path| path.ends_with(&id)).count();
    assert!(left() > 0, "its process is gone before it woke");
    fuse.release();
    let gone = eventually(Duration::from_secs(20), async || node.cri.destroy_pod(&pod.id).await.is_ok());
    assert!(gone.await, "its pod stays");
    assert_eq!(left(), 0, "its cgroup stays");
    drop(fuse);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_frozen_container_is_stopped() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("frozen")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "31337"])).await;
    let parent = pod.config.linux.as_ref().unwrap().cgroup_parent.clone();
    let freezer = format!("/sys/fs/cgroup/freezer{parent}/{id}/freezer.state");
    if std::fs::write(&freezer, "FROZEN").is_err() {
        println!("skipped: no v1 freezer on this node");
        node.destroy(&pod).await;
        return;
    }
    // Without its shim's help: that would know how to thaw it, too.
    shim::hang(&id);
    let since = Instant::now();
    node.cri.stop(&id, 0).await.unwrap();
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    node.destroy(&pod).await;
    node.assert_clean().await;
}
