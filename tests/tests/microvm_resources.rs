//! Numbers and limits of pods in virtual machines, through the socket: how large a machine is, what its containers use, what
//! bounds them, and what is told of it. The tests boot as few machines as they can.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::cli::cofferdam;
use cofferdam_tests::harness::microvm::{self, PATIENCE, SECONDS};
use cofferdam_tests::harness::{Node, Pod, eventually};
use tonic::Code;

const MIB: i64 = 1 << 20;
/// What the configuration of these tests sets aside, in MiB: the guest's own system, and the monitor beside the machine.
const GUEST: i64 = 96;
const MONITOR: i64 = 160;
/// What QEMU may keep of translated instructions under emulation.
const TRANSLATED: i64 = 1024;
const POD_LIMIT: i64 = 160;

async fn sized_pod(node: &Node) -> Pod {
    let mut config = node.pod("sized");
    let linux = config.linux.get_or_insert_default();
    linux.resources = Some(cri::LinuxContainerResources {
        memory_limit_in_bytes: POD_LIMIT * MIB,
        cpu_quota: 150_000,
        cpu_period: 100_000,
        ..Default::default()
    });
    linux.overhead =
        Some(cri::LinuxContainerResources { memory_limit_in_bytes: 320 * MIB, ..Default::default() });
    linux.sysctls.insert("net.core.somaxconn".into(), "321".into());
    linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    let id = node.cri.run_pod(&config, "vm").await.unwrap();
    node.remember(&id);
    Pod { id, config }
}

/// What a command in the container prints.
async fn inside(node: &Node, container: &str, script: &str) -> String {
    let answer = node.cri.exec_sync(container, &["sh", "-c", script], SECONDS).await.unwrap();
    assert_eq!(answer.exit_code, 0, "{script}: {answer:?}");
    String::from_utf8_lossy(&answer.stdout).trim().to_owned()
}

fn limited(name: &str, image: &str, script: &str, limit: i64) -> cri::ContainerConfig {
    let mut config = build::shell(name, image, script);
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().memory_limit_in_bytes = limit * MIB;
    config
}

async fn update(node: &Node, id: &str, limit: i64) -> Result<(), tonic::Status> {
    let request = cri::UpdateContainerResourcesRequest {
        container_id: id.into(),
        linux: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: limit * MIB,
            // The guest has other processors.
            cpuset_cpus: "0".into(),
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri.runtime.clone().update_container_resources(request).await.map(drop)
}

async fn update_pod(node: &Node, pod: &Pod, limit: i64) -> Result<(), tonic::Status> {
    let request = cri::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(cri::LinuxContainerResources {
            memory_limit_in_bytes: limit * MIB,
            cpu_quota: 50_000,
            cpu_period: 100_000,
            ..Default::default()
        }),
        ..Default::default()
    };
    node.cri.runtime.clone().update_pod_sandbox_resources(request).await.map(drop)
}

async fn pod_stats(node: &Node, pod: &Pod) -> cri::LinuxPodSandboxStats {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = node.cri.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner();
    answer.stats.unwrap().linux.unwrap()
}

async fn container_stats(node: &Node, id: &str) -> cri::ContainerStats {
    let request = cri::ContainerStatsRequest { container_id: id.into() };
    node.cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap()
}

fn number(value: Option<cri::UInt64Value>) -> u64 {
    value.expect("a number is missing").value
}

fn cpu_of(stats: &cri::ContainerStats) -> u64 {
    number(stats.cpu.as_ref().unwrap().usage_core_nano_seconds)
}

/// The folder of a process's cgroup in the hierarchy that bounds memory, and what the file of the limit is called there.
fn memory_cgroup(pid: i32) -> (PathBuf, &'static str) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let of = |wanted: &str| {
        text.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            (parts.next() == Some(wanted)).then(|| parts.next().unwrap().trim_start_matches('/').to_owned())
        })
    };
    match of("memory") {
        Some(path) => (Path::new("/sys/fs/cgroup/memory").join(path), "memory.limit_in_bytes"),
        None => (Path::new("/sys/fs/cgroup").join(of("").unwrap()), "memory.max"),
    }
}

async fn metrics_of(node: &Node, pod: &Pod, container: &str) -> Vec<String> {
    let request = cri::ListPodSandboxMetricsRequest::default();
    let answer = node.cri.runtime.clone().list_pod_sandbox_metrics(request).await.unwrap().into_inner();
    let of_pod = answer.pod_metrics.into_iter().find(|one| one.pod_sandbox_id == pod.id).unwrap();
    let mine = of_pod.container_metrics.into_iter().find(|one| one.container_id == container).unwrap();
    mine.metrics.into_iter().map(|metric| metric.name).collect()
}

#[tokio::test]
async fn a_machine_has_the_size_of_its_pod_and_its_containers_their_limits() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let pod = sized_pod(&node).await;
    let monitor = microvm::monitor(&node, &pod).expect("the machine has no monitor");

    // On the node: the machine's processes in the pod's cgroup, with the pod's limit and what comes on top.
    let (cgroup, file) = memory_cgroup(monitor);
    assert!(cgroup.ends_with(&pod.id), "{cgroup:?}");
    let limit: i64 = std::fs::read_to_string(cgroup.join(file)).unwrap().trim().parse().unwrap();
    assert_eq!(limit, (POD_LIMIT + GUEST + MONITOR + TRANSLATED) * MIB);
    let share = microvm::part(&node, &pod, microvm::Part::Virtiofsd).unwrap();
    assert_eq!(memory_cgroup(share).0, cgroup);

    // In the guest: its size, the pod's sysctls and shared memory, a volume in the place of that, the limit.
    let volume = node.dir().join("shm");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("mark"), "mine\n").unwrap();
    let busy = "while :; do sleep 0.1 || sleep 1; done";
    let main = node.run_container(&pod, limited("main", &base, busy, 64)).await;
    // With a view of the guest's cgroups, or of its own alone.
    let max =
        format!("cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/pod/{main}/memory.max");
    assert_eq!(inside(&node, &main, "nproc").await, "2");
    let total = memory_of(&node, &main).await;
    assert!((POD_LIMIT..POD_LIMIT + GUEST).contains(&total), "{total} MiB of {POD_LIMIT} and {GUEST}");
    let sysctls = "cat /proc/sys/net/core/somaxconn /proc/sys/kernel/shm_rmid_forced";
    assert_eq!(inside(&node, &main, sysctls).await, "321\n1");
    let shm = inside(&node, &main, "df -k /dev/shm | tail -1 | awk '{print $2}'").await;
    assert_eq!(shm, "65536");
    assert_eq!(inside(&node, &main, &max).await, (64 * MIB).to_string());

    // Limits change in the guest, and what the machine cannot give is refused in words and changes nothing.
    update(&node, &main, 80).await.unwrap();
    assert_eq!(inside(&node, &main, &max).await, (80 * MIB).to_string());
    let refused = update(&node, &main, 4096).await.unwrap_err();
    assert!(refused.message().contains("cannot grow"), "{refused:?}");
    let status = node.cri.status(&main).await.unwrap();
    let kept = status.resources.unwrap().linux.unwrap().memory_limit_in_bytes;
    assert_eq!(kept, 80 * MIB);

    numbers_are_told(&node, &pod, &main).await;
    a_pod_is_resized(&node, &pod, &main).await;

    // An end for want of memory is told as such.
    let hungry = "dd if=/dev/zero of=/dev/null bs=48M count=1";
    let mut config = limited("hungry", &base, hungry, 16);
    config.mounts.push(cri::Mount {
        container_path: "/dev/shm".into(),
        host_path: volume.to_string_lossy().into_owned(),
        ..Default::default()
    });
    config.command = ["sh", "-c", &format!("cat /dev/shm/mark; exec {hungry}")].map(str::to_owned).to_vec();
    let (ended, entries) = node.run_to_end(&pod, config).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    let printed = cofferdam_tests::harness::log::joined(&entries, "stdout");
    assert_eq!(printed, "mine\n", "the container's own volume lies at /dev/shm");
    let told = async || node.daemon_log().contains("a process was killed for want of memory");
    assert!(eventually(PATIENCE, told).await, "no event of the OOM kill came");
    assert!(node.cri.status(&main).await.unwrap().state == cri::ContainerState::ContainerRunning as i32);

    // What a handler's pods run by is told.
    let info = cofferdam(&node, &["info"]).await.expect_ok();
    let line = info.lines().find(|line| line.trim_start().starts_with("vm: ")).unwrap();
    for part in ["EMULATION", &format!("overhead of a pod {}Mi", GUEST + MONITOR)] {
        assert!(line.contains(part), "{part}: {line}");
    }
    node.destroy(&pod).await;
    assert!(!cgroup.exists(), "{cgroup:?} is left");
    node.assert_clean().await;
}

async fn numbers_are_told(node: &Node, pod: &Pod, main: &str) {
    let first = container_stats(node, main).await;
    let memory = first.memory.as_ref().unwrap();
    let used = number(memory.usage_bytes);
    assert!((4096..80 << 20).contains(&used), "{used} bytes of memory");
    assert!(number(memory.working_set_bytes) <= used);
    assert!(number(memory.available_bytes) <= 80 << 20);
    let grown = eventually(PATIENCE, async || {
        let now = container_stats(node, main).await;
        cpu_of(&now) > cpu_of(&first) + 10_000_000 && now.cpu.unwrap().usage_nano_cores.is_some()
    });
    assert!(grown.await, "the container works, and its processor time does not grow");
    let request = cri::ListContainerStatsRequest::default();
    let list = node.cri.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
    assert!(list.iter().all(|one| one.memory.as_ref().unwrap().usage_bytes.is_some()), "{list:?}");

    // The pod's are the machine's, and the network is the pod's own, counted once.
    let address = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap().ip;
    // Nobody listens; what matters is that packets come and go.
    let address = std::net::SocketAddr::new(address.parse().unwrap(), 9);
    let _refused = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(5));
    let stats = pod_stats(node, pod).await;
    assert!(number(stats.memory.as_ref().unwrap().usage_bytes) > used, "less than its container: {stats:?}");
    assert!(number(stats.cpu.as_ref().unwrap().usage_core_nano_seconds) > cpu_of(&first));
    assert_eq!(stats.containers.len(), 1);
    assert_eq!(stats.containers[0].attributes.as_ref().unwrap().id, main);
    let network = stats.network.expect("no network is told");
    let eth0 = network.default_interface.unwrap();
    assert_eq!((eth0.name.as_str(), network.interfaces.len()), ("eth0", 0), "{:?}", network.interfaces);
    assert!(number(eth0.rx_bytes) > 0);

    let names = metrics_of(node, pod, main).await;
    for name in ["container_memory_usage_bytes", "container_cpu_usage_seconds_total", "container_threads"] {
        assert!(names.iter().any(|one| one == name), "{name} is missing: {names:?}");
    }
    for name in ["container_sockets", "container_file_descriptors"] {
        assert!(names.iter().all(|one| one != name), "{name} would be the monitor's");
    }
}

/// Of the machine, as its guest's kernel has it, in MiB.
async fn memory_of(node: &Node, container: &str) -> i64 {
    let total = inside(node, container, "grep MemTotal /proc/meminfo | tr -dc 0-9").await;
    total.parse::<i64>().unwrap() / 1024
}

async fn a_pod_is_resized(node: &Node, pod: &Pod, main: &str) {
    let before = memory_of(node, main).await;
    let refused = update_pod(node, pod, 1024).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("cannot grow"), "{refused:?}");
    update_pod(node, pod, POD_LIMIT - 32).await.unwrap();
    let shrunk = async || memory_of(node, main).await <= before - 24;
    assert!(eventually(PATIENCE, shrunk).await, "the machine's memory is as it was");
    update_pod(node, pod, POD_LIMIT).await.unwrap();
}

/// What a machine is promised is there for it. One that takes more all the same, as its monitor may, is the pod's end, and the
/// pod's containers are told to have ended for want of memory.
#[tokio::test]
async fn a_machine_that_outgrows_its_bounds_ends_with_that_reason() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let pod = microvm::pod_in(&node, "outgrown").await;
    let main = node.run_container(&pod, build::shell("main", &base, "exec sleep 1000")).await;
    let (cgroup, limit) = memory_cgroup(microvm::monitor(&node, &pod).unwrap());
    let usage = if limit == "memory.max" { "memory.current" } else { "memory.usage_in_bytes" };
    let used: i64 = std::fs::read_to_string(cgroup.join(usage)).unwrap().trim().parse().unwrap();
    std::fs::write(cgroup.join(limit), (used + 8 * MIB).to_string()).unwrap();
    // The guest has room for it, the node's bound has not. No answer comes of this.
    let fill = ["dd", "if=/dev/zero", "of=/dev/shm/fill", "bs=1M", "count=60"];
    node.cri.exec_sync(&main, &fill, SECONDS).await.unwrap_or_default();
    let ended = node.cri.wait_exited(&main, PATIENCE).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"), "{ended:?}");
    assert!(ended.message.contains("want of memory"), "{ended:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_node_that_cannot_run_machines_says_so() {
    let handler = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";
    let nothing = "kernel = \"/no/such/kernel\"\nimage = \"/no/such/image\"\n";
    let builder = Node::builder().config("runtimes.vm", handler).config("runtimes.vm.vm", nothing);
    let Some(node) = builder.start().await else { return };
    let request = cri::StatusRequest { verbose: true };
    let answer = node.cri.runtime.clone().status(request).await.unwrap().into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
    let handlers = info["handlers"].as_array().unwrap();
    let vm = handlers.iter().find(|one| one["name"] == "vm").unwrap();
    let error = vm["error"].as_str().expect("it is told as usable");
    assert!(error.contains("/no/such/kernel") && error.contains("build-image"), "{error}");
    assert!(handlers.iter().all(|one| one["name"] == "vm" || one["error"].is_null()), "{handlers:?}");
    let shown = cofferdam(&node, &["info"]).await.expect_ok();
    assert!(shown.contains("vm: unusable: ") && shown.contains("/no/such/image"), "{shown}");
    node.assert_clean().await;
}

/// Emulation is for tests alone: where it is not allowed, a node without KVM has no machines.
#[tokio::test]
async fn without_kvm_and_without_leave_to_emulate_pods_are_refused_and_the_node_says_why() {
    let Some(image) = microvm::image() else { return };
    let machines =
        format!("kernel = {:?}\nimage = {:?}\n", image.path().join("kernel"), image.path().join("initramfs"));
    let handler = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";
    let builder = Node::builder().config("runtimes.vm", handler).config("runtimes.vm.vm", &machines);
    let Some(node) = builder.start().await else { return };
    let shown = cofferdam(&node, &["info"]).await.expect_ok();
    let line = shown.lines().find(|line| line.trim_start().starts_with("vm: ")).unwrap();
    if line.contains("by KVM") {
        println!("skipped: this node has KVM");
        return;
    }
    assert!(line.contains("unusable: microVMs need KVM"), "{line}");
    let refused = node.cri.run_pod(&node.pod("vm"), "vm").await.unwrap_err();
    assert!(refused.message().contains("need KVM"), "{refused:?}");
    node.assert_clean().await;
}
