//! Limits: what the request says is what the kernel's files say, on cgroup v1 and hybrid nodes; the size of pods; whose
//! cgroups they are. (What v2 alone does is checked in a virtual machine, see tests/vm.)

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::Node;
use cofferdam_tests::harness::limits::{
    file, folder, has_hugetlb, huge, is_v1, limits, oom_scores, sleeper, told,
};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

#[tokio::test]
async fn every_limit_of_a_request_reaches_its_file() {
    if !is_v1() {
        return;
    }
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("every")).await;
    let asked = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 50_000,
        cpu_quota: 20_000,
        cpuset_cpus: "0".into(),
        cpuset_mems: "0".into(),
        memory_limit_in_bytes: 64 * MIB,
        memory_swap_limit_in_bytes: 80 * MIB,
        oom_score_adj: 321,
        hugepage_limits: if has_hugetlb() { huge(4 * MIB) } else { Vec::new() },
        unified: Default::default(),
    };
    let id = node.run_container(&pod, sleeper("all", &image, asked.clone())).await;
    let expected = [
        ("cpu.shares", "512"),
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "20000"),
        ("cpuset.cpus", "0"),
        ("cpuset.mems", "0"),
        ("memory.limit_in_bytes", "67108864"),
        ("memory.memsw.limit_in_bytes", "83886080"),
    ];
    for (name, value) in expected {
        assert_eq!(file(&pod, &id, name), value, "{name}");
    }
    assert!(oom_scores(&pod, &id).iter().all(|score| *score == 321));
    assert_eq!(told(&node, &id).await, asked);
    if has_hugetlb() {
        let own = folder(&pod, "hugetlb", &id);
        let v2 = std::fs::read_to_string(own.join("hugetlb.2MB.max"));
        let text = v2.or_else(|_| std::fs::read_to_string(own.join("hugetlb.2MB.limit_in_bytes"))).unwrap();
        assert_eq!(text.trim(), "4194304");
        let inside = std::fs::read_to_string(own.join("cgroup.procs")).unwrap();
        assert!(!inside.trim().is_empty(), "nobody is counted there");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn swap_is_forbidden_allowed_or_without_a_limit() {
    if !is_v1() {
        return;
    }
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("swap")).await;
    let both = "memory.memsw.limit_in_bytes";
    for (name, swap, seen) in
        [("off", 0, 32 * MIB), ("equal", 32 * MIB, 32 * MIB), ("some", 40 * MIB, 40 * MIB)]
    {
        let asked = cri::LinuxContainerResources {
            memory_limit_in_bytes: 32 * MIB,
            memory_swap_limit_in_bytes: swap,
            ..Default::default()
        };
        let id = node.run_container(&pod, sleeper(name, &image, asked)).await;
        assert_eq!(file(&pod, &id, both), seen.to_string(), "{name}");
        assert_eq!(told(&node, &id).await.memory_swap_limit_in_bytes, seen, "{name}");
    }
    let asked = cri::LinuxContainerResources {
        memory_limit_in_bytes: 32 * MIB,
        memory_swap_limit_in_bytes: -1,
        ..Default::default()
    };
    let id = node.run_container(&pod, sleeper("free", &image, asked)).await;
    assert!(file(&pod, &id, both).parse::<i64>().unwrap() > 1 << 60);
    let asked = cri::LinuxContainerResources {
        memory_limit_in_bytes: 32 * MIB,
        memory_swap_limit_in_bytes: 16 * MIB,
        ..Default::default()
    };
    let refused = node.cri.create(&pod.id, &pod.config, sleeper("less", &image, asked)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_end_for_want_of_memory_is_told_from_any_other() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("oom")).await;
    let small = cri::LinuxContainerResources { memory_limit_in_bytes: 24 * MIB, ..Default::default() };
    // The first process itself; a child of it; a failure of another kind; a clean end all the same.
    let table = [
        ("itself", "exec tail /dev/zero", "OOMKilled"),
        ("child", "tail /dev/zero; exit 9", "OOMKilled"),
        ("fails", "exit 3", "Error"),
        ("clean", "tail /dev/zero; exit 0", "Completed"),
    ];
    for (name, script, reason) in table {
        for _ in 0..3 {
            let mut config = build::shell(name, &image, script);
            config.metadata.as_mut().unwrap().name = format!("{name}-{}", build::unique());
            *limits(&mut config) = small.clone();
            let (status, _) = node.run_to_end(&pod, config).await;
            assert_eq!(status.reason, reason, "{name}: {status:?}");
        }
    }
    let id = node.run_container(&pod, sleeper("killed", &image, small)).await;
    node.cri.stop(&id, 0).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

async fn resize(
    node: &Node,
    pod: &str,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<(), Status> {
    let request = cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: pod.into(), ..request };
    node.cri.runtime.clone().update_pod_sandbox_resources(request).await.map(drop)
}

async fn pod_info(node: &Node, pod: &str) -> serde_json::Value {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: true };
    let answer = node.cri.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    serde_json::from_str(&answer.info["info"]).unwrap()
}

#[tokio::test]
async fn a_pods_size_is_kept_and_told() {
    if !is_v1() {
        return;
    }
    let Some(mut node) = Node::builder().start().await else { return };
    let mut config = node.pod("size");
    let size = |shares, memory| cri::LinuxContainerResources {
        cpu_shares: shares,
        memory_limit_in_bytes: memory,
        ..Default::default()
    };
    let linux = config.linux.as_mut().unwrap();
    linux.resources = Some(size(300, 100 * MIB));
    linux.overhead = Some(size(30, 40 * MIB));
    let pod = node.run_pod(&config).await;
    let info = pod_info(&node, &pod.id).await;
    assert_eq!(info["resources"]["cpuShares"], 300, "{info}");
    assert_eq!(file(&pod, &pod.id, "memory.limit_in_bytes"), (40 * MIB).to_string());
    let request = cri::UpdatePodSandboxResourcesRequest {
        resources: Some(size(600, 200 * MIB)),
        overhead: Some(size(60, 50 * MIB)),
        ..Default::default()
    };
    resize(&node, &pod.id, request).await.unwrap();
    let check = async |node: &Node| {
        let info = pod_info(node, &pod.id).await;
        assert_eq!(info["resources"]["cpuShares"], 600, "{info}");
        assert_eq!(info["overhead"]["memoryLimitInBytes"], 50 * MIB, "{info}");
        assert_eq!(
            info["runtimeSpec"]["annotations"]["io.kubernetes.cri.sandbox-cpu-shares"], "600",
            "{info}"
        );
        assert_eq!(file(&pod, &pod.id, "memory.limit_in_bytes"), (50 * MIB).to_string());
        assert_eq!(file(&pod, &pod.id, "cpu.shares"), "60");
    };
    check(&node).await;
    let bad = cri::UpdatePodSandboxResourcesRequest { resources: Some(size(-1, 0)), ..Default::default() };
    let refused = resize(&node, &pod.id, bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    node.restart().await;
    check(&node).await;
    node.cri.stop_pod(&pod.id).await.unwrap();
    let late = cri::UpdatePodSandboxResourcesRequest { resources: Some(size(9, 0)), ..Default::default() };
    let refused = resize(&node, &pod.id, late.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert_eq!(resize(&node, "no-such-pod", late).await.unwrap_err().code(), Code::NotFound);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_parent_of_the_other_driver_is_refused_in_words() {
    let Some(node) = Node::builder().start().await else { return };
    let mut config = node.pod("slice");
    config.linux.as_mut().unwrap().cgroup_parent = "/kubepods.slice/kubepods-podx.slice".into();
    let refused = node.cri.run_pod(&config, "").await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("cgroup_driver"), "{refused:?}");
    assert!(node.cri.list_pods(None).await.unwrap().is_empty());
    node.assert_clean().await;
}
