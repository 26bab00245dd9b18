//! Out-of-memory kills, the built-in pause, the log writer, options, and a foreign OCI runtime.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{Node, eventually, mkfifo, shim, soon, spec, status_of};
use containerd_shim_protos::api::{StatsRequest, UpdateTaskRequest};
use containerd_shim_protos::cgroups::metrics::Metrics;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::json;

pub fn options(text: &str) -> MessageField<Any> {
    let mut value = vec![0x1a, u8::try_from(text.len()).unwrap()];
    value.extend_from_slice(text.as_bytes());
    MessageField::some(Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() })
}

#[tokio::test]
async fn privileged_stats_updates_and_memory_kills_are_seen() {
    let mut container = spec(&["sleep", "1000"]);
    container["linux"]["resources"] = json!({ "memory": { "limit": 33_554_432 } });
    let node = Node::new(container).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    let request = UpdateTaskRequest {
        id: node.id.clone(),
        resources: MessageField::some(Any { value: br#"{"pids":{"limit":77}}"#.to_vec(), ..Any::default() }),
        ..UpdateTaskRequest::default()
    };
    node.task.update(soon(), &request).await.unwrap();
    let stats = async || {
        let request = StatsRequest { id: node.id.clone(), ..StatsRequest::default() };
        let any = node.task.stats(soon(), &request).await.unwrap().stats.unwrap();
        Metrics::parse_from_bytes(&any.value).unwrap()
    };
    let metrics = stats().await;
    assert_eq!((metrics.memory.usage.limit, metrics.pids.limit, metrics.pids.current), (33_554_432, 77, 1));
    node.exec("hog", &["sh", "-c", "x=$(tr '\\0' x < /dev/zero)"]).await.unwrap();
    assert_eq!(node.wait("hog").await, 137);
    assert!(stats().await.memory_oom_control.oom_kill > 0);
    node.kill("", 9, true).await.unwrap();
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_options_are_checked() {
    let node = Node::new(spec(&["true"])).await;
    let mut request = node.request();
    for (text, code, word) in [
        (r#"{"isolation":"vm"}"#, ttrpc::Code::INVALID_ARGUMENT, "has to be told when the shim is started"),
        (r#"{"isolaton":""}"#, ttrpc::Code::INVALID_ARGUMENT, "isolaton"),
    ] {
        request.options = options(text);
        let (found, message) = status_of(node.task.create(soon(), &request).await.unwrap_err());
        assert_eq!(found, code, "{message}");
        assert!(message.contains(word), "{message}");
    }
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_foreign_oci_runtime_serves_as_well() {
    let binary = "/usr/sbin/runc";
    assert!(Path::new(binary).exists(), "{binary} is not there: apt-get install runc");
    let mut container = spec(&["sh", "-c", "echo by runc; sleep 1000"]);
    container["process"].as_object_mut().unwrap().remove("oomScoreAdj");
    let node = Node::new(container).await;
    let mut request = node.request();
    request.options = options(&json!({ "binary": binary }).to_string());
    node.task.create(soon(), &request).await.unwrap();
    node.start().await.unwrap();
    eventually("it writes", || node.log() == "stdout F by runc\n");
    node.exec("e1", &["sh", "-c", "echo inside; exit 5"]).await.unwrap();
    assert_eq!(node.wait("e1").await, 5);
    assert_eq!(node.text("e1"), "inside\n");
    node.kill("", 9, true).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;
}

#[test]
fn privileged_the_log_writer_reopens_and_ends_with_its_writers() {
    let folder = tempfile::tempdir().unwrap();
    let (fifo, log) = (folder.path().join("out"), folder.path().join("0.log"));
    mkfifo(&fifo);
    let mut writer = Command::new(shim())
        .args(["log-writer", "--max-line", "5", "--log"])
        .arg(&log)
        .arg("--stdout")
        .arg(&fifo)
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let text = || fs::read_to_string(&log).unwrap_or_default();
    let mut out = File::options().write(true).open(&fifo).unwrap();
    out.write_all(b"one\nabcdefg\n").unwrap();
    eventually("the lines are logged", || text().lines().count() == 3);
    assert!(text().contains("stdout P abcde\n") && text().contains("stdout F fg\n"));
    fs::rename(&log, folder.path().join("old")).unwrap();
    kill(Pid::from_raw(i32::try_from(writer.id()).unwrap()), Signal::SIGHUP).unwrap();
    eventually("the log is reopened", || log.exists());
    out.write_all(b"two\n").unwrap();
    drop(out);
    assert!(writer.wait().unwrap().success());
    assert!(text().ends_with("stdout F two\n"), "{}", text());
}

#[test]
fn privileged_pause_buries_the_dead_and_ends_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let pause = folder.path().join("pause");
    std::os::unix::fs::symlink(shim(), &pause).unwrap();
    let mut unshare =
        Command::new("unshare").args(["--pid", "--fork", "--kill-child"]).arg(&pause).spawn().unwrap();
    let children = format!("/proc/{0}/task/{0}/children", unshare.id());
    let child = || fs::read_to_string(&children).unwrap_or_default().trim().parse::<i32>().ok();
    let runs_pause =
        |pid: i32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|l| l.ends_with(b"pause\0"));
    eventually("pause runs", || child().is_some_and(runs_pause));
    let pid = child().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    assert!(unshare.wait().unwrap().success());
}

/// Folders that look like a pod's scope wherever systemd would look for its processes; gone with the value.
struct Scope(String);

impl Scope {
    const HIERARCHIES: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"];

    fn new() -> Self {
        let slice = format!("test{}.slice", std::process::id());
        for hierarchy in Self::HIERARCHIES {
            let at = Path::new(hierarchy);
            assert!(at.is_dir(), "this test needs a hybrid node: {hierarchy} is not there");
            fs::create_dir_all(at.join(&slice).join("pod.scope")).unwrap();
        }
        Scope(slice)
    }

    fn containers(&self) -> Vec<String> {
        let folders = Self::HIERARCHIES.iter().map(|at| Path::new(at).join(&self.0).join("pod.scope"));
        let entries = folders.flat_map(|folder| fs::read_dir(folder).unwrap().flatten());
        let folders = entries.filter(|entry| entry.file_type().unwrap().is_dir());
        folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap().flatten() {
            for folder in ["pod.scope/c1", "pod.scope", ""] {
                let _ = fs::remove_dir(hierarchy.path().join(&self.0).join(folder));
            }
        }
    }
}

#[tokio::test]
async fn privileged_a_container_is_made_beside_its_cgroup_in_a_scope_and_ends_up_in_it() {
    let scope = Scope::new();
    let place = format!("/{}/pod.scope/c1", scope.0);
    for (binary, failing) in [(None, false), (None, true), (Some("/usr/sbin/runc"), false)] {
        let mut container = spec(&["sleep", "1000"]);
        container["process"].as_object_mut().unwrap().remove("oomScoreAdj");
        container["linux"]["cgroupsPath"] = json!(place);
        if failing {
            container["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/vol", "type": "bind", "source": "/no/such/volume", "options": ["bind"],
            }));
        }
        let node = Node::new(container).await;
        let mut request = node.request();
        request.options = options(&json!({ "systemd_cgroup": true, "binary": binary }).to_string());
        let created = node.task.create(soon(), &request).await;
        if failing {
            let (_, message) = status_of(created.unwrap_err());
            assert!(message.contains("/no/such/volume"), "{message}");
            assert_eq!(scope.containers(), Vec::<String>::new());
        } else {
            let pid = created.unwrap().pid;
            let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
            for hierarchy in ["0::", "name=systemd:", "memory:"] {
                let line = cgroups.lines().find(|line| line.contains(hierarchy)).unwrap();
                assert!(line.ends_with(&format!(":{place}")), "{binary:?}: {cgroups}");
            }
            assert_eq!(scope.containers(), ["c1", "c1"], "{binary:?}");
            node.start().await.unwrap();
            node.kill("", 9, true).await.unwrap();
            assert_eq!(node.wait("").await, 137);
            node.delete("").await.unwrap();
            assert_eq!(scope.containers(), Vec::<String>::new(), "{binary:?}");
        }
        node.finish().await;
    }
}
