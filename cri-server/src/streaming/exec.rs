//! Exec sessions: one more process in a container, its streams with a client.
//!
//! Invariant: the session lasts as long as its process, whatever its client does; a client that vanishes closes the
//! process's input, or hangs up its terminal. At the end the shim has forgotten the process and its FIFOs are gone.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use oci_spec::runtime::Process;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::copy::{self, InputEnd, Orphaned};
use super::remote::{BoxRead, CommandSession, Outcome, Streams};
use super::session::{self, Outputs, finish, follow_size};
use crate::container::{Container, ContainerError, Containers};
use crate::io::{SessionFifos, SessionInput, Wanted};
use crate::report::chain;
use crate::runtime::{ExecProcess, Exit, RuntimeError, Shim};

const SIGHUP: u32 = 1;

/// What the client asked for.
pub struct Request {
    pub container: Arc<Container>,
    pub command: Vec<String>,
    pub streams: Streams,
}

/// Runs the command and sees the session to its end.
pub(super) async fn serve(
    containers: &Containers,
    request: Request,
    session: CommandSession,
    stopping: &CancellationToken,
) {
    let CommandSession { stdin, stdout, stderr, resize, status } = session;
    let (exec, fifos) = match Exec::begin(containers, request).await {
        Ok(begun) => begun,
        Err(error) => return finish(status, Outcome::Failure(chain(&error))).await,
    };
    let outputs = Outputs::start([(fifos.stdout, stdout), (fifos.stderr, stderr)], Orphaned::Discard);
    let mut inputs = JoinSet::new();
    if let (Some(fifo), Some(client)) = (fifos.stdin, stdin) {
        inputs.spawn(exec.clone().feed(fifo, client));
    }
    if exec.terminal {
        inputs.spawn(follow_size(Arc::clone(&exec.shim), exec.id.clone(), resize));
        inputs.spawn(exec.clone().hang_up_with(status.gone()));
    }
    let exit = exec.wait(stopping).await;
    failpoint!("stream.exec.ended", infallible);
    inputs.shutdown().await;
    outputs.drain().await;
    // The client is told first: the shim's part of the end is not its concern.
    finish(status, outcome(exit)).await;
    exec.forget().await;
    failpoint!("stream.exec.forgotten", infallible);
}

fn outcome(exit: Result<Option<Exit>, RuntimeError>) -> Outcome {
    match exit {
        Ok(Some(exit)) => Outcome::ExitCode(i32::try_from(exit.status).unwrap_or(i32::MAX)),
        Ok(None) => Outcome::Failure("the daemon is going down".to_owned()),
        Err(error) => Outcome::Failure(chain(&error)),
    }
}

/// A process that was started for a session.
#[derive(Clone)]
struct Exec {
    shim: Arc<Shim>,
    id: String,
    terminal: bool,
}

impl Exec {
    async fn begin(
        containers: &Containers,
        request: Request,
    ) -> Result<(Self, SessionFifos), ContainerError> {
        let Request { container, command, streams } = request;
        let target = containers.exec_target(&container, command, streams.tty).await?;
        let id = session::name()?;
        let exec = Self { shim: target.shim, id: id.to_string(), terminal: streams.tty };
        let wanted = Wanted {
            stdin: streams.stdin,
            stdout: streams.stdout,
            // A terminal has one output.
            stderr: streams.stderr && !streams.tty,
        };
        let fifos = SessionFifos::make(&target.bundle, &exec.id, wanted)?;
        failpoint!("stream.exec.fifos_made");
        if let Err(error) = exec.start(target.process, &fifos).await {
            // It may have started all the same, after its time; one that has not is not found.
            let _ = exec.shim.kill(&exec.id, libc::SIGKILL.unsigned_abs(), true).await;
            exec.forget().await;
            return Err(error.into());
        }
        Ok((exec, fifos))
    }

    async fn start(&self, process: Process, fifos: &SessionFifos) -> Result<(), RuntimeError> {
        let exec = ExecProcess {
            exec_id: self.id.clone(),
            process,
            stdin: fifos.stdin.as_ref().map(SessionInput::path).unwrap_or_default(),
            stdout: fifos.stdout.as_ref().map(|fifo| fifo.path()).unwrap_or_default(),
            stderr: fifos.stderr.as_ref().map(|fifo| fifo.path()).unwrap_or_default(),
            terminal: self.terminal,
        };
        self.shim.exec(exec).await?;
        failpoint!("stream.exec.added");
        self.shim.start(&self.id).await?;
        failpoint!("stream.exec.started");
        Ok(())
    }

    /// Until the process has ended, or nothing when the daemon ends first.
    async fn wait(&self, stopping: &CancellationToken) -> Result<Option<Exit>, RuntimeError> {
        let ended = stopping.run_until_cancelled(self.shim.wait(&self.id)).await;
        if ended.is_none() {
            self.hang_up().await;
        }
        ended.transpose()
    }

    async fn feed(self, fifo: SessionInput, client: BoxRead) {
        let end = match fifo.connected() {
            Ok(fifo) => copy::input(client, fifo).await,
            // It has ended already, or reads nothing; the client's end is still news.
            Err(_) => InputEnd::Unread,
        };
        // Our own shim has seen the FIFO's end; others need to be told. A terminal has no half that could be closed.
        if end != InputEnd::Unread && !self.terminal {
            self.ignore(self.shim.close_io(&self.id).await);
        }
    }

    async fn hang_up_with(self, client: CancellationToken) {
        client.cancelled().await;
        self.hang_up().await;
    }

    /// What losing its line means to a terminal; without one, the input's end is all.
    async fn hang_up(&self) {
        if self.terminal {
            self.ignore(self.shim.kill(&self.id, SIGHUP, true).await);
        }
    }

    async fn forget(&self) {
        self.ignore(self.shim.delete(&self.id).await.map(drop));
    }

    /// A process that is gone needs nothing any more.
    fn ignore(&self, done: Result<(), RuntimeError>) {
        match done {
            Err(error) if !error.is_not_found() && !error.is_shim_lost() => {
                tracing::warn!(exec = self.id, error = %chain(&error), "the end of an exec session");
            }
            _ => {}
        }
    }
}
