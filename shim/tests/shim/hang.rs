//! Callers that hang up, creations that do not end, processes that cannot die: nobody else waits for any of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::common::{Node, delete_command, eventually, soon, spec, status_of};
use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use ttrpc::Code;
use ttrpc::context::with_duration;

/// Long enough for a busy machine, and far below what the callers would wait.
const PROMPT: Duration = Duration::from_secs(3);

/// A hook that says that it runs and then takes its time, in the node's folder.
fn slow_hook(folder: &Path, seconds: u32) -> Value {
    let at = folder.join("hook.pid").display().to_string();
    let script = format!("echo $$ > {at}.new; mv {at}.new {at}; exec sleep {seconds}");
    json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
}

fn end_hook(node: &Node) {
    let pid: i32 = node.text("hook.pid").trim().parse().unwrap();
    // It may be over.
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

async fn another_client(node: &Node) -> (Client, TaskClient) {
    let address = fs::read_to_string(node.bundle.join("address")).unwrap();
    let client = Client::connect(&address).await.unwrap();
    (client.clone(), TaskClient::new(client))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_creation_that_hangs_is_given_up_when_its_container_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let mut container = spec(&["sleep", "1000"]);
    container["hooks"] = json!({ "createRuntime": slow_hook(folder.path(), 999) });
    let node = Node::in_folder(container, folder).await;
    let (task, request) = (node.task.clone(), node.request());
    let creating = tokio::spawn(async move { task.create(soon(), &request).await });
    eventually("the hook runs", || node.path("hook.pid").exists());
    let began = Instant::now();
    let request = WaitRequest { id: node.id.clone(), ..Default::default() };
    assert_eq!(status_of(node.task.wait(soon(), &request).await.unwrap_err()).0, Code::NOT_FOUND);
    assert!(began.elapsed() < Duration::from_secs(1), "a wait queued: {:?}", began.elapsed());
    assert_eq!(status_of(node.kill("", 9, true).await.unwrap_err()).0, Code::NOT_FOUND);
    assert!(began.elapsed() < PROMPT, "the kill waited: {:?}", began.elapsed());
    let (_, message) = status_of(creating.await.unwrap().unwrap_err());
    assert!(message.contains("ended without an answer"), "{message}");
    end_hook(&node);
    // The same id serves again, from the same bundle.
    let mut container: Value =
        serde_json::from_str(&fs::read_to_string(node.bundle.join("config.json")).unwrap()).unwrap();
    container["hooks"] = json!({});
    fs::write(node.bundle.join("config.json"), container.to_string()).unwrap();
    node.create().await.unwrap();
    node.start().await.unwrap();
    node.kill("", 9, true).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_what_was_begun_is_finished_when_the_caller_hangs_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut container = spec(&["sleep", "1000"]);
    let at = |name: &str| folder.path().join(name).display().to_string();
    let slow =
        |name| json!([{ "path": "/bin/sh", "args": ["sh", "-c", format!("touch {}; sleep 1", at(name))] }]);
    container["hooks"] = json!({ "createRuntime": slow("creating"), "poststart": slow("starting") });
    let node = Node::in_folder(container, folder).await;
    // One caller goes away in the middle of the creation, one in the middle of the start.
    let request = node.request();
    let start = StartRequest { id: node.id.clone(), ..Default::default() };
    let (client, task) = another_client(&node).await;
    let call = tokio::spawn(async move { task.create(soon(), &request).await });
    eventually("the creation is under way", || node.path("creating").exists());
    call.abort();
    drop(client);
    let state = StateRequest { id: node.id.clone(), ..Default::default() };
    let mut state_is = None;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline && state_is.is_none() {
        state_is = node.task.state(soon(), &state).await.ok().map(|state| state.status.unwrap());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(state_is, Some(Status::CREATED));
    // The deadline of a caller is the same as his going away.
    let error = node.task.start(with_duration(Duration::from_millis(500)), &start).await.unwrap_err();
    assert!(node.path("starting").exists(), "{error}");
    let mut running = false;
    while Instant::now() < deadline && !running {
        running = node.state().await.status.unwrap() == Status::RUNNING;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(running, "the start was cut off");
    node.kill("", 9, true).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_the_end_of_a_container_does_not_wait_for_a_hook_after_its_start() {
    let folder = tempfile::tempdir().unwrap();
    let mut container = spec(&["sleep", "1000"]);
    container["hooks"] = json!({ "poststart": slow_hook(folder.path(), 999) });
    let node = Node::in_folder(container, folder).await;
    node.create().await.unwrap();
    let (task, id) = (node.task.clone(), node.id.clone());
    let starting =
        tokio::spawn(async move { task.start(soon(), &StartRequest { id, ..Default::default() }).await });
    eventually("the hook runs", || node.path("hook.pid").exists());
    node.kill("", 9, true).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    end_hook(&node);
    drop(starting.await.unwrap());
    node.delete("").await.unwrap();
    node.finish().await;
}

/// The parent of a container's freezer cgroup, frozen: what is in it receives nothing, not even its death.
struct Frozen(PathBuf);

impl Frozen {
    fn new(name: &str) -> Self {
        let folder = Path::new("/sys/fs/cgroup/freezer").join(name);
        assert!(
            folder.is_dir(),
            "this test needs the freezer of cgroup v1: {} is not there",
            folder.display()
        );
        fs::write(folder.join("freezer.state"), "FROZEN").unwrap();
        eventually("it is frozen", || {
            fs::read_to_string(folder.join("freezer.state")).unwrap().trim() == "FROZEN"
        });
        Frozen(folder)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = fs::write(self.0.join("freezer.state"), "THAWED");
    }
}

/// Everything that must answer although the container's process neither runs nor dies.
async fn all_answers(node: &Node) {
    let began = Instant::now();
    assert_eq!(node.state().await.status.unwrap(), Status::RUNNING);
    let id = || node.id.clone();
    node.task.stats(soon(), &StatsRequest { id: id(), ..Default::default() }).await.unwrap();
    node.task.pids(soon(), &PidsRequest { id: id(), ..Default::default() }).await.unwrap();
    node.kill("", 15, false).await.unwrap();
    node.kill("", 9, true).await.unwrap();
    assert_eq!(status_of(node.delete("").await.unwrap_err()).0, Code::FAILED_PRECONDITION);
    assert_eq!(node.state().await.status.unwrap(), Status::RUNNING);
    assert!(began.elapsed() < PROMPT, "somebody waited: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_container_that_cannot_die_holds_up_nobody() {
    let mut container = spec(&["sleep", "1000"]);
    let parent = format!("frozen-{}-{}", std::process::id(), line!());
    container["linux"]["cgroupsPath"] = json!(format!("/{parent}/inner"));
    let node = Node::new(container).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    let frozen = Frozen::new(&parent);
    // Somebody waits for the end, somebody wants it paused, and neither is in the way.
    let (task, id) = (node.task.clone(), node.id.clone());
    let waiting =
        tokio::spawn(async move { task.wait(soon(), &WaitRequest { id, ..Default::default() }).await });
    all_answers(&node).await;
    assert!(!waiting.is_finished());
    drop(frozen);
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    node.delete("").await.unwrap();
    for folder in crate::common::cgroups_named(&parent) {
        drop(fs::remove_dir(folder));
    }
    node.finish().await;
}

/// A file system whose server takes every request and answers none: who waits for it sleeps uninterruptibly.
struct Silent {
    /// Not in a node's own folder, whose removal would wait as well.
    folder: tempfile::TempDir,
    at: PathBuf,
    server: Option<std::thread::JoinHandle<()>>,
    connection: File,
}

impl Silent {
    fn mount() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("silent");
        fs::create_dir_all(&at).unwrap();
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        nix::mount::mount(Some("silent"), &at, Some("fuse"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        let minor = {
            let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
            let line = table.lines().find(|line| line.split(' ').nth(4) == at.to_str()).unwrap();
            line.split(' ').nth(2).unwrap().split_once(':').unwrap().1.to_owned()
        };
        // The requests end with the connection, not with their askers.
        let control = folder.path().join("control");
        fs::create_dir(&control).unwrap();
        let flags = MsFlags::empty();
        nix::mount::mount(Some("fusectl"), &control, Some("fusectl"), flags, None::<&str>).unwrap();
        let abort = control.join(minor).join("abort");
        let connection = File::options().write(true).open(abort).unwrap();
        umount2(&control, MntFlags::MNT_DETACH).unwrap();
        let server = std::thread::spawn(move || serve_nothing(device));
        Silent { folder, at, server: Some(server), connection }
    }
}

fn serve_nothing(mut device: File) {
    let mut request = vec![0; 1 << 17];
    // Ends when the connection is aborted.
    while let Ok(count) = device.read(&mut request) {
        let opcode = u32::from_le_bytes(request[4..8].try_into().unwrap());
        if count < 40 || opcode != 26 {
            continue;
        }
        // FUSE_INIT alone is answered: protocol 7.31, no features.
        let mut answer = vec![0_u8; 16 + 64];
        answer[0..4].copy_from_slice(&80_u32.to_le_bytes());
        answer[8..16].copy_from_slice(&request[8..16]);
        for (at, value) in [(16, 7_u32), (20, 31), (24, 4096), (36, 4096)] {
            answer[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        device.write_all(&answer).unwrap();
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = self.connection.write_all(b"1");
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        let _ = self.server.take().unwrap().join();
    }
}

/// Whether a process waits for an answer of the file system: so that nothing wakes it once a signal has reached it.
fn waits_for_silence(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/wchan")).is_ok_and(|place| place == "request_wait_answer")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_container_in_a_dead_file_system_holds_up_nobody() {
    let silent = Silent::mount();
    let mut container =
        spec(&["sh", "-c", "sleep 1; cat /proc/1/mounts > /dev/null; exec cat /vol/silent/file"]);
    container["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/vol", "type": "bind", "source": silent.folder.path(), "options": ["rbind", "rprivate"],
    }));
    let node = Node::new(container).await;
    let pid = node.create().await.unwrap().cast_signed();
    node.start().await.unwrap();
    eventually("it waits for the file system", || waits_for_silence(pid));
    all_answers(&node).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(waits_for_silence(pid), "it could be killed");
    drop(silent);
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_creation_in_a_dead_file_system_holds_up_nobody() {
    let silent = Silent::mount();
    let mut container = spec(&["sleep", "1000"]);
    container["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/vol", "type": "bind", "source": silent.at.join("sub"), "options": ["rbind"],
    }));
    let node = Node::new(container).await;
    let (task, request) = (node.task.clone(), node.request());
    let creating = tokio::spawn(async move { task.create(soon(), &request).await });
    eventually("the creation hangs", || {
        let inside = |pid: &i32| waits_for_silence(*pid);
        crate::common::processes_naming(node.bundle.to_str().unwrap()).iter().any(inside)
    });
    let began = Instant::now();
    let (code, message) = status_of(node.kill("", 9, true).await.unwrap_err());
    // Whichever is first: the patience of who ends it, or that of the creation's own undoing.
    let undoing = code == Code::FAILED_PRECONDITION && message.contains("being created");
    assert!(undoing || code == Code::NOT_FOUND, "{message}");
    assert!(began.elapsed() < Duration::from_secs(5), "the daemon gives up before: {:?}", began.elapsed());
    let connect = ConnectRequest { id: node.id.clone(), ..Default::default() };
    assert_eq!(node.task.connect(soon(), &connect).await.unwrap().shim_pid.cast_signed(), node.shim_pid);
    drop(silent);
    drop(creating.await.unwrap().unwrap_err());
    // While the child slept its cgroups could not go. Now nothing is in them any more, and the daemon takes them away.
    eventually("the cgroups are empty", || {
        let folders = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
        folders
            .map(|one| one.path().join(&node.id))
            .filter(|path| path.exists())
            .all(|path| std::fs::remove_dir(path).is_ok())
    });
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_checkpoint_without_time_is_refused() {
    let node = Node::new(spec(&["sleep", "1000"])).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    fs::create_dir(node.path("images")).unwrap();
    let path = node.path("images").display().to_string();
    let request = CheckpointTaskRequest { id: node.id.clone(), path, ..Default::default() };
    let short = with_duration(Duration::from_secs(4));
    let (code, message) = status_of(node.task.checkpoint(short, &request).await.unwrap_err());
    assert_eq!(code, Code::INVALID_ARGUMENT, "{message}");
    node.kill("", 9, true).await.unwrap();
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_hooks_after_the_end_run_once_whoever_deletes() {
    for dead in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let mut container = spec(&["sleep", "1000"]);
        let script = format!("echo ran >> {0}; echo noise", folder.path().join("ran").display());
        container["hooks"] = json!({ "poststop": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
        let node = Node::in_folder(container, folder).await;
        node.create().await.unwrap();
        node.start().await.unwrap();
        if dead {
            kill(Pid::from_raw(node.shim_pid), Signal::SIGKILL).unwrap();
            assert_eq!(delete_command(&node.bundle, &node.id).exit_status, 137);
        } else {
            node.kill("", 9, true).await.unwrap();
            node.wait("").await;
            node.delete("").await.unwrap();
        }
        assert_eq!(node.text("ran"), "ran\n", "the shim is dead: {dead}");
        delete_command(&node.bundle, &node.id);
        assert_eq!(node.text("ran"), "ran\n", "again, the shim is dead: {dead}");
        node.check_nothing_left();
    }
}
