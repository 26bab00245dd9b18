//! Port-forward as a kubelet's clients see it: each connection for itself, both families, both ends.

use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::client::stream::Session;
use cofferdam_tests::client::stream::wire::Said;
use cofferdam_tests::harness::cli::crictl_command;
use cofferdam_tests::harness::{Node, Pod, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: u16 = 7000;
const COUNT: u16 = 7001;
const PAGE6: u16 = 7006;
const REFUSED: u16 = 7999;
const GET: &[u8] = b"GET /index.html HTTP/1.0\r\n\r\n";

/// Listeners: one that echoes, one that counts bytes and answers at their end, one on IPv6 alone that gives a page.
async fn listener(node: &Node, mut config: cri::PodSandboxConfig, host: bool) -> Pod {
    let image = node.base_image().await;
    if host {
        build::host_network(&mut config);
    }
    let pod = node.run_pod(&config).await;
    let script = format!(
        "nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c & httpd -p [::1]:{PAGE6} -h /www; \
         until [ $(netstat -ltn | grep -c ':700') = 3 ]; do sleep 0.05; done; echo ready; wait"
    );
    let mut container = build::shell("main", &image, &script);
    if host {
        let options = build::security(&mut container).namespace_options.get_or_insert_default();
        options.network = cri::NamespaceMode::Node.into();
    }
    let id = node.run_container(&pod, container).await;
    let log = node.cri.status(&id).await.unwrap().log_path;
    let ready = eventually(Duration::from_secs(10), async || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("ready"))
    });
    assert!(ready.await, "{}", std::fs::read_to_string(&log).unwrap_or_default());
    pod
}

/// Reads until both channels of each connection are over: their data and their errors.
async fn ends(session: &mut Session, connections: &[u8]) -> Vec<(String, String)> {
    let mut said = vec![(String::new(), String::new()); 16];
    let mut open: Vec<u8> = connections.iter().flat_map(|n| [2 * n, 2 * n + 1]).collect();
    while !open.is_empty() {
        match session.next().await.expect("the session ended before its connections") {
            Said::Data { channel, data } => {
                let (bytes, errors) = &mut said[usize::from(channel / 2)];
                let to = if channel % 2 == 1 { bytes } else { errors };
                to.push_str(&String::from_utf8_lossy(&data));
            }
            Said::End { channel } | Said::Reset { channel } => open.retain(|other| *other != channel),
            Said::Farewell => panic!("a farewell although connections are open: {said:?}"),
            Said::Other => {}
        }
    }
    connections.iter().map(|n| said[usize::from(*n)].clone()).collect()
}

async fn spdy(node: &Node, pod: &Pod) -> Session {
    let url = node.cri.forward_url(&pod.id, &[]).await.expect("PortForward failed");
    Session::forward(&node.netns, &url, None).await
}

#[tokio::test]
async fn connections_of_both_families_are_carried_and_one_that_fails_fails_alone() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("forward"), false).await;
    let mut session = spdy(&node, &pod).await;
    for (n, port) in [(0, ECHO), (1, REFUSED), (2, PAGE6)] {
        session.connection(n, port).await;
    }
    session.send(1, b"first ").await;
    let refused = ends(&mut session, &[1]).await.remove(0);
    assert!(refused.0.is_empty() && refused.1.contains(&REFUSED.to_string()), "{refused:?}");
    // The others stand; what the first said may have come meanwhile and been read away.
    session.send(1, b"second").await;
    session.send(5, GET).await;
    session.end(1).await;
    session.end(5).await;
    let said = ends(&mut session, &[0, 2]).await;
    assert!("first second".ends_with(&said[0].0) && said[0].0.ends_with("second"), "{said:?}");
    assert!(said[1].0.contains("Hello from a pod") && said[1].1.is_empty(), "{said:?}");
    session.connection(3, ECHO).await;
    session.send(7, b"later").await;
    session.end(7).await;
    assert_eq!(ends(&mut session, &[3]).await, [("later".into(), String::new())]);
    drop(session);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn the_end_of_one_half_leaves_the_other_open() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("half"), false).await;
    let mut session = spdy(&node, &pod).await;
    session.connection(0, COUNT).await;
    for _ in 0..50 {
        session.send(1, &[b'x'; 10_000]).await;
    }
    session.end(1).await;
    let said = ends(&mut session, &[0]).await.remove(0);
    assert_eq!((said.0.trim(), said.1.as_str()), ("500000", ""));
    drop(session);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_pod_on_the_nodes_network_is_reached_there() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("host"), true).await;
    let mut session = spdy(&node, &pod).await;
    for (n, port) in [(0, ECHO), (1, PAGE6)] {
        session.connection(n, port).await;
    }
    session.send(1, b"over there").await;
    session.end(1).await;
    session.send(3, GET).await;
    session.end(3).await;
    let said = ends(&mut session, &[0, 1]).await;
    assert_eq!(said[0], ("over there".into(), String::new()));
    assert!(said[1].0.contains("Hello from a pod"), "{said:?}");
    drop(session);
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn websocket_channels_carry_the_ports_of_the_request() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("channels"), false).await;
    for protocol in ["v4.channel.k8s.io", "v4.base64.channel.k8s.io"] {
        let url = node.cri.forward_url(&pod.id, &[ECHO, REFUSED]).await.unwrap();
        let mut session = Session::forward(&node.netns, &url, Some(protocol)).await;
        session.send(0, b"hello").await;
        let (mut data, mut errors) = (vec![Vec::new(), Vec::new()], vec![Vec::new(), Vec::new()]);
        while data[0].len() < 2 + 5 || errors[1].len() < 10 {
            match session.next().await {
                Some(Said::Data { channel, data: piece }) => {
                    let of = if channel % 2 == 0 { &mut data } else { &mut errors };
                    of[usize::from(channel / 2)].extend(piece);
                }
                other => panic!("{other:?} after {data:?} {errors:?}"),
            }
        }
        // Every channel begins with its port.
        assert_eq!(data[0], [&ECHO.to_le_bytes()[..], b"hello"].concat(), "{protocol}");
        assert_eq!(errors[0], ECHO.to_le_bytes(), "{protocol}");
        let words = String::from_utf8_lossy(&errors[1][2..]).into_owned();
        assert!(words.contains("7999"), "{words}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn a_stopped_pod_ends_its_sessions_and_refuses_new_ones() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("stopped"), false).await;
    let mut session = spdy(&node, &pod).await;
    session.connection(0, ECHO).await;
    session.send(1, b"before").await;
    node.cri.stop_pod(&pod.id).await.unwrap();
    let over = tokio::time::timeout(Duration::from_secs(10), session.rest()).await;
    assert!(over.is_ok(), "the session outlives its pod");
    let refused = node.cri.forward_url(&pod.id, &[ECHO]).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused:?}");
    let wrong = node.cri.forward_url(&pod.id, &[0]).await.unwrap_err();
    assert!(matches!(wrong.code(), tonic::Code::FailedPrecondition | tonic::Code::InvalidArgument));
    node.destroy(&pod).await;
    node.assert_clean().await;
}

#[tokio::test]
async fn crictl_forwards_over_both_transports() {
    let node = Node::start().await;
    let pod = listener(&node, node.pod("crictl"), false).await;
    for (transport, local) in [("spdy", 17_000u16), ("websocket", 17_001)] {
        let ports = format!("{local}:{ECHO}");
        let args = ["port-forward", "--transport", transport, &pod.id, &ports];
        let Some(mut command) = crictl_command(&node, &args) else { break };
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().expect("cannot run crictl");
        let mut answer = String::new();
        let answered = eventually(Duration::from_secs(10), async || {
            let asked = node.netns.run(move || std::net::TcpStream::connect(("127.0.0.1", local)));
            let Ok(stream) = asked else { return false };
            stream.set_nonblocking(true).unwrap();
            let mut stream = tokio::net::TcpStream::from_std(stream).unwrap();
            stream.write_all(b"by crictl").await.unwrap();
            stream.shutdown().await.unwrap();
            answer.clear();
            stream.read_to_string(&mut answer).await.is_ok()
        });
        let answered = answered.await;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(answered && answer == "by crictl", "{transport}: {answer:?}");
    }
    node.destroy(&pod).await;
    node.assert_clean().await;
}
