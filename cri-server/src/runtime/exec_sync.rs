//! Runs a command in a container and collects what it prints, within a time.
//!
//! Invariant: whatever happens (time-out, a caller that goes away, a shim that fails in the middle), the process is
//! killed or has ended, the shim has forgotten it and the FIFOs are gone. The work is done by a task of its own: a caller
//! that goes away makes it end the command, for nobody is left to read what it says, but cannot cut it off half-way.

use cofferdam_failpoints::failpoint;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use oci_spec::runtime::Process;
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::bootstrap::ShimKind;
use super::error::RuntimeError;
use super::process_tree;
use super::shim::{ExecProcess, Exit, Shim, TaskStatus};
use crate::cgroup::{CgroupError, Hierarchies, kill_all};
use crate::io::{Captured, ExecCapture, IoError, LIMIT};
use crate::model::ContainerId;

/// How long output is awaited after the process has ended.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a killed process may take to end.
const DYING: Duration = Duration::from_secs(5);
/// How long the shim may take for what one that is well does at once.
const ASKED: Duration = Duration::from_secs(2);
/// How long the caller waits for the end of a command that failed or took too long.
const ANSWER: Duration = Duration::from_secs(3);
const SIGKILL: u32 = 9;

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// The beginning of its stdout.
    pub stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub stderr: Vec<u8>,
    /// 128 plus the signal's number where a signal ended it.
    pub exit_code: i32,
    /// Whether it printed more than is kept.
    pub truncated: bool,
}

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The command took too long and was killed. Becomes DEADLINE_EXCEEDED, which kubelets take for a failed probe.
    #[error("command timed out after {after:?}")]
    DeadlineExceeded {
        /// The time it had.
        after: Duration,
    },
    /// Nobody waits for the output any more; the command was killed.
    #[error("the caller of the command went away")]
    CallerGone,
    /// The shim refused or is gone.
    #[error("exec in container")]
    Runtime(#[source] RuntimeError),
    /// The FIFOs could not be made.
    #[error("exec in container")]
    Io(#[source] IoError),
    /// The daemon is going down.
    #[error("exec was abandoned: the daemon is going down")]
    Abandoned,
}

/// Runs commands; owns the tasks that see them to their end.
#[derive(Clone, Debug, Default)]
pub struct ExecRunner {
    tasks: TaskTracker,
}

impl ExecRunner {
    /// Runs `process` in the container of `shim`, whose bundle takes the FIFOs. `None` waits as long as the caller does:
    /// when this future is dropped, the process is killed.
    ///
    /// # Errors
    /// [`ExecError`]; the process does not run any more then, or is about to end.
    pub async fn exec_sync(
        &self,
        shim: &Shim,
        bundle: &Path,
        process: Process,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        let run = Run {
            shim: shim.clone(),
            bundle: bundle.to_owned(),
            exec_id: random_id()?,
            timeout,
            pid: OnceLock::new(),
        };
        let span = tracing::info_span!("exec", task = shim.id(), exec = run.exec_id);
        let (mut answer, answered) = oneshot::channel();
        let work = async move {
            let result = run.execute(process, answer.closed()).await;
            let failed = result.is_err();
            let mut ending = std::pin::pin!(async {
                if failed {
                    run.kill().await;
                }
            });
            // A shim that hangs does not keep the caller from its answer.
            let ended = tokio::time::timeout(ANSWER, &mut ending).await.is_ok();
            // The caller may have gone away; the shim has to forget the process all the same, which can take long.
            let _ = answer.send(result);
            failpoint!("exec.answered", infallible);
            if !ended {
                ending.await;
            }
            run.forget().await;
            failpoint!("exec.forgotten", infallible);
        };
        self.tasks.spawn(work.instrument(span));
        answered.await.unwrap_or(Err(ExecError::Abandoned))
    }

    /// Waits until every command has ended or was killed.
    pub async fn drained(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

fn random_id() -> Result<String, ExecError> {
    let id = ContainerId::generate()
        .map_err(|source| ExecError::Io(IoError::at("read", Path::new("/dev/urandom"), source)))?;
    Ok(id.as_str().to_owned())
}

/// One command under way.
struct Run {
    shim: Shim,
    bundle: PathBuf,
    exec_id: String,
    timeout: Option<Duration>,
    /// Set once it runs.
    pid: OnceLock<u32>,
}

impl Run {
    async fn execute(
        &self,
        process: Process,
        left: impl Future<Output = ()>,
    ) -> Result<ExecOutput, ExecError> {
        let capture = ExecCapture::make(&self.bundle, &self.exec_id, LIMIT).map_err(ExecError::Io)?;
        failpoint!("exec.fifos_made");
        let exec = ExecProcess {
            exec_id: self.exec_id.clone(),
            process,
            stdin: String::new(),
            stdout: capture.stdout(),
            stderr: capture.stderr(),
            terminal: false,
        };
        let ended = tokio::select! {
            ended = self.run_to_end(exec) => ended.map_err(ExecError::Runtime),
            after = over(self.timeout) => Err(ExecError::DeadlineExceeded { after }),
            () = left => Err(ExecError::CallerGone),
        };
        match ended {
            Ok(exit) => {
                failpoint!("exec.ended", infallible);
                let (stdout, stderr) = capture.finish(DRAIN).await;
                Ok(output(exit, stdout, stderr))
            }
            Err(error) => Err(error),
        }
    }

    async fn run_to_end(&self, exec: ExecProcess) -> Result<Exit, RuntimeError> {
        self.shim.exec(exec).await?;
        failpoint!("exec.added");
        let pid = self.shim.start(&self.exec_id).await?;
        let _ = self.pid.set(pid);
        failpoint!("exec.started");
        self.shim.wait(&self.exec_id).await
    }

    /// Ends the process and, where the shim can or its processes are the host's, everything that it started.
    async fn kill(&self) {
        self.kill_tree().await;
        let begun = tokio::time::Instant::now();
        // A start that is still under way at the time-out has nothing to kill yet: try again until it has.
        while begun.elapsed() < DYING {
            match self.shim.kill_within(&self.exec_id, SIGKILL, true, ASKED).await {
                Ok(()) => {
                    let _ = tokio::time::timeout(DYING, self.shim.wait(&self.exec_id)).await;
                    return;
                }
                Err(RuntimeError::Timeout { .. }) => return self.kill_without_shim().await,
                // The container ends with it.
                Err(error) if error.is_shim_lost() => return,
                Err(_) if self.has_ended().await => return,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        tracing::warn!("process of an exec that must end could not be killed");
    }

    /// With the cgroup that our shim gives each exec on this node; of others' execs the tree. As long as the shim hangs, the
    /// process's number is nobody else's.
    async fn kill_without_shim(&self) {
        let Some(&pid) = self.pid.get() else { return };
        tracing::warn!("the shim does not end an exec that must end: it is killed without it");
        let folder = format!("exec-{}", self.exec_id);
        let own = self.shim.endpoint().kind == ShimKind::Own;
        let killing = move || {
            let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            let mut paths = Hierarchies::detect()?.paths_of_process(&text);
            paths.controllers.retain(|_, path| path.ends_with(&folder));
            paths.unified = paths.unified.filter(|path| path.ends_with(&folder));
            if paths.exist() {
                kill_all(&paths)?;
            } else if own {
                // A machine's: the number is that of the whole pod.
                tracing::warn!("an exec that must end has no cgroup on this node: it is left to the shim");
            } else {
                process_tree::kill(pid);
            }
            Ok::<_, CgroupError>(())
        };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(killing).await {
            tracing::warn!(error = %crate::report::chain(&error), "an exec that must end");
        }
    }

    /// runc's shim signals the one process only.
    async fn kill_tree(&self) {
        let Some(&pid) = self.pid.get() else { return };
        if self.shim.endpoint().kind != ShimKind::Runc {
            return;
        }
        if let Ok(state) = self.shim.state_within(&self.exec_id, ASKED).await
            && state.status == TaskStatus::Running
            && state.pid == pid
        {
            let count = process_tree::kill(pid);
            tracing::debug!(count, "killed an exec with what it started");
        }
    }

    async fn has_ended(&self) -> bool {
        match self.shim.state_within(&self.exec_id, ASKED).await {
            Ok(state) => state.exit.is_some(),
            Err(error) => error.is_not_found() || error.is_shim_lost(),
        }
    }

    async fn forget(&self) {
        match self.shim.delete(&self.exec_id).await {
            Err(error) if !error.is_not_found() && !error.is_shim_lost() => {
                tracing::warn!(%error, "shim keeps an ended exec");
            }
            _ => {}
        }
    }
}

/// Resolves when the time is over; never without one.
async fn over(time: Option<Duration>) -> Duration {
    match time {
        Some(after) => {
            tokio::time::sleep(after).await;
            after
        }
        None => std::future::pending().await,
    }
}

fn output(exit: Exit, stdout: Captured, stderr: Captured) -> ExecOutput {
    ExecOutput {
        truncated: stdout.truncated || stderr.truncated,
        stdout: stdout.data,
        stderr: stderr.data,
        exit_code: i32::try_from(exit.status).unwrap_or(i32::MAX),
    }
}
