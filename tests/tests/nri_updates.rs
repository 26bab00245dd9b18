//! NRI plugins and the kubelet's changes of resources: who has the last word, and what is told.

use std::path::PathBuf;

use cofferdam_proto::cri;
use cofferdam_proto::nri::{self, Event};
use cofferdam_tests::client::build;
use cofferdam_tests::fakes::nri::{ALL, Answer, Behaviour, Plugin};
use cofferdam_tests::harness::Node;
use prost::Message;
use tonic::{Code, Status};

const SOCKET: &str = "socket = \"@DIR@/nri.sock\"\n";

fn socket(node: &Node) -> PathBuf {
    node.dir().join("nri.sock")
}

/// The quota in the cgroup of a container's first process.
async fn quota(node: &Node, id: &str) -> String {
    let script =
        "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
    let answer = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

async fn update(node: &Node, id: &str, quota: i64) -> Result<(), Status> {
    let linux = cri::LinuxContainerResources { cpu_quota: quota, cpu_period: 100_000, ..Default::default() };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

/// Sets the quota of whatever container is updated.
fn insisting(index: &str, value: i64) -> Behaviour {
    Behaviour::new(index, "insisting", &[Event::UpdateContainer, Event::PostUpdateContainer]).on(
        "UpdateContainer",
        move |payload| {
            let request = nri::UpdateContainerRequest::decode(payload).unwrap();
            let cpu = nri::LinuxCpu { quota: Some(nri::OptionalInt64 { value }), ..Default::default() };
            let resources = Some(nri::LinuxResources { cpu: Some(cpu), ..Default::default() });
            let update = nri::ContainerUpdate {
                container_id: request.container.unwrap().id,
                linux: Some(nri::LinuxContainerUpdate { resources }),
                ignore_failure: false,
            };
            Answer::message(&nri::UpdateContainerResponse { update: vec![update], ..Default::default() })
        },
    )
}

#[tokio::test]
async fn a_plugin_changes_what_the_kubelet_asks_for_and_the_next_one_sees_it() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("updated")).await;
    let id = node.run_container(&pod, build::shell("main", &image, "exec sleep 1000")).await;
    let first = Plugin::connect(&socket(&node), insisting("10", 30_000)).await.unwrap();
    let second = Plugin::connect(&socket(&node), Behaviour::new("20", "listener", ALL)).await.unwrap();
    update(&node, &id, 50_000).await.unwrap();
    assert_eq!(quota(&node, &id).await, "30000");
    let heard = second.heard().into_iter().find(|heard| heard.method == "UpdateContainer").unwrap();
    let cpu = heard.decode::<nri::UpdateContainerRequest>().linux_resources.unwrap().cpu.unwrap();
    assert_eq!((cpu.quota.unwrap().value, cpu.period.unwrap().value), (30_000, 100_000));
    for plugin in [&first, &second] {
        let methods = plugin.methods(&id);
        assert!(methods.ends_with(&["UpdateContainer".into(), "PostUpdateContainer".into()]), "{methods:?}");
    }
    let told = node.cri.status(&id).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.cpu_quota, told.cpu_period), (30_000, 100_000));
    drop(second);
    let third = Plugin::connect(&socket(&node), insisting("30", 20_000)).await.unwrap();
    let refused = update(&node, &id, 60_000).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("10-insisting") && refused.message().contains("30-insisting"));
    assert_eq!(quota(&node, &id).await, "30000", "a refused update changed something");
    node.destroy(&pod).await;
    drop((first, third));
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pods_new_size_is_told_and_can_be_refused() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let choosy = Behaviour::new("10", "choosy", ALL).on("UpdatePodSandbox", |payload| {
        let request = nri::UpdatePodSandboxRequest::decode(payload).unwrap();
        let shares = request.linux_resources.unwrap().cpu.unwrap().shares.unwrap().value;
        if shares > 1000 { Answer::Refuse(2, "too large".into()) } else { Answer::Empty }
    });
    let plugin = Plugin::connect(&socket(&node), choosy).await.unwrap();
    let pod = node.run_pod(&node.pod("sized")).await;
    let resize = async |shares| {
        let resources = cri::LinuxContainerResources { cpu_shares: shares, ..Default::default() };
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            resources: Some(resources),
            ..Default::default()
        };
        node.cri.runtime.clone().update_pod_sandbox_resources(request).await.map(drop)
    };
    resize(500).await.unwrap();
    let refused = resize(5000).await.unwrap_err();
    assert!(refused.message().contains("too large"), "{refused:?}");
    assert_eq!(
        plugin.methods(&pod.id),
        ["RunPodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox", "UpdatePodSandbox"]
    );
    let heard = plugin.heard();
    let heard = heard.iter().find(|heard| heard.method == "PostUpdatePodSandbox").unwrap();
    let size = heard.subject().pod.unwrap().linux.unwrap().pod_resources.unwrap();
    assert_eq!(size.cpu.unwrap().shares.unwrap().value, 500);
    node.destroy(&pod).await;
    drop(plugin);
    node.assert_clean().await;
}

/// Wants another quota of the container `victim` whenever one named "meddling" is created.
fn meddling(victim: String) -> Behaviour {
    Behaviour::new("10", "meddling", &[Event::CreateContainer]).on("CreateContainer", move |payload| {
        let request = nri::CreateContainerRequest::decode(payload).unwrap();
        if request.container.unwrap().name != "meddling" {
            return Answer::Empty;
        }
        let cpu = nri::LinuxCpu { quota: Some(nri::OptionalInt64 { value: 40_000 }), ..Default::default() };
        let resources = Some(nri::LinuxResources { cpu: Some(cpu), ..Default::default() });
        let update = nri::ContainerUpdate {
            container_id: victim.clone(),
            linux: Some(nri::LinuxContainerUpdate { resources }),
            ignore_failure: false,
        };
        Answer::message(&nri::CreateContainerResponse { update: vec![update], ..Default::default() })
    })
}

#[tokio::test]
async fn a_stuck_container_that_a_plugin_changes_holds_up_no_other_creation() {
    let Some(node) = Node::builder().config("nri", SOCKET).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stuck")).await;
    let victim = node.run_container(&pod, build::shell("victim", &image, "exec sleep 1000")).await;
    let plugin = Plugin::connect(&socket(&node), meddling(victim.clone())).await.unwrap();
    let shim = node.dir().join("state/containers").join(&victim).join("shim.pid");
    let shim = std::fs::read_to_string(shim).unwrap().trim().parse().unwrap();
    let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim), signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let create = async |name: &str| {
        let config = build::shell(name, &image, "exec sleep 1000");
        node.cri.create(&pod.id, &pod.config, config).await.map(drop)
    };
    let others = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        let since = std::time::Instant::now();
        create("free").await.unwrap();
        let second = Plugin::connect(&socket(&node), Behaviour::new("20", "second", ALL)).await.unwrap();
        create("free-as-well").await.unwrap();
        let took = since.elapsed();
        signal(nix::sys::signal::Signal::SIGCONT);
        (took, second)
    };
    let (meddled, (took, second)) = tokio::join!(create("meddling"), others);
    meddled.unwrap();
    assert!(took < std::time::Duration::from_secs(6), "others waited for {took:?}");
    assert_eq!(quota(&node, &victim).await, "40000", "what was wanted is done in the end");
    node.destroy(&pod).await;
    drop((plugin, second));
    node.assert_clean().await;
}
