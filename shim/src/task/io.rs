//! The standard streams of one process: where they go, and the loops that carry them there.
//!
//! Invariant: a reader that is absent or slow never ends the process, and a sink that fails is given up while the
//! stream is read on, so that the process never blocks on a full disk.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::console::ConsoleSocket;
use super::log::StreamName;
use super::sink::{Destination, Logs, Output, Sink, copy_output};
use super::stream::{Stream, pipe};
use super::tap::Taps;
use crate::bundle::Bundle;
use crate::error::ShimError;
use crate::launch::ContainerEnds;

/// How long output may go on after the process ended, when something it left behind keeps a stream open.
const DRAIN: Duration = Duration::from_secs(2);

/// The streams as the request names them. A plain path for stdin ends with its last writer, as containerd's clients
/// expect; `fifo:///path` stays open until CloseIO, so that a restarted daemon can go on writing.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    pub terminal: bool,
}

/// The shim's ends, opened before the process exists.
pub struct Opened {
    stdin: Option<(Stream, Option<Stream>)>,
    outputs: Vec<(Option<Stream>, StreamName, Sink)>,
    pub console: Option<ConsoleSocket>,
    logs: Logs,
}

/// The streams of a process that exists.
#[derive(Default)]
pub struct Streams {
    outputs: Mutex<JoinSet<()>>,
    input: Mutex<JoinSet<()>>,
    close_stdin: Arc<Notify>,
    terminal: Mutex<Option<Arc<Stream>>>,
    logs: Mutex<Logs>,
    stdout_taps: Arc<Taps>,
    stderr_taps: Arc<Taps>,
}

/// Opens everything that `stdio` names.
pub fn open(
    stdio: &Stdio,
    bundle: &Bundle,
    name: &str,
    max_line: usize,
) -> Result<(Opened, ContainerEnds), ShimError> {
    let mut ends = ContainerEnds::default();
    let mut opened = Opened { stdin: None, outputs: Vec::new(), console: None, logs: Logs::default() };
    if stdio.terminal {
        opened.console = Some(ConsoleSocket::bind(bundle, name)?);
    }
    if !stdio.stdin.is_empty() {
        let fifo = match stdio.stdin.strip_prefix("fifo://") {
            Some(path) => Stream::fifo_kept_open(Path::new(path)),
            None => Stream::fifo_until_closed(Path::new(&stdio.stdin)),
        };
        let fifo = fifo.map_err(ShimError::path("open the stdin FIFO", &stdio.stdin))?;
        let ours = if stdio.terminal { None } else { Some(pipe_to(&mut ends.stdin)?) };
        opened.stdin = Some((fifo, ours));
    }
    for (uri, stream) in [(&stdio.stdout, StreamName::Stdout), (&stdio.stderr, StreamName::Stderr)] {
        // A terminal has one output, whatever else the request names.
        let unused = stdio.terminal && stream == StreamName::Stderr;
        let destination = Destination::parse(uri, max_line)?;
        if unused || destination == Destination::Null {
            continue;
        }
        let sink = destination.open(&mut opened.logs)?;
        let ours = if stdio.terminal {
            None
        } else {
            let end = if stream == StreamName::Stdout { &mut ends.stdout } else { &mut ends.stderr };
            Some(pipe_from(end)?)
        };
        opened.outputs.push((ours, stream, sink));
    }
    Ok((opened, ends))
}

fn pipe_to(theirs: &mut Option<OwnedFd>) -> Result<Stream, ShimError> {
    let (read, write) = pipe().map_err(ShimError::io("make a pipe"))?;
    *theirs = Some(read);
    Stream::new(write).map_err(ShimError::io("make a pipe"))
}

fn pipe_from(theirs: &mut Option<OwnedFd>) -> Result<Stream, ShimError> {
    let (read, write) = pipe().map_err(ShimError::io("make a pipe"))?;
    *theirs = Some(write);
    Stream::new(read).map_err(ShimError::io("make a pipe"))
}

impl Streams {
    /// Begins to carry what `opened` holds; a terminal's master side has arrived at its socket by now.
    pub async fn run(&self, opened: Opened, bundle: &Bundle) -> Result<(), ShimError> {
        let master = match opened.console {
            Some(console) => Some(Arc::new(console.receive().await?)),
            None => None,
        };
        self.terminal.lock().unwrap_or_else(PoisonError::into_inner).clone_from(&master);
        *self.logs.lock().unwrap_or_else(PoisonError::into_inner) = opened.logs;
        let mut outputs = self.outputs.lock().unwrap_or_else(PoisonError::into_inner);
        let discard = master.is_some() && opened.outputs.is_empty();
        for (ours, stream, sink) in opened.outputs {
            let source = match (ours, &master) {
                (Some(pipe), _) => Arc::new(pipe),
                (None, Some(master)) => Arc::clone(master),
                (None, None) => continue,
            };
            let output = Output { stream, sink, taps: Arc::clone(self.taps(stream)) };
            outputs.spawn(copy_output(source, output, bundle.clone()));
        }
        if let (true, Some(master)) = (discard, &master) {
            let stream = StreamName::Stdout;
            let output = Output { stream, sink: Sink::Null, taps: Arc::clone(self.taps(stream)) };
            outputs.spawn(copy_output(Arc::clone(master), output, bundle.clone()));
        }
        drop(outputs);
        if let Some((fifo, pipe)) = opened.stdin {
            let target = pipe.map(Arc::new).or(master);
            let close = Arc::clone(&self.close_stdin);
            if let Some(target) = target {
                let mut input = self.input.lock().unwrap_or_else(PoisonError::into_inner);
                input.spawn(copy_input(fifo, target, close));
            }
        }
        Ok(())
    }

    /// No more input: what was written until now still arrives, then the process reads the end.
    pub fn close_stdin(&self) {
        self.close_stdin.notify_one();
    }

    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &*self.terminal.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(terminal) => terminal.resize(columns, rows),
            None => Err(io::Error::other("the process has no terminal")),
        }
    }

    fn taps(&self, stream: StreamName) -> &Arc<Taps> {
        match stream {
            StreamName::Stdout => &self.stdout_taps,
            StreamName::Stderr => &self.stderr_taps,
        }
    }

    /// Copies a stream to one more FIFO from now on.
    pub fn tap(&self, stream: StreamName, fifo: &Path) -> io::Result<()> {
        self.taps(stream).add(fifo)
    }

    /// Opens every log file anew. `Ok(false)` when there is none.
    pub fn reopen_logs(&self) -> io::Result<bool> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).reopen()
    }

    /// Waits until all output is delivered, within a bound. What is not done then goes on beside.
    pub async fn drain(&self) {
        let mut outputs = std::mem::take(&mut *self.outputs.lock().unwrap_or_else(PoisonError::into_inner));
        drop(timeout(DRAIN, async { while outputs.join_next().await.is_some() {} }).await);
        *self.outputs.lock().unwrap_or_else(PoisonError::into_inner) = outputs;
        self.input.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// Ends every loop and closes every stream.
    pub fn abandon(&self) {
        self.outputs.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.input.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
        self.stdout_taps.end();
        self.stderr_taps.end();
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

async fn copy_input(fifo: Stream, target: Arc<Stream>, close: Arc<Notify>) {
    let mut buffer = Vec::new();
    loop {
        let read = tokio::select! {
            biased;
            read = fifo.read_into(&mut buffer) => read,
            () = close.notified() => break,
        };
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) if target.write_all(&buffer).await.is_err() => return,
            Ok(_) => buffer.clear(),
        }
    }
    // What the writer put into the FIFO before it asked to close is still to be delivered.
    while fifo.try_read_into(&mut buffer).is_ok_and(|n| n > 0) {
        if target.write_all(&buffer).await.is_err() {
            return;
        }
        buffer.clear();
    }
}

/// A path that the request gave as `file:///…`.
pub fn append_file(path: &PathBuf) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    File::options().append(true).create(true).mode(0o640).open(path)
}
