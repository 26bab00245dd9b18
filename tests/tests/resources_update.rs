//! UpdateContainerResources: limits change in place, or not at all, in every state of a container, on cgroup v1 and
//! hybrid nodes. (What v2 alone does is checked in a virtual machine, see tests/vm.)

use std::path::Path;
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::limits::{
    file, folder, has_hugetlb, huge, is_v1, limits, oom_scores, sleeper, told, update,
};
use cofferdam_tests::harness::{Node, Pod, eventually};
use tonic::Code;

const MIB: i64 = 1 << 20;

#[tokio::test]
async fn limits_go_up_and_down_while_a_container_runs_and_stay_over_a_restart() {
    if !is_v1() {
        return;
    }
    let Some(mut node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("updown")).await;
    let first = cri::LinuxContainerResources {
        cpu_shares: 512,
        cpu_period: 100_000,
        cpu_quota: 50_000,
        memory_limit_in_bytes: 64 * MIB,
        oom_score_adj: 100,
        hugepage_limits: if has_hugetlb() { huge(0) } else { Vec::new() },
        ..Default::default()
    };
    let id = node.run_container(&pod, sleeper("main", &image, first)).await;
    let memory = |bytes| cri::LinuxContainerResources { memory_limit_in_bytes: bytes, ..Default::default() };
    for bytes in [256 * MIB, 32 * MIB, 128 * MIB] {
        update(&node, &id, memory(bytes)).await.unwrap();
        assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), bytes.to_string());
        assert_eq!(file(&pod, &id, "memory.memsw.limit_in_bytes"), bytes.to_string(), "no swap");
    }
    let swap = cri::LinuxContainerResources { memory_swap_limit_in_bytes: 200 * MIB, ..Default::default() };
    update(&node, &id, swap).await.unwrap();
    assert_eq!(file(&pod, &id, "memory.memsw.limit_in_bytes"), (200 * MIB).to_string());
    for (quota, period) in [(5_000, 20_000), (-1, 100_000), (150_000, 100_000)] {
        let cpu = cri::LinuxContainerResources {
            cpu_quota: quota,
            cpu_period: period,
            cpu_shares: 2,
            cpuset_cpus: "0".into(),
            oom_score_adj: 100 + quota / 1000,
            ..Default::default()
        };
        update(&node, &id, cpu).await.unwrap();
        assert_eq!(file(&pod, &id, "cpu.cfs_quota_us"), quota.to_string());
        assert_eq!(file(&pod, &id, "cpu.cfs_period_us"), period.to_string());
    }
    if has_hugetlb() {
        let more = cri::LinuxContainerResources { hugepage_limits: huge(6 * MIB), ..Default::default() };
        update(&node, &id, more).await.unwrap();
        let text = std::fs::read_to_string(folder(&pod, "hugetlb", &id).join("hugetlb.2MB.max"));
        assert!(text.is_err() || text.is_ok_and(|text| text.trim() == "6291456"));
    }
    assert_eq!(oom_scores(&pod, &id).iter().max(), Some(&250));
    assert_eq!(oom_scores(&pod, &id).iter().min(), Some(&250), "the shell and its child");
    let expected = cri::LinuxContainerResources {
        cpu_shares: 2,
        cpu_period: 100_000,
        cpu_quota: 150_000,
        cpuset_cpus: "0".into(),
        memory_limit_in_bytes: 128 * MIB,
        memory_swap_limit_in_bytes: 200 * MIB,
        oom_score_adj: 250,
        hugepage_limits: if has_hugetlb() { huge(6 * MIB) } else { Vec::new() },
        ..Default::default()
    };
    assert_eq!(told(&node, &id).await, expected);
    node.restart().await;
    assert_eq!(told(&node, &id).await, expected, "after a restart");
    update(&node, &id, memory(96 * MIB)).await.unwrap();
    assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), (96 * MIB).to_string());
    assert_eq!(file(&pod, &id, "cpu.cfs_quota_us"), "150000", "what is not named stays");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_refused_change_changes_nothing() {
    if !is_v1() {
        return;
    }
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    // Held by the shell's own memory, which cannot be taken back where there is no swap.
    let hold = "x=$(head -c 41943040 /dev/zero | tr '\\0' x); echo held; trap : TERM; sleep 1000 & wait";
    let mut config = build::shell("holder", &image, hold);
    *limits(&mut config) = cri::LinuxContainerResources {
        memory_limit_in_bytes: 256 * MIB,
        cpu_shares: 700,
        ..Default::default()
    };
    let id = node.run_container(&pod, config).await;
    let used = || file(&pod, &id, "memory.usage_in_bytes").parse::<i64>().unwrap();
    let log = node.cri.status(&id).await.unwrap().log_path;
    let held = eventually(Duration::from_secs(30), async || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("held"))
    });
    assert!(held.await && used() > 32 * MIB, "it holds {}", used());
    let before = told(&node, &id).await;
    let named = || cri::LinuxContainerResources { cpu_shares: 99, ..Default::default() };
    let below = cri::LinuxContainerResources { memory_limit_in_bytes: 8 * MIB, ..named() };
    let refused = update(&node, &id, below).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("the container uses more"), "{refused:?}");
    let table = [
        (cri::LinuxContainerResources { cpuset_cpus: "4000".into(), ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { cpuset_cpus: "../x".into(), ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { cpu_quota: 10, ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { cpu_period: -1, ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { memory_limit_in_bytes: -7, ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { memory_swap_limit_in_bytes: MIB, ..named() }, Code::InvalidArgument),
        (cri::LinuxContainerResources { oom_score_adj: 4000, ..named() }, Code::InvalidArgument),
        (
            cri::LinuxContainerResources {
                unified: [("memory.high".to_owned(), "9".to_owned())].into(),
                ..named()
            },
            Code::FailedPrecondition,
        ),
    ];
    for (request, code) in table {
        let refused = update(&node, &id, request.clone()).await.unwrap_err();
        assert_eq!(refused.code(), code, "{request:?}: {refused:?}");
        assert_eq!(file(&pod, &id, "cpu.shares"), "700", "{request:?}");
        assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), (256 * MIB).to_string(), "{request:?}");
        assert_eq!(file(&pod, &id, "memory.memsw.limit_in_bytes"), (256 * MIB).to_string(), "{request:?}");
        assert_eq!(told(&node, &id).await, before, "{request:?}");
    }
    assert_eq!(node.cri.status(&id).await.unwrap().state(), cri::ContainerState::ContainerRunning);
    let unknown = update(&node, "no-such-container", named()).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_is_changed_before_its_start_and_not_after_its_end() {
    if !is_v1() {
        return;
    }
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("states")).await;
    let first = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
    let id = node.cri.create(&pod.id, &pod.config, sleeper("early", &image, first)).await.unwrap();
    let second = cri::LinuxContainerResources {
        cpu_shares: 128,
        memory_limit_in_bytes: 48 * MIB,
        oom_score_adj: 77,
        ..Default::default()
    };
    // At once, while its task is being made in the background.
    update(&node, &id, second).await.unwrap();
    assert_eq!(told(&node, &id).await.cpu_shares, 128);
    node.cri.start(&id).await.unwrap();
    assert_eq!(file(&pod, &id, "cpu.shares"), "128");
    assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), (48 * MIB).to_string());
    assert!(oom_scores(&pod, &id).iter().all(|score| *score == 77), "{:?}", oom_scores(&pod, &id));
    node.cri.stop(&id, 0).await.unwrap();
    let late = cri::LinuxContainerResources { cpu_shares: 9, ..Default::default() };
    let refused = update(&node, &id, late).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("exited"), "{refused:?}");
    assert_eq!(told(&node, &id).await.cpu_shares, 128);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn changes_at_the_same_time_do_not_mix() {
    if !is_v1() {
        return;
    }
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("many")).await;
    let id = node.run_container(&pod, sleeper("main", &image, Default::default())).await;
    let mut changes = tokio::task::JoinSet::new();
    for n in 1..=12 {
        let linux = cri::LinuxContainerResources {
            memory_limit_in_bytes: (20 + n) * MIB,
            cpu_shares: 100 + n,
            ..Default::default()
        };
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let mut runtime = node.cri.runtime.clone();
        changes.spawn(async move { runtime.update_container_resources(request).await.map(drop) });
    }
    for answer in changes.join_all().await {
        answer.unwrap();
    }
    let told = told(&node, &id).await;
    assert_eq!(told.memory_limit_in_bytes / MIB - 20, told.cpu_shares - 100, "{told:?}");
    assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), told.memory_limit_in_bytes.to_string());
    assert_eq!(file(&pod, &id, "cpu.shares"), told.cpu_shares.to_string());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_foreign_shim_changes_limits_too() {
    let shim = std::env::var("COFFERDAM_TEST_FOREIGN_SHIM")
        .unwrap_or_else(|_| "/usr/bin/containerd-shim-runc-v2".to_owned());
    assert!(Path::new(&shim).exists(), "{shim} is not there: apt-get install containerd runc");
    if !is_v1() {
        return;
    }
    let mut lines = format!("path = {shim:?}\n");
    if let Ok(runtime) = std::env::var("COFFERDAM_TEST_FOREIGN_RUNTIME") {
        lines += &format!("binary = {runtime:?}\n");
    }
    let Some(node) = Node::builder().config("runtimes.foreign", &lines).start().await else { return };
    let image = node.base_image().await;
    let config = node.pod("foreign");
    let id = node.cri.run_pod(&config, "foreign").await.unwrap();
    let pod = Pod { id, config };
    let first = cri::LinuxContainerResources { memory_limit_in_bytes: 64 * MIB, ..Default::default() };
    let id = node.run_container(&pod, sleeper("main", &image, first)).await;
    let second = cri::LinuxContainerResources {
        memory_limit_in_bytes: 96 * MIB,
        cpu_quota: 30_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    update(&node, &id, second).await.unwrap();
    assert_eq!(file(&pod, &id, "memory.limit_in_bytes"), (96 * MIB).to_string());
    assert_eq!(file(&pod, &id, "cpu.cfs_quota_us"), "30000");
    assert_eq!(told(&node, &id).await.memory_limit_in_bytes, 96 * MIB);
    node.destroy(&pod).await;
    node.assert_clean().await;
}
