//! A small WebSocket client for tests: masked frames out, plain ones in.

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A frame as a client sends it.
pub fn put_frame(output: &mut BytesMut, fin: bool, opcode: u8, data: &[u8]) {
    output.put_u8(u8::from(fin) << 7 | opcode);
    match data.len() {
        length @ 0..=125 => output.put_u8(0x80 | length as u8),
        length @ 126..=0xffff => {
            output.put_u8(0x80 | 126);
            output.put_u16(length as u16);
        }
        length => {
            output.put_u8(0x80 | 127);
            output.put_u64(length as u64);
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    output.put_slice(&mask);
    output.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// Takes one frame of a server: its opcode and data.
pub fn take_frame(input: &mut BytesMut) -> Option<(u8, BytesMut)> {
    let &[first, second] = input.first_chunk::<2>()?;
    assert_eq!(first & 0xf0, 0x80, "whole messages without extensions");
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (head, length) = match second {
        126 => (4, usize::from(u16::from_be_bytes(*input.get(2..)?.first_chunk()?))),
        127 => (10, u64::from_be_bytes(*input.get(2..)?.first_chunk()?) as usize),
        short => (2, usize::from(short)),
    };
    if input.len() < head + length {
        return None;
    }
    input.advance(head);
    Some((first & 0x0f, input.split_to(length)))
}

pub struct Client<IO> {
    pub io: IO,
    input: BytesMut,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Client<IO> {
    pub fn new(io: IO) -> Self {
        Self { io, input: BytesMut::new() }
    }

    pub async fn send(&mut self, opcode: u8, data: &[u8]) {
        let mut output = BytesMut::new();
        put_frame(&mut output, true, opcode, data);
        self.io.write_all(&output).await.unwrap();
    }

    pub async fn next(&mut self) -> Option<(u8, BytesMut)> {
        loop {
            if let Some(frame) = take_frame(&mut self.input) {
                return Some(frame);
            }
            if self.io.read_buf(&mut self.input).await.unwrap_or(0) == 0 {
                return None;
            }
        }
    }
}
