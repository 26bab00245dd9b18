//! The pods' network: the built-in bridge, and CNI plugins that work, fail, hang or are missing.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::catalog::{self, PAGE};
use cofferdam_tests::harness::{Node, Pod, eventually, require};

/// A pod whose container serves [`PAGE`] on port 80.
async fn server(node: &Node, config: &cri::PodSandboxConfig) -> (Pod, String) {
    let image = node.registry.push("demo", "1", &catalog::demo().unwrap());
    node.cri.pull(&image, None).await.unwrap();
    let pod = node.run_pod(config).await;
    node.run_container(&pod, build::container("web", &image, &[])).await;
    let ip = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap().ip;
    (pod, ip)
}

async fn serves(node: &Node, address: &str) -> bool {
    eventually(Duration::from_secs(5), async || {
        node.netns.http_get(address, "/index.html").is_ok_and(|answer| answer.ends_with(PAGE))
    })
    .await
}

#[tokio::test]
async fn a_pod_is_reached_from_the_node_and_from_another_pod() {
    let node = Node::start().await;
    let (pod, ip) = server(&node, &node.pod("server")).await;
    assert!(serves(&node, &format!("{ip}:80")).await, "the node does not reach the pod");
    let image = node.base_image().await;
    let other = node.run_pod(&node.pod("client")).await;
    let script = format!("wget -q -O - http://{ip}/index.html");
    assert_eq!(node.output(&other, build::shell("main", &image, &script)).await, PAGE);
    let other_ip = node.cri.pod_status(&other.id).await.unwrap().network.unwrap().ip;
    assert_ne!(ip, other_ip);
    let itself =
        build::shell("itself", &image, &format!("{script} && ping -c1 -W2 127.0.0.1 >/dev/null && echo lo"));
    assert_eq!(node.output(&pod, itself).await, format!("{PAGE}lo\n"));
    node.destroy(&other).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_stopped_pod_is_off_the_network_and_its_address_free() {
    let node = Node::start().await;
    let (pod, ip) = server(&node, &node.pod("gone")).await;
    assert!(serves(&node, &format!("{ip}:80")).await);
    node.cri.stop_pod(&pod.id).await.unwrap();
    assert!(node.netns.http_get(&format!("{ip}:80"), "/").is_err(), "the stopped pod still answers");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_host_port_leads_to_the_pod() {
    let node = Node::start().await;
    let port =
        node.netns.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port());
    let mut config = node.pod("port");
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: i32::from(port),
        host_ip: String::new(),
    }];
    let (pod, _) = server(&node, &config).await;
    assert!(serves(&node, &format!("127.0.0.1:{port}")).await, "the host port does not lead to the pod");
    node.destroy(&pod).await;
    let closed = node.netns.http_get(&format!("127.0.0.1:{port}"), "/");
    assert!(closed.is_err(), "the host port is still open");
    node.assert_clean().await;
}

const CONFLIST: &str = r#"{"cniVersion":"1.0.0","name":"tested","plugins":[
    {"type":"bridge","bridge":"cni-test0","isGateway":true,"ipMasq":false,"hairpinMode":true,
     "ipam":{"type":"host-local","dataDir":"@DIR@/ipam","ranges":[[{"subnet":"10.77.3.0/24"}]],
             "routes":[{"dst":"0.0.0.0/0"}]}},
    {"type":"portmap","capabilities":{"portMappings":true}}]}"#;

#[tokio::test]
async fn debians_cni_plugins_serve_a_conflist() {
    let Some(node) = Node::builder().cni("10-test.conflist", CONFLIST).start().await else { return };
    require("/usr/lib/cni/bridge", "containernetworking-plugins");
    let (pod, ip) = server(&node, &node.pod("cni")).await;
    assert!(ip.starts_with("10.77.3."), "{ip} is not from the configured network");
    assert!(serves(&node, &format!("{ip}:80")).await);
    node.destroy(&pod).await;
    let held: Vec<_> = std::fs::read_dir(node.dir().join("ipam/tested"))
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("10."))
        .collect();
    assert!(held.is_empty(), "addresses are still held: {held:?}");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_configuration_that_appears_later_is_taken_up() {
    let Some(node) = Node::builder().start().await else { return };
    require("/usr/lib/cni/bridge", "containernetworking-plugins");
    let text = CONFLIST.replace("@DIR@", &node.dir().display().to_string());
    std::fs::write(node.dir().join("net.d/10-late.conflist"), text).unwrap();
    let mut last = String::new();
    let taken = eventually(Duration::from_secs(10), async || {
        let pod = node.run_pod(&node.pod("late")).await;
        last = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap().ip;
        node.destroy(&pod).await;
        last.starts_with("10.77.3.")
    });
    assert!(taken.await, "pods still get {last}");
    node.assert_clean().await;
}

/// A conflist with one plugin, `type`, from a folder of the node's.
fn own_plugin(kind: &str) -> String {
    format!(r#"{{"cniVersion":"1.0.0","name":"own","plugins":[{{"type":"{kind}"}}]}}"#)
}

/// Writes a plugin as a script into the node's folder of plugins.
fn write_plugin(node: &Node, name: &str, script: &str) {
    let folder = node.dir().join("cni-bin");
    std::fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    std::fs::write(&path, script).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

async fn with_plugin(kind: &str, script: Option<&str>) -> Option<Node> {
    let node = Node::builder().start().await?;
    // The folder is the node's own, so it is known only now: written to the configuration, then started again.
    let file = node.dir().join("config.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let folder = node.dir().join("cni-bin");
    let text = text.replace("[\"/usr/lib/cni\"]", &format!("[\"{}\"]", folder.display()));
    std::fs::write(&file, text).unwrap();
    if let Some(script) = script {
        write_plugin(&node, kind, script);
    }
    std::fs::write(node.dir().join("net.d/10-own.conflist"), own_plugin(kind)).unwrap();
    let mut node = node;
    node.restart().await;
    Some(node)
}

#[tokio::test]
async fn a_missing_plugin_is_named() {
    let Some(node) = with_plugin("no-such-plugin", None).await else { return };
    let refused = node.cri.run_pod(&node.pod("missing"), "").await.unwrap_err();
    assert!(refused.message().contains("no-such-plugin"), "{refused:?}");
    assert!(node.cri.list_pods(None).await.unwrap().is_empty(), "a pod without a network is listed");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_fails_says_why() {
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  echo '{\"cniVersion\":\"1.0.0\",\"code\":111,\"msg\":\"the harbour is closed\"}'\nexit 1\n";
    let Some(node) = with_plugin("failing", Some(script)).await else { return };
    let refused = node.cri.run_pod(&node.pod("failing"), "").await.unwrap_err();
    assert!(refused.message().contains("the harbour is closed"), "{refused:?}");
    assert!(node.cri.list_pods(None).await.unwrap().is_empty());
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_cannot_delete_keeps_the_pod_for_a_retry() {
    let script = "#!/bin/sh\ncase $CNI_COMMAND in\n\
                  ADD) echo '{\"cniVersion\":\"1.0.0\",\"ips\":[{\"address\":\"10.5.0.2/24\"}]}';;\n\
                  DEL) [ -e \"$(dirname $0)/allow\" ] && exit 0; \
                  echo '{\"cniVersion\":\"1.0.0\",\"code\":112,\"msg\":\"not yet\"}'; exit 1;;\nesac\n";
    let Some(node) = with_plugin("stuck", Some(script)).await else { return };
    let pod = node.run_pod(&node.pod("stuck")).await;
    let refused = node.cri.stop_pod(&pod.id).await.unwrap_err();
    assert!(refused.message().contains("not yet"), "{refused:?}");
    assert!(!node.cri.pod_ready(&pod.id).await, "a pod whose stop failed is not ready");
    std::fs::write(node.dir().join("cni-bin/allow"), "").unwrap();
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_plugin_that_hangs_holds_up_nobody_else() {
    let script = "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\n\
                  echo $$ > \"$(dirname $0)/pid\"; exec sleep 4242\n";
    let Some(node) = with_plugin("hanging", Some(script)).await else { return };
    let config = node.pod("hanging");
    let mut request = tonic::Request::new(cri::RunPodSandboxRequest {
        config: Some(config),
        runtime_handler: String::new(),
    });
    request.set_timeout(Duration::from_secs(2));
    let before = Instant::now();
    let refused = node.cri.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(5), "{refused:?} after {:?}", before.elapsed());
    let mut host = node.pod("host");
    build::host_network(&mut host);
    let other = tokio::time::timeout(Duration::from_secs(5), node.run_pod(&host)).await;
    let other = other.expect("another pod waits for the plugin that hangs");
    node.destroy(&other).await;
    // The plugin ends, and with it the attempt: it is undone although its caller is long gone.
    let pid = std::fs::read_to_string(node.dir().join("cni-bin/pid")).unwrap().trim().parse().unwrap();
    // The runtime may have ended it by itself.
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    let undone =
        eventually(Duration::from_secs(5), async || node.cri.list_pods(None).await.unwrap().is_empty());
    assert!(undone.await, "the pod of the failed attempt is still listed");
    node.assert_clean().await;
}
