//! The two bounded pipes of one stream: what the peer sent and the handle reads, what the handle wrote and the
//! connection sends. The connection's side is a [`Port`], the other sides are [`PipeReader`] and [`PipeWriter`].
//!
//! Invariant: whoever changes a pipe tells the other side: the handle by its waker, the connection by the queue of
//! ready ports in the [`Hub`]. A lock is held for a copy at most, never across an await.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::{Buf, BytesMut};
use futures::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What a handle may write ahead of the connection.
const OUTBOUND: usize = 64 * 1024;
/// After so many bytes read from a pipe the connection hears of it, to give the peer new credit.
const NOTICE: usize = 16 * 1024;
/// A drained pipe keeps at most so much room.
const KEPT: usize = OUTBOUND;

/// Where ports announce themselves to the connection task.
#[derive(Debug, Default)]
pub struct Hub {
    ready: Mutex<VecDeque<u32>>,
    waker: AtomicWaker,
    finishing: AtomicBool,
}

impl Hub {
    /// The next port on which something changed.
    pub fn pop(&self) -> Option<u32> {
        lock(&self.ready).pop_front()
    }

    pub(super) fn register(&self, waker: &Waker) {
        self.waker.register(waker);
    }

    pub(super) fn finish(&self) {
        self.finishing.store(true, Ordering::Release);
        self.waker.wake();
    }

    pub(super) fn finishing(&self) -> bool {
        self.finishing.load(Ordering::Acquire)
    }
}

#[derive(Debug, Default)]
struct Flow {
    buffer: BytesMut,
    /// The writing side will add nothing more.
    finished: bool,
    /// The reading side takes nothing more.
    abandoned: bool,
    /// The stream was reset or the connection ended.
    failed: bool,
    /// Inbound: bytes that left the pipe and were not yet credited to the peer.
    consumed: usize,
    waker: Option<Waker>,
    drained: Option<Waker>,
}

impl Flow {
    /// Drops bytes from the front; an idle stream keeps no large buffer.
    fn take(&mut self, length: usize) {
        self.buffer.advance(length);
        if self.buffer.is_empty() && self.buffer.capacity() > KEPT {
            self.buffer = BytesMut::new();
        }
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
        if let Some(waker) = self.drained.take() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct Pipes {
    id: u32,
    hub: Arc<Hub>,
    announced: AtomicBool,
    inbound: Mutex<Flow>,
    outbound: Mutex<Flow>,
}

impl Pipes {
    fn enqueue(&self) {
        if !self.announced.swap(true, Ordering::AcqRel) {
            lock(&self.hub.ready).push_back(self.id);
        }
    }

    fn announce(&self) {
        self.enqueue();
        self.hub.waker.wake();
    }
}

/// A poisoned lock means a panic between two plain assignments; the flow is still a flow.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A new stream: the connection's side and both handles.
pub fn port(hub: &Arc<Hub>, id: u32) -> (Port, PipeReader, PipeWriter) {
    let pipes = Arc::new(Pipes {
        id,
        hub: hub.clone(),
        announced: AtomicBool::new(false),
        inbound: Mutex::default(),
        outbound: Mutex::default(),
    });
    (Port { pipes: pipes.clone() }, PipeReader { pipes: pipes.clone() }, PipeWriter { pipes })
}

/// What is to be sent next on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outgoing {
    Nothing,
    Data(usize),
    /// All was sent and the handle is closed.
    End,
}

/// The connection's side of a stream. Dropped, it fails both handles unless they had ended before.
#[derive(Debug)]
pub struct Port {
    pipes: Arc<Pipes>,
}

impl Port {
    /// To be called before looking at a port that was announced, so that no later change is missed.
    pub fn heard(&self) {
        self.pipes.announced.store(false, Ordering::Release);
    }

    /// Puts the port back into the queue: there is more to do. For the connection's task itself, which is awake.
    pub fn again(&self) {
        self.pipes.enqueue();
    }

    /// Data of the peer; returns how much was kept. What nobody will read is dropped.
    pub fn push(&self, data: &[u8]) -> usize {
        let mut flow = lock(&self.pipes.inbound);
        if flow.abandoned || flow.failed || flow.finished {
            return 0;
        }
        flow.buffer.extend_from_slice(data);
        flow.wake();
        data.len()
    }

    /// The peer sends nothing more.
    pub fn end_inbound(&self) {
        let mut flow = lock(&self.pipes.inbound);
        flow.finished = true;
        flow.wake();
    }

    /// Bytes that left the inbound pipe since the last call.
    pub fn take_consumed(&self) -> usize {
        std::mem::take(&mut lock(&self.pipes.inbound).consumed)
    }

    pub fn reader_gone(&self) -> bool {
        lock(&self.pipes.inbound).abandoned
    }

    pub fn outgoing(&self) -> Outgoing {
        let flow = lock(&self.pipes.outbound);
        match flow.buffer.len() {
            0 if flow.finished => Outgoing::End,
            0 => Outgoing::Nothing,
            length => Outgoing::Data(length),
        }
    }

    /// Moves exactly `length` bytes (at most [`Outgoing::Data`]'s) to the end of `output`.
    pub fn pull(&self, length: usize, output: &mut BytesMut) {
        let mut flow = lock(&self.pipes.outbound);
        let length = length.min(flow.buffer.len());
        output.extend_from_slice(&flow.buffer[..length]);
        flow.take(length);
        flow.wake();
    }

    /// The session is over: what was written is still sent, nothing more is read or taken.
    pub fn close(&self) {
        let mut flow = lock(&self.pipes.inbound);
        flow.abandoned = true;
        flow.consumed += flow.buffer.len();
        flow.buffer.clear();
        flow.wake();
        drop(flow);
        let mut flow = lock(&self.pipes.outbound);
        flow.finished = true;
        flow.wake();
    }

    /// The peer reset the stream: what waits in either direction is void.
    pub fn reset(&self) {
        let mut flow = lock(&self.pipes.inbound);
        if !flow.buffer.is_empty() {
            // Cut short is no end: the reader must hear of it.
            flow.buffer = BytesMut::new();
            flow.finished = false;
        }
        drop(flow);
        self.fail();
    }

    /// The connection is gone. What arrived before can still be read.
    fn fail(&self) {
        for flow in [&self.pipes.inbound, &self.pipes.outbound] {
            let mut flow = lock(flow);
            flow.failed = true;
            flow.wake();
        }
        lock(&self.pipes.outbound).buffer.clear();
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.fail();
    }
}

/// The handle that reads what the peer sent.
#[derive(Debug)]
pub struct PipeReader {
    pipes: Arc<Pipes>,
}

impl AsyncRead for PipeReader {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut flow = lock(&self.pipes.inbound);
        if !flow.buffer.is_empty() {
            let length = into.remaining().min(flow.buffer.len());
            into.put_slice(&flow.buffer[..length]);
            flow.take(length);
            flow.consumed += length;
            let notable = flow.consumed >= NOTICE || flow.buffer.is_empty();
            drop(flow);
            if notable {
                self.pipes.announce();
            }
            return Poll::Ready(Ok(()));
        }
        if flow.finished || flow.abandoned {
            return Poll::Ready(Ok(()));
        }
        if flow.failed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        flow.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for PipeReader {
    fn drop(&mut self) {
        let mut flow = lock(&self.pipes.inbound);
        flow.abandoned = true;
        flow.consumed += flow.buffer.len();
        flow.buffer = BytesMut::new();
        drop(flow);
        self.pipes.announce();
    }
}

/// The handle that writes to the peer. Shut down or dropped, the peer sees the end of the stream.
#[derive(Debug)]
pub struct PipeWriter {
    pipes: Arc<Pipes>,
}

impl PipeWriter {
    /// No more writes; what was written is still sent.
    pub fn end(&self) {
        lock(&self.pipes.outbound).finished = true;
        self.pipes.announce();
    }

    /// Waits until the connection took all that was written, or the stream failed.
    pub async fn drained(&self) {
        std::future::poll_fn(|cx| {
            let mut flow = lock(&self.pipes.outbound);
            if flow.buffer.is_empty() || flow.failed {
                return Poll::Ready(());
            }
            flow.drained = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

impl AsyncWrite for PipeWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut flow = lock(&self.pipes.outbound);
        if flow.failed || flow.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = OUTBOUND.saturating_sub(flow.buffer.len());
        if room == 0 && !data.is_empty() {
            flow.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let length = room.min(data.len());
        flow.buffer.extend_from_slice(&data[..length]);
        drop(flow);
        self.pipes.announce();
        Poll::Ready(Ok(length))
    }

    /// The connection sends as soon as it can; there is nothing to ask of it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.end();
        Poll::Ready(Ok(()))
    }
}

impl Drop for PipeWriter {
    fn drop(&mut self) {
        self.end();
    }
}

/// Both handles of a stream as one; shutting down ends our direction alone.
#[derive(Debug)]
pub struct Duplex {
    pub reader: PipeReader,
    pub writer: PipeWriter,
}

impl AsyncRead for Duplex {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, into)
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}
