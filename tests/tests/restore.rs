//! A container restored from a checkpoint: it goes on where it was, in another pod, and is an ordinary one then; what a
//! checkpoint must not do is refused, and leaves nothing.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::checkpoint;
use cofferdam_tests::fixtures::image::Image;
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::{Node, Pod, eventually, log};
use tonic::{Code, Status};

/// Counts into the log. Ends with 7 when it is asked to, and takes all memory when there is a file /eat.
const COUNTER: &str = "trap 'exit 7' TERM; rm /etc/group; echo kept > /kept; n=0; while true; do n=$((n+1)); echo $n; \
                       [ -e /eat ] && exec tail /dev/zero; sleep 0.05; done";

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

/// A program named criu, and a PATH that leads to it first.
fn fake_criu(script: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = checkpoint::fake_criu(folder.path(), script).unwrap();
    (folder, path)
}

/// As a kubelet asks for it.
fn masked(mut config: cri::ContainerConfig) -> cri::ContainerConfig {
    build::security(&mut config).masked_paths = vec!["/proc/kcore".into(), "/proc/scsi".into()];
    build::security(&mut config).readonly_paths = vec!["/proc/sys".into()];
    config
}

/// What asks for a container made of `image`, an image or an archive, and says nothing of what runs in it.
fn restored(image: &str) -> cri::ContainerConfig {
    let mut config = masked(build::container("restored", image, &[]));
    let resources = cri::LinuxContainerResources {
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    config.linux.get_or_insert_default().resources = Some(resources);
    config
}

async fn numbers(node: &Node, id: &str) -> Vec<u64> {
    let path = node.cri.status(id).await.unwrap().log_path;
    let said = log::joined(&log::read(Path::new(&path)), "stdout");
    said.lines().map(|line| line.parse().unwrap_or_else(|_| panic!("{line:?} in the log"))).collect()
}

async fn make_checkpoint(node: &Node, id: &str, location: &Path) {
    let location = location.display().to_string();
    let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout: 60 };
    node.cri.runtime.clone().checkpoint_container(request).await.unwrap();
}

/// Makes an archive of a counter, whose pod is gone then. Answers how far it had counted at least.
async fn archive_of_a_counter(node: &Node, image: &str, archive: &Path) -> u64 {
    let pod = node.run_pod(&node.pod("first")).await;
    let id = node.run_container(&pod, masked(build::shell("counter", image, COUNTER))).await;
    assert!(eventually(Duration::from_secs(10), async || numbers(node, &id).await.len() > 10).await);
    let before = numbers(node, &id).await.len() as u64;
    make_checkpoint(node, &id, archive).await;
    node.destroy(&pod).await;
    before
}

async fn said(node: &Node, id: &str, script: &str) -> String {
    let answer = node.cri.exec_sync(id, &["sh", "-c", script], 10).await.unwrap();
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn restores(node: &Node) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(node.dir().join("root/restores")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// It counts on from where it was, in the log that begins with what it had said.
async fn counts_on(node: &Node, id: &str, before: u64) {
    let far = async || numbers(node, id).await.len() as u64 > before + 20;
    assert!(eventually(Duration::from_secs(15), far).await, "{:?}", numbers(node, id).await);
    let numbers = numbers(node, id).await;
    let wanted: Vec<u64> = (1..=numbers.len() as u64).collect();
    assert_eq!(numbers, wanted, "no number is missing and none comes twice");
}

#[tokio::test]
async fn a_container_goes_on_in_another_pod_and_is_an_ordinary_one() {
    if !criu_works() {
        return;
    }
    let Some(node) = Node::builder().start().await else { return };
    let image = node.base_image().await;
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("c.tar");
    let before = archive_of_a_counter(&node, &image, &archive).await;

    let pod = node.run_pod(&node.pod("second")).await;
    let id = node.run_container(&pod, restored(&archive.display().to_string())).await;
    counts_on(&node, &id, before).await;
    assert!(restores(&node).is_empty(), "{:?}", restores(&node));
    assert_eq!(said(&node, &id, "cat /kept; ls /etc/group 2>/dev/null; hostname").await, "kept\nsecond");
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.image.unwrap().image, image, "it is made of the base image");
    let bundle = node.dir().join("state/containers").join(&id);
    let pid = std::fs::read_to_string(bundle.join("init.pid")).unwrap();
    let other = node.run_container(&pod, build::shell("other", &image, "exec sleep 1000")).await;
    let other = node.dir().join("state/containers").join(&other).join("init.pid");
    let other = std::fs::read_to_string(other).unwrap();
    for kind in ["net", "ipc", "uts"] {
        assert_eq!(namespace(&pid, kind), namespace(&other, kind), "{kind}");
    }
    for kind in ["mnt", "pid"] {
        assert_ne!(namespace(&pid, kind), namespace("self", kind), "{kind}");
    }
    // The limits are the request's, and the end is told as any container's.
    said(&node, &id, "touch /eat").await;
    let ended = node.cri.wait_exited(&id, Duration::from_secs(20)).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));

    let mut again = restored(&archive.display().to_string());
    again.metadata.as_mut().unwrap().attempt = 1;
    again.log_path = "again/0.log".into();
    let again = node.run_container(&pod, again).await;
    counts_on(&node, &again, before).await;
    node.cri.stop(&again, 10).await.unwrap();
    let ended = node.cri.wait_exited(&again, Duration::from_secs(5)).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The image that buildah makes of an archive: its parts lie at the root.
fn image_of(archive: &Path, mark: &str) -> Image {
    let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let mut layer = Layer::new().dir("checkpoint");
    for entry in tar.entries().unwrap() {
        let mut entry = entry.unwrap();
        let (name, kind) = (entry.path().unwrap().display().to_string(), entry.header().entry_type());
        if kind.is_file() {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            layer = layer.file(&name, bytes);
        }
    }
    Image::new().layer(layer).annotation(mark, "counter")
}

#[tokio::test]
async fn an_image_of_a_checkpoint_waits_through_a_restart_and_its_base_is_pulled() {
    if !criu_works() {
        return;
    }
    let Some(mut node) = Node::builder().start().await else { return };
    let base = node.base_image().await;
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("c.tar");
    let before = archive_of_a_counter(&node, &base, &archive).await;
    let marks = ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"];
    for (tag, mark) in marks.into_iter().enumerate() {
        node.cri.remove_image(&base).await.unwrap();
        let image = image_of(&archive, mark).build().unwrap();
        let image = node.registry.push("checkpoint", &tag.to_string(), &image);
        node.cri.pull(&image, None).await.unwrap();
        let pod = node.run_pod(&node.pod("second")).await;
        let id = node.cri.create(&pod.id, &pod.config, restored(&image)).await.unwrap();
        // All that it needs is its own by now.
        node.cri.remove_image(&image).await.unwrap();
        assert_eq!(restores(&node).len(), 1);
        node.restart().await;
        node.cri.start(&id).await.unwrap();
        counts_on(&node, &id, before).await;
        assert!(restores(&node).is_empty());
        node.destroy(&pod).await;
    }
    node.assert_clean().await;
}

/// An archive that looks whole from outside.
fn plausible(path: &Path, image: &str) {
    checkpoint::plausible(path, image, &[]).unwrap();
}

async fn refused(node: &Node, pod: &Pod, config: cri::ContainerConfig) -> Status {
    let refused = node.cri.create(&pod.id, &pod.config, config).await.unwrap_err();
    assert!(restores(node).is_empty(), "{refused:?} left {:?}", restores(node));
    assert!(node.cri.list(None).await.unwrap().is_empty(), "{refused:?} left a container");
    refused
}

#[tokio::test]
async fn what_cannot_be_restored_is_refused_in_words_and_leaves_nothing() {
    let (_folder, path) = fake_criu("echo must not run; exit 1");
    let Some(node) = Node::builder().env("PATH", &path).start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("c.tar");
    let named = archive.display().to_string();
    let missing = refused(&node, &pod, restored("/no/such/archive.tar")).await;
    assert_eq!(missing.code(), Code::NotFound, "{missing:?}");
    let folder = refused(&node, &pod, restored("/tmp")).await;
    assert_eq!(folder.code(), Code::InvalidArgument, "{folder:?}");

    plausible(&archive, &image);
    let whole = std::fs::read(&archive).unwrap();
    let mut terminal = restored(&named);
    terminal.tty = true;
    let terminal = refused(&node, &pod, terminal).await;
    assert_eq!(terminal.code(), Code::FailedPrecondition, "{terminal:?}");
    assert!(terminal.message().contains("terminal"), "{terminal:?}");
    // Cut off in the middle of an entry, and with a byte of a header changed.
    for damage in [whole[..1000].to_vec(), [&[b'x'; 10], &whole[10..]].concat(), b"no archive".to_vec()] {
        std::fs::write(&archive, damage).unwrap();
        let damaged = refused(&node, &pod, restored(&named)).await;
        assert_eq!(damaged.code(), Code::InvalidArgument, "{damaged:?}");
    }
    for (parts, word) in [
        (&[("spec.dump", &b"{}"[..])][..], "config.dump"),
        (&[("config.dump", b"{}"), ("spec.dump", b"{}")], "criu"),
        (&[("config.dump", b"not json"), ("spec.dump", b"{}")], "config.dump"),
        (&[("config.dump", b"{}"), ("spec.dump", b"{}"), ("checkpoint/inventory.img", b"x")], "no image"),
    ] {
        checkpoint::archive_with(&archive, parts).unwrap();
        let unusable = refused(&node, &pod, restored(&named)).await;
        assert_eq!(unusable.code(), Code::InvalidArgument, "{unusable:?}");
        assert!(unusable.message().contains(word), "{unusable:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn without_criu_a_restore_is_refused_in_words() {
    let Some(node) = Node::builder().env("PATH", "/no/such/folder").start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("c.tar");
    plausible(&archive, &image);
    let error = refused(&node, &pod, restored(&archive.display().to_string())).await;
    assert_eq!(error.code(), Code::FailedPrecondition, "{error:?}");
    assert!(error.message().contains("criu is not in"), "{error:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Starts a container from a plausible archive, and answers what its status says then.
async fn failed_start(script: &str) -> String {
    let (_folder, path) = fake_criu(script);
    let Some(node) = Node::builder().env("PATH", &path).start().await else { return String::new() };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("refused")).await;
    let out = tempfile::tempdir().unwrap();
    let archive = out.path().join("c.tar");
    plausible(&archive, &image);
    let config = restored(&archive.display().to_string());
    let id = node.cri.create(&pod.id, &pod.config, config).await.unwrap();
    node.cri.start(&id).await.unwrap_err();
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "{}", status.message);
    node.destroy(&pod).await;
    node.assert_clean().await;
    status.message
}

/// Finds the file for the pid, and the folder of the log, among the arguments.
const ARGUMENTS: &str =
    "while [ $# -gt 0 ]; do case $1 in --pidfile) P=$2;; --work-dir) W=$2;; esac; shift; done";

#[tokio::test]
async fn a_criu_that_cannot_restore_is_quoted() {
    let script =
        format!("{ARGUMENTS}; echo '(00.1) Error (criu/mem.c:1): Damaged pages' > $W/restore.log; exit 1");
    let message = failed_start(&script).await;
    assert!(message.is_empty() || message.contains("Damaged pages"), "{message}");
}

#[tokio::test]
async fn processes_that_images_place_elsewhere_never_run() {
    // What hostile images could make of a process: one outside of the container, as the node's root.
    let script = format!("{ARGUMENTS}; sh -c 'kill -STOP $$; exec sleep 1000' & echo $! > $P; exit 0");
    let message = failed_start(&script).await;
    assert!(message.is_empty() || message.contains("the checkpoint"), "{message}");
}
