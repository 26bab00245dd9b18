//! Unpacks one layer while it arrives: source -> decompress -> (digest, extract), each in a thread of its own.
//!
//! Invariant: the queues between the threads are bounded, a stage that fails ends all others, and the error reported is
//! that of the stage nearest to the source: the others only saw its consequences.

use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, ScopedJoinHandle};

use bytes::Bytes;

use super::decompress::decompress;
use super::error::SnapshotError;
use super::extract::{Extracted, extract};
use super::limits::Limits;
use crate::content::Hasher;
use crate::registry::{Algorithm, Digest};

/// Pieces waiting between two stages.
const QUEUE: usize = 8;
/// Size of a decompressed piece.
const PIECE: usize = 256 << 10;

/// Where a layer's bytes come from, compressed or not; called until it answers `None` or an error. It verifies
/// what it hands out at the latest before it answers `None`.
pub type Source<'a> =
    dyn FnMut() -> Result<Option<Bytes>, Box<dyn std::error::Error + Send + Sync>> + Send + 'a;

/// Unpacks the layer from `source` into the empty directory `target`; returns what was made and the diff id.
pub(crate) fn run(
    source: &mut Source<'_>,
    target: &Path,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<(Extracted, Digest), SnapshotError> {
    through(source, algorithm, limits, |plain| extract(plain, target, limits))
}

/// The diff id of the layer from `source`, of which nothing is kept.
pub(crate) fn diff_id(
    source: &mut Source<'_>,
    algorithm: Algorithm,
    limits: &Limits,
) -> Result<Digest, SnapshotError> {
    let skip = |mut plain: Pieces| io::copy(&mut plain, &mut io::sink()).map_err(SnapshotError::Stream);
    through(source, algorithm, limits, skip).map(|(_, digest)| digest)
}

/// Gives the decompressed layer to `take`; returns what that made, and the diff id.
fn through<T>(
    source: &mut Source<'_>,
    algorithm: Algorithm,
    limits: &Limits,
    take: impl FnOnce(Pieces) -> Result<T, SnapshotError>,
) -> Result<(T, Digest), SnapshotError> {
    let received = AtomicU64::new(0);
    let (compressed_in, compressed_out) = sync_channel(QUEUE);
    let (hash_in, hash_out) = sync_channel::<Bytes>(QUEUE);
    let (plain_in, plain_out) = sync_channel(QUEUE);
    thread::scope(|scope| {
        let received = &received;
        let feeder = spawn(scope, "layer-source", move || feed(source, &compressed_in, received))?;
        let inflater = spawn(scope, "layer-inflate", move || {
            inflate(Pieces::new(compressed_out), &hash_in, &plain_in, received, limits)
        })?;
        let digester = spawn(scope, "layer-digest", move || {
            let mut hasher = Hasher::new(algorithm);
            hash_out.iter().for_each(|piece| hasher.update(&piece));
            hasher.finish()
        })?;
        let taken = take(Pieces::new(plain_out));
        let complete = join(feeder, "receive")??;
        join(inflater, "decompress")??;
        let diff_id = join(digester, "digest")?;
        let taken = taken?;
        if !complete {
            return Err(SnapshotError::Archive("bytes follow the end of the compressed stream".to_owned()));
        }
        Ok((taken, diff_id))
    })
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope thread::Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, SnapshotError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn_scoped(scope, work)
        .map_err(|source| SnapshotError::Io { op: "start thread", path: name.to_owned(), source })
}

fn join<T>(handle: ScopedJoinHandle<'_, T>, what: &'static str) -> Result<T, SnapshotError> {
    handle.join().map_err(|_| SnapshotError::Panicked(what))
}

/// What goes through the queues: `Err` says that the sender failed and knows why.
type Piece = Result<Bytes, Stopped>;
struct Stopped;

/// Answers whether the source was read, and so verified, to its end.
fn feed(
    source: &mut Source<'_>,
    out: &SyncSender<Piece>,
    received: &AtomicU64,
) -> Result<bool, SnapshotError> {
    loop {
        match source() {
            Ok(Some(piece)) => {
                received.fetch_add(piece.len() as u64, Ordering::Relaxed);
                // Nobody listens: a later stage failed and reports it.
                if out.send(Ok(piece)).is_err() {
                    return Ok(false);
                }
            }
            Ok(None) => return Ok(true),
            Err(error) => {
                let _ = out.send(Err(Stopped));
                return Err(SnapshotError::Source(error));
            }
        }
    }
}

fn inflate(
    input: Pieces,
    hash: &SyncSender<Bytes>,
    out: &SyncSender<Piece>,
    received: &AtomicU64,
    limits: &Limits,
) -> Result<(), SnapshotError> {
    let result = inflate_all(input, hash, out, received, limits);
    if result.is_err() {
        let _ = out.send(Err(Stopped));
    }
    result
}

fn inflate_all(
    input: Pieces,
    hash: &SyncSender<Bytes>,
    out: &SyncSender<Piece>,
    received: &AtomicU64,
    limits: &Limits,
) -> Result<(), SnapshotError> {
    let mut reader = decompress(input).map_err(SnapshotError::Stream)?;
    let mut total = 0u64;
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        (&mut reader).take(PIECE as u64).read_to_end(&mut piece).map_err(SnapshotError::Stream)?;
        if piece.is_empty() {
            return Ok(());
        }
        total += piece.len() as u64;
        // Headers count too, so this bound is looser than the extractor's on contents by what they may take.
        if total > limits.max_bytes.saturating_add(limits.max_entries.saturating_mul(4096)) {
            return Err(SnapshotError::Limit { what: "unpacked bytes", limit: limits.max_bytes });
        }
        let ratio = u64::from(limits.max_ratio.get());
        if total > Limits::RATIO_FREE_BYTES && total / ratio > received.load(Ordering::Relaxed) {
            return Err(SnapshotError::Limit {
                what: "unpacked bytes for each compressed one",
                limit: ratio,
            });
        }
        let piece = Bytes::from(piece);
        if hash.send(piece.clone()).is_err() || out.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

/// The receiving end of a queue as a reader.
struct Pieces {
    queue: Receiver<Piece>,
    current: Bytes,
}

impl Pieces {
    fn new(queue: Receiver<Piece>) -> Self {
        Self { queue, current: Bytes::new() }
    }
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() {
            match self.queue.recv() {
                Ok(Ok(piece)) => self.current = piece,
                Ok(Err(Stopped)) => {
                    return Err(io::Error::new(io::ErrorKind::BrokenPipe, "an earlier stage failed"));
                }
                Err(_) => return Ok(&[]),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, length: usize) {
        bytes::Buf::advance(&mut self.current, length);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}
