//! One execution of one plugin: environment and standard input in, a bounded answer out.
//!
//! Invariant: when a call returns or is dropped, no process of the plugin's group that we started is left running unless
//! the plugin itself ended in time. Specification: CNI 1.1.0, section 2.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};

use super::error::{NetworkError, Said};

/// The most that a plugin may answer.
const OUTPUT_LIMIT: usize = 1 << 20;
/// How much of a plugin's words goes into a message.
const SAID_LIMIT: usize = 2048;
/// How long pipes are read after the plugin ended; something it left in the background may hold them open.
const DRAIN: Duration = Duration::from_millis(500);
/// A plugin that is just being installed is busy for a moment.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// A CNI command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// The attachment that a command is about, as the environment tells it.
#[derive(Debug, Clone, Default)]
pub(super) struct Subject {
    pub(super) container: String,
    /// Empty when the namespace is gone.
    pub(super) netns: String,
    pub(super) interface: String,
    pub(super) args: String,
}

/// Runs plugins.
#[derive(Debug, Clone)]
pub(super) struct Executor {
    pub(super) bin_dirs: Vec<PathBuf>,
    /// For one plugin and one command.
    pub(super) timeout: Duration,
}

/// CNI's error object.
#[derive(Deserialize)]
struct CniFailure {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// What a plugin wrote.
#[derive(Default)]
struct Heard {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Executor {
    /// The plugin's executable.
    pub(super) fn find(&self, plugin: &str) -> Result<PathBuf, NetworkError> {
        let executable = |path: &PathBuf| {
            std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
        };
        self.bin_dirs.iter().map(|dir| dir.join(plugin)).find(executable).ok_or_else(|| {
            NetworkError::PluginMissing { plugin: plugin.to_owned(), dirs: self.bin_dirs.clone() }
        })
    }

    /// Executes one command and gives the plugin's standard output.
    pub(super) async fn run(
        &self,
        plugin: &str,
        verb: Verb,
        subject: Option<&Subject>,
        stdin: &[u8],
    ) -> Result<Vec<u8>, NetworkError> {
        let path = self.find(plugin)?;
        let failed = |source| NetworkError::Spawn { path: path.clone(), command: verb.as_str(), source };
        let mut child = self.spawn(&path, verb, subject).await.map_err(failed)?;
        let group = Group::of(&child);
        let mut heard = Heard::default();
        let ended = tokio::time::timeout(self.timeout, converse(&mut child, stdin, &mut heard)).await;
        let said = || Said(excerpt(&heard.stderr));
        let Ok(ended) = ended else {
            end(group, &mut child).await;
            return Err(NetworkError::TimedOut {
                plugin: plugin.to_owned(),
                command: verb.as_str(),
                seconds: self.timeout.as_secs(),
                said: said(),
            });
        };
        match ended.map_err(failed)? {
            None => {
                end(group, &mut child).await;
                Err(NetworkError::TooMuchOutput {
                    plugin: plugin.to_owned(),
                    command: verb.as_str(),
                    limit: OUTPUT_LIMIT,
                })
            }
            Some(status) => {
                group.disarm();
                let said = said();
                judge(plugin, verb, status, heard.stdout, said)
            }
        }
    }

    async fn spawn(&self, path: &Path, verb: Verb, subject: Option<&Subject>) -> std::io::Result<Child> {
        let mut command = Command::new(path);
        command
            .env_clear()
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_PATH", self.bin_dirs.iter().map(|d| d.to_string_lossy()).collect::<Vec<_>>().join(":"))
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        if let Some(subject) = subject {
            command
                .env("CNI_CONTAINERID", &subject.container)
                .env("CNI_NETNS", &subject.netns)
                .env("CNI_IFNAME", &subject.interface)
                .env("CNI_ARGS", &subject.args);
        }
        #[cfg(feature = "failpoints")]
        command.envs(cofferdam_failpoints::environment());
        let mut tries = 0;
        loop {
            match command.spawn() {
                Err(busy)
                    if busy.kind() == std::io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(BUSY_PAUSE).await;
                }
                done => return done,
            }
        }
    }
}

/// Feeds the plugin and hears it out. `None` when it says more than it may.
async fn converse(child: &mut Child, input: &[u8], heard: &mut Heard) -> std::io::Result<Option<ExitStatus>> {
    let stdin = child.stdin.take();
    let out = child.stdout.take();
    let err = child.stderr.take();
    let feed = async {
        if let Some(mut pipe) = stdin {
            // A plugin that does not read its configuration is judged by its answer, not by the broken pipe.
            let _ = pipe.write_all(input).await;
        }
        std::future::pending::<()>().await;
    };
    let Heard { stdout, stderr } = heard;
    let pipes = async {
        let answer = async {
            let Some(pipe) = out else { return Ok(()) };
            if read_all(pipe, stdout).await { Ok(()) } else { Err(()) }
        };
        let complaint = async {
            if let Some(pipe) = err {
                read_some(pipe, stderr).await;
            }
            Ok(())
        };
        // Too long an answer ends both at once.
        tokio::try_join!(answer, complaint).is_ok()
    };
    tokio::pin!(pipes);
    let within_bounds = tokio::select! {
        () = feed => true,
        whole = &mut pipes => whole,
        status = child.wait() => {
            status?;
            tokio::time::timeout(DRAIN, pipes).await.unwrap_or(true)
        }
    };
    if !within_bounds {
        return Ok(None);
    }
    Ok(Some(child.wait().await?))
}

/// Reads to the end; false when there is more than the bound.
async fn read_all(mut pipe: impl AsyncRead + Unpin, into: &mut Vec<u8>) -> bool {
    let mut bounded = (&mut pipe).take(OUTPUT_LIMIT as u64 + 1);
    // A failing pipe reads as its end: the answer is then judged as far as it came.
    let _ = bounded.read_to_end(into).await;
    into.len() <= OUTPUT_LIMIT
}

/// Keeps the beginning and reads on, so that a chatty plugin does not block.
async fn read_some(mut pipe: impl AsyncRead + Unpin, into: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    while let Ok(count @ 1..) = pipe.read(&mut chunk).await {
        let room = (SAID_LIMIT + 1).saturating_sub(into.len());
        into.extend_from_slice(&chunk[..count.min(room)]);
    }
}

fn judge(
    plugin: &str,
    verb: Verb,
    status: ExitStatus,
    stdout: Vec<u8>,
    mut said: Said,
) -> Result<Vec<u8>, NetworkError> {
    if status.success() {
        return Ok(stdout);
    }
    let plugin = plugin.to_owned();
    let command = verb.as_str();
    if let Ok(failure) = serde_json::from_slice::<CniFailure>(&stdout) {
        let msg = match (failure.msg.trim(), failure.details.trim()) {
            ("", "") => "no message".to_owned(),
            (msg, "") | ("", msg) => excerpt(msg.as_bytes()),
            (msg, details) => excerpt(format!("{msg}: {details}").as_bytes()),
        };
        return Err(NetworkError::Refused { plugin, command, code: failure.code, msg, said });
    }
    if said.0.is_empty() {
        said = Said(excerpt(&stdout));
    }
    Err(NetworkError::Died { plugin, command, status, said })
}

/// The beginning of what a plugin wrote, fit for a message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    let cut = &bytes[..bytes.len().min(SAID_LIMIT)];
    let mut text: String = String::from_utf8_lossy(cut).trim().to_owned();
    text =
        text.chars().map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{fffd}' } else { c }).collect();
    if bytes.len() > SAID_LIMIT {
        text.push_str(" ...");
    }
    text
}

async fn end(group: Group, child: &mut Child) {
    drop(group);
    // Killed, so this is short, unless the kernel holds the process, say in a dead file system: then tokio reaps it later.
    let _ = tokio::time::timeout(DRAIN, child.wait()).await;
}

/// Kills the plugin's process group when dropped armed.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    /// The plugin has ended by itself: its number may soon be another's.
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Fails only when the group is gone, which is what was wanted.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}
