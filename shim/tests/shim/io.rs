//! Execs, terminals and standard input through the real binary.

use std::fs::{self, File};
use std::io::{Read, Write};

use crate::common::{Node, alive, eventually, mkfifo, soon, spec, status_of};
use containerd_shim_protos::api::{CloseIORequest, ExecProcessRequest, PidsRequest, ResizePtyRequest};
use serde_json::json;

async fn running(args: &[&str]) -> Node {
    let node = Node::new(spec(args)).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    node
}

async fn end(node: Node) {
    node.kill("", 9, true).await.unwrap();
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_an_exec_has_its_own_output_and_exit_code() {
    let node = running(&["sleep", "1000"]).await;
    node.exec("e1", &["sh", "-c", "echo hello; id -u; exit 3"]).await.unwrap();
    assert_eq!(node.wait("e1").await, 3);
    assert_eq!(node.text("e1"), "hello\n0\n");
    assert_eq!(node.delete("e1").await.unwrap(), 3);
    let (code, message) = status_of(node.exec("e2", &["nosuch"]).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(message, "exec: \"nosuch\": executable file not found in $PATH");
    // It has ended: a kill finds nothing to wait for.
    assert_eq!(node.wait("e2").await, 128);
    let (code, _) = status_of(node.kill("e2", 9, true).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(node.delete("e2").await.unwrap(), 128);
    let (code, _) = status_of(node.delete("e2").await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    end(node).await;
}

#[tokio::test]
async fn privileged_an_exec_is_confined_like_the_container() {
    let mut container = spec(&["sleep", "1000"]);
    container["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1 }]
    });
    let node = Node::new(container).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    let process = json!({
        "args": ["cat", "/proc/self/status"], "cwd": "/tmp", "env": ["PATH=/bin"],
        "user": { "uid": 1000, "gid": 1001, "additionalGids": [7] }, "noNewPrivileges": true,
        "capabilities": { "bounding": ["CAP_KILL"], "effective": [], "permitted": [] },
    });
    let out = format!("file://{}", node.path("e1").display());
    let request = ExecProcessRequest { stdout: out, ..node.exec_request("e1", &process) };
    node.task.exec(soon(), &request).await.unwrap();
    node.start_exec("e1").await.unwrap();
    assert_eq!(node.wait("e1").await, 0);
    let status = node.text("e1");
    let has = |line: &str| assert!(status.contains(line), "{line} in {status}");
    has("Uid:\t1000\t1000\t1000\t1000");
    has("Gid:\t1001\t1001\t1001\t1001");
    has("Groups:\t7 \n");
    has("CapBnd:\t0000000000000020");
    has("CapEff:\t0000000000000000");
    has("NoNewPrivs:\t1");
    has("Seccomp:\t2");
    end(node).await;
}

#[tokio::test]
async fn privileged_a_killed_exec_takes_its_whole_tree_along() {
    let node = running(&["sleep", "1000"]).await;
    node.exec("e1", &["sh", "-c", "sleep 500 & (sleep 500 &) ; sleep 500; true"]).await.unwrap();
    let pids = async || {
        let request = PidsRequest { id: node.id.clone(), ..PidsRequest::default() };
        node.task.pids(soon(), &request).await.unwrap().processes.len()
    };
    while pids().await < 4 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    node.kill("e1", 9, true).await.unwrap();
    assert_eq!(node.wait("e1").await, 137);
    while pids().await > 1 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(alive(i32::try_from(node.state().await.pid).unwrap()), "the container itself lives on");
    end(node).await;
}

#[tokio::test]
async fn privileged_stdin_ends_with_its_writer_or_with_close_io_and_loses_nothing() {
    for kept_open in [false, true] {
        let node = Node::new(spec(&["sh", "-c", "cat; echo end"])).await;
        let fifo = node.path("stdin");
        mkfifo(&fifo);
        let mut request = node.request();
        request.stdin = format!("{}{}", if kept_open { "fifo://" } else { "" }, fifo.display());
        node.task.create(soon(), &request).await.unwrap();
        node.start().await.unwrap();
        for line in ["one\n", "two\n"].iter().take(if kept_open { 2 } else { 1 }) {
            // Each line by a writer of its own: the second finds the stream open only where that was asked for.
            File::options().write(true).open(&fifo).unwrap().write_all(line.as_bytes()).unwrap();
        }
        if kept_open {
            let close = CloseIORequest { id: node.id.clone(), stdin: true, ..CloseIORequest::default() };
            node.task.close_io(soon(), &close).await.unwrap();
        }
        assert_eq!(node.wait("").await, 0);
        let middle = if kept_open { "stdout F two\n" } else { "" };
        assert_eq!(node.log(), format!("stdout F one\n{middle}stdout F end\n"));
        node.delete("").await.unwrap();
        node.finish().await;
    }
}

#[tokio::test]
async fn privileged_a_terminal_has_the_size_it_is_given() {
    let mut container = spec(&["sh", "-c", "read x; stty size; tty"]);
    container["process"]["terminal"] = json!(true);
    let node = Node::new(container).await;
    let (stdin, stdout) = (node.path("stdin"), node.path("stdout"));
    mkfifo(&stdin);
    mkfifo(&stdout);
    let mut request = node.request();
    request.terminal = true;
    request.stdin = stdin.to_string_lossy().into_owned();
    request.stdout = stdout.to_string_lossy().into_owned();
    request.stderr = String::new();
    node.task.create(soon(), &request).await.unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        File::open(stdout).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    node.start().await.unwrap();
    let resize = ResizePtyRequest { id: node.id.clone(), width: 91, height: 17, ..Default::default() };
    node.task.resize_pty(soon(), &resize).await.unwrap();
    File::options().write(true).open(&stdin).unwrap().write_all(b"go\n").unwrap();
    assert_eq!(node.wait("").await, 0);
    node.delete("").await.unwrap();
    let text = reader.join().unwrap();
    assert!(text.contains("17 91\r\n") && text.contains("/dev/"), "{text:?}");
    node.finish().await;
}

#[tokio::test]
async fn privileged_an_exec_gets_a_terminal_too() {
    let node = running(&["sleep", "1000"]).await;
    let process = json!({
        "args": ["sh", "-c", "stty size; tty"], "cwd": "/", "env": ["PATH=/bin"], "terminal": true,
        "user": { "uid": 0, "gid": 0 }, "consoleSize": { "height": 11, "width": 33 },
    });
    let out = format!("file://{}", node.path("e1").display());
    let request = ExecProcessRequest { stdout: out, terminal: true, ..node.exec_request("e1", &process) };
    node.task.exec(soon(), &request).await.unwrap();
    node.start_exec("e1").await.unwrap();
    assert_eq!(node.wait("e1").await, 0);
    assert_eq!(node.text("e1"), "11 33\r\n/dev/pts/0\r\n");
    end(node).await;
}

#[tokio::test]
async fn privileged_a_left_over_grandchild_does_not_hold_the_exit() {
    let node = running(&["sleep", "1000"]).await;
    node.exec("e1", &["sh", "-c", "sleep 300 & echo done"]).await.unwrap();
    let before = std::time::Instant::now();
    assert_eq!(node.wait("e1").await, 0);
    assert!(before.elapsed() < std::time::Duration::from_secs(5));
    assert_eq!(node.text("e1"), "done\n");
    node.delete("e1").await.unwrap();
    end(node).await;
}

#[tokio::test]
async fn privileged_a_paused_container_can_be_resumed_and_killed() {
    let node = running(&["sh", "-c", "while true; do echo x; sleep 0.01; done"]).await;
    eventually("it writes", || node.log().lines().count() > 2);
    let request = containerd_shim_protos::api::PauseRequest { id: node.id.clone(), ..Default::default() };
    node.task.pause(soon(), &request).await.unwrap();
    let size = fs::metadata(node.path("0.log")).unwrap().len();
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(fs::metadata(node.path("0.log")).unwrap().len() <= size + 64, "it went on while frozen");
    let request = containerd_shim_protos::api::ResumeRequest { id: node.id.clone(), ..Default::default() };
    node.task.resume(soon(), &request).await.unwrap();
    let lines = node.log().lines().count();
    eventually("it goes on", || node.log().lines().count() > lines);
    let request = containerd_shim_protos::api::PauseRequest { id: node.id.clone(), ..Default::default() };
    node.task.pause(soon(), &request).await.unwrap();
    node.kill("", 9, false).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;
}
