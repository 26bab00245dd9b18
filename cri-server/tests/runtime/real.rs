//! Real shims run a real container: Debian's of the older generation, a newer one and our own where they are built.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cofferdam::runtime::events::{Event, Sink};
use cofferdam::runtime::{
    CreateTask, ExecError, ExecProcess, ExecRunner, Handler, Launcher, RuntimeConfig, RuntimeError, Shim,
    TaskStatus,
};
use oci_spec::runtime::Process;
use serde_json::json;
use tokio::sync::mpsc::Receiver;

/// A daemon's surroundings in a temporary folder.
struct Node {
    folder: tempfile::TempDir,
    handler: Handler,
    launcher: Launcher,
    events: Receiver<Event>,
    sink: Option<Sink>,
}

/// The program at `path`; where it is missing the test fails and says how to get it.
fn program(path: impl Into<PathBuf>, fix: &str) -> PathBuf {
    let path = path.into();
    assert!(path.is_file(), "{} is not there: {fix}", path.display());
    path
}

impl Node {
    async fn new(config: RuntimeConfig) -> Self {
        let folder = tempfile::Builder::new().prefix("cd").tempdir_in("/tmp").unwrap();
        let exe = folder.path().join("cofferdam");
        let (sink, events) = Sink::bind(folder.path()).await.unwrap();
        let launcher = Launcher::new(folder.path(), &exe, sink.path());
        let mut config = config;
        if config.binary.is_some() {
            // The OCI runtime's records go with the folder.
            let root = folder.path().join("runc").display().to_string();
            config.options.insert("Root".to_owned(), root.into());
        }
        let handler = Handler::new("test", &config, &exe).unwrap();
        Self { folder, handler, launcher, events, sink: Some(sink) }
    }

    fn bundle(&self, id: &str, args: &[&str], annotations: &serde_json::Value) -> PathBuf {
        let bundle = self.folder.path().join(id);
        let rootfs = bundle.join("rootfs");
        for folder in ["bin", "proc", "tmp", "dev"] {
            std::fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "sleep", "echo", "true", "yes", "head", "cat", "stty"] {
            std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        std::fs::write(bundle.join("config.json"), spec(id, args, annotations).to_string()).unwrap();
        bundle
    }

    async fn run(&self, id: &str, args: &[&str]) -> (Shim, PathBuf) {
        self.run_in(id, args, &json!({})).await
    }

    async fn run_in(&self, id: &str, args: &[&str], annotations: &serde_json::Value) -> (Shim, PathBuf) {
        let bundle = self.bundle(id, args, annotations);
        let shim = self.launcher.start(&self.handler, id, "k8s.io", &bundle).await.unwrap();
        let task = CreateTask {
            bundle: bundle.clone(),
            options: self.handler.options.clone(),
            ..Default::default()
        };
        let pid = shim.create(task).await.unwrap();
        assert!(pid > 1);
        assert_eq!(shim.state("").await.unwrap().status, TaskStatus::Created);
        shim.start("").await.unwrap();
        (shim, bundle)
    }

    async fn event(&mut self, wanted: impl Fn(&Event) -> bool) -> Event {
        let deadline = Duration::from_secs(10);
        loop {
            let event =
                tokio::time::timeout(deadline, self.events.recv()).await.expect("event in time").unwrap();
            if wanted(&event) {
                return event;
            }
        }
    }

    async fn close(mut self) {
        self.sink.take().unwrap().shutdown().await;
        // A shim's connection ends a moment before its process does.
        let begun = Instant::now();
        while !self.left().is_empty() && begun.elapsed() < Duration::from_secs(5) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(self.left(), Vec::<String>::new(), "something is left");
    }

    /// The mounts, processes and cgroups of this node that are there.
    fn left(&self) -> Vec<String> {
        let here = self.folder.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(here)).map(|line| format!("mount {line}"));
        let processes = processes_of(here).into_iter().map(|(pid, line)| format!("process {pid} {line}"));
        let cgroups = self.cgroups().into_iter().map(|path| format!("cgroup {}", path.display()));
        mounts.chain(processes).chain(cgroups).collect()
    }

    /// The cgroups of the bundles in the folder.
    fn cgroups(&self) -> Vec<PathBuf> {
        let names: Vec<String> = std::fs::read_dir(self.folder.path())
            .unwrap()
            .flatten()
            .map(|entry| format!("cdt-{}", entry.file_name().to_string_lossy()))
            .collect();
        let roots: Vec<PathBuf> =
            std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten().map(|entry| entry.path()).collect();
        let paths = roots.iter().flat_map(|root| names.iter().map(|name| root.join(name)));
        paths.filter(|path| path.is_dir()).collect()
    }
}

impl Drop for Node {
    /// After a failed test: shims name the folder in their arguments, and their children are the containers.
    fn drop(&mut self) {
        let mut doomed: Vec<u32> =
            processes_of(self.folder.path().to_str().unwrap()).into_iter().map(|p| p.0).collect();
        let mut next = 0;
        while let Some(&pid) = doomed.get(next) {
            let children =
                std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            doomed.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            next += 1;
        }
        for pid in doomed {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(2) && !self.cgroups().is_empty() {
            for cgroup in self.cgroups() {
                let _ = std::fs::remove_dir(cgroup);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Processes whose command lines name `text`.
fn processes_of(text: &str) -> Vec<(u32, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(text) && pid != std::process::id() {
            found.push((pid, line));
        }
    }
    found
}

fn spec(id: &str, args: &[&str], annotations: &serde_json::Value) -> serde_json::Value {
    json!({
        "ociVersion": "1.0.2",
        "annotations": annotations,
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]}
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}
        ],
        "linux": {
            "cgroupsPath": format!("/cdt-{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]
        }
    })
}

fn process(args: &[&str]) -> Process {
    serde_json::from_value(json!({
        "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/", "env": ["PATH=/bin"],
        "capabilities": {"bounding": [], "effective": [], "permitted": []}
    }))
    .unwrap()
}

fn terminal_process(args: &[&str], terminal: bool) -> Process {
    let mut process = process(args);
    process.set_terminal(Some(terminal));
    process
}

fn foreign(shim: PathBuf, runc: &Path) -> RuntimeConfig {
    RuntimeConfig { path: Some(shim), binary: Some(runc.display().to_string()), ..Default::default() }
}

fn debian() -> RuntimeConfig {
    let shim = program("/usr/bin/containerd-shim-runc-v2", "apt-get install containerd");
    foreign(shim, &program("/usr/sbin/runc", "apt-get install runc"))
}

/// A shim of containerd 2.3 or later and its runc, from the folder that COFFERDAM_PEER_BIN names; no Debian has them yet.
/// Without the variable the test is skipped in words.
fn newer() -> Option<RuntimeConfig> {
    let Some(folder) = std::env::var_os("COFFERDAM_PEER_BIN").map(PathBuf::from) else {
        eprintln!(
            "skipped: COFFERDAM_PEER_BIN names no folder with containerd-shim-runc-v2 of containerd 2.3 or later, and runc"
        );
        return None;
    };
    let [shim, runc] = ["containerd-shim-runc-v2", "runc"]
        .map(|name| program(folder.join(name), "COFFERDAM_PEER_BIN must hold it"));
    Some(foreign(shim, &runc))
}

/// The static shim of this workspace, from the folder that COFFERDAM_BIN_DIR names or from target/release.
fn own() -> RuntimeConfig {
    let release = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release");
    let folder = std::env::var_os("COFFERDAM_BIN_DIR").map_or_else(release, PathBuf::from);
    RuntimeConfig {
        kind: Some("io.containerd.cofferdam.v1".to_owned()),
        path: Some(program(folder.join("containerd-shim-cofferdam-v1"), "run `make shim`")),
        ..Default::default()
    }
}

/// A name that no other test uses.
fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("{name}{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// Create, start, exec, kill, wait, delete, shut down: everything is answered and reported.
async fn life_of_a_container(config: RuntimeConfig) {
    let mut node = Node::new(config).await;
    let id = unique("life");
    let (shim, bundle) = node.run(&id, &["sleep", "1000"]).await;
    assert!(
        matches!(node.event(|e| matches!(e, Event::Start { .. })).await, Event::Start { id: of, .. } if of == id)
    );

    let waiting = tokio::spawn({
        let shim = shim.clone();
        async move { shim.wait("").await }
    });
    let runner = ExecRunner::default();
    let script = process(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let output = runner.exec_sync(&shim, &bundle, script, Some(Duration::from_secs(20))).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.stderr.as_slice(), output.exit_code),
        (&b"out\n"[..], &b"err\n"[..], 7)
    );
    assert!(!output.truncated);
    let twice =
        CreateTask { bundle: bundle.clone(), options: node.handler.options.clone(), ..Default::default() };
    let again = shim.create(twice).await;
    assert!(again.is_err(), "the same task twice");
    assert!(shim.state("nope").await.unwrap_err().is_not_found());
    assert!(shim.pids().await.unwrap().len() == 1);
    assert!(shim.shim_pid().await.unwrap() > 1);

    // The daemon restarts: the connection goes, the container stays.
    let endpoint = Launcher::recorded(&bundle).unwrap();
    assert_eq!(&endpoint, shim.endpoint());
    let shim = node.launcher.connect(&id, &endpoint, &bundle).await.unwrap();
    assert_eq!(shim.state("").await.unwrap().status, TaskStatus::Running);

    shim.kill("", 9, true).await.unwrap();
    let exit = waiting.await.unwrap().unwrap();
    assert_eq!(exit.status, 137);
    let reported = node.event(|e| matches!(e, Event::Exit { exec_id, .. } if exec_id.is_empty())).await;
    assert!(matches!(reported, Event::Exit { id: of, status: 137, .. } if of == id), "wrong exit");
    assert_eq!(shim.state("").await.unwrap().exit.unwrap().status, 137);
    assert_eq!(shim.delete("").await.unwrap().status, 137);
    shim.shutdown().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), shim.closed()).await.expect("the shim ends");
    assert!(matches!(shim.state("").await.unwrap_err(), RuntimeError::ConnectionLost { .. }));
    drop(shim);
    node.close().await;
}

/// A time-out kills, a grandchild does not hang, a dropped caller leaves nothing.
async fn execs_end(config: RuntimeConfig) {
    let node = Node::new(config).await;
    let (shim, bundle) = node.run(&unique("exec"), &["sleep", "1000"]).await;
    let runner = ExecRunner::default();
    let ten = Some(Duration::from_secs(10));

    let begun = Instant::now();
    let family = process(&["sh", "-c", "sleep 500 & sleep 501 & wait"]);
    let slow = runner.exec_sync(&shim, &bundle, family, Some(Duration::from_secs(1))).await;
    assert!(matches!(slow, Err(ExecError::DeadlineExceeded { .. })), "{slow:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    only_the_first_process_is_left(&shim).await;
    only_the_first_process_is_left(&shim).await;

    let begun = Instant::now();
    let forked = process(&["sh", "-c", "echo said; sleep 300 & exit 0"]);
    let output = runner.exec_sync(&shim, &bundle, forked, ten).await.unwrap();
    assert_eq!((output.stdout.as_slice(), output.exit_code), (&b"said\n"[..], 0));
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());

    let much = process(&["sh", "-c", "yes | head -c 40000000"]);
    let output = runner.exec_sync(&shim, &bundle, much, ten).await.unwrap();
    assert!(output.truncated && output.stdout.len() == cofferdam::io::LIMIT);

    let missing = runner.exec_sync(&shim, &bundle, process(&["/bin/none"]), ten).await.unwrap_err();
    assert!(matches!(missing, ExecError::Runtime(_)), "{missing:?}");

    let dropped = runner.exec_sync(&shim, &bundle, process(&["sleep", "400"]), None);
    tokio::time::timeout(Duration::from_millis(500), dropped).await.unwrap_err();
    tokio::time::timeout(Duration::from_secs(10), runner.drained())
        .await
        .expect("the exec ends without its caller");
    let left = std::fs::read_dir(bundle.join("io")).unwrap().count();
    assert_eq!(left, 0, "FIFOs are left");

    end(&shim).await;
    node.close().await;
}

async fn only_the_first_process_is_left(shim: &Shim) {
    let begun = Instant::now();
    loop {
        let pids = shim.pids().await.unwrap();
        if pids.len() == 1 {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "what the exec started still runs: {pids:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Kills, deletes and shuts down.
async fn end(shim: &Shim) {
    shim.kill("", 9, true).await.unwrap();
    shim.wait("").await.unwrap();
    shim.delete("").await.unwrap();
    shim.shutdown().await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), shim.closed()).await.expect("the shim ends");
}

/// Containers of one pod share a shim of runc's; the end of one does not concern the other.
async fn a_pod_shares_a_shim(config: RuntimeConfig) {
    let node = Node::new(config).await;
    let (one, two) = (unique("one"), unique("two"));
    let pod = json!({"io.kubernetes.cri.sandbox-id": one});
    let (first, _) = node.run_in(&one, &["sleep", "1000"], &pod).await;
    let (second, bundle) = node.run_in(&two, &["sleep", "1000"], &pod).await;
    assert_eq!(first.endpoint(), second.endpoint());
    assert_eq!(first.shim_pid().await.unwrap(), second.shim_pid().await.unwrap());
    let waiting = second.clone();
    let waiting = tokio::spawn(async move { waiting.wait("").await });
    first.kill("", 9, true).await.unwrap();
    first.wait("").await.unwrap();
    first.delete("").await.unwrap();
    first.shutdown().await.unwrap();
    let output =
        ExecRunner::default().exec_sync(&second, &bundle, process(&["echo", "on"]), None).await.unwrap();
    assert_eq!(output.stdout, b"on\n");
    assert!(!waiting.is_finished());
    end(&second).await;
    assert_eq!(waiting.await.unwrap().unwrap().status, 137);
    node.close().await;
}

/// A terminal's size, new limits, and the end of stdin reach an exec and its container.
async fn streams_and_limits_arrive(config: RuntimeConfig) {
    let node = Node::new(config).await;
    let id = unique("io");
    let (shim, bundle) = node.run(&id, &["sleep", "1000"]).await;
    let fifos = cofferdam::io::FifoFolder::make(&bundle, "talk").unwrap();
    let [stdin, stdout] = ["stdin", "stdout"].map(|name| fifos.fifo(name).unwrap());
    let talk = |exec_id: &str, args: &[&str], terminal| ExecProcess {
        exec_id: exec_id.to_owned(),
        process: terminal_process(args, terminal),
        stdin: stdin.display().to_string(),
        stdout: stdout.display().to_string(),
        stderr: String::new(),
        terminal,
    };
    let both = || {
        let open = |path: &Path| std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        (open(&stdin), open(&stdout))
    };

    let (mut to, mut from) = both();
    shim.exec(talk("cat", &["cat"], false)).await.unwrap();
    shim.start("cat").await.unwrap();
    to.write_all(b"ping").unwrap();
    let mut heard = [0; 4];
    from.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"ping");
    drop(to);
    shim.close_io("cat").await.unwrap();
    let exit = tokio::time::timeout(Duration::from_secs(5), shim.wait("cat"))
        .await
        .expect("cat ends with its stdin");
    assert_eq!(exit.unwrap().status, 0);
    shim.delete("cat").await.unwrap();

    let (mut to, mut from) = both();
    shim.exec(talk("tty", &["sh", "-c", "read go; stty size"], true)).await.unwrap();
    shim.start("tty").await.unwrap();
    shim.resize_pty("tty", 93, 31).await.unwrap();
    to.write_all(b"go\n").unwrap();
    let mut text = String::new();
    while !text.contains("31 93") {
        let count = from.read(&mut heard).unwrap();
        text.push_str(&String::from_utf8_lossy(&heard[..count]));
        assert!(text.len() < 200, "{text}");
    }
    assert_eq!(shim.wait("tty").await.unwrap().status, 0);
    shim.delete("tty").await.unwrap();

    let resources = serde_json::from_value(json!({"memory": {"limit": 67_108_864}})).unwrap();
    shim.update(&resources, Default::default()).await.unwrap();
    let limit =
        std::fs::read_to_string(format!("/sys/fs/cgroup/memory/cdt-{id}/memory.limit_in_bytes")).unwrap();
    assert_eq!(limit.trim(), "67108864");
    drop(fifos);
    end(&shim).await;
    node.close().await;
}

/// Eight containers at a time, also while the shim's generation is not yet known.
async fn many_at_a_time(config: RuntimeConfig) {
    let node = Node::new(config).await;
    let names: Vec<String> = (0..8).map(|_| unique("many")).collect();
    let runs = names.iter().map(async |name| {
        let (shim, bundle) = node.run(name, &["sleep", "1000"]).await;
        let run = ExecRunner::default();
        let output = run.exec_sync(&shim, &bundle, process(&["echo", name]), None).await.unwrap();
        assert_eq!(output.stdout, format!("{name}\n").into_bytes());
        end(&shim).await;
    });
    futures::future::join_all(runs).await;
    node.close().await;
}

/// `kill -9` of the shim is noticed, and its leftovers are cleaned up.
async fn a_killed_shim_is_cleaned_up(config: RuntimeConfig) {
    let node = Node::new(config).await;
    let id = unique("dead");
    let (shim, bundle) = node.run(&id, &["sleep", "1000"]).await;
    let pid = shim.state("").await.unwrap().pid;
    let shim_pid = shim.shim_pid().await.unwrap();
    let waiting = shim.clone();
    let waiting = tokio::spawn(async move { waiting.wait("").await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    kill(shim_pid);
    tokio::time::timeout(Duration::from_secs(5), shim.closed()).await.expect("noticed");
    assert!(matches!(waiting.await.unwrap(), Err(RuntimeError::ConnectionLost { .. })));
    let endpoint = Launcher::recorded(&bundle).unwrap();
    // A dying process may lose its connections a moment before its listener.
    let refused = async {
        loop {
            match node.launcher.connect(&id, &endpoint, &bundle).await {
                Err(error) => return error,
                Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(5), refused).await.expect("refused").is_shim_lost());
    let exit = node.launcher.delete(&node.handler, &id, "k8s.io", &bundle).await.unwrap();
    assert_eq!(exit.status, 137);
    let gone = async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), gone).await.expect("the container is killed");
    assert!(!endpoint.socket_path().unwrap().exists(), "the dead shim's socket is left");
    node.close().await;
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Running, not merely waiting to be reaped.
fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"));
    status.is_ok_and(|text| !text.contains("State:\tZ"))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_life_of_a_container_behind_debians_shim() {
    life_of_a_container(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_life_of_a_container_behind_a_newer_shim() {
    if let Some(newer) = newer() {
        life_of_a_container(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_execs_end_behind_debians_shim() {
    execs_end(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_execs_end_behind_a_newer_shim() {
    if let Some(newer) = newer() {
        execs_end(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_killed_newer_shim_is_cleaned_up() {
    if let Some(newer) = newer() {
        a_killed_shim_is_cleaned_up(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_killed_debian_shim_is_cleaned_up() {
    a_killed_shim_is_cleaned_up(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_life_of_a_container_behind_our_shim() {
    life_of_a_container(own()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_execs_end_behind_our_shim() {
    execs_end(own()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_our_killed_shim_is_cleaned_up() {
    a_killed_shim_is_cleaned_up(own()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_shares_debians_shim() {
    a_pod_shares_a_shim(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_many_at_a_time_behind_debians_shim() {
    many_at_a_time(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_shares_a_newer_shim() {
    if let Some(newer) = newer() {
        a_pod_shares_a_shim(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_many_at_a_time_behind_a_newer_shim() {
    if let Some(newer) = newer() {
        many_at_a_time(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_many_at_a_time_behind_our_shim() {
    many_at_a_time(own()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_streams_and_limits_arrive_behind_debians_shim() {
    streams_and_limits_arrive(debian()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_streams_and_limits_arrive_behind_a_newer_shim() {
    if let Some(newer) = newer() {
        streams_and_limits_arrive(newer).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_streams_and_limits_arrive_behind_our_shim() {
    streams_and_limits_arrive(own()).await;
}

/// An ending shim listens until it is gone: who starts another in its bundle waits for the end of the connection.
#[tokio::test]
async fn privileged_another_of_our_shims_starts_where_one_has_ended() {
    let node = Node::new(own()).await;
    let id = unique("again");
    let bundle = node.bundle(&id, &["/bin/true"], &json!({}));
    for round in 0..10 {
        let started = node.launcher.start(&node.handler, &id, "k8s.io", &bundle).await;
        let shim = started.unwrap_or_else(|error| panic!("round {round}: {error}"));
        shim.shutdown().await.unwrap();
        tokio::time::timeout(Duration::from_secs(5), shim.closed()).await.unwrap();
    }
    node.close().await;
}
