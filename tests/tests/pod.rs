//! Pod sandboxes: lifecycle, listing, and what a pod's containers see of it.

use std::collections::HashMap;

use cofferdam_proto::cri::{self, NamespaceMode, PodSandboxState};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::Node;
use tonic::Code;

#[tokio::test]
async fn a_pod_runs_stops_and_goes() {
    let node = Node::start().await;
    let config = node.pod("life");
    let pod = node.run_pod(&config).await;
    let status = node.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.id, pod.id);
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, config.metadata);
    assert_eq!(status.labels, config.labels);
    assert_eq!(status.annotations, config.annotations);
    assert!(status.created_at > 1_700_000_000_000_000_000, "created_at is no time: {}", status.created_at);
    let ip = status.network.expect("no network status").ip;
    assert!(ip.parse::<std::net::IpAddr>().is_ok(), "no address: {ip:?}");

    node.cri.stop_pod(&pod.id).await.unwrap();
    let status = node.cri.pod_status(&pod.id).await.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxNotready);
    node.cri.remove_pod(&pod.id).await.unwrap();
    assert_eq!(node.cri.pod_status(&pod.id).await.unwrap_err().code(), Code::NotFound);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_needs_no_image() {
    let Some(node) = Node::builder().start().await else { return };
    let pruned = node.cri.prune().await.unwrap();
    assert!(pruned.failures.is_empty(), "{pruned:?}");
    assert!(node.cri.list_images().await.unwrap().is_empty());
    let pod = node.run_pod(&node.pod("imageless")).await;
    assert!(node.cri.pod_ready(&pod.id).await);
    assert!(node.cri.list_images().await.unwrap().is_empty(), "an image that can be collected");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn stop_and_remove_are_idempotent() {
    let node = Node::start().await;
    let pod = node.run_pod(&node.pod("again")).await;
    for _ in 0..2 {
        node.cri.stop_pod(&pod.id).await.unwrap();
    }
    for _ in 0..2 {
        node.cri.remove_pod(&pod.id).await.unwrap();
    }
    node.cri.stop_pod(&pod.id).await.unwrap();
    node.cri.remove_pod("0123456789abcdef").await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn removing_a_pod_that_runs_takes_its_containers_along() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("forced")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    node.cri.remove_pod(&pod.id).await.unwrap();
    assert_eq!(node.cri.status(&id).await.unwrap_err().code(), Code::NotFound);
    node.assert_clean().await;
}

#[tokio::test]
async fn stopping_a_pod_ends_its_containers() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stopped")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    node.cri.stop_pod(&pod.id).await.unwrap();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerExited);
    let late = node.cri.create(&pod.id, &pod.config, build::container("late", &image, &["true"])).await;
    assert!(late.is_err(), "a stopped pod took a container");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn list_filters_by_id_state_and_labels() {
    let node = Node::start().await;
    let first = node.run_pod(&node.pod("one")).await;
    let second = node.run_pod(&node.pod("two")).await;
    node.cri.stop_pod(&second.id).await.unwrap();
    let ids = async |filter: cri::PodSandboxFilter| {
        let mut ids: Vec<_> =
            node.cri.list_pods(Some(filter)).await.unwrap().into_iter().map(|pod| pod.id).collect();
        ids.retain(|id| *id == first.id || *id == second.id);
        ids
    };
    let state = |state: PodSandboxState| Some(cri::PodSandboxStateValue { state: state.into() });
    let label = |value: &str| HashMap::from([("app".to_owned(), value.to_owned())]);

    let by_id = cri::PodSandboxFilter { id: first.id.clone(), ..Default::default() };
    assert_eq!(ids(by_id).await, [first.id.as_str()]);
    let by_prefix = cri::PodSandboxFilter { id: first.id[..13].into(), ..Default::default() };
    assert_eq!(ids(by_prefix).await, [first.id.as_str()]);
    let ready = cri::PodSandboxFilter { state: state(PodSandboxState::SandboxReady), ..Default::default() };
    assert_eq!(ids(ready).await, [first.id.as_str()]);
    let by_label = cri::PodSandboxFilter { label_selector: label("two"), ..Default::default() };
    assert_eq!(ids(by_label).await, [second.id.as_str()]);
    let both = cri::PodSandboxFilter {
        state: state(PodSandboxState::SandboxReady),
        label_selector: label("two"),
        ..Default::default()
    };
    assert!(ids(both).await.is_empty());
    assert_eq!(ids(cri::PodSandboxFilter::default()).await.len(), 2);
    let newest_first = ids(cri::PodSandboxFilter::default()).await;
    assert!(newest_first.contains(&first.id) && newest_first.contains(&second.id));
    node.destroy(&first).await;
    node.destroy(&second).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_same_request_again_gives_the_same_pod_or_a_word_about_it() {
    let Some(node) = Node::builder().start().await else { return };
    let config = node.pod("twice");
    // Two callers at once, as when the kubelet's deadline is over and it asks again: they join.
    let (first, second) = tokio::join!(node.cri.run_pod(&config, ""), node.cri.run_pod(&config, ""));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first, second);
    assert_eq!(node.cri.list_pods(None).await.unwrap().len(), 1);
    node.cri.destroy_pod(&first).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn hostname_and_resolv_conf_are_the_pods() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("names");
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.1.2.3".into(), "10.1.2.4".into()],
        searches: vec!["a.example".into(), "b.example".into()],
        options: vec!["ndots:5".into()],
    });
    let pod = node.run_pod(&config).await;
    let script = "hostname; echo $HOSTNAME; cat /etc/hostname /etc/resolv.conf";
    let said = node.output(&pod, build::shell("main", &image, script)).await;
    assert_eq!(said.lines().filter(|line| *line == "names").count(), 3, "{said}");
    for line in
        ["nameserver 10.1.2.3", "nameserver 10.1.2.4", "search a.example b.example", "options ndots:5"]
    {
        assert!(said.lines().any(|one| one.trim() == line), "resolv.conf lacks {line:?}: {said}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn host_network_is_the_nodes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("host");
    build::host_network(&mut config);
    let pod = node.run_pod(&config).await;
    let mut main = build::shell("main", &image, "hostname; readlink /proc/self/ns/net");
    build::security(&mut main).namespace_options.get_or_insert_default().network = NamespaceMode::Node.into();
    let said = node.output(&pod, main).await;
    let own = node.netns.run(|| std::fs::read_link("/proc/thread-self/ns/net")).unwrap();
    let host = nix::unistd::gethostname().unwrap();
    assert_eq!(said, format!("{}\n{}\n", host.to_string_lossy(), own.display()));
    let network = node.cri.pod_status(&pod.id).await.unwrap().network;
    assert!(
        network.is_none_or(|network| network.ip.is_empty()),
        "a pod on the node's network has no own address"
    );
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn sysctls_are_the_pods_own() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("sysctl");
    let linux = config.linux.as_mut().unwrap();
    linux.sysctls = HashMap::from([
        ("net.ipv4.ip_local_port_range".into(), "2000 3000".into()),
        ("kernel.shm_rmid_forced".into(), "1".into()),
    ]);
    let pod = node.run_pod(&config).await;
    let script = "cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced";
    let said = node.output(&pod, build::shell("main", &image, script)).await;
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["2000", "3000", "1"]);
    node.destroy(&pod).await;

    let mut config = node.pod("wrong");
    config.linux.as_mut().unwrap().sysctls = HashMap::from([("net.no_such_thing".into(), "1".into())]);
    let refused = node.cri.run_pod(&config, "").await.unwrap_err();
    assert!(refused.message().contains("no_such_thing"), "{refused:?}");
    node.assert_clean().await;
}

#[tokio::test]
async fn containers_of_a_pod_share_memory_and_names_but_not_processes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("shared")).await;
    node.run_container(&pod, build::shell("one", &image, "echo here > /dev/shm/word; exec sleep 1000")).await;
    let script = "until [ -e /dev/shm/word ]; do sleep 0.01; done; cat /dev/shm/word; echo $$; \
                  df -m /dev/shm | tail -1 | awk '{print $2}'";
    let said = node.output(&pod, build::shell("two", &image, script)).await;
    assert_eq!(said, "here\n1\n64\n");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shared_pid_namespace_is_shared() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("pids");
    build::pod_security(&mut config).namespace_options.get_or_insert_default().pid =
        NamespaceMode::Pod.into();
    let pod = node.run_pod(&config).await;
    let shared = |mut container: cri::ContainerConfig| {
        build::security(&mut container).namespace_options.get_or_insert_default().pid =
            NamespaceMode::Pod.into();
        container
    };
    node.run_container(&pod, shared(build::container("one", &image, &["sleep", "98765"]))).await;
    let two = shared(build::shell("two", &image, "cat /proc/*/cmdline | tr '\\0' ' '; echo; echo self=$$"));
    let said = node.output(&pod, two).await;
    assert!(said.contains("sleep 98765"), "it does not see the other container: {said}");
    assert!(!said.contains("self=1\n"), "it is process 1 of a shared namespace: {said}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_nodes_pid_namespace_is_the_nodes() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let mut config = node.pod("hostpid");
    build::pod_security(&mut config).namespace_options.get_or_insert_default().pid =
        NamespaceMode::Node.into();
    let pod = node.run_pod(&config).await;
    let mut main = build::shell("main", &image, "readlink /proc/self/ns/pid");
    build::security(&mut main).namespace_options.get_or_insert_default().pid = NamespaceMode::Node.into();
    let own = std::fs::read_link("/proc/self/ns/pid").unwrap();
    assert_eq!(node.output(&pod, main).await.trim(), own.display().to_string());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_targets_pid_namespace_is_joined() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("target")).await;
    let one = node.run_container(&pod, build::container("one", &image, &["sleep", "98766"])).await;
    let mut two = build::shell("two", &image, "tr '\\0' ' ' < /proc/1/cmdline");
    let options = build::security(&mut two).namespace_options.get_or_insert_default();
    options.pid = NamespaceMode::Target.into();
    options.target_id = one;
    assert_eq!(node.output(&pod, two).await.trim(), "sleep 98766");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pods_cgroup_lies_under_its_parent() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let config = node.pod("cgroup");
    let parent = config.linux.as_ref().unwrap().cgroup_parent.clone();
    let pod = node.run_pod(&config).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "1000"])).await;
    let memory = if std::path::Path::new("/sys/fs/cgroup/memory").exists() { "/memory" } else { "" };
    let folder = format!("/sys/fs/cgroup{memory}{parent}");
    let children: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{folder}: {error}"))
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    assert!(children.iter().any(|name| name.contains(&id)), "no cgroup of the container in {children:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}
