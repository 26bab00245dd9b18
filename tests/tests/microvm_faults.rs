//! What goes wrong in pods that run in virtual machines: a part of the machine dies or hangs, or the guest does. The pod
//! says why, goes away when it is told to, and leaves nothing behind.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::microvm::{self, PATIENCE, Part, SECONDS, monitor, pod_in};
use cofferdam_tests::harness::{Node, Pod, eventually, log, shim};
use nix::sys::signal::{Signal, kill};
use tonic::Code;

/// How long the end of a machine may go unnoticed, on a busy machine and in a debug build.
const NOTICED: Duration = Duration::from_secs(20);
/// What a pod may take beyond its grace period.
const SOON: Duration = Duration::from_secs(25);

/// A pod in a machine, with a container that runs on.
struct Victim {
    pod: Pod,
    main: String,
}

impl Victim {
    async fn start(node: &Node, image: &str, name: &str) -> Self {
        let mut config = node.pod(name);
        build::pod_security(&mut config).privileged = true;
        let id = node.cri.run_pod(&config, "vm").await.expect("RunPodSandbox failed");
        node.remember(&id);
        let pod = Pod { id, config };
        let mut config = build::shell("main", image, "while :; do echo tick; sleep 1; done");
        // Within its own kernel it may do what it likes.
        build::security(&mut config).privileged = true;
        let main = node.run_container(&pod, config).await;
        Self { pod, main }
    }

    fn log(&self, node: &Node) -> PathBuf {
        let folder = Path::new(&self.pod.config.log_directory);
        assert!(folder.starts_with(node.dir()));
        folder.join("main/0.log")
    }

    /// The container has ended and says why, the pod is not ready, nothing of the machine runs, and all of it goes away.
    async fn falls(self, node: &Node, why: &str) {
        let name = &self.pod.config.hostname;
        let since = Instant::now();
        let ended = node.cri.wait_exited(&self.main, NOTICED).await.unwrap();
        assert_eq!(ended.state(), ContainerState::ContainerExited, "{name}: it runs on");
        assert_eq!(ended.exit_code, 137, "{name}: {ended:?}");
        println!("{name}: after {:?}: {}", since.elapsed(), ended.message);
        assert!(ended.message.contains(why), "{name}: {:?}", ended.message);
        assert!(!ended.message.chars().any(char::is_control), "{name}: {:?}", ended.message);
        let fallen = eventually(NOTICED, async || !node.cri.pod_ready(&self.pod.id).await).await;
        assert!(fallen, "{name}: the pod is ready without its machine");
        let over = eventually(NOTICED, async || monitor(node, &self.pod).is_none()).await;
        assert!(over, "{name}: the monitor runs on");
        assert_eq!(microvm::part(node, &self.pod, Part::Virtiofsd), None, "{name}");
        let refused = node.cri.exec_sync(&self.main, &["true"], 5).await.unwrap_err();
        assert_ne!(refused.code(), Code::DeadlineExceeded, "{name}: {refused:?}");
        let since = Instant::now();
        node.destroy(&self.pod).await;
        assert!(since.elapsed() < SOON, "{name}: removal took {:?}", since.elapsed());
    }

    /// Runs a script in the guest that it does not survive.
    async fn ruin(&self, node: &Node, script: &str) {
        // Whatever is answered: the guest may be gone first.
        drop(node.cri.exec_sync(&self.main, &["sh", "-c", script], SECONDS).await);
    }
}

#[tokio::test]
async fn a_machine_of_which_a_part_is_killed_is_ended_as_a_whole() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let victim = Victim::start(&node, &base, "monitor").await;
    microvm::signal(&node, &victim.pod, Part::Monitor, Signal::SIGKILL);
    victim.falls(&node, "its monitor ended").await;
    let victim = Victim::start(&node, &base, "files").await;
    microvm::signal(&node, &victim.pod, Part::Virtiofsd, Signal::SIGKILL);
    victim.falls(&node, "its virtiofsd ended").await;
    let victim = Victim::start(&node, &base, "shim").await;
    kill(shim::of(&victim.pod.id), Signal::SIGKILL).unwrap();
    victim.falls(&node, "the container's shim died").await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_guest_that_ruins_itself_takes_its_pod_along_and_says_why() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let victim = Victim::start(&node, &base, "panic").await;
    victim.ruin(&node, "echo c > /proc/sysrq-trigger").await;
    victim.falls(&node, "Kernel panic").await;
    // Kills everything but the agent, and so the container code.
    let victim = Victim::start(&node, &base, "code").await;
    victim.ruin(&node, "echo i > /proc/sysrq-trigger").await;
    victim.falls(&node, "machine has ended").await;
    // Takes the agent's way to the node away.
    let victim = Victim::start(&node, &base, "channel").await;
    let unbind = "cd /sys/bus/virtio/drivers/virtio_console && for d in virtio*; do echo $d > unbind; done";
    victim.ruin(&node, unbind).await;
    victim.falls(&node, "machine has ended").await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_guest_that_hangs_is_refused_in_time_and_goes_away_soon() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let victim = Victim::start(&node, &base, "hung").await;
    microvm::signal(&node, &victim.pod, Part::Monitor, Signal::SIGSTOP);
    let since = Instant::now();
    let refused = node.cri.exec_sync(&victim.main, &["true"], 2).await.unwrap_err();
    assert_eq!(refused.code(), Code::DeadlineExceeded, "{refused:?}");
    assert!(since.elapsed() < Duration::from_secs(10), "exec: {:?}", since.elapsed());
    let since = Instant::now();
    let refused = node.cri.exec_sync(&victim.main, &["true"], 0).await.unwrap_err();
    println!("without a limit: {:?}, {refused:?}", since.elapsed());
    assert!(refused.message().contains("guest"), "{refused:?}");
    assert!(since.elapsed() < SOON, "exec without a limit: {:?}", since.elapsed());
    let since = Instant::now();
    node.cri.stop(&victim.main, 2).await.unwrap();
    println!("stopped after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON, "stop: {:?}", since.elapsed());
    victim.falls(&node, "no answer").await;

    // The whole pod at once, as when it is deleted.
    let victim = Victim::start(&node, &base, "hung2").await;
    microvm::signal(&node, &victim.pod, Part::Monitor, Signal::SIGSTOP);
    let since = Instant::now();
    node.destroy(&victim.pod).await;
    println!("destroyed after {:?}", since.elapsed());
    assert!(since.elapsed() < SOON, "the pod: {:?}", since.elapsed());
    node.assert_clean().await;
}

#[tokio::test]
async fn machines_run_on_while_the_daemon_is_down_and_what_ended_meanwhile_is_told() {
    let Some(image) = microvm::image() else { return };
    let Some(mut node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let victim = Victim::start(&node, &base, "down").await;
    let volume = node.dir().join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    let script = "until [ -e /data/go ]; do sleep 0.2; done; echo over; exit 7";
    let mut config = build::shell("ending", &base, script);
    let host_path = volume.to_string_lossy().into_owned();
    config.mounts.push(cri::Mount { container_path: "/data".into(), host_path, ..Default::default() });
    let ending = node.run_container(&victim.pod, config).await;
    let other = pod_in(&node, "other").await;
    node.kill9();

    std::fs::write(volume.join("go"), "").unwrap();
    let exit = node.dir().join("state/containers").join(&ending).join("exit.json");
    assert!(eventually(PATIENCE, async || exit.exists()).await, "it does not end");
    let path = victim.log(&node);
    let ticks = || log::joined(&log::read(&path), "stdout").lines().count();
    let before = ticks();
    assert!(eventually(PATIENCE, async || ticks() >= before + 2).await, "the log stands still");
    // A machine that dies meanwhile is found dead.
    microvm::signal(&node, &other, Part::Monitor, Signal::SIGKILL);
    node.restart().await;

    let ended = node.cri.wait_exited(&ending, NOTICED).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 7), "{ended:?}");
    assert_eq!(log::joined(&log::read(Path::new(&ended.log_path)), "stdout"), "over\n");
    assert_eq!(node.cri.status(&victim.main).await.unwrap().state(), ContainerState::ContainerRunning);
    let answer = node.cri.exec_sync(&victim.main, &["uname", "-r"], SECONDS).await.unwrap();
    assert_ne!(String::from_utf8_lossy(&answer.stdout).trim(), microvm::own_release());
    let before = ticks();
    assert!(eventually(PATIENCE, async || ticks() > before).await, "the log stands still after the restart");
    assert!(node.cri.pod_ready(&victim.pod.id).await);
    let fallen = eventually(NOTICED, async || !node.cri.pod_ready(&other.id).await).await;
    assert!(fallen, "a pod whose machine died meanwhile is ready");
    node.destroy(&other).await;
    node.destroy(&victim.pod).await;
    node.assert_clean().await;
}
