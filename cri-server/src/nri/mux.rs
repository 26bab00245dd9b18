//! NRI's multiplexer: several logical connections over one socket.
//!
//! A frame is the logical connection's number (u32), the length of the payload (u32), both big-endian, and the payload.
//! Nothing is said to open or close a logical connection; frames of one that nobody opened are dropped.
//!
//! ```text
//! 1  the daemon calls the plugin      2  the plugin calls the daemon
//! ```
//!
//! Invariant: no frame makes the daemon hold more than one message's size, whatever its header says.

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::wire::{self, WireError};

/// Where the daemon calls the plugin.
pub const PLUGIN: u32 = 1;
/// Where the plugin calls the daemon.
pub const RUNTIME: u32 = 2;

const HEADER: usize = 8;
/// The most that a frame may hold: one message.
const MAX_PAYLOAD: usize = wire::HEADER + wire::MAX_MESSAGE;
/// Plugins in Go read through a buffer of this size and fail on a frame that does not fit it, unless it is the rest of
/// the message that they are reading: a message longer than this is sent as a frame of this size and its rest.
const FIRST: usize = 4096;

/// A piece of a logical connection's stream.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub connection: u32,
    pub payload: BytesMut,
}

/// Reads a frame; none at the end of the stream.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<Frame>, WireError> {
    let mut header = [0; HEADER];
    if stream.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut header[1..]).await?;
    let connection = word(&header[..4]);
    let length = word(&header[4..]) as usize;
    if length > MAX_PAYLOAD {
        return Err(WireError::Oversize { length, most: MAX_PAYLOAD });
    }
    // Grows with what really comes.
    let mut payload = BytesMut::with_capacity(length.min(FIRST));
    let mut rest = stream.take(length as u64);
    while rest.limit() > 0 {
        if rest.read_buf(&mut payload).await? == 0 {
            return Err(WireError::Ended);
        }
    }
    Ok(Some(Frame { connection, payload }))
}

/// The frames that carry a message.
pub fn frames(connection: u32, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST));
    let mut out = Vec::with_capacity(message.len() + 2 * HEADER);
    for part in [first, rest] {
        if !part.is_empty() {
            out.extend(connection.to_be_bytes());
            out.extend(u32::try_from(part.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend(part);
        }
    }
    out
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(mut bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
        let mut found = Vec::new();
        while let Some(frame) = read(&mut bytes).await? {
            found.push(frame);
        }
        Ok(found)
    }

    #[tokio::test]
    async fn a_long_message_is_a_first_frame_and_its_rest() {
        let message: Vec<u8> = (0..10_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let found = all(&frames(PLUGIN, &message)).await.unwrap();
        let sizes: Vec<_> = found.iter().map(|f| (f.connection, f.payload.len())).collect();
        assert_eq!(sizes, [(1, 4096), (1, 10_000 - 4096)]);
        assert_eq!(found.iter().flat_map(|f| f.payload.to_vec()).collect::<Vec<_>>(), message);
        assert_eq!(all(&frames(RUNTIME, b"short")).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_frame_larger_than_any_message_is_refused_by_its_header() {
        let mut bytes = PLUGIN.to_be_bytes().to_vec();
        bytes.extend(u32::MAX.to_be_bytes());
        assert!(matches!(all(&bytes).await, Err(WireError::Oversize { .. })));
    }

    #[tokio::test]
    async fn a_stream_cut_in_a_frame_is_an_error_and_between_frames_the_end() {
        let bytes = frames(PLUGIN, b"message");
        for cut in 1..bytes.len() {
            assert!(all(&bytes[..cut]).await.is_err(), "cut at {cut}");
        }
        assert!(all(&[]).await.unwrap().is_empty());
    }
}
