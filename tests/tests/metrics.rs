//! Metrics: the CRI's, against what the kernel says of the container, and the daemon's own, over HTTP.

use std::collections::{BTreeMap, BTreeSet};

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, binaries, cli, eventually};

/// What a kubelet without cAdvisor has to show: the names that Kubernetes' conformance tests look for.
const NAMES: &str = "blkio_device_usage_total cpu_cfs_periods_total cpu_cfs_throttled_periods_total \
    cpu_cfs_throttled_seconds_total cpu_system_seconds_total cpu_usage_seconds_total cpu_user_seconds_total \
    file_descriptors fs_inodes_free fs_inodes_total fs_limit_bytes fs_reads_bytes_total fs_reads_total \
    fs_usage_bytes fs_writes_bytes_total fs_writes_total hugetlb_max_usage_bytes hugetlb_usage_bytes last_seen \
    memory_cache memory_failcnt memory_failures_total memory_kernel_usage memory_mapped_file \
    memory_max_usage_bytes memory_rss memory_swap memory_usage_bytes memory_working_set_bytes \
    network_receive_bytes_total network_receive_errors_total network_receive_packets_dropped_total \
    network_receive_packets_total network_transmit_bytes_total network_transmit_errors_total \
    network_transmit_packets_dropped_total network_transmit_packets_total oom_events_total \
    pressure_cpu_stalled_seconds_total pressure_cpu_waiting_seconds_total pressure_io_stalled_seconds_total \
    pressure_io_waiting_seconds_total pressure_memory_stalled_seconds_total \
    pressure_memory_waiting_seconds_total processes sockets spec_cpu_period spec_cpu_quota spec_cpu_shares \
    spec_memory_limit_bytes spec_memory_reservation_limit_bytes spec_memory_swap_limit_bytes \
    start_time_seconds threads threads_max ulimits_soft";
/// What cgroup v1 does not keep for a container, or only for one that used it.
const NOT_ALWAYS: [&str; 3] = ["container_pressure_", "container_hugetlb_", "container_spec_cpu_quota"];

async fn descriptors(node: &Node) -> BTreeMap<String, Vec<String>> {
    let answer = node.cri.runtime.clone().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await;
    let described = answer.unwrap().into_inner().descriptors.into_iter();
    described.map(|one| (one.name, one.label_keys)).collect()
}

async fn metrics_of(node: &Node, pod: &str) -> cri::PodSandboxMetrics {
    let answer =
        node.cri.runtime.clone().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await;
    let pods = answer.unwrap().into_inner().pod_metrics;
    pods.into_iter().find(|one| one.pod_sandbox_id == pod).expect("the pod has no metrics")
}

/// Every value of a name, with its labels by their names.
fn rows(
    keys: &BTreeMap<String, Vec<String>>,
    metrics: &[cri::Metric],
    name: &str,
) -> Vec<(BTreeMap<String, String>, u64)> {
    let own = metrics.iter().filter(|metric| metric.name == name);
    own.map(|metric| {
        assert_eq!(keys[name].len(), metric.label_values.len(), "{name}: {:?}", metric.label_values);
        let labels = keys[name].iter().cloned().zip(metric.label_values.iter().cloned()).collect();
        (labels, metric.value.unwrap().value)
    })
    .collect()
}

#[tokio::test]
async fn every_expected_metric_is_described_and_told_with_its_labels() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let keys = descriptors(&node).await;
    let expected: BTreeSet<String> =
        NAMES.split_whitespace().map(|name| format!("container_{name}")).collect();
    let missing: Vec<_> = expected.iter().filter(|name| !keys.contains_key(*name)).collect();
    assert!(missing.is_empty(), "not described: {missing:?}");
    let pod = node.run_pod(&node.pod("measured")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    let told = metrics_of(&node, &pod.id).await;
    let [container] = &told.container_metrics[..] else { panic!("{:?}", told.container_metrics) };
    assert_eq!(container.container_id, id);
    let all = [told.metrics.clone(), container.metrics.clone()].concat();
    let io = ["container_blkio_", "container_fs_reads", "container_fs_writes"];
    for name in keys.keys() {
        let optional = NOT_ALWAYS.iter().chain(&io).any(|prefix| name.starts_with(prefix));
        let rows = rows(&keys, &all, name);
        assert!(optional || !rows.is_empty(), "{name} is described and not told");
        let distinct: BTreeSet<_> = rows.iter().map(|(labels, _)| labels).collect();
        assert_eq!(distinct.len(), rows.len(), "{name} tells the same twice");
    }
    assert!(all.iter().all(|metric| keys.contains_key(&metric.name)), "told and not described");
    let (labels, _) = rows(&keys, &container.metrics, "container_memory_rss").remove(0);
    let wanted =
        [("container", "main"), ("name", &id), ("image", &image), ("namespace", "test"), ("pod", "measured")];
    for (key, value) in wanted {
        assert_eq!(labels[key], value, "{labels:?}");
    }
    assert!(labels["id"].ends_with(&id) && labels["id"].starts_with('/'), "{labels:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn metrics_say_what_the_container_did_and_may_do() {
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let keys = descriptors(&node).await;
    let pod = node.run_pod(&node.pod("busy")).await;
    let script = "dd if=/dev/zero of=/file bs=1M count=3 2>/dev/null; nc -l -p 81 & sleep 1000 & \
        touch /done; while :; do :; done";
    let mut config = build::shell("main", &image, script);
    let resources = config.linux.as_mut().unwrap().resources.as_mut().unwrap();
    (resources.cpu_period, resources.cpu_quota, resources.cpu_shares) = (100_000, 10_000, 512);
    resources.memory_limit_in_bytes = 64 << 20;
    let id = node.run_container(&pod, config).await;
    let ready = eventually(std::time::Duration::from_secs(20), async || {
        node.cri.exec_sync(&id, &["test", "-e", "/done"], 10).await.is_ok_and(|answer| answer.exit_code == 0)
    });
    assert!(ready.await, "the script does not get on");
    let throttled = eventually(std::time::Duration::from_secs(60), async || {
        let told = metrics_of(&node, &pod.id).await.container_metrics.remove(0).metrics;
        rows(&keys, &told, "container_cpu_cfs_throttled_seconds_total")[0].1 >= 1
    });
    assert!(throttled.await, "a busy loop with a tenth of a processor is not throttled");
    let used = async || {
        let request = cri::ContainerStatsRequest { container_id: id.clone() };
        let stats = node.cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats;
        stats.unwrap().cpu.unwrap().usage_core_nano_seconds.unwrap().value / 1_000_000_000
    };
    let before = used().await;
    let told = metrics_of(&node, &pod.id).await.container_metrics.remove(0).metrics;
    let after = used().await;
    let value = |name: &str| rows(&keys, &told, &format!("container_{name}"))[0].1;
    assert_eq!((value("spec_cpu_period"), value("spec_cpu_quota")), (100_000, 10_000));
    assert_eq!((value("spec_cpu_shares"), value("spec_memory_limit_bytes")), (512, 64 << 20));
    assert!((before..=after).contains(&value("cpu_usage_seconds_total")), "{before} to {after}");
    assert!(value("cpu_cfs_throttled_periods_total") <= value("cpu_cfs_periods_total"));
    assert!((3..10).contains(&value("processes")), "shell, nc, sleep: {}", value("processes"));
    assert!(value("threads") >= value("processes"));
    assert!(value("sockets") >= 1, "nc listens");
    assert!(value("file_descriptors") > value("sockets"));
    assert!(value("fs_usage_bytes") >= 3 << 20, "{}", value("fs_usage_bytes"));
    assert!(value("fs_limit_bytes") > value("fs_usage_bytes"));
    assert!(value("memory_max_usage_bytes") >= value("memory_working_set_bytes"));
    assert!(value("memory_usage_bytes") <= 64 << 20);
    assert_eq!(value("oom_events_total"), 0);
    let soft = node.cri.exec_sync(&id, &["sh", "-c", "ulimit -n"], 10).await.unwrap().stdout;
    assert_eq!(value("ulimits_soft").to_string(), String::from_utf8(soft).unwrap().trim());
    let started = node.cri.status(&id).await.unwrap().started_at / 1_000_000_000;
    assert_eq!(value("start_time_seconds"), started.cast_unsigned());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

const ADDRESS: &str = "127.0.0.1:9095";

/// The value of a line of the daemon's metrics.
fn own(text: &str, series: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{text}")).parse().unwrap()
}

#[tokio::test]
async fn the_daemon_tells_what_it_does_and_has() {
    let builder = Node::builder().config("metrics", &format!("address = {ADDRESS:?}"));
    let Some(node) = builder.start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("scraped")).await;
    node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    node.cri.status("no-such-container").await.unwrap_err();
    node.cri.raw("/runtime.v1.RuntimeService/Invented", b"").await;
    let answer = node.netns.http_get(ADDRESS, "/metrics").unwrap();
    let (head, text) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text") && text.ends_with("# EOF\n"), "{head}");
    let calls = |method: &str, code: &str| {
        own(text, &format!("cofferdam_rpc_seconds_count{{method=\"{method}\",code=\"{code}\"}}"))
    };
    assert_eq!((calls("RunPodSandbox", "OK"), calls("StartContainer", "OK")), (1.0, 1.0));
    assert_eq!(calls("ContainerStatus", "NotFound"), 1.0);
    assert_eq!(calls("other", "Unimplemented"), 1.0);
    assert!(!text.contains("Invented"), "a caller's invention is a label");
    assert_eq!(own(text, "cofferdam_pods{state=\"ready\"}"), 1.0);
    assert_eq!(own(text, "cofferdam_containers{state=\"running\"}"), 1.0);
    assert_eq!(own(text, "cofferdam_containers{state=\"exited\"}"), 0.0);
    assert_eq!(own(text, "cofferdam_shims"), 2.0);
    assert_eq!((own(text, "cofferdam_images"), own(text, "cofferdam_events_total")), (1.0, 4.0));
    assert_eq!(own(text, "cofferdam_image_pull_seconds_count{result=\"ok\"}"), 1.0);
    assert!(own(text, "cofferdam_image_pull_received_bytes_total") > 1000.0);
    assert!(own(text, "cofferdam_store_commit_seconds_count") >= 4.0);
    assert_eq!(own(text, "cofferdam_store_commit_failures_total"), 0.0);
    let status = std::fs::read_to_string(format!("/proc/{}/status", node.daemon_pid().unwrap())).unwrap();
    let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let rss: f64 = rss.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0;
    let told = own(text, "process_resident_memory_bytes");
    assert!(told > rss / 2.0 && told < rss * 2.0, "{told} and {rss}");
    assert!(own(text, "process_cpu_seconds_total") > 0.0 && own(text, "process_open_fds") > 5.0);
    assert!(node.netns.http_get(ADDRESS, "/").unwrap().contains(" 404 "));
    let info = cli::cofferdam(&node, &["info"]).await.expect_ok();
    assert!(info.contains(&format!("http://{ADDRESS}/metrics")), "{info}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_operation_that_is_stuck_is_seen_with_its_stage_and_age() {
    let builder = Node::builder().config("metrics", &format!("address = {ADDRESS:?}"));
    let Some(node) = builder.start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stuck")).await;
    let container = build::container("main", &image, &["sleep", "1000"]);
    let id = node.cri.create(&pod.id, &pod.config, container).await.unwrap();
    // A shim that does not answer: its container's start is stuck.
    let shim = eventually_shim(&node, &id).await;
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGSTOP).unwrap();
    let (cri, stuck) = (node.cri.clone(), id.clone());
    let starting = tokio::spawn(async move { cri.start(&stuck).await });
    let prefix = "cofferdam_operation_oldest_age_seconds{operation=\"StartContainer\",stage=\"";
    let seen = eventually(std::time::Duration::from_secs(10), async || {
        let answer = node.netns.http_get(ADDRESS, "/metrics").unwrap();
        let line = answer.lines().find(|line| line.starts_with(prefix)).map(str::to_owned);
        line.is_some_and(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() > 1.0)
    });
    let seen = seen.await;
    let info = cli::cofferdam(&node, &["info"]).await.expect_ok();
    nix::sys::signal::kill(shim, nix::sys::signal::Signal::SIGCONT).unwrap();
    assert!(seen, "no operation of a growing age");
    assert!(info.contains("StartContainer") && info.contains(&id[..12]), "{info}");
    starting.await.unwrap().unwrap();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The shim process of a container, once its task is made.
async fn eventually_shim(node: &Node, id: &str) -> nix::unistd::Pid {
    let bundle = node.dir().join("state/containers").join(id);
    let mut found = None;
    let there = eventually(std::time::Duration::from_secs(10), async || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        let mut pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        found = pids.find(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.split('\0').next().unwrap_or_default().contains("containerd-shim") && line.contains(id)
        });
        found.is_some() && bundle.is_dir()
    });
    assert!(there.await, "no shim names the container");
    nix::unistd::Pid::from_raw(found.unwrap())
}

#[tokio::test]
async fn a_port_that_is_taken_is_a_warning_and_a_wrong_address_an_error() {
    let builder = Node::builder().config("metrics", &format!("address = {ADDRESS:?}"));
    let Some(mut node) = builder.start().await else { return };
    node.stop().await;
    let taken = node.netns.run(|| std::net::TcpListener::bind(ADDRESS).unwrap());
    node.restart().await;
    let info = cli::cofferdam(&node, &["info"]).await.expect_ok();
    assert!(info.contains("not served: another program has 127.0.0.1:9095"), "{info}");
    drop(taken);
    // 192.0.2.0/24 is nobody's. RFC 5737
    for (address, word) in [("localhost", "metrics.address"), ("192.0.2.1:9095", "metrics.address")] {
        let folder = node.dir().join("wrong");
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "root = \"{0}/root\"\nstate = \"{0}/state\"\nsocket = \"{0}/s.sock\"\n[metrics]\naddress = {address:?}\n\
             [nri]\nsocket = \"\"\n",
            folder.display()
        );
        std::fs::write(folder.join("config.toml"), text).unwrap();
        let mut command = node.netns.command(binaries().join("cofferdam"));
        let output = command.args(["serve", "--config"]).arg(folder.join("config.toml")).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(word) && said.contains(address), "{said}");
    }
    node.assert_clean().await;
}
