//! CheckpointContainer: the archive's parts, a container that runs on whatever happens, and refusals in words.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, eventually, log};
use tonic::{Code, Status};

/// Counts, and writes each number to the log as well as to a file; removes a file of the image.
const COUNTER: &str = "rm /etc/group; n=0; while true; do n=$((n+1)); echo $n > /count.new; mv /count.new /count; echo $n; sleep 0.05; done";

async fn checkpoint(node: &Node, id: &str, location: &Path, timeout: i64) -> Result<(), Status> {
    let location = location.display().to_string();
    let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout };
    node.cri.runtime.clone().checkpoint_container(request).await.map(drop)
}

/// A program named criu, and a PATH that leads to it first.
fn fake_criu(script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("criu");
    std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path().display(), std::env::var("PATH").unwrap_or_default());
    (folder, path)
}

async fn counter(node: &Node) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("checkpoint")).await;
    let mut config = build::shell("counter", &image, COUNTER);
    // As a kubelet asks for it.
    build::security(&mut config).masked_paths = vec!["/proc/kcore".into(), "/proc/scsi".into()];
    build::security(&mut config).readonly_paths = vec!["/proc/sys".into()];
    let id = node.run_container(&pod, config).await;
    goes_on(node, &id).await;
    (pod, id)
}

async fn last_number(node: &Node, id: &str) -> u64 {
    let path = node.cri.status(id).await.unwrap().log_path;
    let said = log::joined(&log::read(Path::new(&path)), "stdout");
    said.lines().last().and_then(|line| line.parse().ok()).unwrap_or(0)
}

/// Waits until the counter has counted on.
async fn goes_on(node: &Node, id: &str) {
    let before = last_number(node, id).await;
    let counted =
        eventually(Duration::from_secs(10), async || last_number(node, id).await > before + 2).await;
    assert!(counted, "the counter stands still at {before}");
}

fn left_in(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Nothing is left of an attempt that failed.
fn assert_nothing_left(node: &Node, out: &Path) {
    assert!(left_in(out).is_empty(), "{:?}", left_in(out));
    let images = left_in(&node.dir().join("root/checkpoints"));
    assert!(images.is_empty(), "{images:?}");
}

fn parts(archive: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let read = |entry: std::io::Result<tar::Entry<'_, std::fs::File>>| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    };
    archive.entries().unwrap().map(read).collect()
}

#[tokio::test]
async fn without_criu_it_is_refused_in_words() {
    let Some(node) = Node::builder().env("PATH", "/no/such/folder").start().await else { return };
    let (pod, id) = counter(&node).await;
    let out = tempfile::tempdir().unwrap();
    let refused = checkpoint(&node, &id, &out.path().join("c.tar"), 10).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("criu is not in"), "{refused:?}");
    assert_nothing_left(&node, out.path());
    goes_on(&node, &id).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_before_anything_is() {
    let (_folder, path) = fake_criu("echo must not run; exit 1");
    let Some(node) = Node::builder().env("PATH", &path).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let out = tempfile::tempdir().unwrap();
    let good = out.path().join("c.tar");
    let ended = build::shell("ended", &image, "exit 3");
    let ended = node.run_container(&pod, ended).await;
    node.cri.wait_exited(&ended, Duration::from_secs(15)).await.unwrap();
    let refused = checkpoint(&node, &ended, &good, 10).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("not running"), "{refused:?}");

    let id = node.run_container(&pod, build::shell("runs", &image, COUNTER)).await;
    for wrong in ["", "relative.tar", "/no/such/folder/c.tar", "/tmp"] {
        let refused = checkpoint(&node, &id, Path::new(wrong), 10).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{wrong}: {refused:?}");
    }
    assert_eq!(checkpoint(&node, &id, &good, -1).await.unwrap_err().code(), Code::InvalidArgument);
    assert_eq!(checkpoint(&node, "nobody", &good, 10).await.unwrap_err().code(), Code::NotFound);
    assert_nothing_left(&node, out.path());
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_criu_that_fails_is_quoted_and_the_container_runs_on() {
    let script = "while [ $# -gt 0 ]; do [ \"$1\" = --work-dir ] && cd \"$2\"; shift; done\n\
                  echo '(00.1) Error (criu/vdso.c:381): vdso: Unexpected area' > dump.log; exit 1";
    let (_folder, path) = fake_criu(script);
    let Some(node) = Node::builder().env("PATH", &path).start().await else { return };
    let (pod, id) = counter(&node).await;
    let out = tempfile::tempdir().unwrap();
    let refused = checkpoint(&node, &id, &out.path().join("c.tar"), 10).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains("vdso: Unexpected area"), "{refused:?}");
    assert_nothing_left(&node, out.path());
    goes_on(&node, &id).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_criu_that_hangs_is_ended_at_the_timeout() {
    let (_folder, path) = fake_criu("exec sleep 1000");
    let Some(node) = Node::builder().env("PATH", &path).start().await else { return };
    let (pod, id) = counter(&node).await;
    let out = tempfile::tempdir().unwrap();
    let location = out.path().join("c.tar");
    let began = std::time::Instant::now();
    let first = checkpoint(&node, &id, &location, 2);
    let later = async |location: &std::path::Path| {
        tokio::time::sleep(Duration::from_millis(500)).await;
        checkpoint(&node, &id, location, 2).await
    };
    let elsewhere = out.path().join("d.tar");
    let (first, retry, other) = tokio::join!(first, later(&location), later(&elsewhere));
    assert_eq!(first.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(retry.unwrap_err().code(), Code::DeadlineExceeded, "a retry joins");
    let other = other.unwrap_err();
    assert_eq!(other.code(), Code::FailedPrecondition, "{other:?}");
    assert!(other.message().contains("under way"), "{other:?}");
    assert!(began.elapsed() < Duration::from_secs(7), "{:?}", began.elapsed());
    assert_nothing_left(&node, out.path());
    goes_on(&node, &id).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_container_that_a_dead_daemon_held_still_runs_on_after_its_start() {
    let (_folder, path) = fake_criu("exec sleep 1000");
    let Some(mut node) = Node::builder().env("PATH", &path).start().await else { return };
    let (pod, id) = counter(&node).await;
    let out = tempfile::tempdir().unwrap();
    let (cut, images) = (out.path().join("c.tar"), node.dir().join("root/checkpoints").join(&id));
    let request = checkpoint(&node, &id, &cut, 30);
    let held = eventually(Duration::from_secs(10), async || images.join("checkpoint").is_dir());
    tokio::select! {
        answer = request => panic!("it was to hang: {answer:?}"),
        held = held => assert!(held, "the checkpoint did not begin"),
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.restart().await;
    assert_nothing_left(&node, out.path());
    goes_on(&node, &id).await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Whether this node's criu, if there is one, can work with its kernel.
fn criu_works() -> bool {
    match std::process::Command::new("criu").arg("check").output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("skipped: criu check: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            println!("skipped: criu: {error}");
            false
        }
    }
}

#[tokio::test]
async fn the_archive_is_what_other_tools_know_and_the_container_runs_on() {
    if !criu_works() {
        return;
    }
    let Some(node) = Node::builder().start().await else { return };
    let (pod, id) = counter(&node).await;
    let out = tempfile::tempdir().unwrap();
    let location = out.path().join("c.tar");
    std::fs::write(&location, "an older one").unwrap();
    checkpoint(&node, &id, &location, 60).await.unwrap();
    assert_eq!(std::fs::metadata(&location).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(left_in(out.path()), [location.as_path()], "nothing else is left beside it");
    goes_on(&node, &id).await;

    let parts = parts(&location);
    let json = |name: &str| serde_json::from_slice::<serde_json::Value>(&parts[name]).unwrap();
    let config = json("config.dump");
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((config["id"].as_str(), config["name"].as_str()), (Some(id.as_str()), Some("counter")));
    assert_eq!(config["rootfsImageRef"].as_str(), Some(status.image_ref.as_str()));
    assert_eq!(config["restored"], false);
    assert_eq!(json("status.dump")["StartedAt"].as_i64(), Some(status.started_at));
    assert_eq!(json("spec.dump")["annotations"]["io.kubernetes.cri.container-name"], "counter");
    assert_eq!(json("deleted.files"), serde_json::json!(["/etc/group"]));
    for image in ["inventory.img", "pstree.img", "core-1.img", "pages-1.img", "descriptors.json"] {
        assert!(!parts[&format!("checkpoint/{image}")].is_empty(), "{image}");
    }
    assert!(String::from_utf8_lossy(&parts["dump.log"]).contains("Dumping finished successfully"));
    assert!(parts.contains_key("stats-dump"));
    // The file and the log are of the moment in which the processes were held.
    let mut changed = tar::Archive::new(parts["rootfs-diff.tar"].as_slice());
    let mut count = String::new();
    let found = changed.entries().unwrap().map(Result::unwrap).find(|e| e.path().unwrap().ends_with("count"));
    found.expect("the file that the container made is not archived").read_to_string(&mut count).unwrap();
    let count: u64 = count.trim().parse().unwrap();
    assert!(count > 0 && count <= last_number(&node, &id).await, "{count}");
    assert!(String::from_utf8_lossy(&parts["container.log"]).contains(" stdout F 1\n"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}
