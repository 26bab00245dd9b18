//! Carries a connection over a stream: both directions, each with an end of its own.
//!
//! ```text
//! stream: ( length: u16, that many bytes )…, 0 for the end of this direction
//! ```
//! The stream's own half-close is not used: a stream that is dropped after it tells the other side nothing, and that
//! would wait for ever. Invariant: an end of one direction leaves the other open; a side that is gone altogether, which
//! is more than an end, takes the other with it, however silent that is.

use std::io;
use std::pin::pin;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf};

use super::{CHUNK, Stream};

/// Carries what comes from `from` to the stream, and what comes from there to `to`, until both have ended or one side
/// is gone. `vanished` returns when nobody takes any more what is given to `to`, even if nothing is.
///
/// # Errors
/// Which says that the connection was broken off rather than ended; all of it is closed then as well.
pub async fn relay<R, W>(stream: Stream, from: R, to: W, vanished: impl AsyncFn(&W)) -> io::Result<()>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let (reader, writer) = tokio::io::split(stream);
    let mut outward = pin!(feed(from, writer));
    let mut inward = pin!(drain(reader, to, vanished));
    tokio::select! {
        ended = &mut outward => {
            let _writer = ended?;
            inward.await.map(drop)
        }
        ended = &mut inward => {
            let mut reader = ended?;
            tokio::select! {
                ended = outward => ended.map(drop),
                // The other side has nothing to say any more: what is read is the end of it.
                _ = reader.read_u8() => Err(io::ErrorKind::ConnectionReset.into()),
            }
        }
    }
}

async fn feed<W: AsyncWrite + Unpin>(mut from: impl AsyncRead + Unpin, mut to: W) -> io::Result<W> {
    const LENGTH: usize = size_of::<u16>();
    let mut buffer = vec![0; LENGTH + CHUNK];
    loop {
        let count = from.read(&mut buffer[LENGTH..]).await?;
        buffer[..LENGTH].copy_from_slice(&u16::try_from(count).map_err(io::Error::other)?.to_be_bytes());
        to.write_all(&buffer[..LENGTH + count]).await?;
        to.flush().await?;
        if count == 0 {
            return Ok(to);
        }
    }
}

async fn drain<W: AsyncWrite + Unpin>(
    mut from: ReadHalf<Stream>,
    mut to: W,
    vanished: impl AsyncFn(&W),
) -> io::Result<ReadHalf<Stream>> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = tokio::select! {
            length = from.read_u16() => length?,
            () = vanished(&to) => return Err(io::ErrorKind::BrokenPipe.into()),
        };
        if length == 0 {
            to.shutdown().await?;
            return Ok(from);
        }
        let mut rest = usize::from(length);
        while rest > 0 {
            let part = rest.min(CHUNK);
            let count = from.read(&mut buffer[..part]).await?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all(&buffer[..count]).await?;
            rest -= count;
        }
    }
}
