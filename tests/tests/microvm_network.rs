//! What the pods of virtual machines have in common with others, as their users see it: ports, names, both families of
//! addresses, terminals. Each test boots one machine, and looks at much of it.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use cofferdam_proto::cri;
use cofferdam_tests::client::build;
use cofferdam_tests::client::stream::wire::Said;
use cofferdam_tests::client::stream::{Flags, Session};
use cofferdam_tests::fixtures::catalog::PAGE;
use cofferdam_tests::harness::cli::cofferdam_command;
use cofferdam_tests::harness::microvm::{self, PATIENCE, SECONDS};
use cofferdam_tests::harness::terminal::Terminal;
use cofferdam_tests::harness::{Node, Pod, eventually, log, require};

const ECHO: u16 = 7000;
const COUNT: u16 = 7001;
const SILENT: u16 = 7002;
const PAGE6: u16 = 7006;
const REFUSED: u16 = 7999;
const GET: &[u8] = b"GET /index.html HTTP/1.0\r\n\r\n";

async fn says(node: &Node, container: &str, words: &str) {
    let path = PathBuf::from(node.cri.status(container).await.unwrap().log_path);
    let said = eventually(PATIENCE, async || log::joined(&log::read(&path), "stdout").contains(words));
    assert!(said.await, "{:?}", log::read(&path));
}

async fn run(node: &Node, container: &str, script: &str) -> String {
    let answer = node.cri.exec_sync(container, &["sh", "-c", script], SECONDS).await.unwrap();
    assert_eq!(answer.exit_code, 0, "{script}: {answer:?}");
    String::from_utf8_lossy(&answer.stdout).into_owned()
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

async fn forward(node: &Node, pod: &Pod) -> Session {
    let url = node.cri.forward_url(&pod.id, &[]).await.expect("PortForward failed");
    Session::forward(&node.netns, &url, None).await
}

/// The ends of connections to pods that processes of this node have open.
fn dialled(node: &Node) -> usize {
    let mark = node.dir().to_string_lossy().into_owned();
    let files =
        |process: std::fs::DirEntry| std::fs::read_dir(process.path().join("fd")).into_iter().flatten();
    let names = std::fs::read_dir("/proc").unwrap().flatten().flat_map(files).flatten();
    let names = names.filter_map(|file| std::fs::read_link(file.path()).ok());
    names
        .filter(|name| name.to_string_lossy().contains(&mark) && name.to_string_lossy().contains("/dial-"))
        .count()
}

#[tokio::test]
async fn ports_on_the_loopback_of_a_machine_are_forwarded_and_each_connection_fails_alone() {
    let Some(image) = microvm::image() else { return };
    let Some(mut node) = microvm::builder(image.path()).start().await else { return };
    let base = node.base_image().await;
    let pod = microvm::pod_in(&node, "forward").await;
    // What gives the page listens on the loopback alone; the nc of busybox cannot.
    let script = format!(
        "nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c & \
         nc -ll -p {SILENT} -e sleep 1000 & httpd -p [::1]:{PAGE6} -h /www; \
         until [ $(netstat -ltn | grep -c ':700') = 4 ]; do sleep 0.1; done; echo ready; wait"
    );
    let main = node.run_container(&pod, build::shell("main", &base, &script)).await;
    says(&node, &main, "ready").await;
    let mut session = forward(&node, &pod).await;
    for (n, port) in [(0, ECHO), (1, REFUSED), (2, PAGE6), (3, COUNT)] {
        session.connection(n, port).await;
    }
    let refused = ends(&mut session, &[1]).await.remove(0);
    assert!(refused.0.is_empty() && refused.1.contains(&REFUSED.to_string()), "{refused:?}");
    assert!(refused.1.contains("refused"), "{refused:?}");
    // The others stand. What is counted is answered only at the end of that half, the other one is open still.
    session.send(1, b"hello").await;
    session.end(1).await;
    session.send(5, GET).await;
    session.end(5).await;
    for _ in 0..30 {
        session.send(7, &[b'x'; 10_000]).await;
    }
    session.end(7).await;
    let said = ends(&mut session, &[0, 2, 3]).await;
    assert_eq!(said[0], ("hello".into(), String::new()));
    assert!(said[1].0.ends_with(PAGE) && said[1].1.is_empty(), "{said:?}");
    assert_eq!((said[2].0.trim(), said[2].1.as_str()), ("300000", ""));

    // A client that is gone leaves nothing, although nobody on the other side ever says a word or goes.
    session.connection(4, SILENT).await;
    session.send(9, b"x").await;
    session.end(9).await;
    assert!(eventually(PATIENCE, async || dialled(&node) > 0).await, "the connection never stood");
    drop(session);
    assert!(eventually(PATIENCE, async || dialled(&node) == 0).await, "the connection is kept");

    // A daemon that takes the pod over reaches it as well.
    node.kill9();
    node.restart().await;
    let mut session = forward(&node, &pod).await;
    session.connection(0, ECHO).await;
    session.send(1, b"again").await;
    session.end(1).await;
    assert_eq!(ends(&mut session, &[0]).await, [("again".into(), String::new())]);
    // The pod's end is that of its connections.
    session.connection(1, ECHO).await;
    session.send(3, b"x").await;
    node.cri.stop_pod(&pod.id).await.unwrap();
    let over = tokio::time::timeout(PATIENCE, session.rest()).await;
    assert!(over.is_ok(), "the session outlives its pod");
    node.destroy(&pod).await;
    node.assert_clean().await;
}

/// Answers every question for an IPv4 address with this one, once.
fn answer_names(node: &Node, address: Ipv4Addr) -> std::thread::JoinHandle<()> {
    let socket = node.netns.run(|| UdpSocket::bind("0.0.0.0:53").expect("no port for names"));
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        loop {
            let Ok((length, from)) = socket.recv_from(&mut packet) else { return };
            let mut answer = packet[..length].to_vec();
            let question = answer.len() - 4;
            // An answer without errors, to the question that was asked; of records there is one or none.
            let is_v4 = answer[question..question + 2] == [0, 1];
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, u8::from(is_v4), 0, 0, 0, 0]);
            if is_v4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                answer.extend(address.octets());
            }
            drop(socket.send_to(&answer, from));
            if is_v4 {
                return;
            }
        }
    })
}

#[tokio::test]
async fn names_addresses_and_host_ports_are_those_of_any_pod() {
    let Some(image) = microvm::image() else { return };
    let subnets = "subnets = [\"10.88.7.0/24\", \"fd00:88:7::/64\"]\n";
    let Some(node) = microvm::builder(image.path()).config("network", subnets).start().await else { return };
    let base = node.base_image().await;
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let port = node.netns.run(free);
    let mut config = node.pod("named");
    config.hostname = "inside".into();
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.88.7.1".into()],
        searches: vec!["svc.test".into()],
        options: vec!["ndots:1".into()],
    });
    config.port_mappings = vec![cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: 80,
        host_port: i32::from(port),
        host_ip: String::new(),
    }];
    let id = node.cri.run_pod(&config, "vm").await.unwrap();
    node.remember(&id);
    let pod = Pod { id, config };
    let script = "httpd -p 80 -h /www; httpd -p 127.0.0.1:8080 -h /www; echo ready; exec sleep 1000";
    let main = node.run_container(&pod, build::shell("main", &base, script)).await;
    says(&node, &main, "ready").await;

    let network = node.cri.pod_status(&pod.id).await.unwrap().network.unwrap();
    let second = network.additional_ips.first().expect("the pod has one address").ip.clone();
    assert!(second.starts_with("fd00:88:7:"), "{network:?}");
    let names = run(&node, &main, "hostname; cat /etc/hostname /etc/resolv.conf /etc/hosts").await;
    let first: Vec<&str> = names.lines().take(2).collect();
    assert_eq!(first, ["inside", "inside"], "{names}");
    for line in ["nameserver 10.88.7.1", "search svc.test", "options ndots:1"] {
        assert!(names.lines().any(|have| have == line), "{line}: {names}");
    }
    let own = |line: &str| line.starts_with(&network.ip) && line.ends_with("inside");
    assert!(names.lines().any(own), "{names}");

    // The node reaches the pod by both families and by its own port; the pod reaches the node by name.
    for address in [format!("{}:80", network.ip), format!("[{second}]:80"), format!("127.0.0.1:{port}")] {
        let serves = eventually(PATIENCE, async || {
            node.netns.http_get(&address, "/index.html").is_ok_and(|answer| answer.ends_with(PAGE))
        });
        assert!(serves.await, "{address} does not answer");
    }
    let server = answer_names(&node, Ipv4Addr::new(10, 88, 7, 1));
    let asked = run(&node, &main, "nslookup -type=a there.svc.test").await;
    assert!(asked.contains("10.88.7.1") && asked.contains("there.svc.test"), "{asked}");
    server.join().unwrap();
    run(&node, &main, "ping -c 1 -W 5 10.88.7.1 && ping6 -c 1 -W 5 fd00:88:7::1").await;

    // Another container of the pod is on the same loopback, and so is IPv6.
    let script =
        "hostname; wget -q -O - http://127.0.0.1:8080/index.html; ping6 -c 1 ::1 > /dev/null && echo six";
    let said = node.output(&pod, build::shell("second", &base, script)).await;
    assert_eq!(said, format!("inside\n{PAGE}six\n"));
    node.destroy(&pod).await;
    let closed = node.netns.http_get(&format!("127.0.0.1:{port}"), "/");
    assert!(closed.is_err(), "the host port is still open");
    node.assert_clean().await;
}

#[tokio::test]
async fn terminals_of_a_machine_have_their_size_their_keys_and_their_exit_code() {
    let Some(image) = microvm::image() else { return };
    let Some(node) = microvm::builder(image.path()).start().await else { return };
    require("/usr/bin/setsid", "util-linux");
    let base = node.base_image().await;
    let pod = microvm::pod_in(&node, "terminal").await;
    let mut config = build::container("main", &base, &["sh"]);
    (config.stdin, config.tty) = (true, true);
    let main = node.run_container(&pod, config).await;
    let command = |args: &[&str]| Terminal::start(&cofferdam_command(&node, args), &node.netns, 80, 25);

    let mut terminal = command(&["exec", "-it", &main, "sh"]);
    terminal.shows("# ").await;
    for (columns, rows) in [(80, 25), (132, 50)] {
        terminal.resize(columns, rows);
        let line = format!(
            "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.2; done; echo {columns}-$?\r"
        );
        terminal.write(&line);
        terminal.shows(&format!("{columns}-0")).await;
    }
    terminal.write("sleep 1000\r");
    terminal.shows("sleep 1000").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    terminal.write("\x03");
    terminal.write("echo after-$?; exit 3\r");
    terminal.shows("after-130").await;
    assert_eq!(terminal.ended().await.code(), Some(3));

    // Attached to the container's own terminal, whose words are in its log as well.
    let flags = Flags { stdin: true, tty: true };
    for protocol in [None, Some("v5.channel.k8s.io")] {
        let url = node.cri.attach_url(&main, flags).await.unwrap();
        let mut session = Session::command(&node.netns, &url, protocol, flags).await;
        session.resize(99, 44).await;
        let line = "until [ \"$(stty size)\" = '44 99' ]; do sleep 0.2; done; echo attached-$((40 + 2))\n";
        session.send(0, line.as_bytes()).await;
        session.until(1, "attached-42").await;
    }
    says(&node, &main, "attached-42").await;

    // Streams that are apart stay apart, with an end of input, through exec without a terminal.
    let flags = Flags { stdin: true, tty: false };
    let script = ["sh", "-c", "cat; echo apart >&2; exit 7"];
    let url = node.cri.exec_url(&main, &script, flags).await.unwrap();
    let mut session = Session::command(&node.netns, &url, None, flags).await;
    let text = "words\n".repeat(20_000);
    session.send(0, text.as_bytes()).await;
    session.end(0).await;
    let rest = session.rest().await;
    assert_eq!(rest.get(&1).map(Vec::len), Some(text.len()));
    assert_eq!(rest.get(&2).map(Vec::as_slice), Some(&b"apart\n"[..]));
    assert_eq!(cofferdam_tests::client::stream::exit_code(&rest[&3]), Ok(7));
    node.destroy(&pod).await;
    node.assert_clean().await;
}
