//! Much data, many sessions, and clients that vanish: every byte arrives, the daemon and the shim stay as small as they
//! were, and nothing is left. Modest sizes by default; COFFERDAM_FULL=1 takes a GiB, 200 execs and 1000 connections.
//! The figures that it prints are worth comparing for release binaries alone.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cofferdam_proto::cri::{ExecRequest, PortForwardRequest};
use cofferdam_tests::client::build;
use cofferdam_tests::harness::{Node, Pod, eventually};
use cofferdam_tests::streams::{self, Frame, Session, data, websocket};
use sha2::{Digest, Sha256};

/// How much the daemon, or the shim, may grow while any amount of data passes.
const ROOM_KIB: u64 = 8 << 10;
const PIECE: usize = 32 << 10;

fn full() -> bool {
    std::env::var("COFFERDAM_FULL").is_ok_and(|value| value == "1")
}

fn volume() -> usize {
    if full() { 1 << 30 } else { 48 << 20 }
}

/// Bytes that no compression, repetition or shift leaves as they are.
struct Noise(u64);

impl Noise {
    fn piece(&mut self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(PIECE);
        while bytes.len() < PIECE {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend_from_slice(&self.0.to_le_bytes());
        }
        bytes
    }
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Resident memory of the node's own processes: daemon and shims.
fn memory(mark: &str, daemon: u32) -> Vec<(u32, u64)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let command = read("cmdline");
        let shim = command.contains("containerd-shim-cofferdam") && command.contains(mark);
        let in_bundle = std::fs::read_link(entry.path().join("cwd"))
            .is_ok_and(|cwd| cwd.to_string_lossy().contains(mark) && command.contains("containerd-shim"));
        if pid == daemon || shim || in_bundle {
            let status = read("status");
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
            found.extend(kib.map(|kib| (pid, kib)));
        }
    }
    found
}

struct Scene {
    node: Node,
    pod: Pod,
    container: String,
}

impl Scene {
    async fn new(name: &str) -> Self {
        let node = Node::start().await;
        let image = node.base_image().await;
        let pod = node.run_pod(&node.pod(name)).await;
        let echo = ["nc", "-ll", "-p", "7000", "-e", "/bin/cat"];
        let container = node.run_container(&pod, build::container("main", &image, &echo)).await;
        Self { node, pod, container }
    }

    async fn exec(&self, command: &[&str]) -> String {
        let request = ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            stdin: true,
            stdout: true,
            ..ExecRequest::default()
        };
        self.node.cri.runtime.clone().exec(request).await.expect("Exec failed").into_inner().url
    }

    async fn spdy_exec(&self, command: &[&str]) -> Session {
        let url = self.exec(command).await;
        let mut session = Session::new(streams::spdy(&self.node.netns, &url, "v4.channel.k8s.io"));
        for (id, name) in [(1, "error"), (3, "stdin"), (5, "stdout")] {
            session.open(id, &[("streamtype", name)]).unwrap();
        }
        session
    }

    async fn forward(&self) -> Session {
        let request = PortForwardRequest { pod_sandbox_id: self.pod.id.clone(), port: vec![7000, 7001] };
        let answer = self.node.cri.runtime.clone().port_forward(request).await.expect("PortForward failed");
        let url = answer.into_inner().url;
        Session::new(streams::spdy(&self.node.netns, &url, "portforward.k8s.io"))
    }

    /// The network of the pod, by the container's process.
    fn network(&self) -> std::fs::File {
        let mark = format!("/{}", self.node.mark());
        let processes = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        let ours = |path: &std::path::PathBuf| {
            let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap_or_default();
            read("cmdline").starts_with("nc\0-ll") && read("cgroup").contains(&mark)
        };
        let process = processes.into_iter().find(ours).expect("the container's process is not found");
        std::fs::File::open(process.join("ns/net")).unwrap()
    }

    /// Runs `work` on a thread; fails if daemon or shim grow meanwhile. Not the first time, which warms both up.
    async fn steady<T: Send + 'static>(&self, name: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
        let Some(daemon) = self.node.daemon_pid() else { return work() };
        let mark = self.node.mark();
        let before = memory(&mark, daemon);
        assert!(before.len() >= 2, "daemon and shims are not found: {before:?}");
        let work = std::thread::spawn(work);
        let mut most = before.clone();
        while !work.is_finished() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            for (pid, kib) in memory(&mark, daemon) {
                if let Some(own) = most.iter_mut().find(|(own, _)| *own == pid) {
                    own.1 = own.1.max(kib);
                }
            }
        }
        for ((pid, before), (_, most)) in before.iter().zip(&most) {
            println!("{name}: process {pid}: {before} KiB before, {most} KiB at most");
            assert!(most - before <= ROOM_KIB, "{name}: process {pid} grew from {before} to {most} KiB");
        }
        work.join().unwrap_or_else(|_| panic!("{name}"))
    }

    async fn end(self) {
        // What sessions started ends with them, a little later.
        let alone = eventually(Duration::from_secs(10), async || {
            let list = self.node.cri.exec_sync(&self.container, &["ps", "-o", "comm"], 10).await.unwrap();
            let list = String::from_utf8_lossy(&list.stdout).into_owned();
            !list.lines().any(|name| matches!(name.trim(), "cat" | "sha256sum" | "sleep"))
        });
        assert!(alone.await, "processes of sessions run on");
        self.node.destroy(&self.pod).await;
        self.node.assert_clean().await;
    }
}

fn rate(name: &str, begun: Instant, bytes: usize) {
    let seconds = begun.elapsed().as_secs_f64();
    println!("{name}: {:.0} MB/s", bytes as f64 / 1e6 / seconds);
}

/// Sends noise on stream `id` from a thread of its own, and its end; gives the digest.
fn send_noise(mut to: TcpStream, id: u32, bytes: usize) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let (mut noise, mut digest) = (Noise(7), Sha256::new());
        for _ in 0..bytes / PIECE {
            let piece = noise.piece();
            digest.update(&piece);
            to.write_all(&data(id, false, &piece)).expect("the server takes no more");
        }
        to.write_all(&data(id, true, b"")).expect("the server takes no more");
        hex(digest)
    })
}

fn through_stdin(mut session: Session, bytes: usize) {
    let begun = Instant::now();
    let sent = send_noise(session.writer(), 3, bytes);
    let mut said = Vec::new();
    session.each(|id, piece| {
        if id == 5 {
            said.extend_from_slice(piece);
        }
    });
    rate("exec stdin", begun, bytes);
    let said = String::from_utf8_lossy(&said).into_owned();
    assert_eq!(said.split(' ').next().unwrap(), sent.join().unwrap());
}

fn through_stdout(mut session: Session, bytes: usize) {
    let begun = Instant::now();
    let sent = send_noise(session.writer(), 3, bytes);
    let (mut digest, mut count) = (Sha256::new(), 0);
    session.each(|id, piece| {
        if id == 5 {
            digest.update(piece);
            count += piece.len();
        }
    });
    rate("exec stdin to stdout", begun, bytes);
    assert_eq!(count, bytes / PIECE * PIECE);
    assert_eq!(hex(digest), sent.join().unwrap());
}

fn zeroes(mut session: Session, bytes: usize) {
    let begun = Instant::now();
    let mut count = 0;
    session.each(|id, piece| {
        if id == 5 {
            assert!(piece.iter().all(|byte| *byte == 0));
            count += piece.len();
        }
    });
    rate("exec stdout", begun, bytes);
    assert_eq!(count, bytes);
}

fn through_a_port(mut session: Session, bytes: usize) {
    connect(&mut session, 0, "7000").unwrap();
    let begun = Instant::now();
    let sent = send_noise(session.writer(), 3, bytes);
    let (mut digest, mut count) = (Sha256::new(), 0);
    while let Some(frame) = session.receive() {
        let Frame::Data { id: 3, fin, bytes } = frame else { continue };
        digest.update(&bytes);
        count += bytes.len();
        if fin {
            break;
        }
    }
    rate("port-forward there and back", begun, bytes);
    assert_eq!(count, bytes / PIECE * PIECE);
    assert_eq!(hex(digest), sent.join().unwrap());
}

/// Opens both streams of connection `number`: the error stream is `4 * number + 1`, the data stream the next one.
fn connect(session: &mut Session, number: u32, port: &str) -> std::io::Result<()> {
    let name = number.to_string();
    for (id, kind) in [(4 * number + 1, "error"), (4 * number + 3, "data")] {
        session.open(id, &[("streamtype", kind), ("port", port), ("requestid", &name)])?;
    }
    Ok(())
}

/// A server inside a pod's network that echoes and, other than busybox's nc, takes many connections at once. Its
/// thread ends with `over`.
fn echo(network: std::fs::File, over: Arc<AtomicBool>) -> std::thread::JoinHandle<()> {
    let (ready, listening) = std::sync::mpsc::channel();
    let server = std::thread::spawn(move || {
        nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("cannot enter the pod");
        let listener = TcpListener::bind("127.0.0.1:7001").expect("the port is taken");
        listener.set_nonblocking(true).unwrap();
        ready.send(()).unwrap();
        while !over.load(Ordering::Acquire) {
            let Ok((mut stream, _)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(2));
                continue;
            };
            stream.set_nonblocking(false).unwrap();
            std::thread::spawn(move || {
                let mut words = Vec::new();
                stream.read_to_end(&mut words).and_then(|_| stream.write_all(&words))
            });
        }
    });
    listening.recv().expect("the echo server does not listen");
    server
}

#[tokio::test]
async fn every_byte_of_an_exec_arrives_and_nobody_grows() {
    let scene = Scene::new("volume").await;
    for bytes in [4 << 20, volume()] {
        let warm = bytes < volume();
        let sum = scene.spdy_exec(&["sha256sum"]).await;
        let both = scene.spdy_exec(&["cat"]).await;
        let count = bytes.to_string();
        let out = scene.spdy_exec(&["head", "-c", &count, "/dev/zero"]).await;
        if warm {
            std::thread::spawn(move || {
                (through_stdin(sum, bytes), through_stdout(both, bytes), zeroes(out, bytes))
            })
            .join()
            .unwrap();
            continue;
        }
        scene.steady("stdin", move || through_stdin(sum, bytes)).await;
        scene.steady("stdin to stdout", move || through_stdout(both, bytes)).await;
        scene.steady("stdout", move || zeroes(out, bytes)).await;
    }
    scene.end().await;
}

#[tokio::test]
async fn every_byte_of_a_websocket_arrives() {
    if cofferdam_tests::harness::attached().is_some() {
        return println!("skipped: version 5 is not everybody's");
    }
    let scene = Scene::new("websocket").await;
    let url = scene.exec(&["sha256sum"]).await;
    let mut stream = streams::websocket(&scene.node.netns, &url, "v5.channel.k8s.io");
    let bytes = volume() / 4;
    let work = move || {
        let begun = Instant::now();
        let (mut noise, mut digest) = (Noise(7), Sha256::new());
        for _ in 0..bytes / PIECE {
            let piece = noise.piece();
            digest.update(&piece);
            stream.write_all(&websocket::frame(true, 2, &[&[0], &piece[..]].concat())).unwrap();
        }
        stream.write_all(&websocket::frame(true, 2, &[255, 0])).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        rate("exec stdin over WebSocket", begun, bytes);
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains(&hex(digest)), "{said}");
    };
    scene.steady("websocket", work).await;
    scene.end().await;
}

#[tokio::test]
async fn every_byte_of_a_forwarded_connection_arrives_and_nobody_grows() {
    let scene = Scene::new("port").await;
    let warm = scene.forward().await;
    std::thread::spawn(move || through_a_port(warm, 4 << 20)).join().unwrap();
    let session = scene.forward().await;
    scene.steady("port-forward", move || through_a_port(session, volume())).await;
    scene.end().await;
}

#[tokio::test]
async fn many_execs_at_once_do_not_mix() {
    let many = if full() { 200 } else { 40 };
    let scene = Scene::new("many").await;
    let begun = Instant::now();
    let mut clients = Vec::new();
    for number in 0..many {
        let mut session = scene.spdy_exec(&["sh", "-c", "read line; echo got $line; exit 3"]).await;
        clients.push((
            number,
            std::thread::spawn(move || {
                // All are under way before the first one may end.
                std::thread::sleep(Duration::from_millis(500));
                session.send(3, true, format!("{number}\n").as_bytes()).unwrap();
                let (mut said, mut status) = (Vec::new(), Vec::new());
                session.each(|id, piece| match id {
                    5 => said.extend_from_slice(piece),
                    1 => status.extend_from_slice(piece),
                    _ => {}
                });
                (String::from_utf8_lossy(&said).into_owned(), String::from_utf8_lossy(&status).into_owned())
            }),
        ));
    }
    for (number, client) in clients {
        let (said, status) = client.join().unwrap();
        assert_eq!(said, format!("got {number}\n"));
        assert!(status.contains("exit code 3"), "{status}");
    }
    println!("{many} execs at once: {:?}", begun.elapsed());
    scene.end().await;
}

#[tokio::test]
async fn many_connections_over_one_session_do_not_mix() {
    let many: u32 = if full() { 1000 } else { 150 };
    let scene = Scene::new("connections").await;
    let mut session = scene.forward().await;
    let over = Arc::new(AtomicBool::new(false));
    let server = echo(scene.network(), Arc::clone(&over));
    let begun = Instant::now();
    std::thread::spawn(move || {
        let mut got = vec![String::new(); many as usize];
        let (mut opened, mut ended) = (0, 0);
        while ended < many {
            // Not more at a time than a listener's queue may hold.
            while opened < many && opened - ended < 100 {
                connect(&mut session, opened, "7001").unwrap();
                session.send(4 * opened + 3, true, format!("I am {opened}").as_bytes()).unwrap();
                opened += 1;
            }
            let frame = session.receive().expect("the session ended");
            let Frame::Data { id, fin, bytes } = frame else { continue };
            let number = id / 4;
            let words = String::from_utf8_lossy(&bytes).into_owned();
            assert!(id % 4 == 3 || bytes.is_empty(), "connection {number} failed: {words}");
            got[number as usize].push_str(&words);
            ended += u32::from(fin && id % 4 == 3);
        }
        for (number, words) in got.iter().enumerate() {
            assert_eq!(*words, format!("I am {number}"));
        }
    })
    .join()
    .unwrap();
    println!("{many} connections: {:?}", begun.elapsed());
    over.store(true, Ordering::Release);
    server.join().unwrap();
    scene.end().await;
}

#[tokio::test]
async fn clients_that_vanish_half_way_leave_nothing() {
    let scene = Scene::new("vanish").await;
    let go = Arc::new(AtomicBool::new(false));
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut sessions = vec![(scene.spdy_exec(&["cat"]).await, 3), (scene.forward().await, 3)];
        connect(&mut sessions[1].0, 0, "7000").unwrap();
        for (session, id) in sessions {
            let go = Arc::clone(&go);
            clients.push(std::thread::spawn(move || {
                // Nothing is read: both directions are full when the client goes.
                let mut to = session.writer();
                to.set_write_timeout(Some(Duration::from_secs(1))).unwrap();
                let piece = data(id, false, &[7; PIECE]);
                for _ in 0..500 {
                    if to.write_all(&piece).is_err() {
                        break;
                    }
                }
                while !go.load(Ordering::Acquire) {
                    std::thread::sleep(Duration::from_millis(5));
                }
            }));
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    go.store(true, Ordering::Release);
    for client in clients {
        client.join().unwrap();
    }
    scene.end().await;
}
