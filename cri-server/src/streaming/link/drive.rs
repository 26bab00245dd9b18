//! Drives a protocol machine over a connection: one task, one loop, all waiting in one place.
//!
//! Invariant: the loop reads only while the machine can place what comes and while what it answered is bounded; so a
//! peer that does not read, or floods, is held back by TCP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::{Hub, LinkError};

/// More output than this waits: no more is collected or read.
const HIGH: usize = 128 * 1024;
const READ: usize = 32 * 1024;
/// How long the last words may take when the session is over already.
const FAREWELL: Duration = Duration::from_secs(2);

/// A protocol as a machine: bytes in, bytes out, no waiting.
pub trait Engine: Send + 'static {
    /// Takes all of `input` that is complete. On an error the farewell, if there is one, is in `output`.
    fn receive(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), LinkError>;
    /// Looks at one port that announced a change.
    fn collect(&mut self, id: u32, output: &mut BytesMut);
    /// Whether what the peer sends must wait for the readers.
    fn paused(&self) -> bool;
    /// The session is over: ends every stream. True once the last byte is in `output`.
    fn finish(&mut self, output: &mut BytesMut) -> bool;
}

/// Owns the task of a connection; dropped, the connection is cut.
#[derive(Debug)]
pub struct Link {
    hub: Arc<Hub>,
    gone: CancellationToken,
    task: JoinHandle<Result<(), LinkError>>,
}

/// Starts the task. It ends when the peer leaves, breaks the protocol or is idle, and after [`Link::finish`].
pub fn start<IO, E>(io: IO, engine: E, hub: Arc<Hub>, idle: Duration) -> Link
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    E: Engine,
{
    let gone = CancellationToken::new();
    let over = gone.clone().drop_guard();
    let ready = hub.clone();
    let task = tokio::spawn(async move {
        let mut driver = Driver::new(io, engine, ready, idle);
        let result = std::future::poll_fn(|cx| driver.poll(cx)).await;
        // Dropped here, or when the task is aborted: whoever waits for the end hears of it.
        drop(over);
        driver.part(result).await
    });
    Link { hub, gone, task }
}

impl Link {
    /// Fires when the connection is over.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// Sends what was written, ends all streams and the connection.
    pub async fn finish(mut self) -> Result<(), LinkError> {
        self.hub.finish();
        match (&mut self.task).await {
            Ok(result) => result,
            Err(_) => Err(LinkError::Gone),
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Driver<IO, E> {
    io: IO,
    engine: E,
    hub: Arc<Hub>,
    input: BytesMut,
    output: BytesMut,
    finished: bool,
    unflushed: bool,
    idle: Duration,
    moved: Instant,
    timer: Pin<Box<Sleep>>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin, E: Engine> Driver<IO, E> {
    fn new(io: IO, engine: E, hub: Arc<Hub>, idle: Duration) -> Self {
        let moved = Instant::now();
        Self {
            io,
            engine,
            hub,
            input: BytesMut::new(),
            output: BytesMut::new(),
            finished: false,
            unflushed: false,
            idle,
            moved,
            timer: Box::pin(tokio::time::sleep(idle)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        loop {
            self.hub.register(cx.waker());
            self.collect();
            let wrote = self.write(cx)?;
            if self.finished && self.output.is_empty() && !self.unflushed {
                return Poll::Ready(Ok(()));
            }
            let read = self.read(cx)?;
            if !(wrote || read) {
                break;
            }
            self.moved = Instant::now();
        }
        self.check_idle(cx)
    }

    fn collect(&mut self) {
        while self.output.len() < HIGH {
            let Some(id) = self.hub.pop() else { break };
            self.engine.collect(id, &mut self.output);
        }
        if self.hub.finishing() && !self.finished && self.output.len() < HIGH {
            self.finished = self.engine.finish(&mut self.output);
        }
    }

    fn write(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        let mut moved = false;
        while !self.output.is_empty() {
            match Pin::new(&mut self.io).poll_write(cx, &self.output) {
                Poll::Ready(Ok(0)) => return Err(LinkError::Gone),
                Poll::Ready(Ok(length)) => {
                    self.output.advance(length);
                    moved = true;
                    self.unflushed = true;
                }
                Poll::Ready(Err(error)) => return Err(broken(&error)),
                Poll::Pending => return Ok(moved),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(broken(&error)),
                Poll::Pending => {}
            }
        }
        Ok(moved)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, LinkError> {
        if self.output.len() >= HIGH || self.engine.paused() {
            return Ok(false);
        }
        self.input.reserve(READ);
        match poll_read_buf(Pin::new(&mut self.io), cx, &mut self.input) {
            Poll::Ready(Ok(0)) => Err(LinkError::Gone),
            Poll::Ready(Ok(_)) => self.engine.receive(&mut self.input, &mut self.output).map(|()| true),
            Poll::Ready(Err(error)) => Err(broken(&error)),
            Poll::Pending => Ok(false),
        }
    }

    fn check_idle(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), LinkError>> {
        while self.timer.as_mut().poll(cx).is_ready() {
            let limit = self.moved + self.idle;
            if Instant::now() >= limit {
                return Poll::Ready(Err(LinkError::Idle(self.idle)));
            }
            self.timer.as_mut().reset(limit);
        }
        Poll::Pending
    }

    /// Says goodbye. What the peer still sends is read away: closing a socket over unread data would make the kernel
    /// reset the connection, and the peer could lose the end of the output.
    async fn part(self, result: Result<(), LinkError>) -> Result<(), LinkError> {
        if matches!(result, Err(LinkError::Gone | LinkError::Broken(_))) {
            return result;
        }
        let Self { mut io, engine, output, mut input, .. } = self;
        drop(engine);
        input.clear();
        let farewell = async {
            io.write_all(&output).await?;
            io.shutdown().await?;
            while io.read_buf(&mut input).await? > 0 {
                input.clear();
            }
            io::Result::Ok(())
        };
        // A peer that does not listen any more has lost nothing that it wanted.
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
        result
    }
}

fn broken(error: &io::Error) -> LinkError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
            LinkError::Gone
        }
        kind => LinkError::Broken(kind),
    }
}
