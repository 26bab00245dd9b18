//! ttrpc's messages on a logical connection: put together from frames, and taken apart.
//!
//! Only unary calls: a request and its response. Nobody streams in NRI.

use bytes::{Buf, BytesMut};
use cofferdam_proto::ttrpc;
use prost::Message as _;

/// Length (u32), stream (u32), kind (u8), flags (u8).
pub const HEADER: usize = 10;
/// The most that ttrpc allows in a message.
pub const MAX_MESSAGE: usize = 4 << 20;

const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// What makes a plugin's connection useless.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message of {length} bytes; {most} are allowed")]
    Oversize { length: usize, most: usize },
    #[error("a message of kind {0}; only requests and responses are known")]
    Kind(u8),
    #[error("a message that cannot be decoded")]
    Message(#[from] prost::DecodeError),
    #[error("the stream ended within a message")]
    Ended,
    #[error("the socket")]
    Io(#[from] std::io::Error),
}

/// A whole message.
#[derive(Debug, PartialEq)]
pub enum Message {
    Request { stream: u32, request: ttrpc::Request },
    Response { stream: u32, response: ttrpc::Response },
}

impl Message {
    /// The bytes of the message on a logical connection.
    ///
    /// # Errors
    /// When it is larger than ttrpc allows.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let (stream, kind, body) = match self {
            Self::Request { stream, request } => (stream, REQUEST, request.encode_to_vec()),
            Self::Response { stream, response } => (stream, RESPONSE, response.encode_to_vec()),
        };
        let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_MESSAGE);
        let Some(length) = length else {
            return Err(WireError::Oversize { length: body.len(), most: MAX_MESSAGE });
        };
        let mut out = Vec::with_capacity(HEADER + body.len());
        out.extend(length.to_be_bytes());
        out.extend(stream.to_be_bytes());
        out.extend([kind, 0]);
        out.extend(body);
        Ok(out)
    }
}

/// Puts the pieces of one logical connection together.
#[derive(Debug, Default)]
pub struct Assembler {
    pieces: BytesMut,
}

impl Assembler {
    /// The next piece of the stream.
    pub fn push(&mut self, piece: &BytesMut) {
        self.pieces.extend_from_slice(piece);
    }

    /// The next message, once it is whole.
    ///
    /// # Errors
    /// When what comes is no message of ttrpc, or too large a one.
    pub fn next(&mut self) -> Result<Option<Message>, WireError> {
        let Some(mut header) = self.pieces.get(..HEADER) else { return Ok(None) };
        let (length, stream) = (header.get_u32() as usize, header.get_u32());
        let kind = header.get_u8();
        if length > MAX_MESSAGE {
            return Err(WireError::Oversize { length, most: MAX_MESSAGE });
        }
        if kind != REQUEST && kind != RESPONSE {
            return Err(WireError::Kind(kind));
        }
        if self.pieces.len() < HEADER + length {
            return Ok(None);
        }
        self.pieces.advance(HEADER);
        let body = self.pieces.split_to(length);
        Ok(Some(match kind {
            REQUEST => Message::Request { stream, request: ttrpc::Request::decode(body)? },
            _ => Message::Response { stream, response: ttrpc::Response::decode(body)? },
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(payload: Vec<u8>) -> Message {
        let request = ttrpc::Request {
            service: "s".to_owned(),
            method: "m".to_owned(),
            payload,
            timeout_nano: 5,
        };
        Message::Request { stream: 3, request }
    }

    #[test]
    fn messages_come_out_as_they_went_in_however_they_are_cut() {
        let response = ttrpc::Response { status: None, payload: b"answer".to_vec() };
        let messages = [request(vec![7; 9000]), Message::Response { stream: 3, response }];
        let bytes: Vec<u8> = messages.iter().flat_map(|m| m.encode().unwrap()).collect();
        for size in [1, 7, 4096, bytes.len()] {
            let mut assembler = Assembler::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                assembler.push(&BytesMut::from(piece));
                while let Some(message) = assembler.next().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!(found, messages, "pieces of {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut assembler = Assembler::default();
            assembler.push(&BytesMut::from(bytes));
            assembler.next().unwrap_err()
        };
        assert!(matches!(refused(b"GET / HTTP/1.1"), WireError::Oversize { .. }));
        assert!(matches!(refused(&[0, 0, 0, 1, 0, 0, 0, 1, 9, 0, 0]), WireError::Kind(9)));
        assert!(matches!(refused(&[0, 0, 0, 1, 0, 0, 0, 1, 1, 0, 0xff]), WireError::Message(_)));
    }

    #[test]
    fn too_large_a_message_is_not_sent() {
        assert!(matches!(request(vec![0; MAX_MESSAGE]).encode(), Err(WireError::Oversize { .. })));
    }
}
