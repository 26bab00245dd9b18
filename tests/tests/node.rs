//! Version, Status, RuntimeConfig, and what the daemon says to a wrong configuration or request.

use cofferdam_proto::cri;
use cofferdam_tests::harness::{Node, binaries, cli};
use tonic::Code;

#[tokio::test]
async fn version_names_the_runtime_and_the_api() {
    let node = Node::start().await;
    let version = node.cri.version().await.unwrap();
    assert_eq!(version.runtime_api_version, "v1");
    assert!(!version.runtime_version.is_empty());
    if node.daemon_pid().is_some() {
        assert_eq!(version.runtime_name, "cofferdam");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn status_reports_both_conditions_and_the_handlers() {
    let node = Node::start().await;
    let request = cri::StatusRequest { verbose: true };
    let answer = node.cri.runtime.clone().status(request).await.unwrap().into_inner();
    let conditions = answer.status.unwrap().conditions;
    for kind in ["RuntimeReady", "NetworkReady"] {
        let condition = conditions.iter().find(|one| one.r#type == kind).expect("a condition is missing");
        assert!(condition.status, "{kind}: {} {}", condition.reason, condition.message);
    }
    assert!(!answer.info.is_empty(), "verbose gives no info");
    assert!(answer.runtime_handlers.iter().any(|handler| handler.name.is_empty()), "no default handler");
    node.assert_clean().await;
}

#[tokio::test]
async fn status_gives_no_info_unless_asked() {
    let node = Node::start().await;
    let answer = node.cri.runtime.clone().status(cri::StatusRequest { verbose: false }).await.unwrap();
    assert!(answer.into_inner().info.is_empty());
    node.assert_clean().await;
}

#[tokio::test]
async fn runtime_config_tells_the_cgroup_driver() {
    let node = Node::start().await;
    let answer = node.cri.runtime.clone().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap();
    // The machines of these tests have no systemd as init.
    assert_eq!(answer.into_inner().linux.unwrap().cgroup_driver(), cri::CgroupDriver::Cgroupfs);
    node.assert_clean().await;
}

#[tokio::test]
async fn update_runtime_config_is_accepted() {
    let node = Node::start().await;
    let network = cri::NetworkConfig { pod_cidr: "10.88.7.0/24".into() };
    let request = cri::UpdateRuntimeConfigRequest {
        runtime_config: Some(cri::RuntimeConfig { network_config: Some(network) }),
    };
    node.cri.runtime.clone().update_runtime_config(request).await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn malformed_requests_are_refused_in_words() {
    let node = Node::start().await;
    let runtime = &mut node.cri.runtime.clone();
    let no_config = runtime.run_pod_sandbox(cri::RunPodSandboxRequest::default()).await.unwrap_err();
    let mut nameless = node.pod("nameless");
    nameless.metadata = None;
    let no_metadata = node.cri.run_pod(&nameless, "").await.unwrap_err();
    let bad_handler = node.cri.run_pod(&node.pod("handler"), "no-such-handler").await.unwrap_err();
    assert!(bad_handler.message().contains("no-such-handler"), "{bad_handler:?}");
    if node.daemon_pid().is_some() {
        for refused in [&no_config, &no_metadata] {
            assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        }
        assert!(no_metadata.message().contains("metadata"), "{no_metadata:?}");
    }
    assert_eq!(node.cri.status("no-such-container").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.cri.pod_status("no-such-pod").await.unwrap_err().code(), Code::NotFound);
    assert_eq!(node.cri.start("no-such-container").await.unwrap_err().code(), Code::NotFound);
    node.assert_clean().await;
}

/// Bytes that are no protobuf, sent as a request.
#[tokio::test]
async fn a_body_that_is_no_message_gets_an_error_and_the_daemon_lives() {
    let node = Node::start().await;
    // Field 1 of RunPodSandboxRequest is a message: a string that is no UTF-8 inside its metadata cannot be decoded.
    let status =
        node.cri.raw("/runtime.v1.RuntimeService/RunPodSandbox", b"\x0a\x05\x0a\x03\x0a\x01\xff").await;
    assert_ne!(status.code(), Code::Ok);
    let unknown = node.cri.raw("/runtime.v1.RuntimeService/NoSuchCall", b"").await;
    assert_eq!(unknown.code(), Code::Unimplemented);
    node.cri.version().await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn an_unknown_key_is_refused_with_the_nearest_right_one() {
    let Some(node) = Node::builder().start().await else { return };
    let file = node.dir().join("wrong.toml");
    std::fs::write(&file, "[network]\nsubnet = [\"10.1.0.0/16\"]\n").unwrap();
    let output = node
        .netns
        .command(binaries().join("cofferdam"))
        .args(["serve", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "it accepted an unknown key");
    for word in ["subnet", "subnets", "wrong.toml"] {
        assert!(said.contains(word), "the message lacks {word}: {said}");
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn the_daemon_ends_at_sigterm_and_starts_again() {
    let Some(mut node) = Node::builder().start().await else { return };
    node.stop().await;
    node.restart().await;
    node.assert_clean().await;
}

#[tokio::test]
async fn crictl_drives_a_pod_by_hand() {
    let node = Node::start().await;
    let Some(info) = cli::crictl(&node, &["info"]).await else { return };
    assert!(info.expect_ok().contains("RuntimeReady"));
    let image = node.base_image().await;
    let pulled = cli::crictl(&node, &["pull", &image]).await.unwrap().expect_ok();
    assert!(pulled.contains("up to date"), "{pulled}");
    assert!(cli::crictl(&node, &["images"]).await.unwrap().expect_ok().contains(&node.registry.host()));
    let pod = node.run_pod(&node.pod("crictl")).await;
    let config = cofferdam_tests::client::build::shell("main", &image, "echo by-hand; sleep 100");
    let id = node.run_container(&pod, config).await;
    let ran = |args: Vec<String>| {
        let node = &node;
        async move {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            cli::crictl(node, &args).await.unwrap().expect_ok()
        }
    };
    let words = |text: &str| text.split(' ').map(|word| word.replace('@', &id)).collect::<Vec<_>>();
    assert!(ran(words("ps -q --no-trunc")).await.contains(&id));
    assert!(ran(words("exec -s @ echo from-exec")).await.contains("from-exec"));
    assert!(ran(words("logs @")).await.contains("by-hand"));
    assert!(ran(words("inspect @")).await.contains("CONTAINER_RUNNING"));
    assert!(ran(words("stats @")).await.contains(&id[..12]));
    ran(words("stop --timeout 0 @")).await;
    ran(words("rm @")).await;
    ran(vec!["stopp".into(), pod.id.clone()]).await;
    ran(vec!["rmp".into(), pod.id.clone()]).await;
    node.assert_clean().await;
}
