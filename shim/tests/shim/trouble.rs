//! A full disk, a shim that dies in the middle of things, execs in folders that lead out: nothing is torn, nothing stays.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{
    Node, alive, cgroups_named, delete_command, eventually, mkfifo, processes_naming, soon, spec, status_of,
};
use containerd_shim_protos::api::ExecProcessRequest;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// A small disk that goes with the test.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Self {
        fs::create_dir(at).unwrap();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
        Disk(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Every line is a record: a time, a stream, a tag, and a text that was written as a whole.
fn assert_whole(text: &str) {
    assert!(text.is_empty() || text.ends_with('\n'), "the log ends in the middle of a record");
    for line in text.lines() {
        let fields: Vec<&str> = line.splitn(4, ' ').collect();
        let whole =
            fields.len() == 4 && fields[0].ends_with('Z') && fields[1] == "stdout" && fields[2] == "F";
        assert!(whole && (fields[3].len() == 100 || fields[3] == "after"), "a torn record: {line:?}");
    }
}

#[tokio::test]
async fn privileged_a_log_on_a_full_disk_has_whole_records_and_goes_on_when_there_is_room() {
    let script =
        "i=0; while [ $i -lt 3000 ]; do echo $L; i=$((i+1)); done; cat /tmp/go >/dev/null; echo after";
    let mut container = spec(&["sh", "-c", script]);
    container["process"]["env"] = json!(["PATH=/bin", format!("L={}", "x".repeat(100))]);
    let node = Node::new(container).await;
    mkfifo(&node.path("lower/tmp/go"));
    let disk = Disk::mount(&node.path("disk"));
    let log = disk.0.join("0.log");
    // In the way from the beginning, and gone later; its size makes the end of the disk no end of a record.
    fs::write(disk.0.join("filler"), [0; 5001]).unwrap();
    let mut request = node.request();
    request.stdout = format!("cri-log://{}", log.display());
    request.stderr = String::new();
    node.task.create(soon(), &request).await.unwrap();
    node.start().await.unwrap();
    let warned = || fs::read_to_string(node.bundle.join("shim.log")).unwrap_or_default();
    eventually("the disk is full", || warned().contains("output is being lost"));
    // The container never waits for the disk: it gets to its FIFO.
    let go = format!("/proc/{}/root/tmp/go", node.state().await.pid);
    let mut go =
        tokio::task::spawn_blocking(move || File::options().write(true).open(go).unwrap()).await.unwrap();
    eventually("the log rests", || {
        let size = fs::metadata(&log).unwrap().len();
        std::thread::sleep(Duration::from_millis(100));
        size == fs::metadata(&log).unwrap().len()
    });
    let full = fs::read_to_string(&log).unwrap();
    assert!(full.len() > 20_000, "the disk was not even filled: {}", full.len());
    assert_whole(&full);
    fs::remove_file(disk.0.join("filler")).unwrap();
    go.write_all(b"x").unwrap();
    drop(go);
    assert_eq!(node.wait("").await, 0);
    let text = fs::read_to_string(&log).unwrap();
    assert_whole(&text);
    assert!(text.starts_with(&full) && text.ends_with("stdout F after\n"), "{}", &text[full.len()..]);
    assert!(warned().contains("output is written again"), "{}", warned());
    node.delete("").await.unwrap();
    drop(disk);
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_shim_that_died_before_it_noted_anything_down_leaves_nothing() {
    let node = Node::new(spec(&["sh", "-c", "sleep 1000 & sleep 1000"])).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    let pid = node.state().await.pid.cast_signed();
    for name in ["task.json", "init.pid"] {
        fs::remove_file(node.bundle.join(name)).unwrap();
    }
    // As if the host had the root filesystem mounted, too.
    mount(Some("tmpfs"), &node.bundle.join("rootfs"), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    kill(Pid::from_raw(node.shim_pid), Signal::SIGKILL).unwrap();
    let exit = delete_command(&node.bundle, &node.id);
    assert_eq!((exit.pid, exit.exit_status), (0, 137));
    assert!(!alive(pid), "the container lives on");
    node.check_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_creation_ends_with_its_shim() {
    let mut container = spec(&["sleep", "1000"]);
    // Holds the runtime child in the middle of its work.
    let folder = tempfile::tempdir().unwrap();
    let script = format!(
        "echo $$ > {0}.new; mv {0}.new {0}; exec sleep 999",
        folder.path().join("hook.pid").display()
    );
    container["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh", "args": ["sh", "-c", script] }] });
    let node = Node::in_folder(container, folder).await;
    let (task, request) = (node.task.clone(), node.request());
    let creating = tokio::spawn(async move { task.create(soon(), &request).await });
    eventually("the hook runs", || node.path("hook.pid").exists());
    assert!(children_named("runtime-child", node.shim_pid) > 0, "the child is not at work");
    kill(Pid::from_raw(node.shim_pid), Signal::SIGKILL).unwrap();
    eventually("the child dies with its shim", || {
        processes_naming(node.bundle.to_str().unwrap()).iter().all(|pid| !named(*pid, "runtime-child"))
    });
    delete_command(&node.bundle, &node.id);
    drop(creating.await.unwrap().unwrap_err());
    // Hooks are the operator's own programs: nobody but he ends one.
    kill(Pid::from_raw(node.text("hook.pid").trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    eventually("no cgroup is left", || cgroups_named(&node.id).is_empty());
    eventually("no process is left", || processes_naming(node.folder.path().to_str().unwrap()).is_empty());
    node.check_nothing_left();
}

fn named(pid: i32, word: &str) -> bool {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).contains(word)
}

fn children_named(word: &str, parent: i32) -> usize {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    children.split_whitespace().filter(|pid| named(pid.parse().unwrap(), word)).count()
}

#[tokio::test]
async fn privileged_an_exec_begins_in_no_folder_that_leads_out() {
    let node = Node::new(spec(&["sleep", "1000"])).await;
    std::os::unix::fs::symlink("/proc/self/fd/3", node.path("lower/door")).unwrap();
    node.create().await.unwrap();
    node.start().await.unwrap();
    let folders = (3..12).map(|n| format!("/proc/self/fd/{n}"));
    let further =
        ["/door", "/proc/self/root", "/proc/1/root/tmp", "/proc/self/cwd", "/nosuch"].map(str::to_owned);
    for (number, cwd) in folders.chain(further).enumerate() {
        let process = json!({
            "args": ["sh", "-c", "pwd"], "cwd": cwd, "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
        });
        let id = format!("e{number}");
        let request: ExecProcessRequest = node.exec_request(&id, &process);
        node.task.exec(soon(), &request).await.unwrap();
        let (_, message) = status_of(node.start_exec(&id).await.unwrap_err());
        assert!(message.contains(&format!("change to the folder {cwd}")), "{cwd}: {message}");
        node.delete(&id).await.unwrap();
    }
    node.exec("last", &["sh", "-c", "pwd"]).await.unwrap();
    assert_eq!((node.wait("last").await, node.text("last").as_str()), (0, "/\n"));
    node.delete("last").await.unwrap();
    node.kill("", 9, true).await.unwrap();
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}
