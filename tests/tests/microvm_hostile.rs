//! A guest that was taken over, or its monitor, against the real shim and daemon: whatever it says, the node's processes
//! stay small, errors are short and clear, and the pod goes away. No machine boots: `vm-double` speaks in its place.

use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam_proto::cri::ContainerState;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, NodeBuilder, Pod, binaries, shim};

/// For what ends by itself or by a deadline of the tests'.
const SOON: Duration = Duration::from_secs(30);
/// What the pod's shim may ever have held, in KiB: a debug build with a channel's window full.
const MOST_MEMORY: u64 = 160 << 10;
const LONGEST_WORDS: usize = 8 << 10;

/// Adds a handler whose machines play `trick`.
fn handler(builder: NodeBuilder, folder: &Path, section: [&'static str; 2], trick: &str) -> NodeBuilder {
    let monitor = folder.join(format!("double-{trick}"));
    std::os::unix::fs::symlink(binaries().join("vm-double"), &monitor).unwrap();
    let handler = "type = \"io.containerd.cofferdam.v1\"\nisolation = \"vm\"\n";
    let machine = format!(
        "monitor = {monitor:?}\nkernel = {monitor:?}\nimage = {monitor:?}\nfirmware = {monitor:?}\nemulation = true\nboot_seconds = 3\n"
    );
    builder.config(section[0], handler).config(section[1], &machine)
}

fn is_there() -> bool {
    let there = binaries().join("vm-double").exists();
    let sharer =
        ["/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"].iter().any(|path| Path::new(path).exists());
    if !there || !sharer {
        println!("skipped: no vm-double (make build), or no virtiofsd (make setup-vm)");
    }
    there && sharer
}

fn assert_harmless(words: &str) {
    assert!(words.len() <= LONGEST_WORDS, "{} bytes of words", words.len());
    let tricks = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(!words.chars().any(tricks), "{words:?}");
}

/// The most memory that the pod's shim has ever held, in KiB.
fn peak(pod: &Pod) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", shim::of(&pod.id))).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[tokio::test]
async fn a_machine_that_misbehaves_from_the_beginning_makes_no_pod() {
    if !is_there() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut builder = Node::builder().config("shim", "task_seconds = 8");
    let tricks: [([&'static str; 2], &str, &str); 10] = [
        (["runtimes.dies", "runtimes.dies.vm"], "dies", "no such machine: it dies"),
        (["runtimes.garbage", "runtimes.garbage.vm"], "garbage", "does not come up"),
        (["runtimes.opener", "runtimes.opener.vm"], "opener", "does not come up"),
        (["runtimes.hangs", "runtimes.hangs.vm"], "hangs", "does not come up"),
        (["runtimes.closes", "runtimes.closes.vm"], "closes", "does not come up"),
        (["runtimes.liar", "runtimes.liar.vm"], "liar", "it answers nonsense"),
        (["runtimes.refuses", "runtimes.refuses.vm"], "refuses", "guest"),
        (["runtimes.tgarbage", "runtimes.tgarbage.vm"], "taskgarbage", ""),
        (["runtimes.thuge", "runtimes.thuge.vm"], "taskhuge", ""),
        (["runtimes.tforeign", "runtimes.tforeign.vm"], "taskforeign", ""),
    ];
    for (section, trick, _) in tricks {
        builder = handler(builder, folder.path(), section, trick);
    }
    let Some(node) = builder.start().await else { return };
    for (section, trick, words) in tricks {
        let since = Instant::now();
        let config = node.pod(trick);
        let name = section[0].trim_start_matches("runtimes.");
        let refused = node.cri.run_pod(&config, name).await.expect_err("there is a pod");
        let took = since.elapsed();
        println!("{trick}: after {took:?}: {}", refused.message());
        assert!(took < SOON, "{trick}: {took:?}");
        assert_harmless(refused.message());
        assert!(refused.message().contains(words), "{trick}: {refused:?}");
        assert!(node.cri.list_pods(None).await.unwrap().is_empty(), "{trick}: the pod stays");
    }
    node.assert_clean().await;
}

/// A container that plays `trick` in a pod of its own, and what became of its start.
async fn play(node: &Node, image: &str, trick: &str) -> (Pod, String, Result<(), tonic::Status>) {
    let config = node.pod(trick);
    let id = node.cri.run_pod(&config, "double").await.unwrap_or_else(|error| panic!("{trick}: {error:?}"));
    node.remember(&id);
    let pod = Pod { id, config };
    let word = format!("trick-{trick}");
    let id = node.cri.create(&pod.id, &pod.config, build::container("main", image, &[&word])).await.unwrap();
    let started = node.cri.start(&id).await;
    (pod, id, started)
}

/// Ends the pod, which takes a bounded time whatever its guest does, and looks at what its shim has held.
async fn end(node: &Node, pod: &Pod, trick: &str) {
    let peak = peak(pod);
    println!("{trick}: the shim held {peak} KiB at most");
    assert!(peak < MOST_MEMORY, "{trick}: the shim held {peak} KiB");
    let since = Instant::now();
    node.destroy(pod).await;
    assert!(since.elapsed() < SOON, "{trick}: removal took {:?}", since.elapsed());
}

async fn double() -> Option<(Node, String, tempfile::TempDir)> {
    if !is_there() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let builder = Node::builder().config("shim", "task_seconds = 8");
    let builder = handler(builder, folder.path(), ["runtimes.double", "runtimes.double.vm"], "well");
    let node = builder.start().await?;
    let image = node.base_image().await;
    Some((node, image, folder))
}

#[tokio::test]
async fn a_guest_that_refuses_or_lies_about_a_container_costs_that_container() {
    let Some((node, image, _folder)) = double().await else { return };
    for trick in ["refuse", "mute", "path"] {
        let (pod, id, started) = play(&node, &image, trick).await;
        let refused = started.expect_err("it is started");
        println!("{trick}: {}", refused.message().chars().take(300).collect::<String>());
        assert_harmless(refused.message());
        assert!(!refused.message().contains("passwd"), "{refused:?}");
        let status = node.cri.status(&id).await.unwrap();
        assert_eq!((status.state(), status.reason.as_str()), (ContainerState::ContainerExited, "StartError"));
        assert_harmless(&status.message);
        end(&node, &pod, trick).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn an_end_that_a_guest_tells_is_a_small_number_and_the_time_is_the_nodes() {
    let Some((node, image, _folder)) = double().await else { return };
    for (trick, code) in [("absurd", 255), ("hasty", 3), ("lost", 137)] {
        let (pod, id, started) = play(&node, &image, trick).await;
        // One that ends before its start cannot be started.
        println!("{trick}: {started:?}");
        let status = node.cri.wait_exited(&id, SOON).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerExited, "{trick}");
        println!("{trick}: {} {:?} {:?}", status.exit_code, status.reason, status.message);
        if started.is_ok() {
            assert_eq!(status.exit_code, code, "{trick}: {status:?}");
        }
        assert_harmless(&status.message);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos();
        let age = now - u128::try_from(status.finished_at).unwrap();
        assert!(age < SOON.as_nanos() * 4, "{trick}: {age} ns ago");
        end(&node, &pod, trick).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_guest_that_does_not_kill_is_ended_and_what_it_refuses_is_cut() {
    let Some((node, image, _folder)) = double().await else { return };
    for trick in ["deaf", "undying"] {
        let (pod, id, started) = play(&node, &image, trick).await;
        started.unwrap();
        let refused = node.cri.exec_sync(&id, &["true"], 3).await.unwrap_err();
        assert_harmless(refused.message());
        let stats = cofferdam_proto::cri::ContainerStatsRequest { container_id: id.clone() };
        drop(node.cri.runtime.clone().container_stats(stats).await);
        let since = Instant::now();
        node.cri.stop(&id, 1).await.unwrap();
        println!("{trick}: stopped after {:?}", since.elapsed());
        assert!(since.elapsed() < SOON, "{trick}: stop took {:?}", since.elapsed());
        let status = node.cri.status(&id).await.unwrap();
        println!("{trick}: {:?}", status.message);
        assert_eq!(status.exit_code, 137, "{trick}: {status:?}");
        assert!(status.message.contains("machine has ended"), "{trick}: {status:?}");
        assert_harmless(&status.message);
        end(&node, &pod, trick).await;
    }
    node.assert_clean().await;
}

#[tokio::test]
async fn a_flood_of_output_is_held_up_and_does_not_fill_the_shim() {
    let Some((node, image, _folder)) = double().await else { return };
    let (pod, id, started) = play(&node, &image, "flood").await;
    println!("flood: {started:?}");
    // Some of it has arrived, as a log's lines.
    let path = node.cri.status(&id).await.unwrap().log_path;
    assert!(std::fs::metadata(&path).is_ok_and(|log| log.len() > 1 << 20), "no output came");
    end(&node, &pod, "flood").await;
    node.assert_clean().await;
}
