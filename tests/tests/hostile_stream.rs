//! Clients of the streaming server that mean ill: refused within bounded time and memory, while others are served, and
//! nothing of them is left.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use cofferdam_proto::cri::{ExecRequest, PortForwardRequest};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod};
use cofferdam_tests::streams::{self, Deflater, Frame, Session, control, data, syn, websocket};

/// How much larger the daemon may be afterwards, and meanwhile: buffers of one session, what the allocator keeps, and
/// the code that was not touched before.
const ROOM_KIB: u64 = 12 << 10;
/// How long a refusal may take.
const LIMIT: Duration = Duration::from_secs(15);

struct Scene {
    node: Node,
    pod: Pod,
    container: String,
    pid: u32,
}

impl Scene {
    /// `None` when the tests attach to another runtime: bounds are ours to keep.
    async fn new(name: &str) -> Option<Self> {
        let node = Node::builder().start().await?;
        let image = node.base_image().await;
        let pod = node.run_pod(&node.pod(name)).await;
        let container =
            node.run_container(&pod, build::container("main", &image, &["sleep", "100000"])).await;
        let pid = node.daemon_pid().expect("the node has a daemon of its own");
        let scene = Self { node, pod, container, pid };
        // What the first session leaves in the allocator is no growth.
        for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
            scene.is_well(protocol).await;
        }
        Some(scene)
    }

    async fn exec(&self, command: &[&str], tty: bool) -> String {
        let request = ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty,
        };
        self.node.cri.runtime.clone().exec(request).await.expect("Exec failed").into_inner().url
    }

    /// A session of exec with its streams open: 1 the status, 3 stdin, 5 stdout, with a terminal 7 its sizes.
    async fn session(&self, command: &[&str], tty: bool) -> Session {
        let url = self.exec(command, tty).await;
        let mut session = Session::new(streams::spdy(&self.node.netns, &url, "v4.channel.k8s.io"));
        for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "resize")] {
            if tty || id != 7 {
                session.open(id, &[("streamtype", name)]).unwrap();
                assert!(
                    matches!(session.receive(), Some(Frame::Control { kind: 2, .. })),
                    "{name} is refused"
                );
            }
        }
        session
    }

    async fn is_well(&self, protocol: &str) {
        let url = self.exec(&["echo", "well"], false).await;
        let mut said = Vec::new();
        if protocol.starts_with("v5") {
            streams::websocket(&self.node.netns, &url, protocol).read_to_end(&mut said).unwrap();
        } else {
            let mut session = Session::new(streams::spdy(&self.node.netns, &url, protocol));
            for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
                session.open(id, &[("streamtype", name)]).unwrap();
            }
            session.each(|_, bytes| said.extend_from_slice(bytes));
        }
        let said = String::from_utf8_lossy(&said);
        assert!(said.contains("well") && said.contains("Success"), "{said}");
    }

    fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Runs an attack on a thread and watches the daemon's memory meanwhile.
    async fn watch(&self, name: &str, attack: impl FnOnce() + Send + 'static) {
        let (before, begun) = (self.memory(), Instant::now());
        let attack = std::thread::spawn(attack);
        let mut most = before;
        while !attack.is_finished() {
            tokio::time::sleep(Duration::from_millis(5)).await;
            most = most.max(self.memory());
        }
        attack.join().unwrap_or_else(|_| panic!("{name}"));
        println!("{name}: {:?}, {before} KiB before, {most} KiB at most", begun.elapsed());
        assert!(most <= before + ROOM_KIB, "{name}: the daemon grew from {before} to {most} KiB");
    }

    async fn end(self) {
        for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
            self.is_well(protocol).await;
        }
        self.node.destroy(&self.pod).await;
        self.node.assert_clean().await;
    }
}

/// Writes what the other side takes, and reads until it ends the connection; panics when it does not in time.
fn refused(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    // The refusal may come before the last byte was taken.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("not refused within {LIMIT:?}")
        }
        _ => answer,
    }
}

fn spdy_attacks() -> Vec<(&'static str, Vec<u8>)> {
    let bomb = Deflater::default().deflate(&vec![0; 16 << 20]);
    let many: Vec<_> = (0..1000).map(|number| format!("h{number}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), "x")).collect();
    let mut cut = syn(1, &Deflater::default().headers(&[("streamtype", "error")]));
    cut.truncate(20);
    cut.extend_from_slice(&[0xff; 64]);
    vec![
        ("garbage", vec![0xff; 1 << 20]),
        ("another version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("a frame of 16 MB", control(4, 0, &vec![0; 0xff_ffff])),
        ("a bomb in the headers", syn(1, &bomb)),
        ("a flood of headers", syn(1, &Deflater::default().headers(&many))),
        ("a broken header block", cut),
        ("data for stream 0", data(0, false, b"x")),
    ]
}

#[tokio::test]
async fn hostile_spdy_is_refused() {
    let Some(scene) = Scene::new("spdy").await else { return };
    for (name, bytes) in spdy_attacks() {
        let url = scene.exec(&["cat"], false).await;
        let stream = streams::spdy(&scene.node.netns, &url, "v4.channel.k8s.io");
        scene.watch(name, move || drop(refused(stream, &bytes))).await;
        // And in the middle of a session that was begun well.
        let session = scene.session(&["cat"], false).await;
        let bytes =
            if name == "garbage" { vec![0xff; 4096] } else { vec![0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff] };
        scene.watch(name, move || drop(refused(session.writer(), &bytes))).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn hostile_websockets_are_refused() {
    let Some(scene) = Scene::new("websocket").await else { return };
    let unmasked = b"\x82\x06\0hello".to_vec();
    let attacks = [
        ("garbage", vec![0xff; 1 << 20]),
        ("an unmasked frame", unmasked),
        ("a ping in two frames", websocket::frame(false, 9, b"x")),
        ("a ping of 126 bytes", websocket::frame(true, 9, &[0; 126])),
        ("a continuation of nothing", websocket::frame(true, 0, b"x")),
        (
            "a message in a message",
            [websocket::frame(false, 2, b"\0x"), websocket::frame(true, 2, b"\0x")].concat(),
        ),
        ("an unknown opcode", websocket::frame(true, 5, b"x")),
        ("an impossible length", websocket::head(true, 2, u64::MAX)),
    ];
    for (name, bytes) in attacks {
        for protocol in ["v5.channel.k8s.io", "base64.channel.k8s.io"] {
            let url = scene.exec(&["cat"], false).await;
            let stream = streams::websocket(&scene.node.netns, &url, protocol);
            let bytes = bytes.clone();
            scene.watch(name, move || drop(refused(stream, &bytes))).await;
        }
    }
    let url = scene.exec(&["cat"], false).await;
    let stream = streams::websocket(&scene.node.netns, &url, "base64.channel.k8s.io");
    let bytes = websocket::frame(true, 1, b"0****");
    scene.watch("no base64", move || drop(refused(stream, &bytes))).await;
    scene.end().await;
}

/// What is allowed but much: it is borne, and does not stay.
#[tokio::test]
async fn floods_are_borne_in_bounded_memory() {
    let Some(scene) = Scene::new("floods").await else { return };
    const MUCH: usize = 64 << 20;
    let blanks = scene.session(&["cat"], true).await;
    scene
        .watch("blanks instead of sizes", move || {
            flood(blanks.writer(), &data(7, false, &[b' '; 1 << 16]), MUCH)
        })
        .await;
    let pings = scene.session(&["cat"], false).await;
    let ping = control(6, 0, &[0, 0, 0, 1]).repeat(4096);
    scene.watch("pings whose answers nobody reads", move || flood(pings.writer(), &ping, MUCH)).await;
    let unread = scene.session(&["sleep", "2"], false).await;
    scene
        .watch("input beyond every window", move || {
            flood(unread.writer(), &data(3, false, &[7; 1 << 16]), MUCH)
        })
        .await;
    let unknown = scene.session(&["cat"], false).await;
    scene
        .watch("frames of no known kind", move || {
            flood(unknown.writer(), &control(77, 0, &[7; 1 << 16]), MUCH)
        })
        .await;
    let url = scene.exec(&["sleep", "2"], false).await;
    let mut stream = streams::websocket(&scene.node.netns, &url, "v5.channel.k8s.io");
    let giant = websocket::head(true, 2, 1 << 62);
    scene
        .watch("a message without end", move || {
            stream.write_all(&giant).unwrap();
            flood(stream, &[7; 1 << 16], MUCH);
        })
        .await;
    scene.end().await;
}

/// Writes up to `most` bytes, reading nothing; stops when the other side takes no more for a while.
fn flood(mut stream: TcpStream, bytes: &[u8], most: usize) {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut sent = 0;
    while sent < most {
        match stream.write(&bytes[sent % bytes.len()..]) {
            Ok(count) => sent += count,
            Err(_) => break,
        }
    }
    println!("{sent} bytes were taken");
    let _ = stream.shutdown(Shutdown::Both);
}

#[tokio::test]
async fn thousands_of_streams_are_refused_while_others_are_served() {
    let Some(scene) = Scene::new("streams").await else { return };
    let request = PortForwardRequest { pod_sandbox_id: scene.pod.id.clone(), port: vec![80] };
    let url = scene.node.cri.runtime.clone().port_forward(request).await.unwrap().into_inner().url;
    let forwards = Session::new(streams::spdy(&scene.node.netns, &url, "portforward.k8s.io"));
    for (name, session, headers) in [
        (
            "streams of an exec",
            scene.session(&["cat"], false).await,
            vec![("streamtype", "stdin".to_owned())],
        ),
        // Each inflates to 30 kB from a few bytes.
        ("streams with long headers", scene.session(&["cat"], false).await, vec![("x", "y".repeat(30_000))]),
        (
            "halves of connections",
            forwards,
            vec![("streamtype", "data".to_owned()), ("port", "80".to_owned()), ("requestid", "1".to_owned())],
        ),
    ] {
        let mut session = session;
        let attack = move || {
            let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let frames: Vec<_> =
                (0..5000).map(|number| session.opening(101 + 2 * number, &headers)).collect();
            let mut writer = session.writer();
            let reading = std::thread::spawn(move || {
                let mut resets = 0;
                while let Some(frame) = session.receive() {
                    resets += usize::from(matches!(frame, Frame::Control { kind: 3, .. }));
                }
                resets
            });
            // The server may give up on this client before all is said.
            let _ = frames.iter().try_for_each(|frame| writer.write_all(frame));
            let _ = writer.shutdown(Shutdown::Write);
            let resets = reading.join().unwrap();
            println!("{name}: {resets} resets");
        };
        let watched = scene.watch(name, attack);
        let (_, slow) = tokio::join!(watched, slowest(&scene));
        println!("{name}: the slowest other call took {slow:?}");
        assert!(slow < Duration::from_secs(5), "{name}: others waited {slow:?}");
    }
    scene.end().await;
}

/// How long a small call takes at most, over a second.
async fn slowest(scene: &Scene) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        scene.node.cri.status(&scene.container).await.unwrap();
        slowest = slowest.max(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    slowest
}

#[tokio::test]
async fn who_says_nothing_or_little_is_sent_away() {
    let Some(scene) = Scene::new("slow").await else { return };
    let url = scene.exec(&["cat"], false).await;
    let (address, path) = streams::target(&url);
    let mut clients = Vec::new();
    for number in 0..60 {
        let mut stream = streams::connect(&scene.node.netns, address);
        let head = format!("POST {path}wrong HTTP/1.1\r\nHost: {address}\r\nX: {}", "y".repeat(1000));
        clients.push(std::thread::spawn(move || {
            let begun = Instant::now();
            if number % 2 == 0 {
                stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                for byte in head.bytes() {
                    let ended = stream.read(&mut [0]).is_ok();
                    if ended || stream.write_all(&[byte]).is_err() || begun.elapsed() > LIMIT * 2 {
                        break;
                    }
                }
            } else {
                stream.set_read_timeout(Some(LIMIT * 2)).unwrap();
                let _ = stream.read(&mut [0]);
            }
            begun.elapsed()
        }));
    }
    // Meanwhile others are served.
    scene.is_well("v4.channel.k8s.io").await;
    let longest = clients.into_iter().map(|client| client.join().unwrap()).max().unwrap();
    println!("the last one was sent away after {longest:?}");
    assert!(longest < LIMIT, "a silent client stayed {longest:?}");
    scene.end().await;
}

#[tokio::test]
async fn heads_that_are_no_requests_are_refused() {
    let Some(scene) = Scene::new("heads").await else { return };
    let url = scene.exec(&["cat"], false).await;
    let (address, _) = streams::target(&url);
    let long = format!("GET /exec/{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(1 << 20));
    let many = format!("GET /exec/x HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100_000));
    for (name, bytes) in [
        ("garbage", vec![0xff; 1 << 20]),
        ("zeroes", vec![0; 1 << 20]),
        ("a path of a megabyte", long.into_bytes()),
        ("a hundred thousand headers", many.into_bytes()),
        ("a TLS handshake", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(100)),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec()),
    ] {
        let stream = streams::connect(&scene.node.netns, address);
        scene.watch(name, move || drop(refused(stream, &bytes))).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn a_token_is_good_once_and_for_its_own_purpose() {
    let Some(scene) = Scene::new("tokens").await else { return };
    let upgrade = [
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    let ask = |url: &str| streams::request(&scene.node.netns, url, "POST", &upgrade).0;
    let url = scene.exec(&["true"], false).await;
    for wrong in [
        url.replace("/exec/", "/attach/"),
        url.replace("/exec/", "/portforward/"),
        url.replace("/exec/", "/"),
        format!("{url}x"),
        format!("{url}/"),
        url[..url.len() - 1].to_owned(),
        url.replace("/exec/", "/exec/../exec/"),
        url.rsplit_once('/').unwrap().0.to_owned() + "/",
    ] {
        assert_eq!(ask(&wrong), 404, "{wrong}");
    }
    assert_eq!(ask(&url), 101, "the wrong ones have not used it up");
    assert_eq!(ask(&url), 404, "it was used");
    // One that asks for something impossible has used its token, too: nobody may try until it fits.
    let spent = scene.exec(&["true"], false).await;
    assert_eq!(streams::request(&scene.node.netns, &spent, "POST", &[]).0, 400);
    assert_eq!(ask(&spent), 404);
    // A thousand that nobody uses push out the oldest, and nothing else happens.
    let oldest = scene.exec(&["true"], false).await;
    for _ in 0..1000 {
        scene.exec(&["true"], false).await;
    }
    assert_eq!(ask(&oldest), 404);
    scene.end().await;
}
