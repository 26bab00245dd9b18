//! The frames of both transports, as a client writes and reads them. Written for the tests alone, from the specifications, so that
//! an error of the daemon's own code is not repeated here.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf, BufMut, BytesMut};

/// What came on a channel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Data {
        channel: u8,
        data: Vec<u8>,
    },
    /// The channel is over (SPDY alone says so).
    End {
        channel: u8,
    },
    Reset {
        channel: u8,
    },
    /// The session is over.
    Farewell,
    /// Nothing that a test looks at.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Spdy,
    Binary,
    Base64,
}

/// The SPDY stream of a channel.
fn id(channel: u8) -> u32 {
    2 * u32::from(channel) + 1
}

fn channel(id: u32) -> u8 {
    u8::try_from((id - 1) / 2).expect("a stream that was never opened")
}

/// Opens the SPDY stream of a channel. `first` on a connection begins the compressed stream of headers.
pub fn open(output: &mut BytesMut, number: u8, headers: &[(&str, &str)], first: bool) {
    let mut plain = BytesMut::new();
    plain.put_u32(headers.len() as u32);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        plain.put_u32(text.len() as u32);
        plain.put_slice(text.as_bytes());
    }
    let mut block = BytesMut::new();
    if first {
        // zlib with the dictionary of SPDY/3, which blocks that are only stored never refer to.
        block.put_slice(&[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2]);
    }
    for piece in [&plain[..], &[]] {
        block.put_u8(0);
        block.put_u16_le(piece.len() as u16);
        block.put_u16_le(!(piece.len() as u16));
        block.put_slice(piece);
    }
    output.put_u32(0x8003_0001);
    output.put_u32(10 + block.len() as u32);
    output.put_u32(id(number));
    output.put_u32(0);
    output.put_u16(0);
    output.put_slice(&block);
}

/// Data on a channel.
pub fn put(output: &mut BytesMut, wire: Wire, channel: u8, data: &[u8]) {
    match wire {
        Wire::Spdy => {
            output.put_u32(id(channel));
            output.put_u32(data.len() as u32);
            output.put_slice(data);
        }
        Wire::Binary => masked(output, 2, &[&[channel], data].concat()),
        Wire::Base64 => masked(output, 1, format!("{channel}{}", STANDARD.encode(data)).as_bytes()),
    }
}

/// The end of a channel, where the transport has one: SPDY's own, or the signal of version 5.
pub fn end(output: &mut BytesMut, wire: Wire, channel: u8) {
    match wire {
        Wire::Spdy => {
            output.put_u32(id(channel));
            output.put_u32(1 << 24);
        }
        _ => masked(output, 2, &[255, channel]),
    }
}

fn masked(output: &mut BytesMut, opcode: u8, data: &[u8]) {
    output.put_u8(0x80 | opcode);
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
    let mask = [0xa1, 0x5e, 0x03, 0x77];
    output.put_slice(&mask);
    output.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}

/// The next whole frame.
pub fn take(input: &mut BytesMut, wire: Wire) -> Option<Said> {
    if wire == Wire::Spdy { take_spdy(input) } else { take_websocket(input, wire) }
}

fn take_spdy(input: &mut BytesMut) -> Option<Said> {
    let first = input.get(..4)?.get_u32();
    let second = input.get(4..8)?.get_u32();
    let (fin, length) = (second >> 24 & 1 == 1, (second & 0x00ff_ffff) as usize);
    if input.len() < 8 + length {
        return None;
    }
    input.advance(8);
    let body = input.split_to(length);
    Some(match first {
        0x8003_0003 => Said::Reset { channel: channel((&body[..]).get_u32()) },
        0x8003_0007 => Said::Farewell,
        control if control & 0x8000_0000 != 0 => Said::Other,
        id if fin && body.is_empty() => Said::End { channel: channel(id) },
        id => {
            assert!(!fin, "the daemon ends streams with a frame of their own; the client counts on it");
            Said::Data { channel: channel(id), data: body.to_vec() }
        }
    })
}

fn take_websocket(input: &mut BytesMut, wire: Wire) -> Option<Said> {
    let &[first, second] = input.first_chunk::<2>()?;
    assert_eq!(second & 0x80, 0, "a server does not mask");
    let (head, length) = match second {
        126 => (4, usize::from(input.get(2..4)?.get_u16())),
        127 => (10, usize::try_from(input.get(2..10)?.get_u64()).expect("an endless frame")),
        short => (2, usize::from(short)),
    };
    if input.len() < head + length {
        return None;
    }
    input.advance(head);
    let mut body = input.split_to(length);
    Some(match (first & 0x0f, wire) {
        (8, _) => Said::Farewell,
        (2, Wire::Binary) => Said::Data { channel: body.get_u8(), data: body.to_vec() },
        (1, Wire::Base64) => {
            let channel = body.get_u8() - b'0';
            Said::Data { channel, data: STANDARD.decode(&body).expect("no base64") }
        }
        (9 | 10, _) => Said::Other,
        (opcode, _) => panic!("a frame with opcode {opcode} over {wire:?}"),
    })
}
