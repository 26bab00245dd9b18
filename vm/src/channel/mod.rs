//! Many streams over the one byte stream between host and guest (yamux over a virtio-serial port).
//!
//! ```text
//! host                                          guest
//!  open(Purpose) ── "agent\n" ───────────────▶ the agent's own service (ttrpc)
//!                ── "task\n" ────────────────▶ the container code's Task service (ttrpc)
//!                ── "in NAME\n", "out NAME\n" ▶ one standard stream of one process
//!                ── "port NUMBER\n" ─────────▶ a connection to this port of the pod
//!                ◀─ "ok\n" or words ──────────
//! ```
//! Only the host opens streams. Invariant: what the guest can make the host hold is bounded: streams by their number,
//! each stream by its window, the answer to a purpose by its length.

mod purpose;
mod relay;

use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::{AsyncRead, AsyncWrite};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

pub use purpose::{Purpose, PurposeError};
pub use relay::relay;

/// One stream. Closing the write side tells the other end; the read side goes on.
pub type Stream = Compat<yamux::Stream>;

/// How many streams there may be at once. A process has up to three.
const MOST_STREAMS: usize = 256;
/// What may wait unread on this side, over all streams.
const WINDOW: usize = 64 << 20;
/// Guests of some kernels lose data in longer writes.
const CHUNK: usize = 16 << 10;
const LONGEST_ANSWER: usize = 512;
/// Openings that wait for the driver.
const QUEUE: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the channel to the guest has ended")]
    Ended,
    #[error("open a stream to the guest for {purpose}: {source}")]
    Open { purpose: Purpose, source: io::Error },
    #[error("the guest does not take a stream for {purpose}")]
    Silent { purpose: Purpose },
    #[error("the guest refuses a stream for {purpose}: {words:?}")]
    Refused { purpose: Purpose, words: String },
}

type Opening = oneshot::Sender<io::Result<yamux::Stream>>;

/// The host's end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Channel {
    openings: mpsc::Sender<Opening>,
}

fn settings() -> Config {
    let mut config = Config::default();
    config.set_max_connection_receive_window(None);
    config.set_max_num_streams(MOST_STREAMS);
    config.set_max_connection_receive_window(Some(WINDOW));
    config.set_split_send_size(CHUNK);
    config
}

impl Channel {
    /// The host's end, and what drives it: a future that its owner runs, and that ends with the connection.
    pub fn host<T>(socket: T) -> (Self, impl Future<Output = ()> + Send)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (openings, queue) = mpsc::channel(QUEUE);
        let driver =
            Driver { connection: Connection::new(socket, settings(), Mode::Client), queue, wanted: None };
        (Channel { openings }, driver.run())
    }

    /// Opens a stream and waits until the guest has taken it, or for `patience`.
    pub async fn open(&self, purpose: &Purpose, patience: Duration) -> Result<Stream, ChannelError> {
        let opened = tokio::time::timeout(patience, self.open_stream(purpose)).await;
        opened.unwrap_or_else(|_| Err(ChannelError::Silent { purpose: purpose.clone() }))
    }

    async fn open_stream(&self, purpose: &Purpose) -> Result<Stream, ChannelError> {
        let (sender, opened) = oneshot::channel();
        self.openings.send(sender).await.map_err(|_| ChannelError::Ended)?;
        let failed = |source| ChannelError::Open { purpose: purpose.clone(), source };
        let mut stream = opened.await.map_err(|_| ChannelError::Ended)?.map_err(failed)?.compat();
        stream.write_all(format!("{purpose}\n").as_bytes()).await.map_err(failed)?;
        let answer = read_line(&mut stream, LONGEST_ANSWER).await.map_err(failed)?;
        match answer.as_str() {
            "ok" => Ok(stream),
            words => Err(ChannelError::Refused { purpose: purpose.clone(), words: words.to_owned() }),
        }
    }
}

struct Driver<T> {
    connection: Connection<T>,
    queue: mpsc::Receiver<Opening>,
    wanted: Option<Opening>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    async fn run(mut self) {
        poll_fn(|context| self.poll(context)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            // The guest opens no streams; one that does is not talked to on them.
            match self.connection.poll_next_inbound(context) {
                Poll::Ready(Some(Ok(stream))) => drop(stream),
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
            if self.wanted.is_none() {
                match self.queue.poll_recv(context) {
                    Poll::Ready(Some(opening)) => self.wanted = Some(opening),
                    // Nobody can open any more; the streams that are there go on.
                    Poll::Ready(None) | Poll::Pending => return Poll::Pending,
                }
            }
            match self.connection.poll_new_outbound(context) {
                Poll::Ready(stream) => {
                    if let Some(opening) = self.wanted.take() {
                        // Whoever asked may have gone; the stream closes with the value.
                        drop(opening.send(stream.map_err(io::Error::other)));
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// The guest's end: gives every stream that the host opens to `take`, until the connection ends.
pub async fn guest<T>(socket: T, mut take: impl FnMut(Stream))
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection::new(socket, settings(), Mode::Server);
    while let Some(Ok(stream)) = poll_fn(|context| connection.poll_next_inbound(context)).await {
        take(stream.compat());
    }
}

/// Reads the purpose at the beginning of a stream.
pub async fn read_purpose(stream: &mut Stream) -> io::Result<Purpose> {
    let line = read_line(stream, purpose::LONGEST).await?;
    line.parse().map_err(io::Error::other)
}

/// Tells the host whether its stream is taken.
pub async fn answer(stream: &mut Stream, outcome: Result<(), String>) -> io::Result<()> {
    let words = outcome.err().unwrap_or_else(|| "ok".to_owned()).replace('\n', " ");
    let words: String = words.chars().take(LONGEST_ANSWER / 4 - 1).collect();
    stream.write_all(format!("{words}\n").as_bytes()).await?;
    stream.flush().await
}

/// A line of at most `longest` bytes, read byte by byte: what follows belongs to somebody else.
async fn read_line(stream: &mut Stream, longest: usize) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => break,
            _ if line.len() >= longest => return Err(io::Error::other("the line is too long")),
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map_err(io::Error::other)
}

#[cfg(test)]
mod tests;
