//! Exec and attach as a kubelet's clients see them: every protocol of both transports, terminals, ends of input, lost clients.

use std::time::Duration;

use cofferdam_proto::cri::{self, ContainerState};
use cofferdam_tests::client::build;
use cofferdam_tests::client::stream::wire::Said;
use cofferdam_tests::client::stream::{ERROR, Flags, Protocol, STDERR, STDIN, STDOUT, Session, exit_code};
use cofferdam_tests::harness::{Node, Pod, eventually};

const SPDY: Protocol = None;
const V5: Protocol = Some("v5.channel.k8s.io");
const V4: Protocol = Some("v4.channel.k8s.io");
const BASE64: Protocol = Some("v4.base64.channel.k8s.io");
const V1: Protocol = Some("channel.k8s.io");

const INPUT: Flags = Flags { stdin: true, tty: false };
const OUTPUT: Flags = Flags { stdin: false, tty: false };
const TERMINAL: Flags = Flags { stdin: true, tty: true };

async fn sleeper(node: &Node) -> (Pod, String) {
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("stream")).await;
    let id = node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
    (pod, id)
}

async fn exec(node: &Node, id: &str, script: &str, protocol: Protocol, flags: Flags) -> Session {
    let url = node.cri.exec_url(id, &["sh", "-c", script], flags).await.expect("Exec failed");
    Session::command(&node.netns, &url, protocol, flags).await
}

async fn attach(node: &Node, id: &str, protocol: Protocol, flags: Flags) -> Session {
    let url = node.cri.attach_url(id, flags).await.expect("Attach failed");
    Session::command(&node.netns, &url, protocol, flags).await
}

fn text(rest: &std::collections::BTreeMap<u8, Vec<u8>>, channel: u8) -> String {
    rest.get(&channel).map(|data| String::from_utf8_lossy(data).into_owned()).unwrap_or_default()
}

/// Processes whose command line names this node: the daemon, its shims, and whatever they run for it.
fn processes(node: &Node) -> Vec<String> {
    let mark = node.mark();
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let line = std::fs::read(entry.ok()?.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains(&mark).then_some(line)
    };
    std::fs::read_dir("/proc").expect("no /proc").filter_map(of).collect()
}

#[tokio::test]
async fn exec_speaks_every_protocol() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    for protocol in [SPDY, V5, V4, BASE64, V1] {
        let script = "read line; echo \"out $line\"; echo err >&2; exit 7";
        let mut session = exec(&node, &id, script, protocol, INPUT).await;
        session.send(STDIN, b"hello\n").await;
        let rest = session.rest().await;
        let said = (text(&rest, STDOUT), text(&rest, STDERR));
        assert_eq!(said, ("out hello\n".into(), "err\n".into()), "{protocol:?}");
        let error = text(&rest, ERROR);
        if protocol == V1 {
            assert_eq!(error, "command terminated with exit code 7");
        } else {
            assert_eq!(exit_code(error.as_bytes()), Ok(7), "{protocol:?}");
        }
        let rest = exec(&node, &id, "true", protocol, OUTPUT).await.rest().await;
        let error = rest.get(&ERROR).cloned().unwrap_or_default();
        assert!(if protocol == V1 { error.is_empty() } else { exit_code(&error) == Ok(0) }, "{protocol:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_end_of_input_reaches_the_process() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    for protocol in [SPDY, V5] {
        let mut session = exec(&node, &id, "wc -c; exit 3", protocol, INPUT).await;
        for _ in 0..30 {
            session.send(STDIN, &[b'x'; 10_000]).await;
        }
        session.end(STDIN).await;
        let rest = session.rest().await;
        assert_eq!(text(&rest, STDOUT).trim(), "300000", "{protocol:?}");
        assert_eq!(exit_code(&rest[&ERROR]), Ok(3), "{protocol:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn output_is_complete_although_the_process_has_ended() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    let script =
        "head -c 3000000 /dev/zero | tr '\\0' o & head -c 3000000 /dev/zero | tr '\\0' e >&2; wait; exit 2";
    for protocol in [SPDY, V5, BASE64] {
        let rest = exec(&node, &id, script, protocol, OUTPUT).await.rest().await;
        let whole = |channel: u8, letter: u8| {
            rest[&channel].len() == 3_000_000 && rest[&channel].iter().all(|byte| *byte == letter)
        };
        assert!(whole(STDOUT, b'o') && whole(STDERR, b'e'), "{protocol:?}");
        assert_eq!(exit_code(&rest[&ERROR]), Ok(2), "{protocol:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_terminal_echoes_and_has_the_clients_size() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    for protocol in [SPDY, V5, V4, BASE64] {
        let mut session = exec(&node, &id, "exec sh", protocol, TERMINAL).await;
        for (columns, rows) in [(100, 30), (117, 43)] {
            session.resize(columns, rows).await;
            // The size follows on a way of its own; what is typed is echoed with $? in it, so only the answer has sized-0.
            let line = format!(
                "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.05; done; echo sized-$?\n"
            );
            session.send(STDIN, line.as_bytes()).await;
            let said = session.until(STDOUT, "sized-0").await;
            // The shell may draw the line anew while it is typed, in the middle of any word but not of them all.
            assert!(
                said.matches("echo").count() + said.matches("stty").count() > 0,
                "no echo over {protocol:?}: {said:?}"
            );
        }
        session.send(STDIN, b"sleep 1000\n").await;
        session.until(STDOUT, "sleep 1000").await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.send(STDIN, b"\x03").await;
        session.send(STDIN, b"tty; exit 3\n").await;
        let rest = session.rest().await;
        assert!(text(&rest, STDOUT).contains("/dev/pts/"), "{rest:?}");
        assert_eq!(exit_code(&rest[&ERROR]), Ok(3), "{protocol:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn archives_pass_both_ways_byte_for_byte() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    // Every byte value, in an order that no line discipline or encoding would keep by chance.
    let file: Vec<u8> = (0..2_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 21) as u8).collect();
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(file.len() as u64);
    header.set_mode(0o640);
    archive.append_data(&mut header, "copied", &file[..]).unwrap();
    let archive = archive.into_inner().unwrap();
    for protocol in [SPDY, V5] {
        let mut session = exec(&node, &id, "tar xf - -C /tmp", protocol, INPUT).await;
        for piece in archive.chunks(16_000) {
            session.send(STDIN, piece).await;
        }
        session.end(STDIN).await;
        let rest = session.rest().await;
        assert_eq!(exit_code(&rest[&ERROR]), Ok(0), "{protocol:?} {}", text(&rest, STDERR));
        let rest = exec(&node, &id, "tar cf - -C /tmp copied", protocol, OUTPUT).await.rest().await;
        let mut back = tar::Archive::new(&rest[&STDOUT][..]);
        let mut entry = back.entries().unwrap().next().expect("an empty archive").unwrap();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        assert!(content == file, "{protocol:?} changed the file");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_vanished_exec_client_leaves_nothing_behind() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    // Once each, so that what is kept for the next time is there.
    for flags in [INPUT, TERMINAL] {
        exec(&node, &id, "true", SPDY, flags).await.rest().await;
    }
    let before = processes(&node).len();
    for protocol in [SPDY, V5] {
        // Without a terminal the end of the input is the news; with one the line is hung up.
        let mut typist = exec(&node, &id, "echo begun; sleep 77002", protocol, TERMINAL).await;
        let mut copier = exec(&node, &id, "echo begun; cat; exec true 77003", protocol, INPUT).await;
        for session in [&mut typist, &mut copier] {
            session.until(STDOUT, "begun").await;
        }
        let list = node.cri.exec_sync(&id, &["ps", "-o", "args"], 5).await.unwrap();
        assert!(String::from_utf8_lossy(&list.stdout).contains("sleep 77002"), "ps does not show it");
        drop((typist, copier));
        let gone = eventually(Duration::from_secs(5), async || {
            let list = node.cri.exec_sync(&id, &["ps", "-o", "args"], 5).await.unwrap();
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            !list.contains("7700") && processes(&node).len() == before
        });
        let (gone, left) = (gone.await, processes(&node));
        assert!(gone, "{protocol:?}: {left:#?}");
    }
    assert!(node.cri.status(&id).await.unwrap().state() == ContainerState::ContainerRunning);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

fn talker(image: &str, script: &str, once: bool) -> cri::ContainerConfig {
    let mut config = build::shell("main", image, script);
    (config.stdin, config.stdin_once) = (true, once);
    config
}

#[tokio::test]
async fn clients_share_an_attached_container_and_none_ends_it() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("attach")).await;
    let script = "while read line; do echo \"got $line\"; done; echo over";
    let id = node.run_container(&pod, talker(&image, script, false)).await;
    let mut first = attach(&node, &id, SPDY, INPUT).await;
    let mut second = attach(&node, &id, V5, OUTPUT).await;
    // A client hears what is said once its session stands; the daemon says when only by what it lets through.
    let both = eventually(Duration::from_secs(10), async || {
        first.send(STDIN, b"one\n").await;
        let quick = Duration::from_millis(300);
        let heard = tokio::time::timeout(quick, second.until(STDOUT, "got one")).await.is_ok();
        first.until(STDOUT, "got one").await;
        heard
    });
    assert!(both.await, "two clients do not hear the same");
    drop(first);
    let mut third = attach(&node, &id, V4, INPUT).await;
    third.send(STDIN, b"two\n").await;
    second.until(STDOUT, "got two").await;
    drop(second);
    third.send(STDIN, b"three\n").await;
    third.until(STDOUT, "got three").await;
    drop(third);
    let status = node.cri.status(&id).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerRunning);
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert!(["got one", "got two", "got three"].iter().all(|line| log.contains(line)), "{log}");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn stdin_once_ends_with_its_first_client() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("once")).await;
    for (protocol, polite) in [(SPDY, true), (V5, true), (SPDY, false), (V5, false)] {
        let script = "while read line; do echo \"got $line\"; sleep 0.2; done; echo over; exit 5";
        let id = node.run_container(&pod, talker(&image, script, true)).await;
        let mut session = attach(&node, &id, protocol, INPUT).await;
        session.send(STDIN, b"one\n").await;
        session.until(STDOUT, "got one").await;
        if polite {
            session.end(STDIN).await;
            let rest = session.rest().await;
            assert_eq!(text(&rest, STDOUT), "over\n", "{protocol:?}");
            assert_eq!(exit_code(&rest[&ERROR]), Ok(0), "an attach has no exit code of its own");
        } else {
            session.send(STDIN, b"last\nwords\n").await;
        }
        drop(session);
        let status = node.cri.wait_exited(&id, Duration::from_secs(10)).await.unwrap();
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 5), "{protocol:?}");
        let log = std::fs::read_to_string(&status.log_path).unwrap();
        assert!(log.contains("got one") && (polite || log.contains("got words")), "{protocol:?}: {log}");
        node.cri.remove(&id).await.unwrap();
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_blocks_neither_container_nor_log() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("slow")).await;
    let line = "a line that is about sixty bytes long, so that it sums up ok";
    let script = format!("read go; yes '{line}' | head -n 200000; echo last");
    let id = node.run_container(&pod, talker(&image, &script, false)).await;
    let mut slow = attach(&node, &id, SPDY, INPUT).await;
    let deaf = attach(&node, &id, V5, OUTPUT).await;
    slow.send(STDIN, b"go\n").await;
    let status = node.cri.wait_exited(&id, Duration::from_secs(60)).await.unwrap();
    assert_eq!(status.state(), ContainerState::ContainerExited, "the container waits for its clients");
    let log = std::fs::read_to_string(&status.log_path).unwrap();
    assert_eq!(log.lines().count(), 200_001);
    assert!(log.trim_end().ends_with(" F last"));
    drop((slow, deaf));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn an_attached_client_hears_the_end() {
    let node = Node::start().await;
    let image = node.base_image().await;
    let pod = node.run_pod(&node.pod("end")).await;
    for protocol in [SPDY, V5, V1] {
        let script = "read go; seq 1 20000; echo problem >&2; exit 9";
        let id = node.run_container(&pod, talker(&image, script, false)).await;
        let mut session = attach(&node, &id, protocol, INPUT).await;
        session.send(STDIN, b"go\n").await;
        let rest = session.rest().await;
        assert!(text(&rest, STDOUT).ends_with("\n19999\n20000\n"), "{protocol:?}: output is missing");
        assert_eq!(text(&rest, STDERR), "problem\n", "{protocol:?}");
        node.cri.remove(&id).await.unwrap();
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn what_cannot_be_run_is_said_on_the_error_channel() {
    let node = Node::start().await;
    let (pod, id) = sleeper(&node).await;
    for protocol in [SPDY, V5] {
        let url = node.cri.exec_url(&id, &["/no/such"], OUTPUT).await.unwrap();
        let rest = Session::command(&node.netns, &url, protocol, OUTPUT).await.rest().await;
        let words = exit_code(&rest[&ERROR]).unwrap_err();
        assert!(words.contains("/no/such"), "{words}");
    }
    // Nobody reads on: the process's output ends, and the session with it.
    let mut session = exec(&node, &id, "echo first; exec >&- 2>&-; sleep 0.5; exit 4", V5, OUTPUT).await;
    assert!(matches!(session.next().await, Some(Said::Data { .. })));
    assert_eq!(exit_code(&session.rest().await[&ERROR]), Ok(4));
    node.destroy(&pod).await;
    node.assert_clean().await;
}
