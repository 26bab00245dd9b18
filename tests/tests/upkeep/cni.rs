//! The promises to CNI plugins: DEL until it works, GC at the start and from time to time.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_tests::harness::{Node, NodeBuilder, eventually};

/// Writes down what it is asked, gives everybody the same address, and fails at DEL while a file says so.
const PLUGIN: &str = r#"#!/bin/sh
here=$(dirname "$0")/..
in=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $in" >> "$here/asked"
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.88.7.9/24","interface":0}]}' ;;
DEL) [ ! -e "$here/broken" ] || { echo '{"cniVersion":"1.1.0","code":11,"msg":"broken on purpose"}'; exit 1; } ;;
esac
"#;

fn conflist(version: &str) -> String {
    format!(r#"{{"cniVersion":"{version}","name":"tested","plugins":[{{"type":"tested"}}]}}"#)
}

/// A node whose plugin lies in a folder of its own.
async fn start(folder: &Path, version: &str, builder: NodeBuilder) -> Option<Node> {
    let bin = folder.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let plugin = bin.join("tested");
    std::fs::write(&plugin, PLUGIN).unwrap();
    std::fs::set_permissions(&plugin, std::fs::Permissions::from_mode(0o755)).unwrap();
    let bins = format!("bin_dirs = [\"{}\"]", bin.display());
    builder.config("network", &bins).cni("10-tested.conflist", &conflist(version)).start().await
}

fn asked(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("asked")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn count(folder: &Path, command: &str, id: &str) -> usize {
    asked(folder).iter().filter(|line| line.starts_with(&format!("{command} {id}"))).count()
}

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("cft-cni-").tempdir_in("/tmp").unwrap();
    let path = folder.path().to_owned();
    (folder, path)
}

#[tokio::test]
async fn del_is_tried_again_until_it_works_though_nobody_asks() {
    let (_keep, folder) = folder();
    let builder = Node::builder().config("maintenance", "sweep_seconds = 1");
    let Some(mut node) = start(&folder, "1.0.0", builder).await else { return };
    let pod = node.run_pod(&node.pod("sticky")).await;
    std::fs::write(folder.join("broken"), "").unwrap();
    node.cri.stop_pod(&pod.id).await.unwrap_err();
    let tries = count(&folder, "DEL", &pod.id);
    let again = eventually(Duration::from_secs(20), async || count(&folder, "DEL", &pod.id) > tries + 1);
    assert!(again.await, "nobody tried again: {:?}", asked(&folder));
    // Not even a crash makes it forget.
    node.restart().await;
    std::fs::remove_file(folder.join("broken")).unwrap();
    let record = node.dir().join("state/cni/results").join(format!("{}.json", pod.id));
    let freed = eventually(Duration::from_secs(20), async || !record.exists());
    assert!(freed.await, "the address is not freed: {}", node.daemon_log());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn gc_names_the_pods_that_live_at_the_start_and_on_the_timer() {
    let (_keep, folder) = folder();
    let builder = Node::builder().config("maintenance", "sweep_seconds = 1");
    let Some(mut node) = start(&folder, "1.1.0", builder).await else { return };
    let pod = node.run_pod(&node.pod("living")).await;
    let names = |line: &String| line.starts_with("GC ") && line.contains(&pod.id);
    let timed =
        eventually(Duration::from_secs(20), async || asked(&folder).iter().filter(|l| names(l)).count() > 1);
    assert!(timed.await, "{:?}", asked(&folder));
    node.kill9();
    std::fs::remove_file(folder.join("asked")).unwrap();
    node.restart().await;
    let at_start = eventually(Duration::from_secs(10), async || asked(&folder).iter().any(names));
    assert!(at_start.await, "{:?}", asked(&folder));
    assert!(node.cri.pod_ready(&pod.id).await);
    node.destroy(&pod).await;
    node.assert_clean().await;
}
