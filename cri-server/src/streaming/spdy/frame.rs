//! The frames of SPDY/3.1: bytes in, frames out, and back. No I/O.
//!
//! Invariant: what waits for its rest is bounded by [`LONGEST_CONTROL`]; data is handed out in pieces as it comes, so
//! its announced length costs nothing.

use bytes::{Buf, BufMut, BytesMut};

use super::headers::{HeaderError, Headers, Inflater};

/// The largest control frame that is taken.
pub const LONGEST_CONTROL: usize = 32 * 1024;
const HEAD: usize = 8;
const VERSION: u16 = 3;
const FIN: u8 = 1;
const UNIDIRECTIONAL: u8 = 2;
const CONTROL_BIT: u16 = 0x8000;
const ID: u32 = 0x7fff_ffff;

/// The types of control frames.
pub mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const SETTINGS: u16 = 4;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream is reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reset {
    Protocol = 1,
    InvalidStream = 2,
    Refused = 3,
    Cancel = 5,
}

/// Why a connection is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leave {
    Ok = 0,
    Protocol = 1,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    /// Pairs of identifier and value.
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// A piece of a data frame; `fin` comes with the last one.
    Data {
        id: u32,
        fin: bool,
        data: BytesMut,
    },
}

/// What makes a connection useless.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame of SPDY version {0}")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes")]
    TooLong { kind: u16, length: usize },
    #[error("a malformed control frame of type {0}")]
    Malformed(u16),
    #[error("a data frame on stream 0")]
    NoStream,
    #[error(transparent)]
    Headers(#[from] HeaderError),
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Head,
    Data { id: u32, fin: bool, left: usize },
    Skip { left: usize },
}

/// Reads frames. After an error it must not be used again.
#[derive(Debug)]
pub struct Decoder {
    place: Place,
    inflater: Inflater,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { place: Place::Head, inflater: Inflater::default() }
    }
}

impl Decoder {
    /// The next frame, or nothing if `input` must grow first. Takes from the front of `input`.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame>, FrameError> {
        loop {
            match self.place {
                Place::Data { id, fin, left } => return Ok(self.data(input, id, fin, left)),
                Place::Skip { left } => {
                    let length = left.min(input.len());
                    input.advance(length);
                    self.place =
                        if length == left { Place::Head } else { Place::Skip { left: left - length } };
                    if length < left {
                        return Ok(None);
                    }
                }
                Place::Head => {
                    let Some(head) = input.first_chunk::<HEAD>().copied() else { return Ok(None) };
                    let first = u16::from_be_bytes([head[0], head[1]]);
                    if first & CONTROL_BIT == 0 {
                        self.begin_data(head)?;
                        input.advance(HEAD);
                        continue;
                    }
                    if let Some(frame) = self.control(first & !CONTROL_BIT, head, input)? {
                        return Ok(Some(frame));
                    }
                    if matches!(self.place, Place::Head) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn begin_data(&mut self, head: [u8; HEAD]) -> Result<(), FrameError> {
        let id = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) & ID;
        if id == 0 {
            return Err(FrameError::NoStream);
        }
        self.place = Place::Data { id, fin: head[4] & FIN != 0, left: length(head) };
        Ok(())
    }

    fn data(&mut self, input: &mut BytesMut, id: u32, fin: bool, left: usize) -> Option<Frame> {
        if left > 0 && input.is_empty() {
            return None;
        }
        let data = input.split_to(left.min(input.len()));
        let left = left - data.len();
        self.place = if left == 0 { Place::Head } else { Place::Data { id, fin, left } };
        Some(Frame::Data { id, fin: fin && left == 0, data })
    }

    /// A whole control frame, or nothing: then either `place` says to skip it, or it is not complete.
    fn control(
        &mut self,
        version: u16,
        head: [u8; HEAD],
        input: &mut BytesMut,
    ) -> Result<Option<Frame>, FrameError> {
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let (kind, length) = (u16::from_be_bytes([head[2], head[3]]), length(head));
        if !matches!(kind, 1..=4 | 6..=9) {
            input.advance(HEAD);
            self.place = Place::Skip { left: length };
            return Ok(None);
        }
        if length > LONGEST_CONTROL {
            return Err(FrameError::TooLong { kind, length });
        }
        if input.len() < HEAD + length {
            return Ok(None);
        }
        let frame = self.parse(kind, head[4], &input[HEAD..HEAD + length])?;
        input.advance(HEAD + length);
        Ok(Some(frame))
    }

    fn parse(&mut self, kind: u16, flags: u8, body: &[u8]) -> Result<Frame, FrameError> {
        let malformed = FrameError::Malformed(kind);
        let word =
            |at: usize| body.get(at..).and_then(<[u8]>::first_chunk).map(|four| u32::from_be_bytes(*four));
        let exactly =
            |length: usize| if body.len() == length { Ok(()) } else { Err(FrameError::Malformed(kind)) };
        let first = word(0).ok_or(malformed.clone())?;
        let (id, fin) = (first & ID, flags & FIN != 0);
        match kind {
            kind::SYN_STREAM => {
                let headers = self.headers(body.get(10..).ok_or(malformed)?)?;
                Ok(Frame::SynStream { id, fin, unidirectional: flags & UNIDIRECTIONAL != 0, headers })
            }
            kind::SYN_REPLY => Ok(Frame::SynReply { id, fin, headers: self.headers(&body[4..])? }),
            kind::HEADERS => Ok(Frame::Headers { id, fin, headers: self.headers(&body[4..])? }),
            kind::SETTINGS => {
                let pairs = body[4..].chunks_exact(8);
                if !pairs.remainder().is_empty() || u32::try_from(pairs.len()) != Ok(first) {
                    return Err(malformed);
                }
                let number = |four: &[u8]| four.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
                Ok(Frame::Settings(pairs.map(|pair| (number(&pair[1..4]), number(&pair[4..]))).collect()))
            }
            kind::PING => exactly(4).map(|()| Frame::Ping(first)),
            _ => {
                exactly(8)?;
                let second = word(4).ok_or(malformed)?;
                Ok(match kind {
                    kind::RST_STREAM => Frame::RstStream { id, status: second },
                    kind::GOAWAY => Frame::GoAway { last: id, status: second },
                    _ => Frame::WindowUpdate { id, delta: second & ID },
                })
            }
        }
    }

    fn headers(&mut self, block: &[u8]) -> Result<Headers, FrameError> {
        Ok(Headers::parse(&self.inflater.inflate(block)?)?)
    }
}

fn length(head: [u8; HEAD]) -> usize {
    usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7])
}

fn put_head(output: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    output.put_u16(CONTROL_BIT | VERSION);
    output.put_u16(kind);
    output.put_uint(u64::from(flags) << 24 | length as u64, 4);
}

fn put_pair(output: &mut BytesMut, kind: u16, first: u32, second: u32) {
    put_head(output, kind, 0, 8);
    output.put_u32(first);
    output.put_u32(second);
}

pub fn put_syn_reply(output: &mut BytesMut, id: u32, block: &[u8]) {
    put_head(output, kind::SYN_REPLY, 0, 4 + block.len());
    output.put_u32(id);
    output.put_slice(block);
}

pub fn put_reset(output: &mut BytesMut, id: u32, why: Reset) {
    put_pair(output, kind::RST_STREAM, id, why as u32);
}

pub fn put_goaway(output: &mut BytesMut, last: u32, why: Leave) {
    put_pair(output, kind::GOAWAY, last, why as u32);
}

pub fn put_window_update(output: &mut BytesMut, id: u32, delta: usize) {
    put_pair(output, kind::WINDOW_UPDATE, id, u32::try_from(delta).unwrap_or(ID).min(ID));
}

pub fn put_ping(output: &mut BytesMut, id: u32) {
    put_head(output, kind::PING, 0, 4);
    output.put_u32(id);
}

/// The head of a data frame; `length` bytes must follow (less than 16 MiB).
pub fn put_data_head(output: &mut BytesMut, id: u32, fin: bool, length: usize) {
    output.put_u32(id & ID);
    output.put_uint(u64::from(fin) << 24 | length as u64, 4);
}

/// A stream as a client opens it.
pub fn put_syn_stream(output: &mut BytesMut, id: u32, flags: u8, block: &[u8]) {
    put_head(output, kind::SYN_STREAM, flags, 10 + block.len());
    output.put_u32(id);
    output.put_u32(0);
    output.put_u16(0);
    output.put_slice(block);
}

#[cfg(test)]
pub fn put_control(output: &mut BytesMut, kind: u16, flags: u8, body: &[u8]) {
    put_head(output, kind, flags, body.len());
    output.put_slice(body);
}
