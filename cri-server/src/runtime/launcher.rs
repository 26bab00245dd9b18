//! Starts shims, reaches them again after a restart, and cleans up after those that died.
//!
//! Invariant: no command of a shim outlives its deadline, and nothing of a shim that stays (its descriptors, its
//! process) is held by the daemon but the connection.

use cofferdam_failpoints::failpoint;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::DeleteResponse;
use nix::sys::signal::Signal;
use protobuf::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::bootstrap::{AnswerError, Dialect, Endpoint, Identity, ShimKind, excerpt, parse_answer};
use super::connection::Connection;
use super::dead_socket;
use super::error::RuntimeError;
use super::handler::Handler;
use super::held::HeldProcess;
use super::log_pipe::{self, LogPipe};
use super::shim::{Deadlines, Exit, Shim, exit_of};

/// More than any answer has; the rest of the output is an error by itself.
const LONGEST_OUTPUT: usize = 64 * 1024;
/// How long output is awaited after the command ended: its pipe may have leaked into the shim that stays.
const OUTPUT_GRACE: Duration = Duration::from_millis(250);
/// Where [`Launcher::start`] keeps the shim's address in the bundle.
const ENDPOINT_FILE: &str = "shim.json";
/// The folder of the shims' sockets, in the state folder.
pub(super) const SOCKETS: &str = "s";
/// The longest folder in which shims that name sockets by a SHA-256 stay within a socket's address.
const LONGEST_SOCKET_DIR: usize = 107 - 1 - 64 - 1;
/// Where a shim of ours says why a task ended, if that was not its own doing.
const WHY_FILE: &str = "why";
const LONGEST_WHY: u64 = 2048;
/// How long a shim that has just started may take to tell its process's number, which is only needed when it hangs.
const INTRODUCTION: Duration = Duration::from_secs(2);

/// The daemon as shims see it.
#[derive(Debug)]
pub struct Launcher {
    state: PathBuf,
    own_exe: PathBuf,
    events_address: String,
    deadlines: Deadlines,
}

impl Launcher {
    /// `state` is the daemon's state folder, `events` the socket of [`super::events::Sink`].
    #[must_use]
    pub fn new(state: &Path, own_exe: &Path, events: &Path) -> Self {
        Self {
            state: state.to_owned(),
            own_exe: own_exe.to_owned(),
            events_address: events.to_string_lossy().into_owned(),
            deadlines: Deadlines::default(),
        }
    }

    /// Other deadlines than the default.
    #[must_use]
    pub fn with_deadlines(mut self, deadlines: Deadlines) -> Self {
        self.deadlines = deadlines;
        self
    }

    /// How long what is asked of shims may take.
    #[must_use]
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines
    }

    /// Starts the shim of task `id`, or joins the one that already serves its group, and connects.
    ///
    /// The bundle's folder must be named `id` and hold `config.json`. Run it in a task that nobody drops: what a shim
    /// has begun when its caller goes away is undone by [`Self::delete`] only.
    ///
    /// # Errors
    /// [`RuntimeError`]; nothing but a possible orphan for [`Self::delete`] is left then.
    pub async fn start(
        &self,
        handler: &Handler,
        id: &str,
        namespace: &str,
        bundle: &Path,
    ) -> Result<Shim, RuntimeError> {
        let binary = handler.check()?;
        check_bundle(id, bundle)?;
        let log = LogPipe::make(bundle, id)?;
        failpoint!("runtime.start.log_made");
        let endpoint = self.negotiate(handler, &binary, id, namespace, bundle).await?;
        failpoint!("runtime.start.answered");
        let shim = self.open(id, &endpoint).await?;
        failpoint!("runtime.start.connected");
        // Ours has written its number down before it answered, unless it has joined its pod's.
        let own = HeldProcess::shim_of(bundle, id).filter(|_| endpoint.kind == ShimKind::Own);
        let process = match own {
            Some(process) => Some(process),
            None => introduced(&shim, bundle).await,
        };
        let shim = shim.held_by(process);
        store_endpoint(bundle, shim.endpoint())?;
        failpoint!("runtime.start.recorded");
        log.forward(&shim);
        Ok(shim)
    }

    /// Runs `shim start` with the input that this shim understands; the first time that has to be found out.
    async fn negotiate(
        &self,
        handler: &Handler,
        binary: &Path,
        id: &str,
        namespace: &str,
        bundle: &Path,
    ) -> Result<Endpoint, RuntimeError> {
        let start = |dialect| self.bootstrap(handler, binary, id, namespace, bundle, dialect);
        if let Some(dialect) = handler.dialect() {
            return start(dialect).await;
        }
        let (endpoint, dialect) = match start(Dialect::Bootstrap).await {
            // An older shim takes the newer input for options of an unknown type.
            Err(newer @ RuntimeError::ShimFailed { .. }) => match start(Dialect::Legacy).await {
                Ok(endpoint) => (endpoint, Dialect::Legacy),
                Err(older) => {
                    tracing::debug!(task = id, error = %older, "nor does it start with the older input");
                    return Err(newer);
                }
            },
            other => (other?, Dialect::Bootstrap),
        };
        handler.remember(dialect);
        Ok(endpoint)
    }

    /// Runs `shim start` once.
    async fn bootstrap(
        &self,
        handler: &Handler,
        binary: &Path,
        id: &str,
        namespace: &str,
        bundle: &Path,
        dialect: Dialect,
    ) -> Result<Endpoint, RuntimeError> {
        let sockets = self.socket_dir(handler.kind)?;
        let address = self.state.to_string_lossy();
        let identity = self.identity(id, namespace, &address, sockets.as_deref());
        let input = identity
            .input(dialect, handler.options.as_ref())
            .map_err(|source| RuntimeError::Message { call: "start", source })?;
        let mut command = command(binary, &identity);
        command.args(identity.arguments("start", None)).current_dir(bundle);
        let output = self.run(command, binary, "start", &input).await?;
        if !output.status.success() {
            return Err(output.failed(binary, "start"));
        }
        let answer = || RuntimeError::Answer {
            binary: binary.to_owned(),
            action: "start",
            source: AnswerError::TooLong(LONGEST_OUTPUT),
        };
        if output.stdout.len() > LONGEST_OUTPUT {
            return Err(answer());
        }
        parse_answer(&output.stdout, handler.kind).map_err(|source| RuntimeError::Answer {
            binary: binary.to_owned(),
            action: "start",
            source,
        })
    }

    /// Connects to a shim that runs already, after a restart of the daemon.
    ///
    /// # Errors
    /// [`RuntimeError::Connect`] when it is gone; then [`Self::delete`] tells how its task ended.
    pub async fn connect(&self, id: &str, endpoint: &Endpoint, bundle: &Path) -> Result<Shim, RuntimeError> {
        let log = LogPipe::make(bundle, id)?;
        let shim = self.open(id, endpoint).await?.held_by(process_of(endpoint, bundle, id));
        if !endpoint.is_spoken() {
            tracing::warn!(
                task = id,
                protocol = endpoint.protocol,
                "a newer daemon has started its shim: log rotation and attach are refused until that version is back"
            );
        }
        log.forward(&shim);
        Ok(shim)
    }

    /// The process of the shim that was started for this bundle, if it is there: also of one that cannot be reached.
    #[must_use]
    pub fn process(bundle: &Path, id: &str) -> Option<HeldProcess> {
        match Self::recorded(bundle) {
            Some(endpoint) => process_of(&endpoint, bundle, id),
            None => HeldProcess::shim_of(bundle, id),
        }
    }

    async fn open(&self, id: &str, endpoint: &Endpoint) -> Result<Shim, RuntimeError> {
        let failed = |source| RuntimeError::Connect { address: endpoint.address.clone(), source };
        let path = endpoint.socket_path().ok_or_else(|| failed(io::ErrorKind::Unsupported.into()))?;
        let connecting = tokio::time::timeout(self.deadlines.launch, Connection::open(path));
        let connection =
            connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(failed)?;
        Ok(Shim::new(id, endpoint.clone(), connection, self.deadlines))
    }

    /// Where the shim of this bundle was reached last, as [`Self::start`] recorded it.
    #[must_use]
    pub fn recorded(bundle: &Path) -> Option<Endpoint> {
        serde_json::from_slice(&std::fs::read(bundle.join(ENDPOINT_FILE)).ok()?).ok()
    }

    /// Why the task of this bundle ended, in its shim's words, where that was not its own doing. They may hold a guest's.
    #[must_use]
    pub fn why(bundle: &Path) -> Option<String> {
        use std::io::Read;
        let mut bytes = Vec::new();
        std::fs::File::open(bundle.join(WHY_FILE)).ok()?.take(LONGEST_WHY).read_to_end(&mut bytes).ok()?;
        let words = String::from_utf8_lossy(&bytes);
        Some(words.chars().map(|c| if c.is_control() { ' ' } else { c }).collect())
    }

    /// Whether something of a shim may be left in this bundle: one was started, or its start was tried.
    #[must_use]
    pub fn tried(bundle: &Path) -> bool {
        [ENDPOINT_FILE, log_pipe::NAME].iter().any(|name| bundle.join(name).exists())
    }

    /// Forgets the shim of this bundle, once nothing of it is left.
    ///
    /// # Errors
    /// When the traces cannot be removed; absent ones are none.
    pub fn forget(bundle: &Path) -> Result<(), RuntimeError> {
        for name in [ENDPOINT_FILE, log_pipe::NAME] {
            let path = bundle.join(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(RuntimeError::File { operation: "remove", path, source });
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    /// Removes the socket of a shim of our own that has ended. Others see to theirs.
    ///
    /// # Errors
    /// When it cannot be removed; an absent one is none.
    pub fn remove_socket(bundle: &Path) -> Result<(), RuntimeError> {
        let own = Self::recorded(bundle).filter(|endpoint| endpoint.kind == ShimKind::Own);
        let Some(path) = own.and_then(|endpoint| endpoint.socket_path().map(Path::to_owned)) else {
            return Ok(());
        };
        match std::fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RuntimeError::File { operation: "remove", path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Cleans up after a shim that died: kills what is left of the task, unmounts its root filesystem.
    ///
    /// # Errors
    /// [`RuntimeError`] when the shim's command fails or hangs.
    pub async fn delete(
        &self,
        handler: &Handler,
        id: &str,
        namespace: &str,
        bundle: &Path,
    ) -> Result<Exit, RuntimeError> {
        let binary = handler.check()?;
        check_bundle(id, bundle)?;
        let address = self.state.to_string_lossy();
        let identity = self.identity(id, namespace, &address, None);
        let mut command = command(&binary, &identity);
        command.args(identity.arguments("delete", Some(bundle))).current_dir(bundle);
        let output = self.run(command, &binary, "delete", &[]).await?;
        if !output.status.success() {
            return Err(output.failed(&binary, "delete"));
        }
        if !output.stderr.trim_ascii().is_empty() {
            tracing::warn!(task = id, "{} delete: {}", binary.display(), excerpt(&output.stderr));
        }
        if let Some(endpoint) = Self::recorded(bundle) {
            dead_socket::remove(&endpoint).await;
        }
        let answer = DeleteResponse::parse_from_bytes(&output.stdout)
            .map_err(|source| RuntimeError::Message { call: "delete", source })?;
        Ok(exit_of(&answer))
    }

    fn identity<'a>(
        &'a self,
        id: &'a str,
        namespace: &'a str,
        address: &'a str,
        socket_dir: Option<&'a str>,
    ) -> Identity<'a> {
        Identity {
            id,
            namespace,
            grpc_address: address,
            ttrpc_address: &self.events_address,
            daemon: &self.own_exe,
            socket_dir,
        }
    }

    /// The folder for the sockets of shims, private to the daemon's user. With a state folder whose path is too long
    /// for it, shims choose their own.
    fn socket_dir(&self, kind: ShimKind) -> Result<Option<String>, RuntimeError> {
        let path = self.state.join(SOCKETS);
        let text = path.to_string_lossy();
        // Ours gives its sockets short names, and looks at the length itself.
        if kind != ShimKind::Own && text.len() > LONGEST_SOCKET_DIR {
            return Ok(None);
        }
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        match builder.create(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(RuntimeError::File { operation: "make", path, source })
            }
            _ => Ok(Some(text.into_owned())),
        }
    }

    /// Runs one command of a shim: bounded in time and output.
    async fn run(
        &self,
        mut command: Command,
        binary: &Path,
        action: &'static str,
        input: &[u8],
    ) -> Result<Output, RuntimeError> {
        let failed = |source| RuntimeError::Spawn { binary: binary.to_owned(), action, source };
        let mut child = command.spawn().map_err(failed)?;
        let after = self.deadlines.launch;
        match tokio::time::timeout(after, converse(&mut child, input)).await {
            Ok(output) => output.map_err(failed),
            Err(_) => {
                // With all that it started: its group is its own. Killed and reaped here, not at some later time.
                if let Some(group) = child.id().and_then(|id| i32::try_from(id).ok()) {
                    let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), Signal::SIGKILL);
                }
                child.kill().await.map_err(failed)?;
                Err(RuntimeError::ShimHangs { binary: binary.to_owned(), action, after })
            }
        }
    }
}

/// A foreign shim's process: it may have been there before, for others of the pod.
async fn introduced(shim: &Shim, bundle: &Path) -> Option<HeldProcess> {
    match tokio::time::timeout(INTRODUCTION, shim.shim_pid()).await {
        Ok(Ok(pid)) => HeldProcess::open(pid),
        _ => HeldProcess::shim_of(bundle, shim.id()),
    }
}

fn process_of(endpoint: &Endpoint, bundle: &Path, id: &str) -> Option<HeldProcess> {
    match endpoint.process {
        Some(name) => HeldProcess::find(name),
        None => HeldProcess::shim_of(bundle, id),
    }
}

/// What a shim's command left behind.
struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Output {
    fn failed(&self, binary: &Path, action: &'static str) -> RuntimeError {
        let words = if self.stderr.trim_ascii().is_empty() { &self.stdout } else { &self.stderr };
        RuntimeError::ShimFailed {
            binary: binary.to_owned(),
            action,
            status: self.status.to_string(),
            output: excerpt(words),
        }
    }
}

/// A command in a process group of its own: a signal from the daemon's terminal must not reach the shim that stays.
fn command(binary: &Path, identity: &Identity<'_>) -> Command {
    let mut command = Command::new(binary);
    command
        .envs(identity.environment())
        // The daemon's own ties to its supervisor are none of the shim's.
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_PID")
        .env_remove("WATCHDOG_USEC")
        .env_remove("LISTEN_FDS")
        .env_remove("LISTEN_PID")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    command
}

/// Feeds the command and collects what it prints until it ends.
async fn converse(child: &mut Child, input: &[u8]) -> io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let feed = async {
        if let Some(mut stdin) = stdin {
            // A command that ends without reading is judged by its status.
            let _ = stdin.write_all(input).await;
        }
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams =
        Box::pin(async { tokio::join!(feed, collect(stdout, &mut out), collect(stderr, &mut err)) });
    let status = tokio::select! {
        _ = &mut streams => None,
        status = child.wait() => Some(status?),
    };
    let status = match status {
        None => child.wait().await?,
        Some(status) => {
            let _ = tokio::time::timeout(OUTPUT_GRACE, &mut streams).await;
            status
        }
    };
    drop(streams);
    Ok(Output { status, stdout: out, stderr: err })
}

/// Reads to the end, keeps the beginning: one byte more than allowed shows that there was more.
async fn collect(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) {
    let Some(mut stream) = stream else { return };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        let room = (LONGEST_OUTPUT + 1).saturating_sub(kept.len());
        kept.extend_from_slice(&buffer[..count.min(room)]);
    }
}

fn check_bundle(id: &str, bundle: &Path) -> Result<(), RuntimeError> {
    if bundle.is_absolute() && bundle.file_name().is_some_and(|name| name == id) {
        return Ok(());
    }
    Err(RuntimeError::Bundle { id: id.to_owned(), bundle: bundle.to_owned() })
}

/// Records the address beside the bundle's other files, whole or not at all.
fn store_endpoint(bundle: &Path, endpoint: &Endpoint) -> Result<(), RuntimeError> {
    let path = bundle.join(ENDPOINT_FILE);
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(bundle)?;
        serde_json::to_writer(&mut file, endpoint)?;
        file.persist(&path).map_err(|error| error.error)
    };
    write().map(drop).map_err(|source| RuntimeError::File { operation: "write", path: path.clone(), source })
}
