//! The life of a container through the real binary: exits, logs, errors, and nothing left behind.

use std::fs;

use crate::common::{Node, alive, delete_command, eventually, make_executable, soon, spec, status_of};
use cofferdam_proto::shim::{ReopenLogRequest, ShimClient};
use containerd_shim_protos::api::Status;

#[tokio::test]
async fn privileged_a_container_runs_and_leaves_nothing() {
    let node = Node::new(spec(&["sh", "-c", "echo out; echo err >&2; exit 7"])).await;
    let pid = node.create().await.unwrap();
    assert!(alive(i32::try_from(pid).unwrap()));
    assert_eq!(node.state().await.status.unwrap(), Status::CREATED);
    node.start().await.unwrap();
    assert_eq!(node.wait("").await, 7);
    let log = node.log();
    assert!(log.contains("stdout F out\n") && log.contains("stderr F err\n"), "{log}");
    let state = node.state().await;
    assert_eq!((state.status.unwrap(), state.exit_status), (Status::STOPPED, 7));
    let (code, _) = status_of(node.kill("", 15, false).await.unwrap_err());
    assert_eq!(code, ttrpc::Code::NOT_FOUND);
    assert_eq!(node.delete("").await.unwrap(), 7);
    let warnings = fs::read_to_string(node.bundle.join("shim.log")).unwrap_or_default();
    assert!(warnings.contains("oom_score_adj -500"), "{warnings}");
    node.finish().await;
}

#[tokio::test]
async fn privileged_long_and_unfinished_lines_are_partial_and_the_log_reopens() {
    let script = "echo abcdefghij; cat /tmp/go >/dev/null; echo after; echo -n end";
    let node = Node::new(spec(&["sh", "-c", script])).await;
    crate::common::mkfifo(&node.path("lower/tmp/go"));
    let mut request = node.request();
    request.stdout = format!("{}?max_line=4", node.log_uri());
    node.task.create(soon(), &request).await.unwrap();
    node.start().await.unwrap();
    eventually("the first line is logged", || node.log().contains("F ij"));
    assert_eq!(node.log(), "stdout P abcd\nstdout P efgh\nstdout F ij\n");
    fs::rename(node.path("0.log"), node.path("0.log.1")).unwrap();
    let request = ReopenLogRequest { id: node.id.clone(), ..Default::default() };
    ShimClient::new(node.client.clone()).reopen_log(soon(), &request).await.unwrap();
    assert_eq!(node.log(), "");
    let root = format!("/proc/{}/root/tmp/go", node.state().await.pid);
    fs::write(root, "x").unwrap();
    assert_eq!(node.wait("").await, 0);
    assert_eq!(node.log(), "stdout P afte\nstdout F r\nstdout P end\n");
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_missing_program_is_named() {
    let node = Node::new(spec(&["nosuch"])).await;
    let (code, message) = status_of(node.create().await.unwrap_err());
    assert_eq!(code, ttrpc::Code::INVALID_ARGUMENT);
    assert_eq!(message, "exec: \"nosuch\": executable file not found in $PATH");
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_program_of_the_wrong_format_fails_at_start() {
    let node = Node::new(spec(&["/bin/wrong"])).await;
    make_executable(&node.path("lower/bin/wrong"), "no program");
    node.create().await.unwrap();
    let (code, message) = status_of(node.start().await.unwrap_err());
    assert_eq!(
        (code, message.as_str()),
        (ttrpc::Code::INVALID_ARGUMENT, "exec /bin/wrong: exec format error")
    );
    node.wait("").await;
    node.delete("").await.unwrap();
    node.finish().await;
}

#[tokio::test]
async fn privileged_a_killed_container_and_a_deleted_unstarted_one_are_gone() {
    let node = Node::new(spec(&["sh", "-c", "sleep 1000 & sleep 1000"])).await;
    node.create().await.unwrap();
    node.start().await.unwrap();
    let (code, _) = status_of(node.delete("").await.unwrap_err());
    assert_eq!(code, ttrpc::Code::FAILED_PRECONDITION);
    node.kill("", 9, true).await.unwrap();
    assert_eq!(node.wait("").await, 137);
    node.delete("").await.unwrap();
    node.finish().await;

    let node = Node::new(spec(&["sleep", "1000"])).await;
    node.create().await.unwrap();
    assert_eq!(node.delete("").await.unwrap(), 137);
    node.finish().await;
}

#[tokio::test]
async fn privileged_delete_cleans_up_after_a_killed_shim() {
    let node = Node::new(spec(&["sleep", "1000"])).await;
    let pid = i32::try_from(node.create().await.unwrap()).unwrap();
    node.start().await.unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(node.shim_pid), nix::sys::signal::SIGKILL).unwrap();
    eventually("the shim is gone", || !alive(node.shim_pid));
    assert!(alive(pid), "the container outlives its shim");
    let response = delete_command(&node.bundle, &node.id);
    assert_eq!((response.pid, response.exit_status), (pid.unsigned_abs(), 137));
    eventually("the container is gone", || !alive(pid));
    node.check_nothing_left();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_twenty_containers_at_once() {
    let mut all = tokio::task::JoinSet::new();
    for n in 0..20_u32 {
        all.spawn(async move {
            let node = Node::new(spec(&["sh", "-c", &format!("echo {n}; exit {n}")])).await;
            node.create().await.unwrap();
            node.start().await.unwrap();
            assert_eq!(node.wait("").await, n);
            assert_eq!(node.log(), format!("stdout F {n}\n"));
            node.delete("").await.unwrap();
            node.finish().await;
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
}
