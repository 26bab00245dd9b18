//! WebSocket frames as a server reads and writes them: bytes in, events out. No I/O, no extensions.
//!
//! Invariant: messages are handed out in pieces as they come, whatever length was announced; only control frames, 125
//! bytes at most, wait until they are complete.

use bytes::{Buf, BufMut, BytesMut};

const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const MASKED: u8 = 0x80;
const LONGEST_CONTROL: usize = 125;

pub mod opcode {
    pub const CONTINUATION: u8 = 0;
    pub const TEXT: u8 = 1;
    pub const BINARY: u8 = 2;
    pub const CLOSE: u8 = 8;
    pub const PING: u8 = 9;
    pub const PONG: u8 = 10;
}

/// Why a connection is closed.
pub mod close {
    pub const NORMAL: u16 = 1000;
    pub const PROTOCOL: u16 = 1002;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A piece of a message.
    Piece {
        first: bool,
        last: bool,
        data: BytesMut,
    },
    Ping(BytesMut),
    Pong,
    Close,
}

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("a frame with reserved bits {0:#x}")]
    Reserved(u8),
    #[error("a frame with opcode {0}")]
    Opcode(u8),
    #[error("a frame that is not masked")]
    Unmasked,
    #[error("a control frame that is fragmented or longer than {LONGEST_CONTROL} bytes")]
    Control,
    #[error("a message within a message, or a continuation of none")]
    Order,
    #[error("a frame with an impossible length")]
    Length,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    /// How far the mask was used.
    at: usize,
    left: u64,
}

/// Reads frames of a client. After an error it must not be used again.
#[derive(Debug, Default)]
pub struct Decoder {
    head: Option<Head>,
    /// A message began and is not over.
    within: bool,
    /// Its first piece is still to come.
    fresh: bool,
}

impl Decoder {
    /// The next event, or nothing if `input` must grow first. Takes from the front of `input`.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Event>, FrameError> {
        let head = match self.head {
            Some(head) => head,
            None => match parse_head(input)? {
                Some((head, length)) => {
                    self.check_order(head)?;
                    input.advance(length);
                    self.head.insert(head).to_owned()
                }
                None => return Ok(None),
            },
        };
        Ok(if head.opcode >= opcode::CLOSE { self.control(head, input) } else { self.piece(head, input) })
    }

    fn check_order(&mut self, head: Head) -> Result<(), FrameError> {
        match head.opcode {
            opcode::CONTINUATION if !self.within => Err(FrameError::Order),
            opcode::TEXT | opcode::BINARY if self.within => Err(FrameError::Order),
            opcode::TEXT | opcode::BINARY => {
                (self.within, self.fresh) = (true, true);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn control(&mut self, head: Head, input: &mut BytesMut) -> Option<Event> {
        // parse_head bounds it.
        let length = usize::try_from(head.left).ok().filter(|length| *length <= input.len())?;
        let mut data = input.split_to(length);
        unmask(&mut data, head.mask, 0);
        self.head = None;
        Some(match head.opcode {
            opcode::PING => Event::Ping(data),
            opcode::PONG => Event::Pong,
            _ => Event::Close,
        })
    }

    fn piece(&mut self, mut head: Head, input: &mut BytesMut) -> Option<Event> {
        if head.left > 0 && input.is_empty() {
            return None;
        }
        let length = usize::try_from(head.left).unwrap_or(usize::MAX).min(input.len());
        let mut data = input.split_to(length);
        unmask(&mut data, head.mask, head.at);
        head.at = (head.at + length) % 4;
        head.left -= length as u64;
        let last = head.fin && head.left == 0;
        self.head = (head.left > 0).then_some(head);
        self.within = !last;
        Some(Event::Piece { first: std::mem::take(&mut self.fresh), last, data })
    }
}

/// The head of a frame and its length in bytes.
fn parse_head(input: &[u8]) -> Result<Option<(Head, usize)>, FrameError> {
    let Some(&[first, second]) = input.first_chunk::<2>() else { return Ok(None) };
    if first & RESERVED != 0 {
        return Err(FrameError::Reserved(first & RESERVED));
    }
    let (fin, opcode) = (first & FIN != 0, first & 0x0f);
    if !matches!(opcode, 0..=2 | 8..=10) {
        return Err(FrameError::Opcode(opcode));
    }
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let short = second & !MASKED;
    if opcode >= opcode::CLOSE && (!fin || usize::from(short) > LONGEST_CONTROL) {
        return Err(FrameError::Control);
    }
    let extra = match short {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let Some(rest) = input.get(2..2 + extra + 4) else { return Ok(None) };
    let (length, mask) = rest.split_at(extra);
    let left = match extra {
        0 => u64::from(short),
        _ => length.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
    };
    if left >> 63 != 0 {
        return Err(FrameError::Length);
    }
    let mask = [mask[0], mask[1], mask[2], mask[3]];
    Ok(Some((Head { fin, opcode, mask, at: 0, left }, 2 + extra + 4)))
}

fn unmask(data: &mut [u8], mask: [u8; 4], at: usize) {
    let mask = [0, 1, 2, 3].map(|place: usize| mask[(at + place) % 4]);
    let word = u32::from_ne_bytes(mask);
    let mut words = data.chunks_exact_mut(4);
    for chunk in &mut words {
        let bytes = [chunk[0], chunk[1], chunk[2], chunk[3]];
        chunk.copy_from_slice(&(u32::from_ne_bytes(bytes) ^ word).to_ne_bytes());
    }
    for (byte, key) in words.into_remainder().iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// The head of a whole, unmasked message or control frame; `length` bytes must follow.
pub fn put_head(output: &mut BytesMut, opcode: u8, length: usize) {
    output.put_u8(FIN | opcode);
    match length {
        0..=125 => output.put_u8(length as u8),
        126..=0xffff => {
            output.put_u8(126);
            output.put_u16(length as u16);
        }
        _ => {
            output.put_u8(127);
            output.put_u64(length as u64);
        }
    }
}

pub fn put_close(output: &mut BytesMut, code: u16) {
    put_head(output, opcode::CLOSE, 2);
    output.put_u16(code);
}

pub fn put_pong(output: &mut BytesMut, data: &[u8]) {
    put_head(output, opcode::PONG, data.len());
    output.put_slice(data);
}
