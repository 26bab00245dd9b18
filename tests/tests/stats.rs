//! Stats of containers and pods: they hold what the cgroups say, and filters work.

use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, eventually};
use tonic::Code;

async fn container(node: &Node, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: id.into() };
    node.cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

#[tokio::test]
async fn a_containers_stats_grow_with_its_work() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stats")).await;
    let script = "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; while :; do :; done";
    let id = node.run_container(&pod, build::shell("main", &image, script)).await;
    let mut first = container(&node, &id).await;
    assert_eq!(first.attributes.as_ref().unwrap().id, id);
    assert_eq!(first.attributes.take().unwrap().metadata.unwrap().name, "main");
    let used = |stats: &cri::ContainerStats| {
        stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).unwrap_or_default().value
    };
    let before = used(&first);
    tokio::time::sleep(Duration::from_millis(700)).await;
    let second = container(&node, &id).await;
    assert!(used(&second) > before + 50_000_000, "half a second of work: {before} to {}", used(&second));
    assert!(second.cpu.as_ref().unwrap().timestamp > 1_700_000_000_000_000_000);
    let memory = second.memory.unwrap();
    let working = memory.working_set_bytes.unwrap().value;
    assert!((10_000..1 << 30).contains(&working), "working set {working}");
    // The size of the writable layer is counted from time to time.
    let counted = eventually(Duration::from_secs(20), async || {
        let layer = container(&node, &id).await.writable_layer;
        layer.is_some_and(|layer| layer.used_bytes.is_some_and(|bytes| bytes.value >= 3 << 20))
    });
    assert!(counted.await, "the writable layer holds 3 MiB that are not counted");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn lists_hold_what_runs_and_follow_the_filter() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("listed")).await;
    let one = node.run_container(&pod, build::container("one", &image, &["sleep", "1000"])).await;
    let two = node.run_container(&pod, build::container("two", &image, &["sleep", "1000"])).await;
    let ids = async |filter: cri::ContainerStatsFilter| {
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let list = node.cri.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
        let mut ids: Vec<_> = list.into_iter().map(|stats| stats.attributes.unwrap().id).collect();
        ids.sort();
        ids
    };
    let in_pod = cri::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() };
    let mut both = [one.clone(), two.clone()];
    both.sort();
    assert_eq!(ids(in_pod.clone()).await, both);
    let label_selector = [("container".to_owned(), "two".to_owned())].into();
    assert_eq!(ids(cri::ContainerStatsFilter { label_selector, ..in_pod.clone() }).await, [two.as_str()]);
    assert_eq!(
        ids(cri::ContainerStatsFilter { id: one.clone(), ..Default::default() }).await,
        [one.as_str()]
    );
    node.cri.stop(&two, 0).await.unwrap();
    if node.daemon_pid().is_some() {
        assert_eq!(ids(in_pod).await, [one.as_str()], "what has exited has no stats");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pods_stats_hold_its_network_processes_and_containers() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("podstats")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "sleep 1000 & sleep 1000")).await;
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let stats =
        node.cri.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert_eq!(stats.attributes.unwrap().id, pod.id);
    let linux = stats.linux.unwrap();
    assert!(linux.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
    assert!(linux.memory.unwrap().working_set_bytes.unwrap().value > 0);
    let link = linux.network.unwrap().default_interface.unwrap();
    assert_eq!(link.name, "eth0");
    assert!(link.tx_bytes.is_some() && link.rx_bytes.is_some());
    assert!(linux.process.unwrap().process_count.unwrap().value >= 2);
    assert_eq!(linux.containers.len(), 1);
    assert_eq!(linux.containers[0].attributes.as_ref().unwrap().id, id);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_is_not_there_has_no_stats() {
    let node = Node::start().await;
    let request = cri::ContainerStatsRequest { container_id: "no-such-id".into() };
    let refused = node.cri.runtime.clone().container_stats(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: "no-such-id".into() };
    assert!(node.cri.runtime.clone().pod_sandbox_stats(request).await.is_err());
    let fs = node.cri.image.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    let usage = fs.image_filesystems.first().expect("no image filesystem");
    assert!(usage.fs_id.as_ref().unwrap().mountpoint.starts_with('/'));
    node.assert_clean().await;
}
