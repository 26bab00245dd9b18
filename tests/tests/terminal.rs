//! The operator's side of streams: `cofferdam exec -it`, `attach` and `port-forward`, at a real terminal and at pipes.

use std::io::{Read, Write};
use std::process::{Child, Stdio};
use std::time::Duration;

use cofferdam_proto::cri::ContainerState;
use cofferdam_tests::client::build;
use cofferdam_tests::harness::cli::{cofferdam, cofferdam_command, crictl_command};
use cofferdam_tests::harness::terminal::Terminal;
use cofferdam_tests::harness::{Node, Pod, eventually, require};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

async fn shell(node: &Node, stdin: bool, tty: bool) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("shell")).await;
    let mut config = build::container("main", &image, &["sh"]);
    (config.stdin, config.tty) = (true, tty);
    if !stdin {
        config = build::container("main", &image, &["sleep", "100000"]);
    }
    let id = node.run_container(&pod, config).await;
    (pod, id)
}

fn terminal(node: &Node, args: &[&str]) -> Terminal {
    require("/usr/bin/setsid", "util-linux");
    Terminal::start(&cofferdam_command(node, args), &node.netns, 80, 25)
}

fn piped(node: &Node, args: &[&str]) -> Child {
    let mut command = cofferdam_command(node, args);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("cannot run cofferdam")
}

/// What the command printed and how it ended, after this input and its end.
async fn fed(mut child: Child, input: &[u8]) -> (Option<i32>, Vec<u8>, String) {
    let mut stdin = child.stdin.take().expect("it has a pipe");
    let input = input.to_vec();
    // A thread of its own: the output must be read meanwhile.
    let feeding = std::thread::spawn(move || stdin.write_all(&input));
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    // A command that ended early did not take it all.
    let _ = feeding.join().unwrap();
    (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test]
async fn a_shell_at_a_terminal_has_its_size_its_keys_and_its_exit_code() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, false, false).await;
    let mut terminal = terminal(&node, &["exec", "-it", &id, "sh"]);
    let before = terminal.settings();
    terminal.shows("# ").await;
    assert_ne!(terminal.settings(), before, "the terminal is not raw");
    for (columns, rows) in [(80, 25), (132, 50)] {
        terminal.resize(columns, rows);
        let line = format!(
            "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.05; done; echo {columns}-$?\r"
        );
        terminal.write(&line);
        terminal.shows(&format!("{columns}-0")).await;
    }
    terminal.write("sleep 1000\r");
    terminal.shows("sleep 1000").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    terminal.write("\x03");
    terminal.write("echo after-$?; exit 3\r");
    terminal.shows("after-130").await;
    assert_eq!(terminal.ended().await.code(), Some(3));
    assert_eq!(terminal.settings(), before, "the terminal is not as it was");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_terminal_is_as_before_after_signals_and_lost_containers() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, false, false).await;
    for (signal, code) in
        [(Signal::SIGTERM, 143), (Signal::SIGHUP, 129), (Signal::SIGQUIT, 131), (Signal::SIGINT, 130)]
    {
        let mut terminal = terminal(&node, &["exec", "-it", &id, "sh"]);
        let before = terminal.settings();
        terminal.shows("# ").await;
        // Stopped by somebody and continued: raw again.
        kill(terminal.pid(), Signal::SIGCONT).unwrap();
        terminal.write("echo still-$?\r");
        terminal.shows("still-0").await;
        kill(terminal.pid(), signal).unwrap();
        assert_eq!(terminal.ended().await.code(), Some(code), "{signal}");
        assert_eq!(terminal.settings(), before, "{signal}");
    }
    let mut terminal = terminal(&node, &["exec", "-it", &id, "sh"]);
    let before = terminal.settings();
    terminal.shows("# ").await;
    node.cri.stop(&id, 0).await.unwrap();
    assert_eq!(terminal.ended().await.code(), Some(137));
    assert_eq!(terminal.settings(), before);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn pipes_carry_bytes_their_end_and_the_exit_code() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, false, false).await;
    let data: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 19) as u8).collect();
    let (code, out, err) = fed(piped(&node, &["exec", "-i", &id, "cat"]), &data).await;
    assert!(code == Some(0) && out == data, "{code:?} {} bytes {err}", out.len());
    let script = "cat >&2; seq 1 100000; exit 42";
    let (code, out, err) = fed(piped(&node, &["exec", "-i", &id, "sh", "-c", script]), b"to stderr").await;
    assert_eq!((code, err.as_str()), (Some(42), "to stderr"));
    assert!(out.ends_with(b"\n99999\n100000\n"), "output is missing");
    let (code, _, err) = fed(piped(&node, &["exec", "-i", &id, "/no/such"]), b"").await;
    assert!(code == Some(127) && err.contains("/no/such"), "{code:?} {err}");
    let (code, _, err) = fed(piped(&node, &["exec", "-it", &id, "sh"]), b"").await;
    assert!(code == Some(125) && err.contains("terminal"), "{code:?} {err}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_signal_ends_the_client_although_nobody_reads_its_output() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, false, false).await;
    let mut child = piped(&node, &["exec", "-i", &id, "sh", "-c", "yes & sleep 3; kill $!"]);
    let mut first = [0; 2];
    child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let mut status = None;
    let ended = eventually(Duration::from_secs(5), async || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert!(ended.await, "SIGINT does not end it");
    assert_eq!(status.unwrap().code(), Some(130));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn attach_leaves_the_container_running_and_passes_its_exit_code_on() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, true, true).await;
    let mut watcher = terminal(&node, &["attach", &id]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut typist = terminal(&node, &["attach", "-it", &id]);
    let before = typist.settings();
    // The container's prompt was shown before anybody came.
    tokio::time::sleep(Duration::from_millis(500)).await;
    typist.write("echo both-$?\r");
    typist.shows("both-0").await;
    watcher.shows("both-0").await;
    watcher.write("\x03");
    assert_eq!(watcher.ended().await.code(), Some(130), "^C ends who only watches");
    assert_eq!(node.cri.status(&id).await.unwrap().state(), ContainerState::ContainerRunning);
    typist.write("exit 6\r");
    assert_eq!(typist.ended().await.code(), Some(6));
    assert_eq!(typist.settings(), before);
    let ran = cofferdam(&node, &["attach", &id]).await;
    assert!(ran.code == Some(125) && !ran.stderr.is_empty(), "{ran:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// The local port for each port of the pod that `port-forward` says to forward from IPv4.
fn announced(line: &str) -> Option<(u16, u16)> {
    let (local, remote) = line.trim().strip_prefix("Forwarding from 127.0.0.1:")?.split_once(" -> ")?;
    Some((local.parse().ok()?, remote.parse().ok()?))
}

#[tokio::test]
async fn forwarded_ports_carry_connections_until_the_signal() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("ports")).await;
    let script = "httpd -p 127.0.0.1:8080 -h /www; nc -ll -p 7001 -e wc -c";
    node.run_container(&pod, build::shell("main", &image, script)).await;
    let mut child = piped(&node, &["port-forward", "ports", ":8080", ":7001", "[::1]:17002:8080", ":7999"]);
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    let mut ports = std::collections::BTreeMap::new();
    let mut said = Vec::new();
    while said.len() < 7 {
        let line = lines.next().expect("it ended").unwrap();
        ports.extend(announced(&line).map(|(local, remote)| (remote, local)));
        said.push(line);
    }
    let page = |address: String| node.netns.http_get(&address, "/").unwrap_or_default();
    let served = eventually(Duration::from_secs(5), async || {
        page(format!("127.0.0.1:{}", ports[&8080])).contains("Hello from a pod")
    });
    assert!(served.await, "no page through {said:?}");
    for address in [format!("[::1]:{}", ports[&8080]), "[::1]:17002".to_owned()] {
        assert!(page(address).contains("Hello from a pod"), "{said:?}");
    }
    let refused = page(format!("127.0.0.1:{}", ports[&7999]));
    assert_eq!(refused, "");
    let count = ports[&7001];
    let counted = node.netns.run(move || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", count)).unwrap();
        stream.write_all(&vec![b'x'; 1_000_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    assert_eq!(counted.trim(), "1000000", "a half that ended took the other with it");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("7999") && errors.lines().count() == 1, "{errors:?}");
    let ran = cofferdam(&node, &["port-forward", "ports", "17003:0"]).await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn crictl_passes_input_and_output_over_both_transports() {
    let node = Node::start().await;
    let (pod, id) = shell(&node, false, false).await;
    let data: Vec<u8> = (0..500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 23) as u8).collect();
    for transport in ["spdy", "websocket"] {
        let args = ["exec", "-i", "--transport", transport, &id, "cat"];
        let Some(mut command) = crictl_command(&node, &args) else { break };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let (code, out, err) = fed(command.spawn().unwrap(), &data).await;
        assert!(code == Some(0) && out == data, "{transport}: {code:?} {} bytes {err}", out.len());
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
