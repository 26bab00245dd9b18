//! Limits: what the request says is what the kernel's files say, at creation and after every change, on cgroup v1 and
//! hybrid nodes. (What v2 alone does is checked in a virtual machine, see tests/vm.)

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, eventually};
use tonic::{Code, Status};

const MIB: i64 = 1 << 20;

fn limits(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    config.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn sleeper(name: &str, image: &str, resources: cri::LinuxContainerResources) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, "trap 'exit 0' TERM; sleep 1000 & wait");
    *limits(&mut config) = resources;
    config
}

async fn update(node: &Node, id: &str, linux: cri::LinuxContainerResources) -> Result<(), Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(linux),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

async fn told(node: &Node, id: &str) -> cri::LinuxContainerResources {
    node.cri.status(id).await.unwrap().resources.expect("the status has no resources").linux.unwrap()
}

/// A cgroup below the pod's, of a controller, wherever the node has it.
fn folder(pod: &Pod, controller: &str, id: &str) -> PathBuf {
    let parent = pod.config.linux.as_ref().unwrap().cgroup_parent.trim_start_matches('/').to_owned();
    let root = Path::new("/sys/fs/cgroup");
    let hierarchy = [root.join(controller), root.join("unified"), root.to_owned()];
    let hierarchy = hierarchy.into_iter().find(|at| {
        let listed = std::fs::read_to_string(at.join("cgroup.controllers")).unwrap_or_default();
        at.ends_with(controller) && at.is_dir() || listed.split_whitespace().any(|name| name == controller)
    });
    let folder = hierarchy.expect("the node does not have the controller").join(parent);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let own = entries.flatten().find(|entry| entry.file_name().to_string_lossy().contains(id));
    own.unwrap_or_else(|| panic!("no cgroup of {id} in {}", folder.display())).path()
}

fn file(pod: &Pod, id: &str, name: &str) -> String {
    let controller = name.split('.').next().unwrap();
    let path = folder(pod, controller, id).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// The OOM score adjustments of all processes in a container.
fn oom_scores(pod: &Pod, id: &str) -> Vec<i32> {
    let procs = std::fs::read_to_string(folder(pod, "pids", id).join("cgroup.procs")).unwrap();
    let score = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).ok();
    procs.lines().filter_map(score).map(|text| text.trim().parse().unwrap()).collect()
}

/// These tests read the files of v1; a node with v2 alone has other ones.
fn is_v1() -> bool {
    let v1 = Path::new("/sys/fs/cgroup/memory").is_dir();
    if !v1 {
        println!("skipped: this test reads the files of cgroup v1");
    }
    v1
}

fn huge(limit: i64) -> Vec<cri::HugepageLimit> {
    vec![cri::HugepageLimit { page_size: "2MB".into(), limit: limit.cast_unsigned() }]
}

fn has_hugetlb() -> bool {
    let text = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    text.lines().any(|line| line.starts_with("hugetlb"))
        || std::fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers")
            .is_ok_and(|text| text.contains("hugetlb"))
}

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
    for (name, swap, seen) in [("off", 0, 32 * MIB), ("equal", 32 * MIB, 32 * MIB), ("some", 40 * MIB, 40 * MIB)]
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

async fn resize(node: &Node, pod: &str, request: cri::UpdatePodSandboxResourcesRequest) -> Result<(), Status> {
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
