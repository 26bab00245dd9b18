//! Whatever runs out: a clear error with RESOURCE_EXHAUSTED, what is there goes on, and all works again once there is more.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use cofferdam_proto::cri::{ContainerState, PodSandboxState};
use cofferdam_tests::client::build;
use cofferdam_tests::fixtures::image::Image;
use cofferdam_tests::fixtures::layer::Layer;
use cofferdam_tests::harness::{Node, Pod, eventually, log};
use tonic::{Code, Status};

const COUNT: &str = "trap 'exit 0' TERM; n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done";

fn tmpfs(options: &'static str) -> impl FnOnce(&Path) + Send + 'static {
    move |at| {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), at, Some("tmpfs"), flags, Some(options))
            .expect("cannot mount a tmpfs");
    }
}

/// Takes all room of a file system, or all its inodes; gives it back when dropped.
struct Filler(PathBuf);

impl Filler {
    fn room(folder: &Path) -> Self {
        let filler = Self(folder.join("filler"));
        std::fs::create_dir(&filler.0).unwrap();
        let mut file = std::fs::File::create(filler.0.join("room")).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        filler
    }

    fn inodes(folder: &Path) -> Self {
        let filler = Self(folder.join("filler"));
        std::fs::create_dir(&filler.0).unwrap();
        let mut number = 0;
        while std::fs::File::create(filler.0.join(format!("inode{number}"))).is_ok() {
            number += 1;
        }
        filler
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn is_told(refused: &Status) {
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    let said = refused.message().to_lowercase();
    let words = ["space", "too many open files", "resource temporarily unavailable", "memory"];
    assert!(words.iter().any(|word| said.contains(word)), "{refused:?}");
}

/// What a node has before something runs out.
struct Before {
    pod: Pod,
    image: String,
    container: String,
    log: PathBuf,
}

impl Before {
    async fn of(node: &Node) -> Self {
        let image = node.base_image().await;
        let pod = node.run_pod(&node.pod("before")).await;
        let container = node.run_container(&pod, build::shell("main", &image, COUNT)).await;
        let log = PathBuf::from(node.cri.status(&container).await.unwrap().log_path);
        Self { pod, image, container, log }
    }

    /// Reads are answered.
    async fn is_seen(&self, node: &Node) {
        // Beside it at most one that could not be undone so far, which is the kubelet's to remove.
        let pods = node.cri.list_pods(None).await.unwrap();
        let others = pods.iter().filter(|pod| pod.id != self.pod.id);
        assert!(others.clone().all(|pod| pod.state() == PodSandboxState::SandboxNotready), "{pods:?}");
        assert!(others.count() + 1 == pods.len() && pods.len() <= 2, "{pods:?}");
        assert!(node.cri.list(None).await.unwrap().iter().any(|one| one.id == self.container));
        assert!(node.cri.pod_ready(&self.pod.id).await);
        let status = node.cri.status(&self.container).await.unwrap();
        assert_eq!(status.state(), ContainerState::ContainerRunning);
        assert_eq!(node.cri.list_images().await.unwrap().len(), 1);
    }

    async fn exec_works(&self, node: &Node) {
        let answer = node.cri.exec_sync(&self.container, &["echo", "here"], 20).await.unwrap();
        assert_eq!(answer.stdout, b"here\n");
    }

    async fn no_new_pod(&self, node: &Node) {
        is_told(&node.cri.run_pod(&node.pod("more"), "").await.unwrap_err());
        self.is_seen(node).await;
    }

    /// No other container can be made, or at the latest not be started.
    async fn no_new_container(&self, node: &Node) {
        let config = build::container("more", &self.image, &["sleep", "1000"]);
        match node.cri.create(&self.pod.id, &self.pod.config, config).await {
            Err(refused) => {
                is_told(&refused);
                assert_eq!(node.cri.list(None).await.unwrap().len(), 1, "what was not made is listed");
            }
            Ok(id) => {
                is_told(&node.cri.start(&id).await.unwrap_err());
                node.cri.remove(&id).await.unwrap();
            }
        }
        self.is_seen(node).await;
    }

    /// The container ends when it is asked to, and its log has no gap.
    async fn stops(&self, node: &Node) {
        let limit = Duration::from_secs(20);
        tokio::time::timeout(limit, node.cri.stop(&self.container, 10)).await.expect("stop hangs").unwrap();
        let status = node.cri.status(&self.container).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 0));
        let numbers: Vec<u32> =
            log::read(&self.log).iter().map(|entry| entry.text.parse().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u32).collect::<Vec<_>>(), "the log has gaps");
    }

    /// All is as before, and nothing is left behind in the end.
    async fn recovers(self, node: &mut Node) {
        for pod in node.cri.list_pods(None).await.unwrap().iter().filter(|pod| pod.id != self.pod.id) {
            node.cri.destroy_pod(&pod.id).await.unwrap();
        }
        let again = node.run_pod(&node.pod("again")).await;
        let config = build::container("again", &self.image, &["echo", "made"]);
        assert_eq!(node.output(&again, config).await, "made\n");
        node.destroy(&again).await;
        node.destroy(&self.pod).await;
        node.assert_clean().await;
        // A daemon that starts later finds nothing half made, either.
        node.restart().await;
        assert!(node.cri.list_pods(None).await.unwrap().is_empty());
        assert!(node.cri.list(None).await.unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_disk_is_full() {
    let builder = Node::builder().place("root", tmpfs("size=48m"));
    let Some(mut node) = builder.start().await else { return };
    let before = Before::of(&node).await;
    let filler = Filler::room(&node.dir().join("root"));
    before.is_seen(&node).await;
    before.exec_works(&node).await;
    before.no_new_container(&node).await;
    let other = Image::new().layer(Layer::new().file("other", vec![1; 1 << 20])).build().unwrap();
    let other = node.registry.push("other", "1", &other);
    is_told(&node.cri.pull(&other, None).await.unwrap_err());
    assert!(node.cri.image_status(&other).await.unwrap().is_none());
    before.stops(&node).await;
    // A node that is full is emptied by removing: that must not need room.
    node.cri.remove(&before.container).await.unwrap();
    node.cri.stop_pod(&before.pod.id).await.unwrap();
    node.cri.remove_pod(&before.pod.id).await.unwrap();
    node.cri.remove_image(&before.image).await.unwrap();
    drop(filler);
    let image = node.base_image().await;
    Before { image, ..before }.recovers(&mut node).await;
}

#[tokio::test]
async fn the_disk_has_no_inodes() {
    let builder = Node::builder().place("root", tmpfs("size=64m,nr_inodes=3000"));
    let Some(mut node) = builder.start().await else { return };
    let before = Before::of(&node).await;
    let filler = Filler::inodes(&node.dir().join("root"));
    before.is_seen(&node).await;
    before.exec_works(&node).await;
    before.no_new_container(&node).await;
    before.stops(&node).await;
    drop(filler);
    before.recovers(&mut node).await;
}

#[tokio::test]
async fn the_state_folder_is_full() {
    let builder = Node::builder().place("state", tmpfs("size=4m,mode=711"));
    let Some(mut node) = builder.start().await else { return };
    let before = Before::of(&node).await;
    let filler = Filler::room(&node.dir().join("state"));
    before.is_seen(&node).await;
    before.exec_works(&node).await;
    before.no_new_pod(&node).await;
    before.no_new_container(&node).await;
    before.stops(&node).await;
    drop(filler);
    before.recovers(&mut node).await;
}

#[tokio::test]
async fn the_state_folder_has_no_inodes() {
    let builder = Node::builder().place("state", tmpfs("size=8m,nr_inodes=400,mode=711"));
    let Some(mut node) = builder.start().await else { return };
    let before = Before::of(&node).await;
    let filler = Filler::inodes(&node.dir().join("state"));
    before.is_seen(&node).await;
    // A command's streams are files there.
    is_told(&node.cri.exec_sync(&before.container, &["true"], 20).await.unwrap_err());
    before.no_new_pod(&node).await;
    before.no_new_container(&node).await;
    before.stops(&node).await;
    drop(filler);
    before.recovers(&mut node).await;
}

#[tokio::test]
async fn logs_have_no_room() {
    let builder = Node::builder().place("logs", tmpfs("size=256k"));
    let Some(mut node) = builder.start().await else { return };
    let before = Before::of(&node).await;
    let lines = |path: &Path| std::fs::read_to_string(path).map_or(0, |text| text.lines().count());
    let filler = Filler::room(&node.dir().join("logs"));
    // Whatever fits into the file's last page is still written.
    let mut last = 0;
    let full = eventually(Duration::from_secs(60), async || {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = lines(&before.log);
        let stands = now == last;
        last = now;
        stands
    });
    assert!(full.await, "the log grows on a full disk");
    before.is_seen(&node).await;
    before.exec_works(&node).await;
    let at_full = lines(&before.log);
    drop(filler);
    let grows = eventually(Duration::from_secs(10), async || lines(&before.log) > at_full + 10);
    assert!(grows.await, "the log stands still although there is room");
    node.cri.stop(&before.container, 10).await.unwrap();
    // What was written while there was no room is lost; every line that is there is whole, and none is there twice.
    let numbers: Vec<u32> = log::read(&before.log).iter().map(|entry| entry.text.parse().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
    let gaps = numbers.windows(2).filter(|pair| pair[0] + 1 != pair[1]).count();
    assert!(gaps <= 1, "{gaps} gaps in {numbers:?}");
    before.recovers(&mut node).await;
}

/// Sets the soft limit of open files of a process; `None` gives back all that it may have.
fn limit_files(pid: u32, limit: Option<usize>) {
    let hard = {
        let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap().to_owned();
        line.split_whitespace().nth(4).unwrap().to_owned()
    };
    let soft = limit.map_or(hard, |limit| limit.to_string());
    let status =
        Command::new("prlimit").args(["--pid", &pid.to_string(), &format!("--nofile={soft}:")]).status();
    assert!(status.unwrap().success());
}

#[tokio::test]
async fn the_daemon_has_no_descriptors() {
    let Some(mut node) = Node::builder().start().await else { return };
    let before = Before::of(&node).await;
    let daemon = node.daemon_pid().unwrap();
    let open = std::fs::read_dir(format!("/proc/{daemon}/fd")).unwrap().count();
    limit_files(daemon, Some(open));
    before.is_seen(&node).await;
    is_told(&node.cri.exec_sync(&before.container, &["true"], 20).await.unwrap_err());
    before.no_new_pod(&node).await;
    before.no_new_container(&node).await;
    // Connections wait rather than make the daemon spin.
    let waiting = std::os::unix::net::UnixStream::connect(node.cri.socket());
    let before_wait = busy(daemon);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = busy(daemon) - before_wait;
    assert!(spent < 60, "the daemon spends {spent} hundredths of a second in one");
    drop(waiting);
    before.stops(&node).await;
    limit_files(daemon, None);
    before.recovers(&mut node).await;
}

/// Hundredths of a second that a process has computed.
fn busy(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A cgroup of one controller with the processes that a test puts there.
struct Cage(PathBuf);

impl Cage {
    /// `None`, and a word about it, where the controller is not one of v1.
    fn of(node: &Node, controller: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup").join(controller);
        if !root.join("cgroup.procs").exists() {
            println!("skipped: the controller {controller} is not one of cgroup v1");
            return None;
        }
        let folder = root.join(format!("{}-cage", node.mark()));
        std::fs::create_dir(&folder).unwrap();
        Some(Self(folder))
    }

    fn set(&self, file: &str, value: impl ToString) {
        std::fs::write(self.0.join(file), value.to_string()).unwrap();
    }

    fn get(&self, file: &str) -> String {
        std::fs::read_to_string(self.0.join(file)).unwrap()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        let up = self.0.parent().unwrap().join("cgroup.procs");
        for pid in std::fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default().lines() {
            // It may have ended.
            let _ = std::fs::write(&up, pid);
        }
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[tokio::test]
async fn the_daemon_may_make_no_process() {
    let Some(mut node) = Node::builder().start().await else { return };
    let before = Before::of(&node).await;
    let Some(cage) = Cage::of(&node, "pids") else { return };
    cage.set("cgroup.procs", node.daemon_pid().unwrap());
    let threads: u32 = cage.get("pids.current").trim().parse().unwrap();
    cage.set("pids.max", threads);
    before.is_seen(&node).await;
    before.no_new_pod(&node).await;
    before.no_new_container(&node).await;
    before.exec_works(&node).await;
    before.stops(&node).await;
    cage.set("pids.max", "max");
    drop(cage);
    before.recovers(&mut node).await;
}

#[tokio::test]
async fn a_shim_has_no_memory() {
    let Some(mut node) = Node::builder().start().await else { return };
    let before = Before::of(&node).await;
    let Some(cage) = Cage::of(&node, "memory") else { return };
    let shim = cofferdam_tests::soak::shim_of(&before.container).expect("the container has no shim");
    cage.set("memory.limit_in_bytes", 65536);
    cage.set("cgroup.procs", shim);
    // It needs memory for this, and is killed.
    let talk = "i=0; while [ $i -lt 3000 ]; do echo some words to fill a page; i=$((i+1)); done";
    for _ in 0..20 {
        if node.cri.exec_sync(&before.container, &["/bin/sh", "-c", talk], 20).await.is_err() {
            break;
        }
    }
    assert!(cage.get("memory.oom_control").contains("oom_kill 1"), "{}", cage.get("memory.oom_control"));
    let status = node.cri.wait_exited(&before.container, Duration::from_secs(15)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited, "nobody noticed");
    assert_ne!(status.exit_code, 0);
    assert!(node.cri.pod_ready(&before.pod.id).await, "the pod goes on");
    drop(cage);
    before.recovers(&mut node).await;
}
