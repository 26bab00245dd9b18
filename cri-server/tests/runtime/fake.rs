//! A fake shim: a script as its executable, whose failpoint is chosen by a file in its folder, and a Task service that
//! answers, refuses or never answers.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cofferdam::runtime::{
    CreateTask, Deadlines, Endpoint, ExecError, ExecRunner, Handler, Launcher, RuntimeConfig, RuntimeError,
    Shim, ShimKind,
};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::{Task, create_task};
use protobuf::well_known_types::empty::Empty;
use ttrpc::asynchronous::{Server, TtrpcContext};

/// The executable: `$0.mode` chooses what goes wrong, `$0.answer` is printed.
const SCRIPT: &str = r#"#!/bin/bash
echo "$PWD $*" >> "$0.calls"
cat > "$0.input"
case "$(cat "$0.mode")" in
  answer) cat "$0.answer" ;;
  hang) sleep 4321 & echo $! > "$0.sleeper"; wait ;;
  die) echo "cannot start: no luck" >&2; exit 3 ;;
  killed) kill -9 $$ ;;
  flood) head -c 3000000 /dev/zero ;;
  leak) cat "$0.answer"; sleep 4322 & disown; echo $! > "$0.leaked" ;;
  # An older shim takes only an Any, whose first field is a type's name.
  legacy) if grep -q k8s.io "$0.input"; then echo "unknown options" >&2; exit 1; else cat "$0.answer"; fi ;;
esac
"#;

const SHORT: Duration = Duration::from_millis(500);

struct Fake {
    folder: tempfile::TempDir,
    handler: Handler,
    launcher: Launcher,
}

impl Fake {
    fn new(mode: &str, answer: &[u8]) -> Self {
        let folder = tempfile::Builder::new().prefix("cdf").tempdir_in("/tmp").unwrap();
        let shim = folder.path().join("containerd-shim-fake-v1");
        std::fs::write(&shim, SCRIPT).unwrap();
        std::fs::set_permissions(&shim, PermissionsExt::from_mode(0o755)).unwrap();
        let config = RuntimeConfig { path: Some(shim), ..Default::default() };
        let exe = folder.path().join("cofferdam");
        let handler = Handler::new("fake", &config, &exe).unwrap();
        let deadlines =
            Deadlines { launch: Duration::from_secs(2), heavy: SHORT, delete: SHORT, light: SHORT };
        let launcher =
            Launcher::new(folder.path(), &exe, &folder.path().join("events.sock")).with_deadlines(deadlines);
        let fake = Self { folder, handler, launcher };
        std::fs::create_dir(fake.bundle()).unwrap();
        fake.write("mode", mode.as_bytes());
        fake.write("answer", answer);
        fake
    }

    /// With a Task service behind the address that the script prints.
    async fn serving(mode: &str, mute: &'static [&'static str]) -> (Self, Server) {
        let fake = Self::new(mode, b"");
        let address = format!("unix://{}", fake.folder.path().join("shim.sock").display());
        fake.write(
            "answer",
            format!(r#"{{"version":3,"address":"{address}","protocol":"ttrpc"}}"#).as_bytes(),
        );
        let server = serve(&address, mute).await;
        (fake, server)
    }

    fn bundle(&self) -> PathBuf {
        self.folder.path().join("c1")
    }

    fn file(&self, suffix: &str) -> PathBuf {
        self.folder.path().join(format!("containerd-shim-fake-v1.{suffix}"))
    }

    fn write(&self, suffix: &str, data: &[u8]) {
        std::fs::write(self.file(suffix), data).unwrap();
    }

    async fn start(&self) -> Result<Shim, RuntimeError> {
        self.launcher.start(&self.handler, "c1", "k8s.io", &self.bundle()).await
    }
}

async fn serve(address: &str, mute: &'static [&'static str]) -> Server {
    let service = create_task(Arc::new(FakeTask { mute }));
    let mut server = Server::new().bind(address).unwrap().register_service(service);
    server.start().await.unwrap();
    server
}

/// Calls named in `mute` are never answered.
struct FakeTask {
    mute: &'static [&'static str],
}

impl FakeTask {
    async fn pass(&self, call: &str) {
        if self.mute.contains(&call) {
            std::future::pending::<()>().await;
        }
    }
}

fn refuse<T>(code: ttrpc::Code) -> ttrpc::Result<T> {
    Err(ttrpc::Error::RpcStatus(ttrpc::get_status(code, "refused")))
}

#[async_trait::async_trait]
impl Task for FakeTask {
    async fn create(
        &self,
        _: &TtrpcContext,
        _: api::CreateTaskRequest,
    ) -> ttrpc::Result<api::CreateTaskResponse> {
        self.pass("create").await;
        Ok(api::CreateTaskResponse { pid: 42, ..Default::default() })
    }

    async fn start(&self, _: &TtrpcContext, _: api::StartRequest) -> ttrpc::Result<api::StartResponse> {
        self.pass("start").await;
        refuse(ttrpc::Code::FAILED_PRECONDITION)
    }

    async fn exec(&self, _: &TtrpcContext, _: api::ExecProcessRequest) -> ttrpc::Result<Empty> {
        self.pass("exec").await;
        refuse(ttrpc::Code::ALREADY_EXISTS)
    }

    async fn kill(&self, _: &TtrpcContext, _: api::KillRequest) -> ttrpc::Result<Empty> {
        self.pass("kill").await;
        Ok(Empty::new())
    }

    async fn state(&self, _: &TtrpcContext, _: api::StateRequest) -> ttrpc::Result<api::StateResponse> {
        refuse(ttrpc::Code::NOT_FOUND)
    }

    async fn wait(&self, _: &TtrpcContext, _: api::WaitRequest) -> ttrpc::Result<api::WaitResponse> {
        self.pass("wait").await;
        Ok(api::WaitResponse { exit_status: 5, ..Default::default() })
    }

    async fn resize_pty(&self, _: &TtrpcContext, _: api::ResizePtyRequest) -> ttrpc::Result<Empty> {
        refuse(ttrpc::Code::UNAVAILABLE)
    }

    async fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> ttrpc::Result<Empty> {
        refuse(ttrpc::Code::PERMISSION_DENIED)
    }
}

#[tokio::test]
async fn a_hanging_start_is_killed_at_its_deadline() {
    let fake = Fake::new("hang", b"");
    let begun = Instant::now();
    assert!(matches!(fake.start().await.unwrap_err(), RuntimeError::ShimHangs { action: "start", .. }));
    assert!(begun.elapsed() < Duration::from_secs(4));
    let sleeper = std::fs::read_to_string(fake.file("sleeper")).unwrap();
    let state = || std::fs::read_to_string(format!("/proc/{}/status", sleeper.trim())).unwrap_or_default();
    while !state().is_empty() && !state().contains("State:\tZ") {
        assert!(begun.elapsed() < Duration::from_secs(4), "what the command started still runs");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn failing_starts_tell_why() {
    let told =
        async |mode: &str, answer: &[u8]| Fake::new(mode, answer).start().await.unwrap_err().to_string();
    // Both inputs are tried; what the newer one met is told.
    let died = told("die", b"").await;
    assert!(died.contains("no luck") && died.contains("exit status: 3"), "{died}");
    assert!(told("killed", b"").await.contains("signal: 9"));
    let source = async |mode: &str, answer: &[u8]| {
        let error = Fake::new(mode, answer).start().await.unwrap_err();
        std::error::Error::source(&error).unwrap().to_string()
    };
    assert!(source("answer", b"segmentation fault\n").await.contains("segmentation fault"));
    assert!(source("answer", b"").await.contains("nothing"));
    assert!(source("flood", b"").await.contains("more than"));
    let nobody = Fake::new("answer", b"unix:///tmp/nobody-serves-here.sock").start().await.unwrap_err();
    assert!(nobody.is_shim_lost(), "{nobody}");
}

#[tokio::test]
async fn a_bundle_of_another_name_is_refused() {
    let fake = Fake::new("answer", b"");
    let error = fake.launcher.start(&fake.handler, "c2", "k8s.io", &fake.bundle()).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Bundle { .. }));
    assert!(!fake.file("calls").exists(), "the shim was run");
}

#[tokio::test]
async fn an_older_shim_is_tried_once_and_remembered() {
    let (fake, mut server) = Fake::serving("legacy", &[]).await;
    for calls in [2, 3] {
        fake.start().await.unwrap();
        let log = std::fs::read_to_string(fake.file("calls")).unwrap();
        assert_eq!(log.lines().count(), calls, "{log}");
        assert!(
            log.lines()
                .all(|line| line.starts_with(fake.bundle().to_str().unwrap())
                    && line.ends_with("-id c1 start"))
        );
    }
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_leaked_output_pipe_does_not_hold_the_start() {
    let (fake, mut server) = Fake::serving("leak", &[]).await;
    let begun = Instant::now();
    fake.start().await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(2));
    let leaked: i32 = std::fs::read_to_string(fake.file("leaked")).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(leaked), nix::sys::signal::Signal::SIGKILL).unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn delete_is_bounded_and_decoded() {
    let answer = api::DeleteResponse { pid: 7, exit_status: 137, ..Default::default() };
    let fake = Fake::new("answer", &protobuf::Message::write_to_bytes(&answer).unwrap());
    let bundle = fake.bundle();
    let delete = || fake.launcher.delete(&fake.handler, "c1", "k8s.io", &bundle);
    let exit = delete().await.unwrap();
    assert_eq!((exit.pid, exit.status, exit.exited_at), (7, 137, None));
    let calls = std::fs::read_to_string(fake.file("calls")).unwrap();
    assert!(calls.trim_end().ends_with(&format!("-bundle {} delete", fake.bundle().display())), "{calls}");
    fake.write("mode", b"hang");
    assert!(matches!(delete().await.unwrap_err(), RuntimeError::ShimHangs { action: "delete", .. }));
}

#[tokio::test]
async fn refusals_keep_their_kind() {
    let (fake, mut server) = Fake::serving("answer", &[]).await;
    let shim = fake.start().await.unwrap();
    assert_eq!(shim.create(CreateTask::default()).await.unwrap(), 42);
    assert!(matches!(shim.start("").await, Err(RuntimeError::FailedPrecondition { call: "Start", .. })));
    assert!(shim.state("").await.unwrap_err().is_not_found());
    assert!(matches!(shim.resize_pty("", 1, 1).await, Err(RuntimeError::Unavailable { .. })));
    assert!(matches!(
        shim.shutdown().await,
        Err(RuntimeError::Shim { code: ttrpc::Code::PERMISSION_DENIED, .. })
    ));
    assert!(matches!(
        shim.pids().await,
        Err(RuntimeError::Unimplemented { .. } | RuntimeError::NotFound { .. })
    ));
    assert!(matches!(shim.reopen_log().await, Err(RuntimeError::Unimplemented { .. })));
    assert_eq!(shim.wait("").await.unwrap().status, 5);
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_call_without_answer_ends_alone_at_its_deadline() {
    let (fake, mut server) = Fake::serving("answer", &["create", "wait"]).await;
    let shim = fake.start().await.unwrap();
    let waiting = tokio::spawn({
        let shim = shim.clone();
        async move { shim.wait("").await }
    });
    let creating = tokio::spawn({
        let shim = shim.clone();
        async move { shim.create(CreateTask::default()).await }
    });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let begun = Instant::now();
    shim.kill("", 9, true).await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(200), "kill waited for create");
    assert!(matches!(creating.await.unwrap(), Err(RuntimeError::Timeout { call: "Create", .. })));
    assert!(!waiting.is_finished() && !shim.is_closed());
    // A caller that goes away in the middle of a call does not end the connection.
    let _ = tokio::time::timeout(Duration::from_millis(10), shim.create(CreateTask::default())).await;
    shim.kill("", 9, true).await.unwrap();
    server.shutdown().await.unwrap();
    tokio::time::timeout(Duration::from_secs(2), shim.closed()).await.expect("the end is noticed");
    assert!(matches!(waiting.await.unwrap(), Err(RuntimeError::ConnectionLost { call: "Wait" })));
    assert!(matches!(shim.kill("", 9, true).await, Err(RuntimeError::ConnectionLost { .. })));
}

#[tokio::test]
async fn a_silent_shim_does_not_hold_an_exec_nor_keep_its_files() {
    for mute in [&["exec", "kill", "wait"][..], &["start"][..], &[][..]] {
        let (fake, mut server) = Fake::serving("answer", mute).await;
        let shim = fake.start().await.unwrap();
        let runner = ExecRunner::default();
        let begun = Instant::now();
        let limit = Some(Duration::from_millis(200));
        let error = runner.exec_sync(&shim, &fake.bundle(), Default::default(), limit).await.unwrap_err();
        assert!(matches!(error, ExecError::DeadlineExceeded { .. } | ExecError::Runtime(_)), "{error:?}");
        runner.drained().await;
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!(std::fs::read_dir(fake.bundle().join("io")).unwrap().count(), 0, "{mute:?}");
        server.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_socket_with_a_long_path_is_reached() {
    let fake = Fake::new("answer", b"");
    let deep = fake.folder.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    // Bound by a short name, as the path itself does not fit into a socket's address.
    let near = fake.folder.path().join("s");
    let mut server = serve(&format!("unix://{}", near.display()), &[]).await;
    std::fs::rename(&near, deep.join("s")).unwrap();
    let endpoint = Endpoint {
        address: format!("unix://{}", deep.join("s").display()),
        version: 3,
        kind: ShimKind::Foreign,
        protocol: 1,
        process: None,
    };
    let shim = fake.launcher.connect("c1", &endpoint, &fake.bundle()).await.unwrap();
    assert_eq!(shim.create(CreateTask::default()).await.unwrap(), 42);
    server.shutdown().await.unwrap();
}

/// Dropping the last handle ends the connection: no descriptor is left for a container that is gone.
#[tokio::test]
async fn dropping_a_shim_closes_its_connection() {
    let (fake, mut server) = Fake::serving("answer", &[]).await;
    let log_open = || {
        let targets = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok());
        targets.filter(|target| *target == fake.bundle().join("log")).count()
    };
    let shim = fake.start().await.unwrap();
    shim.kill("", 9, false).await.unwrap();
    assert_eq!(log_open(), 1);
    drop(shim);
    let begun = Instant::now();
    while log_open() > 0 {
        assert!(begun.elapsed() < Duration::from_secs(2), "the connection stays");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown().await.unwrap();
}
