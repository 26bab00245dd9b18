//! Runtime handlers: a foreign shim in place of ours, and one that is not there.

use std::path::PathBuf;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::Node;

/// A foreign shim and the OCI runtime under it: what the environment names, or Debian's.
fn foreign() -> (PathBuf, Option<PathBuf>) {
    let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    let shim =
        named("COFFERDAM_TEST_FOREIGN_SHIM").unwrap_or_else(|| "/usr/bin/containerd-shim-runc-v2".into());
    assert!(shim.exists(), "{} is not there: apt-get install containerd runc", shim.display());
    (shim, named("COFFERDAM_TEST_FOREIGN_RUNTIME"))
}

#[tokio::test]
async fn a_foreign_shim_serves_a_pod() {
    if cofferdam_tests::harness::attached().is_some() {
        println!("skipped: this test needs a daemon of its own");
        return;
    }
    let (shim, runtime) = foreign();
    let mut lines = format!("path = {shim:?}\n");
    if let Some(runtime) = runtime {
        lines += &format!("binary = {runtime:?}\n");
    }
    let Some(node) = Node::builder().config("runtimes.foreign", &lines).start().await else { return };
    let image = node.base_image().await;
    let config = node.pod("foreign");
    let id = node.cri.run_pod(&config, "foreign").await.unwrap();
    let pod = cofferdam_tests::harness::Pod { id, config };
    assert_eq!(node.cri.pod_status(&pod.id).await.unwrap().runtime_handler, "foreign");
    let script = "echo afloat; echo apart >&2; exec sleep 1000";
    let mut container = build::shell("main", &image, script);
    // A kubelet sends a limit for every size of huge pages that the node has, of zero for most.
    let resources = container.linux.get_or_insert_default().resources.get_or_insert_default();
    resources.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 0 }];
    let container = node.run_container(&pod, container).await;
    let answer = node.cri.exec_sync(&container, &["sh", "-c", "echo in; exit 3"], 20).await.unwrap();
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"in\n"[..], 3));
    let (ended, entries) = node.run_to_end(&pod, build::shell("ends", &image, "echo bye; exit 4")).await;
    assert_eq!(ended.exit_code, 4);
    assert_eq!(cofferdam_tests::harness::log::joined(&entries, "stdout"), "bye\n");
    node.cri.stop(&container, 0).await.unwrap();
    assert_eq!(node.cri.status(&container).await.unwrap().exit_code, 137);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_shim_that_is_not_there_is_named() {
    let lines = "path = \"/no/such/shim\"\n";
    let Some(node) = Node::builder().config("runtimes.absent", lines).start().await else { return };
    let refused = node.cri.run_pod(&node.pod("absent"), "absent").await.unwrap_err();
    assert!(refused.message().contains("/no/such/shim"), "{refused:?}");
    assert!(node.cri.list_pods(None).await.unwrap().is_empty());
    node.assert_clean().await;
}
