//! A protocol machine without a connection, and the choices that an input makes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::link::{Engine, Hub, LinkError, PipeReader, PipeWriter};

/// Choices that follow from one byte.
pub struct Choices(u64);

impl Choices {
    /// Takes the first byte of an input.
    pub fn of(bytes: &[u8]) -> (Self, &[u8]) {
        let (first, rest) = bytes.split_first().unwrap_or((&0, &[]));
        (Self((u64::from(*first) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)), rest)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Cuts `bytes` into pieces: mostly small ones, some of a few hundred bytes.
    pub fn cut<'a>(&mut self, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            let most = [3, 20, 400][self.below(3)];
            let (piece, rest) = bytes.split_at((1 + self.below(most)).min(bytes.len()));
            pieces.push(piece);
            bytes = rest;
        }
        pieces
    }
}

/// A machine and what it has written so far.
pub struct Bench<E> {
    pub hub: Arc<Hub>,
    pub machine: E,
    pub input: BytesMut,
    pub output: BytesMut,
}

impl<E: Engine> Bench<E> {
    pub fn new(hub: Arc<Hub>, machine: E) -> Self {
        Self { hub, machine, input: BytesMut::new(), output: BytesMut::new() }
    }

    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        self.input.extend_from_slice(bytes);
        self.machine.receive(&mut self.input, &mut self.output)
    }

    pub fn collect(&mut self) {
        while let Some(id) = self.hub.pop() {
            self.machine.collect(id, &mut self.output);
        }
    }

    /// Sees the farewell to its end; the peer takes all that is written.
    pub fn finish(&mut self) {
        self.collect();
        let mut sent = BytesMut::new();
        loop {
            let finished = self.machine.finish(&mut self.output);
            assert!(finished || !self.output.is_empty(), "the farewell stalls");
            sent.extend_from_slice(&self.output.split());
            if finished {
                break;
            }
        }
        self.output = sent;
    }
}

/// What a reader has for us now, and whether it said that there is no more.
pub fn read(reader: &mut PipeReader, most: usize) -> (Vec<u8>, Option<End>) {
    let mut found = Vec::new();
    let mut buffer = [0; 512];
    let mut context = Context::from_waker(std::task::Waker::noop());
    while found.len() < most {
        let room = buffer.len().min(most - found.len());
        let mut into = ReadBuf::new(&mut buffer[..room]);
        match Pin::new(&mut *reader).poll_read(&mut context, &mut into) {
            Poll::Ready(Ok(())) if into.filled().is_empty() => return (found, Some(End::Said)),
            Poll::Ready(Ok(())) => found.extend_from_slice(into.filled()),
            Poll::Ready(Err(_)) => return (found, Some(End::Failed)),
            Poll::Pending => break,
        }
    }
    (found, None)
}

/// How a stream ended for its reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Said,
    Failed,
}

/// Writes what fits.
pub fn write(writer: &mut PipeWriter, bytes: &[u8]) {
    let mut context = Context::from_waker(std::task::Waker::noop());
    // Full or failed: both are answers.
    let _ = Pin::new(writer).poll_write(&mut context, bytes);
}
