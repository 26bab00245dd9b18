//! Joins the streams of a command in a container to our own.
//!
//! Invariant: all output is written before the session is over; signals end it at once, whatever is being written.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};

use super::spdy::{Event, Opened, Receiver, Sender, open};
use super::status::{self, Outcome};
use super::terminal::{self, RawTerminal};
use super::{COMMAND_PROTOCOL, RemoteError, Target, dial};
use crate::cli::error::CliError;
use crate::cli::signals::Signals;
use crate::streaming::Streams;
use crate::streaming::spdy::Headers;

const CHUNK: usize = 32 * 1024;

/// What ended a session.
#[derive(Debug)]
pub(in crate::cli) enum Ended {
    Outcome(Outcome),
    /// We were asked to end; the exit code that shells know for the signal.
    Signal(u8),
}

/// The ids of the streams, of those that are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Ids {
    error: u32,
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    resize: Option<u32>,
}

/// The headers of the streams and the ids that they will have.
fn plan(streams: Streams) -> (Vec<Headers>, Ids) {
    let mut headers: Vec<Headers> = Vec::new();
    let mut stream = |name: &str, wanted: bool| {
        wanted.then(|| {
            headers.push([("streamtype", name)].into_iter().collect());
            u32::try_from(2 * headers.len() - 1).unwrap_or(u32::MAX)
        })
    };
    let ids = Ids {
        error: stream("error", true).unwrap_or_default(),
        stdin: stream("stdin", streams.stdin),
        stdout: stream("stdout", streams.stdout),
        stderr: stream("stderr", streams.stderr && !streams.tty),
        resize: stream("resize", streams.tty),
    };
    (headers, ids)
}

/// Whose terminal size the container's terminal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::cli) enum Size {
    Ours,
    /// We only watch.
    Others,
}

/// Sees a session at `target` to its end. With a terminal on both sides, ours is raw meanwhile.
pub(in crate::cli) async fn run(target: &Target, streams: Streams, size: Size) -> Result<Ended, CliError> {
    let mut signals = Signals::watch()?;
    let (headers, ids) = plan(streams);
    let io = tokio::select! {
        io = dial(target, COMMAND_PROTOCOL) => io?,
        code = signals.next() => return Ok(Ended::Signal(code)),
    };
    let Opened { sender, mut receiver, writer } = open(io, &headers);
    let raw = streams.tty && streams.stdin;
    let terminal = if raw { Some(RawTerminal::enter().map_err(CliError::Setup)?) } else { None };
    tokio::select! {
        status = outputs(&mut receiver, ids) => Ok(Ended::Outcome(status::parse(&status?)?)),
        code = signals.next() => Ok(Ended::Signal(code)),
        failed = input(&sender, ids.stdin) => Err(failed),
        failed = sizes(&sender, ids.resize.filter(|_| size == Size::Ours)) => Err(failed),
        failed = resumed(terminal.as_ref()) => Err(failed),
        never = writer.run() => match never {},
    }
}

/// Writes the output; gives what the error stream said.
async fn outputs(receiver: &mut Receiver, ids: Ids) -> Result<Vec<u8>, CliError> {
    let mut status = Vec::new();
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    while let Some(event) = receiver.next().await? {
        match event {
            Event::Data { id, data, .. } if id == ids.error => {
                let room = status::LONGEST.saturating_sub(status.len());
                status.extend_from_slice(&data[..data.len().min(room)]);
            }
            Event::Data { id, data, .. } if Some(id) == ids.stdout => write(&mut stdout, &data).await?,
            Event::Data { id, data, .. } if Some(id) == ids.stderr => write(&mut stderr, &data).await?,
            Event::Reset { id } if id == ids.error => return Err(RemoteError::Ended.into()),
            // What else there is has no reader.
            Event::Data { .. } | Event::Reset { .. } => {}
        }
    }
    Ok(status)
}

async fn write(to: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), CliError> {
    to.write_all(data).await.map_err(CliError::Output)?;
    to.flush().await.map_err(CliError::Output)
}

/// Passes our stdin on, and its end. Returns only when it cannot be read.
async fn input(sender: &Sender, id: Option<u32>) -> CliError {
    let Some(id) = id else { return std::future::pending().await };
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; CHUNK];
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) => break,
            // A session that takes nothing more is about to end, with its status.
            Ok(count) if sender.send(id, &buffer[..count]).await.is_err() => break,
            Ok(_) => {}
            Err(source) => return CliError::Input(source),
        }
    }
    let _ = sender.end(id).await;
    std::future::pending().await
}

/// Tells the terminal in the container the size of ours, now and whenever it changes.
async fn sizes(sender: &Sender, id: Option<u32>) -> CliError {
    let Some(id) = id else { return std::future::pending().await };
    let mut changes = match signal(SignalKind::window_change()) {
        Ok(changes) => changes,
        Err(error) => return CliError::Setup(error),
    };
    loop {
        if let Some(size) = terminal::size()
            && sender.send(id, size.as_bytes()).await.is_err()
        {
            return std::future::pending().await;
        }
        changes.recv().await;
    }
}

/// Makes the terminal raw again whenever we were stopped and go on.
async fn resumed(terminal: Option<&RawTerminal>) -> CliError {
    let Some(terminal) = terminal else { return std::future::pending().await };
    let mut continued = match signal(SignalKind::from_raw(libc::SIGCONT)) {
        Ok(continued) => continued,
        Err(error) => return CliError::Setup(error),
    };
    loop {
        continued.recv().await;
        if let Err(error) = terminal.resume() {
            return CliError::Input(io::Error::new(error.kind(), "the terminal is gone"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_sizes_and_no_stderr() {
        let (headers, ids) = plan(Streams { stdin: true, stdout: true, stderr: false, tty: true });
        let names: Vec<_> = headers.iter().filter_map(|headers| headers.get("streamtype")).collect();
        assert_eq!(names, ["error", "stdin", "stdout", "resize"]);
        let expected = Ids { error: 1, stdin: Some(3), stdout: Some(5), stderr: None, resize: Some(7) };
        assert_eq!(ids, expected);
        let (headers, ids) = plan(Streams { stdin: false, stdout: true, stderr: true, tty: false });
        assert_eq!((headers.len(), ids.stdout, ids.stderr), (3, Some(3), Some(5)));
    }
}
