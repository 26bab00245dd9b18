//! ExecSync: exit codes, output, time-outs, and many at once.

use std::time::{Duration, Instant};

use cofferdam_proto::cri::ContainerState;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, eventually};
use tonic::Code;

async fn sleeper(node: &Node) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("exec")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    (pod, id)
}

#[tokio::test]
async fn output_streams_and_exit_code_come_back() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let answer = node.cri.exec_sync(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"], 10).await.unwrap();
    assert_eq!(
        (answer.stdout.as_slice(), answer.stderr.as_slice(), answer.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 5)
    );
    let killed = node.cri.exec_sync(&id, &["sh", "-c", "kill -9 $$"], 10).await.unwrap();
    assert_eq!(killed.exit_code, 137);
    let nothing = node.cri.exec_sync(&id, &["true"], 0).await.unwrap();
    assert_eq!((nothing.stdout.len(), nothing.stderr.len(), nothing.exit_code), (0, 0, 0));
    let raw = node.cri.exec_sync(&id, &["printf", "\\377\\000x"], 10).await.unwrap();
    assert_eq!(raw.stdout, b"\xff\x00x", "output is bytes");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn it_runs_where_the_container_runs() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("where")).await;
    let mut config = build::container("main", &image, &["sleep", "100000"]);
    config.working_dir = "/tmp".into();
    config.envs = vec![cofferdam_proto::cri::KeyValue { key: "SHIP".into(), value: b"ark".to_vec() }];
    build::security(&mut config).run_as_user = Some(cofferdam_proto::cri::Int64Value { value: 1000 });
    let id = node.run_container(&pod, config).await;
    let script = "pwd; id -u; echo $SHIP; hostname; cat /proc/1/cmdline | tr '\\0' ' '";
    let answer = node.cri.exec_sync(&id, &["sh", "-c", script], 10).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "/tmp\n1000\nark\nwhere\nsleep 100000 ");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn it_needs_no_program_of_the_node() {
    let Some(node) = Node::builder().env("PATH", "/nowhere").start().await else { return };
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("probed")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    for _ in 0..5 {
        let answer = node.cri.exec_sync(&id, &["/bin/echo", "well"], 10).await.unwrap();
        assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"well\n"[..], 0));
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_time_out_kills_everything_it_started() {
    // Only ours: containerd kills the process alone and then waits for whoever holds its output.
    let Some(node) = Node::builder().start().await else { return };
    let (pod, id) = sleeper(&node).await;
    let script = "trap '' TERM; (sleep 77777) & setsid sleep 77777 & sleep 77777";
    let before = Instant::now();
    let late = node.cri.exec_sync(&id, &["sh", "-c", script], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(before.elapsed() < Duration::from_secs(6), "it took {:?}", before.elapsed());
    let gone = eventually(Duration::from_secs(3), async || {
        let list = node.cri.exec_sync(&id, &["ps", "-o", "args"], 5).await.unwrap();
        !String::from_utf8_lossy(&list.stdout).contains("77777")
    });
    assert!(gone.await, "processes of the exec run on");
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_command() {
    // Only ours: containerd kills the process alone.
    let Some(node) = Node::builder().start().await else { return };
    let (pod, id) = sleeper(&node).await;
    let runs = async |wanted: &str| {
        let list = node.cri.exec_sync(&id, &["ps", "-o", "args"], 5).await.unwrap();
        String::from_utf8_lossy(&list.stdout).lines().any(|line| line == wanted)
    };
    let script = "(sleep 66661) & setsid sleep 66662 & sleep 66663";
    {
        let command = ["sh", "-c", script];
        let mut call = std::pin::pin!(node.cri.exec_sync(&id, &command, 0));
        let begun = eventually(Duration::from_secs(5), async || {
            let ended = tokio::time::timeout(Duration::from_millis(50), &mut call).await;
            assert!(ended.is_err(), "{ended:?}");
            runs("sleep 66663").await
        });
        assert!(begun.await, "the command does not run");
    }
    let gone = eventually(Duration::from_secs(5), async || {
        !(runs("sleep 66661").await || runs("sleep 66662").await || runs("sleep 66663").await)
    });
    assert!(gone.await, "the command runs on without its caller");
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_time_out_is_told_as_such() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let before = Instant::now();
    let late = node.cri.exec_sync(&id, &["sleep", "77777"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    assert!(before.elapsed() < Duration::from_secs(6), "it took {:?}", before.elapsed());
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn output_is_bounded() {
    // Only ours: containerd's bound is that of the message, and what lies on top makes the answer too long to send.
    let Some(node) = Node::builder().start().await else { return };
    let (pod, id) = sleeper(&node).await;
    let script = "head -c 40000000 /dev/zero | tr '\\0' a";
    let answer = node.cri.exec_sync(&id, &["sh", "-c", script], 30).await.unwrap();
    assert!(answer.stdout.len() <= 16 << 20, "{} bytes came back", answer.stdout.len());
    assert!(answer.stdout.len() >= 1 << 20 && answer.stdout.starts_with(b"aaaa"));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn twenty_at_once_do_not_mix() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..20 {
        let (cri, id) = (node.cri.clone(), id.clone());
        tasks.spawn(async move {
            let script = format!("echo begin{number}; sleep 0.2; echo end{number}; exit {number}");
            let answer = cri.exec_sync(&id, &["sh", "-c", &script], 60).await.unwrap();
            let said = String::from_utf8_lossy(&answer.stdout).into_owned();
            assert_eq!((said, answer.exit_code), (format!("begin{number}\nend{number}\n"), number));
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_missing_command_and_a_container_that_does_not_run_are_refused() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    // Runtimes differ in the form: an error that names it, or the exit code that a shell gives.
    match node.cri.exec_sync(&id, &["/no/such/command"], 10).await {
        Ok(answer) => assert!(matches!(answer.exit_code, 126 | 127), "{answer:?}"),
        Err(status) => assert!(status.message().contains("/no/such/command"), "{status:?}"),
    }
    assert!(node.cri.exec_sync(&id, &[], 10).await.is_err(), "no command at all");
    assert_eq!(node.cri.exec_sync("no-such-id", &["true"], 10).await.unwrap_err().code(), Code::NotFound);
    node.cri.stop(&id, 0).await.unwrap();
    assert!(node.cri.exec_sync(&id, &["true"], 10).await.is_err(), "the container has exited");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn stopping_the_container_ends_an_exec_under_way() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let (cri, container) = (node.cri.clone(), id.clone());
    let running = tokio::spawn(async move { cri.exec_sync(&container, &["sleep", "88888"], 0).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.cri.stop(&id, 0).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), running).await.expect("the exec hangs").unwrap();
    if let Ok(answer) = ended {
        assert_eq!(answer.exit_code, 137);
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
