//! What belongs to nobody goes, at the daemon's start and on its timer; what belongs to somebody else stays.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use cofferdam_proto::cri::ContainerState;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::faults::Records;
use cofferdam_tests::harness::{Node, Pod, eventually, leak};

async fn pod_with_container(node: &Node, name: &str) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod(name)).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    (pod, id)
}

/// Takes away every record of a pod and its container, and with `copies` left nothing but what the kernel knows.
fn forget(node: &Node, pod: &str, container: &str) {
    let records = Records::open(node);
    records.remove("sandboxes", pod);
    records.remove("containers", container);
    let state = node.dir().join("state");
    for bundle in [state.join("sandboxes").join(pod), state.join("containers").join(container)] {
        for name in ["record.json", "config.json", "shim.json"] {
            std::fs::remove_file(bundle.join(name)).unwrap();
        }
    }
}

#[tokio::test]
async fn a_pod_that_nobody_knows_is_gone_after_a_start_and_the_others_run_on() {
    let Some(mut node) = Node::builder().start().await else { return };
    let (known, kept) = pod_with_container(&node, "known").await;
    let (lost, container) = pod_with_container(&node, "lost").await;
    node.kill9();
    forget(&node, &lost.id, &container);
    node.restart().await;
    let swept = eventually(Duration::from_secs(20), async || {
        let state = node.dir().join("state");
        let files = [state.join("sandboxes").join(&lost.id), state.join("netns").join(&lost.id)];
        let processes = leak::processes(node.dir(), &node.mark());
        let lives = processes.iter().any(|(_, c)| c.contains(&lost.id) || c.contains(&container));
        !lives && files.iter().all(|file| !file.exists())
    });
    assert!(swept.await, "it is still there: {}", node.daemon_log());
    assert_eq!(node.cri.list_pods(None).await.unwrap().len(), 1);
    assert_eq!(node.cri.status(&kept).await.unwrap().state(), ContainerState::ContainerRunning);
    assert!(node.cri.pod_ready(&known.id).await);
    node.destroy(&known).await;
    // Nothing of the lost one either.
    node.assert_clean().await;
}

/// A process of the test's own that dies with this value.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Self {
        Self(Command::new("sleep").arg("1000").spawn().unwrap())
    }

    fn join(&self, cgroup: &Path) {
        std::fs::create_dir_all(cgroup).unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), self.0.id().to_string()).unwrap();
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A hierarchy with processes, of either version.
fn hierarchy() -> PathBuf {
    let v1 = Path::new("/sys/fs/cgroup/pids");
    if v1.is_dir() { v1.to_owned() } else { PathBuf::from("/sys/fs/cgroup") }
}

#[tokio::test]
async fn leftovers_of_every_kind_go_on_the_timer_and_strangers_stay() {
    let builder = Node::builder().config("maintenance", "sweep_seconds = 1");
    let builder = builder.config("metrics", &format!("address = {METRICS:?}"));
    let Some(node) = builder.start().await else { return };
    let (pod, id) = pod_with_container(&node, "gone").await;
    let (stays, kept) = pod_with_container(&node, "stays").await;
    node.destroy(&pod).await;
    let (root, state) = (node.dir().join("root"), node.dir().join("state"));
    let parent = hierarchy().join(node.mark());
    // The names of what is gone, on things that could have been left of it.
    let (mut left, mut stranger) = (Sleeper::start(), Sleeper::start());
    left.join(&parent.join(&id));
    let foreign = parent.join("ab".repeat(32));
    stranger.join(&foreign);
    let shm = state.join("sandboxes").join(&pod.id).join("shm");
    std::fs::create_dir_all(&shm).unwrap();
    let none = None::<&str>;
    nix::mount::mount(Some("shm"), &shm, Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    let volume = node.dir().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("precious"), "data").unwrap();
    let bound = state.join("containers").join(&id).join("rootfs");
    std::fs::create_dir_all(&bound).unwrap();
    nix::mount::mount(Some(&volume), &bound, none, nix::mount::MsFlags::MS_BIND, none).unwrap();
    std::fs::write(state.join("netns").join(&pod.id), "").unwrap();
    nix::unistd::mkfifo(&state.join("containers").join(&id).join("log"), nix::sys::stat::Mode::S_IRWXU)
        .unwrap();
    let socket = state.join("s/dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(std::fs::metadata(&socket).unwrap().file_type().is_socket());
    let touched = Command::new("touch").args(["-h", "-d", "2 hours ago"]).arg(&socket).status().unwrap();
    assert!(touched.success());
    let paths = [
        parent.join(&id),
        state.join("sandboxes").join(&pod.id),
        state.join("containers").join(&id),
        state.join("netns").join(&pod.id),
        socket,
    ];
    let swept = eventually(Duration::from_secs(20), async || {
        paths.iter().all(|path| !path.exists()) && !left.lives()
    });
    let remain: Vec<_> = paths.iter().filter(|path| path.exists()).collect();
    assert!(swept.await, "{remain:?} stay: {}", node.daemon_log());
    assert!(stranger.lives() && foreign.exists(), "a stranger was swept");
    assert_eq!(std::fs::read_to_string(volume.join("precious")).unwrap(), "data", "a volume was emptied");
    assert_eq!(node.cri.status(&kept).await.unwrap().state(), ContainerState::ContainerRunning);
    assert!(root.join("containers").join(&kept).exists());
    let metrics = node.netns.http_get(METRICS, "/metrics").unwrap();
    assert!(metric(&metrics, "cofferdam_sweeps_total") >= 2.0);
    assert!(metric(&metrics, "cofferdam_sweep_last_timestamp_seconds") > 1.6e9);
    for kind in ["cgroup", "mount", "network namespace", "bundle", "socket"] {
        let name = format!("cofferdam_sweep_removed_total{{kind=\"{kind}\"}}");
        assert!(metric(&metrics, &name) >= 1.0, "{name}");
    }
    drop(stranger);
    let removed = eventually(Duration::from_secs(5), async || std::fs::remove_dir(&foreign).is_ok());
    assert!(removed.await);
    node.destroy(&stays).await;
    node.assert_clean().await;
}

/// In the node's own network namespace.
const METRICS: &str = "127.0.0.1:9095";

/// The value of a metric.
pub fn metric(text: &str, name: &str) -> f64 {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    let line = line.unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Makes and removes pods for some seconds, beside one that stays.
async fn keep_busy(node: &Node) {
    let image = node.base_image().await;
    let (still, kept) = pod_with_container(node, "still").await;
    let until = std::time::Instant::now() + Duration::from_secs(12);
    let mut number = 0;
    while std::time::Instant::now() < until {
        let pod = node.run_pod(&node.pod(&format!("busy{number}"))).await;
        assert_eq!(node.output(&pod, build::shell("main", &image, "echo said")).await, "said\n");
        node.destroy(&pod).await;
        number += 1;
    }
    assert_eq!(node.cri.status(&kept).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&still).await;
    assert!(!node.daemon_log().contains("belongs to nobody"), "{}", node.daemon_log());
    node.assert_clean().await;
}

#[tokio::test]
async fn what_is_being_made_is_never_swept_and_two_daemons_leave_each_other_alone() {
    let eager = || Node::builder().config("maintenance", "sweep_seconds = 1\nverify_seconds = 1");
    let (Some(one), Some(two)) = (eager().start().await, eager().start().await) else { return };
    tokio::join!(keep_busy(&one), keep_busy(&two));
}

#[tokio::test]
async fn a_second_daemon_does_not_start_on_the_same_state_folder() {
    let Some(node) = Node::builder().start().await else { return };
    let mut command = node.netns.command(cofferdam_tests::harness::binaries().join("cofferdam"));
    command.arg("serve").args(["--config", "/dev/null"]);
    command.arg("--root").arg(node.dir().join("other")).arg("--state").arg(node.dir().join("state"));
    command.arg("--socket").arg(node.cri.socket());
    let since = Instant::now();
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("another daemon works in the state folder"), "{said}");
    // One that serves is not about to end.
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
    node.cri.version().await.unwrap();
    node.assert_clean().await;
}

#[tokio::test]
async fn a_daemon_that_starts_while_the_last_one_ends_waits_for_it() {
    let Some(mut node) = Node::builder().start().await else { return };
    let (pod, id) = pod_with_container(&node, "kept").await;
    // What the last one has to see to its end.
    let (cri, container) = (node.cri.clone(), id.clone());
    let last_call =
        tokio::spawn(async move { cri.exec_sync(&container, &["sh", "-c", "sleep 4; echo done"], 10).await });
    let io = node.dir().join("state/containers").join(&id).join("io");
    let begun = async || std::fs::read_dir(&io).is_ok_and(|entries| entries.count() > 0);
    assert!(eventually(Duration::from_secs(5), begun).await, "the exec does not begin");
    let old = nix::unistd::Pid::from_raw(node.daemon_pid().unwrap().cast_signed());
    nix::sys::signal::kill(old, nix::sys::signal::Signal::SIGTERM).unwrap();
    let log = node.dir().join("second.log");
    let mut command = node.netns.command(cofferdam_tests::harness::binaries().join("cofferdam"));
    command.arg("serve").arg("--config").arg(node.dir().join("config.toml"));
    let mut second = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
    assert_eq!(last_call.await.unwrap().unwrap().stdout, b"done\n", "the last one cut its call off");
    let serves = eventually(Duration::from_secs(15), async || {
        assert!(second.try_wait().unwrap().is_none(), "{}", std::fs::read_to_string(&log).unwrap());
        node.ended().is_some_and(|status| status.success()) && node.cri.version().await.is_ok()
    });
    let serves = serves.await;
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(serves && said.contains("waiting for its end"), "{said}");
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    second.kill().unwrap();
    second.wait().unwrap();
    node.restart().await;
    node.destroy(&pod).await;
    node.assert_clean().await;
}
