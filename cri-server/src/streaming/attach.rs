//! Attach sessions: a client at the streams of a container's own first process.
//!
//! Invariant: the container does not depend on its clients. One that lets a megabyte wait loses its session (the shim
//! holds no more for it, and neither the container nor its log may wait); one that vanishes ends it. The stdin of a container with `stdin_once` ends with the first client's.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::copy::{self, Orphaned};
use super::remote::{BoxRead, CommandSession, Outcome, Streams};
use super::session::{self, Outputs, finish, follow_size};
use crate::container::{AttachTarget, Container, ContainerError, Containers};
use crate::io::{SessionFifos, Wanted, open_input};
use crate::report::chain;
use crate::runtime::Shim;

/// The exit of a container is recorded a little after its streams' end.
const EXIT_FOLLOWS: Duration = Duration::from_secs(5);

/// How long a container may take to read what a client said that is gone.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// What the client asked for.
pub struct Request {
    pub container: Arc<Container>,
    pub streams: Streams,
}

/// Sees the session to its end.
pub(super) async fn serve(
    containers: &Containers,
    request: Request,
    session: CommandSession,
    stopping: &CancellationToken,
) {
    let CommandSession { stdin, stdout, stderr, resize, status } = session;
    let (target, fifos) = match begin(containers, &request).await {
        Ok(begun) => begun,
        Err(error) => return finish(status, Outcome::Failure(chain(&error))).await,
    };
    let mut outputs = Outputs::start([(fifos.stdout, stdout), (fifos.stderr, stderr)], Orphaned::Leave);
    let mut inputs = JoinSet::new();
    if request.streams.tty {
        inputs.spawn(follow_size(Arc::clone(&target.shim), String::new(), resize));
    }
    let mut words = JoinSet::new();
    let shim = Arc::clone(&target.shim);
    if let Some(client) = stdin {
        words.spawn(feed(Arc::clone(&request.container), target, client));
    }
    let gone = status.gone();
    let listens = !outputs.is_empty();
    let end = tokio::select! {
        () = outputs.all_ended(), if listens => End::Outputs,
        () = request.container.ended() => End::Container,
        () = gone.cancelled() => End::Client,
        () = stopping.cancelled() => End::Daemon,
    };
    let outcome = end.outcome(&request.container).await;
    match end {
        End::Container => outputs.drain().await,
        // Nobody listens any more, or nobody may go on.
        End::Outputs | End::Client | End::Daemon => drop(outputs),
    }
    inputs.shutdown().await;
    if matches!(end, End::Daemon) {
        // Clients come back to the next daemon; this is not the end of stdin.
        words.shutdown().await;
    }
    finish(status, outcome).await;
    // What the client said before it left still reaches the container, and then it is the end of what it says.
    let heard = async { while words.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST_WORDS, heard).await.is_err() {
        words.shutdown().await;
        end_input(&request.container, &shim).await;
    }
}

/// What ended the session.
#[derive(Clone, Copy)]
enum End {
    Outputs,
    Container,
    Client,
    Daemon,
}

impl End {
    async fn outcome(self, container: &Container) -> Outcome {
        match self {
            Self::Container | Self::Client => Outcome::Success,
            Self::Daemon => Outcome::Failure("the daemon is going down".to_owned()),
            Self::Outputs => match tokio::time::timeout(EXIT_FOLLOWS, container.ended()).await {
                Ok(()) => Outcome::Success,
                Err(_) => Outcome::Failure(
                    "the output ended although the container runs on: the client was too slow for it, or the \
                     container closed it"
                        .to_owned(),
                ),
            },
        }
    }
}

async fn begin(
    containers: &Containers,
    request: &Request,
) -> Result<(AttachTarget, SessionFifos), ContainerError> {
    let target = containers.attach_target(&request.container)?;
    let id = session::name()?;
    let Streams { stdout, stderr, tty, .. } = request.streams;
    let wanted = Wanted { stdin: false, stdout, stderr: stderr && !tty };
    let fifos = SessionFifos::make(&target.bundle, &format!("attach-{id}"), wanted)?;
    let path = |fifo: &Option<crate::io::SessionOutput>| fifo.as_ref().map(|f| f.path()).unwrap_or_default();
    failpoint!("stream.attach.fifos_made");
    if wanted.stdout || wanted.stderr {
        target.shim.attach(path(&fifos.stdout), path(&fifos.stderr)).await?;
    }
    failpoint!("stream.attach.attached");
    Ok((target, fifos))
}

/// Carries the client's words.
async fn feed(container: Arc<Container>, target: AttachTarget, client: BoxRead) {
    let fifo = target.stdin.as_deref().map(open_input);
    match fifo {
        Some(Ok(fifo)) => copy::input(client, fifo).await,
        // It has no stdin, or an earlier client's end was its end.
        None | Some(Err(_)) => copy::discard(client).await,
    };
    end_input(&container, &target.shim).await;
}

/// The end of a client's words, which is the end of stdin where the container was made so.
async fn end_input(container: &Container, shim: &Shim) {
    let config = container.config();
    // A terminal stays for whoever comes next, as kubectl's users know it.
    if config.stdin_once
        && !config.tty
        && let Err(error) = shim.close_io("").await
        && !error.is_shim_lost()
        && !error.is_not_found()
    {
        tracing::warn!(container = %container.id(), error = %chain(&error), "end of stdin");
    }
}
