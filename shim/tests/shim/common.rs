//! A container of busybox driven through ttrpc with the real binary, and the check that nothing is left of it.
//!
//! Each [`Node`] is one bundle with its shim. Invariant: dropping it ends what it started, and [`Node::finish`] fails
//! when anything of it is still there.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use containerd_shim_protos::api::*;
use containerd_shim_protos::shim_async::{Client, TaskClient};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use ttrpc::context::{Context, with_duration};

/// The shim under test; `COFFERDAM_SHIM` names another build of it, such as the static one.
pub fn shim() -> String {
    let built = env!("CARGO_BIN_EXE_containerd-shim-cofferdam-v1");
    std::env::var("COFFERDAM_SHIM").unwrap_or_else(|_| built.to_owned())
}

pub fn soon() -> Context {
    with_duration(Duration::from_secs(30))
}

pub struct Node {
    pub id: String,
    pub folder: tempfile::TempDir,
    pub bundle: PathBuf,
    pub task: TaskClient,
    pub client: Client,
    pub shim_pid: i32,
    finished: bool,
}

pub fn spec(args: &[&str]) -> Value {
    let namespaces = ["pid", "ipc", "uts", "mount", "network"].map(|t| json!({ "type": t }));
    json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": args,
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "effective": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
                "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"]
            },
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 1_048_576, "soft": 1024 }],
            "oomScoreAdj": -500
        },
        "root": { "path": "rootfs" },
        "hostname": "box",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }
        ],
        "linux": { "namespaces": namespaces, "resources": {} }
    })
}

impl Node {
    pub async fn new(spec: Value) -> Node {
        Node::in_folder(spec, tempfile::tempdir().unwrap()).await
    }

    pub async fn in_folder(mut spec: Value, folder: tempfile::TempDir) -> Node {
        let inode = fs::metadata(folder.path()).unwrap().ino();
        let id = format!("t{}-{inode}", std::process::id());
        let bundle = folder.path().join("bundle");
        let lower = folder.path().join("lower");
        for name in
            ["bundle", "bundle/rootfs", "upper", "work", "lower/bin", "lower/proc", "lower/dev", "lower/tmp"]
        {
            fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        fs::copy("/bin/busybox", lower.join("bin/busybox")).unwrap();
        for name in ["sh", "true", "sleep", "cat", "echo", "id", "stty", "env", "head", "ps", "tty", "tr"] {
            std::os::unix::fs::symlink("busybox", lower.join("bin").join(name)).unwrap();
        }
        if spec["linux"]["cgroupsPath"].is_null() {
            spec["linux"]["cgroupsPath"] = json!(format!("/{id}"));
        }
        fs::write(bundle.join("config.json"), spec.to_string()).unwrap();
        let address = start_shim(&bundle, &id, &folder.path().join("events"));
        let client = Client::connect(&address).await.unwrap();
        let shim_pid = fs::read_to_string(bundle.join("shim.pid")).unwrap().parse().unwrap();
        Node { id, folder, bundle, task: TaskClient::new(client.clone()), client, shim_pid, finished: false }
    }

    /// Where the shim looks for its daemon; nobody is there unless the test is.
    pub fn events_socket(&self) -> PathBuf {
        self.path("events")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn log_uri(&self) -> String {
        format!("cri-log://{}", self.path("0.log").display())
    }

    /// The log without the times.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.path("0.log")).unwrap_or_default();
        text.lines().map(|l| l.split_once(' ').map_or(l, |(_, rest)| rest).to_owned() + "\n").collect()
    }

    pub fn request(&self) -> CreateTaskRequest {
        let overlay = Mount {
            type_: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("lowerdir={}", self.path("lower").display()),
                format!("upperdir={}", self.path("upper").display()),
                format!("workdir={}", self.path("work").display()),
            ],
            ..Mount::default()
        };
        CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.bundle.to_string_lossy().into_owned(),
            rootfs: vec![overlay],
            stdout: self.log_uri(),
            stderr: self.log_uri(),
            ..CreateTaskRequest::default()
        }
    }

    pub async fn create(&self) -> ttrpc::Result<u32> {
        self.task.create(soon(), &self.request()).await.map(|r| r.pid)
    }

    pub async fn start(&self) -> ttrpc::Result<u32> {
        let request = StartRequest { id: self.id.clone(), ..StartRequest::default() };
        self.task.start(soon(), &request).await.map(|r| r.pid)
    }

    pub async fn wait(&self, exec_id: &str) -> u32 {
        let request = WaitRequest { id: self.id.clone(), exec_id: exec_id.into(), ..WaitRequest::default() };
        self.task.wait(soon(), &request).await.unwrap().exit_status
    }

    pub async fn kill(&self, exec_id: &str, signal: u32, all: bool) -> ttrpc::Result<()> {
        let request = KillRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..KillRequest::default()
        };
        self.task.kill(soon(), &request).await.map(drop)
    }

    pub async fn delete(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request =
            DeleteRequest { id: self.id.clone(), exec_id: exec_id.into(), ..DeleteRequest::default() };
        self.task.delete(soon(), &request).await.map(|r| r.exit_status)
    }

    pub async fn state(&self) -> StateResponse {
        let request = StateRequest { id: self.id.clone(), ..StateRequest::default() };
        self.task.state(soon(), &request).await.unwrap()
    }

    /// Adds and starts an exec with its output in files of the node's folder.
    pub async fn exec(&self, exec_id: &str, args: &[&str]) -> ttrpc::Result<u32> {
        let process = json!({
            "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
        });
        let out = format!("file://{}", self.path(exec_id).display());
        let request =
            ExecProcessRequest { stdout: out.clone(), stderr: out, ..self.exec_request(exec_id, &process) };
        self.task.exec(soon(), &request).await?;
        self.start_exec(exec_id).await
    }

    pub fn exec_request(&self, exec_id: &str, process: &Value) -> ExecProcessRequest {
        let spec = Any { value: process.to_string().into_bytes(), ..Any::default() };
        ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.into(),
            spec: MessageField::some(spec),
            ..ExecProcessRequest::default()
        }
    }

    pub async fn start_exec(&self, exec_id: &str) -> ttrpc::Result<u32> {
        let request =
            StartRequest { id: self.id.clone(), exec_id: exec_id.into(), ..StartRequest::default() };
        self.task.start(soon(), &request).await.map(|r| r.pid)
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Shuts the shim down and checks that nothing is left.
    pub async fn finish(mut self) {
        self.task
            .shutdown(soon(), &ShutdownRequest { id: self.id.clone(), ..Default::default() })
            .await
            .unwrap();
        eventually("the shim ends", || !alive(self.shim_pid));
        self.finished = true;
        self.check_nothing_left();
    }

    pub fn check_nothing_left(&self) {
        assert!(!self.bundle.join("shim.sock").exists(), "the socket is left");
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder.path().to_str().unwrap();
        assert!(!mounts.contains(folder), "a mount is left below {folder}");
        assert_eq!(cgroups_named(&self.id), Vec::<PathBuf>::new(), "cgroups are left");
        assert_eq!(processes_naming(folder), Vec::<i32>::new(), "processes are left");
        assert!(!self.bundle.join("oci").exists(), "the runtime's state is left");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !self.finished {
            for folder in cgroups_named(&self.id) {
                let pids = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
                for pid in pids.lines() {
                    drop(Command::new("kill").args(["-9", pid]).status());
                }
            }
            drop(
                Command::new("kill").args(["-9", &self.shim_pid.to_string()]).stderr(Stdio::null()).status(),
            );
            std::thread::sleep(Duration::from_millis(100));
            drop(delete_command(&self.bundle, &self.id));
        }
    }
}

pub fn start_shim(bundle: &Path, id: &str, events: &Path) -> String {
    let out = Command::new(shim())
        .args([
            "-namespace",
            "test",
            "-address",
            "/nowhere",
            "-publish-binary",
            "/bin/true",
            "-id",
            id,
            "start",
        ])
        .env("TTRPC_ADDRESS", events)
        .current_dir(bundle)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "start: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

pub fn delete_command(bundle: &Path, id: &str) -> DeleteResponse {
    use protobuf::Message;
    let out = Command::new(shim())
        .args(["-namespace", "test", "-id", id, "-bundle", bundle.to_str().unwrap(), "delete"])
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(out.status.success(), "delete: {}", String::from_utf8_lossy(&out.stderr));
    DeleteResponse::parse_from_bytes(&out.stdout).unwrap()
}

pub fn alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !check() {
        assert!(Instant::now() < deadline, "did not happen in time: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

pub fn cgroups_named(id: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                if entry.file_name().to_string_lossy() == id {
                    found.push(entry.path());
                }
                folders.push(entry.path());
            }
        }
    }
    found
}

/// Processes whose working directory or command line lies in `folder`, other than this one.
pub fn processes_naming(folder: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        let cwd = fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if cwd.starts_with(folder) || String::from_utf8_lossy(&line).contains(folder) {
            found.push(pid);
        }
    }
    found
}

pub fn mkfifo(path: &Path) {
    nix::unistd::mkfifo(path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
}

pub fn make_executable(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

pub fn status_of(error: ttrpc::Error) -> (ttrpc::Code, String) {
    match error {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("not a status: {other}"),
    }
}
