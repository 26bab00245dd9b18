//! Sessions of exec and attach: stdin, stdout, stderr, resizes and the status.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::super::link::{Hub, Link, PipeReader, PipeWriter, start};
use super::super::spdy::{Headers, Incoming, Rules, SpdyServer};
use super::super::websocket::{Channels, Plan};
use super::negotiate::{Coding, CommandProtocol, CommandVersion};
use super::status::Unused;
use super::{BoxRead, BoxWrite, Io, Limits, RemoteError, Resizes, StatusSink, Streams, resize};

/// A command has five streams; some room for clients that open one twice.
const MOST_STREAMS: usize = 16;

mod channel {
    //! The numbers of the WebSocket channels.
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    pub const COUNT: u8 = 5;
}

/// A client that waits for a command. Streams that were not asked for, or that the client's protocol lacks, are `None`.
pub struct CommandSession {
    pub stdin: Option<BoxRead>,
    pub stdout: Option<BoxWrite>,
    pub stderr: Option<BoxWrite>,
    pub resize: Resizes,
    pub status: StatusSink,
}

impl CommandSession {
    /// Opens a session on an upgraded connection, by the protocol that was agreed.
    pub async fn open(
        io: impl Io,
        protocol: CommandProtocol,
        want: Streams,
        limits: Limits,
    ) -> Result<Self, RemoteError> {
        match protocol {
            CommandProtocol::Spdy(version) => spdy_command(io, version, want, limits).await,
            CommandProtocol::WebSocket(version, coding) => {
                Ok(websocket_command(io, version, coding, want, limits))
            }
        }
    }
}

impl Streams {
    /// A terminal has one output.
    fn separate_stderr(self) -> bool {
        self.stderr && !self.tty
    }

    /// The SPDY streams without which the session does not begin.
    fn names(self, version: CommandVersion) -> Vec<&'static str> {
        let table = [
            ("error", true),
            ("stdin", self.stdin),
            ("stdout", self.stdout),
            ("stderr", self.separate_stderr()),
            ("resize", self.tty && version >= CommandVersion::V3),
        ];
        table.into_iter().filter(|(_, wanted)| *wanted).map(|(name, _)| name).collect()
    }
}

/// Serves a command over SPDY; waits until the client created its streams.
pub async fn spdy_command(
    io: impl Io,
    version: CommandVersion,
    want: Streams,
    limits: Limits,
) -> Result<CommandSession, RemoteError> {
    let hub = Arc::new(Hub::default());
    let (server, incoming) =
        SpdyServer::new(hub.clone(), Rules { admit, most: MOST_STREAMS, last: Some("error") });
    let link = start(io, server, hub, limits.idle);
    let mut streams = gather(incoming, &want.names(version), limits.creation).await?;
    let mut unused = Unused::default();
    let mut split = |name: &str| streams.remove(name).map(|stream| (stream.reader, stream.writer));
    let mut read = |handles: Option<(PipeReader, PipeWriter)>| {
        handles.map(|(reader, writer)| {
            unused.writers.push(writer);
            reader
        })
    };
    let stdin = if want.stdin { read(split("stdin")) } else { None };
    let resize = read(split("resize"));
    let mut write = |handles: Option<(PipeReader, PipeWriter)>| {
        handles.map(|(reader, writer)| {
            unused.readers.push(reader);
            writer
        })
    };
    let stdout = if want.stdout { write(split("stdout")) } else { None };
    let stderr = if want.separate_stderr() { write(split("stderr")) } else { None };
    let error = write(split("error")).ok_or(RemoteError::Gone)?;
    for (_, stream) in streams {
        unused.readers.push(stream.reader);
        unused.writers.push(stream.writer);
    }
    Ok(assemble(link, version, Handles { stdin, stdout, stderr, resize, error, unused }))
}

fn admit(headers: &Headers) -> bool {
    matches!(headers.get("streamtype"), Some("error" | "stdin" | "stdout" | "stderr" | "resize"))
}

/// The streams by name, once all that are needed are there. Later ones are refused: nobody receives them.
async fn gather(
    mut incoming: mpsc::Receiver<Incoming>,
    needed: &[&'static str],
    limit: Duration,
) -> Result<BTreeMap<String, Incoming>, RemoteError> {
    let deadline = tokio::time::Instant::now() + limit;
    let mut streams = BTreeMap::new();
    loop {
        let missing: Vec<_> = needed.iter().copied().filter(|name| !streams.contains_key(*name)).collect();
        if missing.is_empty() {
            return Ok(streams);
        }
        match tokio::time::timeout_at(deadline, incoming.recv()).await {
            Ok(Some(stream)) => {
                let name = stream.headers.get("streamtype").unwrap_or_default().to_owned();
                // The first of a name is the one; dropping another resets it.
                streams.entry(name).or_insert(stream);
            }
            Ok(None) => return Err(RemoteError::Gone),
            Err(_) => return Err(RemoteError::Streams { missing: missing.join(", "), limit }),
        }
    }
}

/// Serves a command over WebSocket; its channels exist from the start.
pub fn websocket_command(
    io: impl Io,
    version: CommandVersion,
    coding: Coding,
    want: Streams,
    limits: Limits,
) -> CommandSession {
    let first = match want {
        Streams { stdout: true, .. } => channel::STDOUT,
        _ if want.separate_stderr() => channel::STDERR,
        _ => channel::ERROR,
    };
    let plan = Plan {
        base64: coding == Coding::Base64,
        close_signal: version >= CommandVersion::V5,
        channels: channel::COUNT,
        greetings: vec![(first, Vec::new())],
        last: Some(channel::ERROR),
    };
    let hub = Arc::new(Hub::default());
    let (channels, handles) = Channels::new(&hub, plan);
    let link = start(io, channels, hub, limits.idle);
    let mut handles: BTreeMap<u8, _> = (0..).zip(handles).collect();
    let mut take = |number: u8| handles.remove(&number).expect("the plan has this channel");
    // The halves that are dropped here cost nothing: a channel's end is not said in this protocol, and what arrives
    // for a reader that is gone is dropped.
    let handles = Handles {
        stdin: Some(take(channel::STDIN).0).filter(|_| want.stdin),
        stdout: Some(take(channel::STDOUT).1).filter(|_| want.stdout),
        stderr: Some(take(channel::STDERR).1).filter(|_| want.separate_stderr()),
        error: take(channel::ERROR).1,
        resize: Some(take(channel::RESIZE).0),
        unused: Unused::default(),
    };
    assemble(link, version, handles)
}

struct Handles {
    stdin: Option<PipeReader>,
    stdout: Option<PipeWriter>,
    stderr: Option<PipeWriter>,
    resize: Option<PipeReader>,
    error: PipeWriter,
    unused: Unused,
}

fn assemble(link: Link, version: CommandVersion, handles: Handles) -> CommandSession {
    let Handles { stdin, stdout, stderr, resize, error, unused } = handles;
    let (sizes, resizes) = resize::channel();
    let gone = link.gone();
    let resizing = AbortOnDropHandle::new(tokio::spawn(async move {
        if let Some(stream) = resize {
            resize::follow(stream, &sizes).await;
        }
        // The receiver takes the end of the sender for the end of the client.
        gone.cancelled().await;
        drop(sizes);
    }));
    CommandSession {
        stdin: stdin.map(|reader| Box::new(reader) as BoxRead),
        stdout: stdout.map(|writer| Box::new(writer) as BoxWrite),
        stderr: stderr.map(|writer| Box::new(writer) as BoxWrite),
        resize: resizes,
        status: StatusSink { version, link, error, unused, resizing },
    }
}
