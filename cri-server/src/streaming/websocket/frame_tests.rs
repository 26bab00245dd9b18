//! The codec: tables, random messages in random cuts, hostile bytes.

use bytes::BytesMut;

use super::super::spdy::frame_tests::Random;
use super::client::put_frame;
use super::frame::{self, Decoder, Event, FrameError, opcode};

fn decode_all(decoder: &mut Decoder, input: &mut BytesMut) -> Result<Vec<Event>, FrameError> {
    let mut events = Vec::new();
    while let Some(event) = decoder.decode(input)? {
        events.push(event);
    }
    Ok(events)
}

#[test]
fn the_example_of_the_specification_is_read() {
    // RFC 6455, section 5.7: a masked text message "Hello".
    let mut input = BytesMut::from(&b"\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58"[..]);
    let events = decode_all(&mut Decoder::default(), &mut input).unwrap();
    assert_eq!(events, [Event::Piece { first: true, last: true, data: BytesMut::from("Hello") }]);
}

#[test]
fn heads_have_the_shortest_length() {
    for (length, head) in
        [(5, &b"\x82\x05"[..]), (126, b"\x82\x7e\0\x7e"), (65536, b"\x82\x7f\0\0\0\0\0\x01\0\0")]
    {
        let mut output = BytesMut::new();
        frame::put_head(&mut output, opcode::BINARY, length);
        assert_eq!(&output[..], head);
    }
}

#[test]
fn control_frames_may_come_within_a_message() {
    let mut input = BytesMut::new();
    put_frame(&mut input, false, opcode::TEXT, b"ab");
    put_frame(&mut input, true, opcode::PING, b"you?");
    put_frame(&mut input, false, opcode::CONTINUATION, b"");
    put_frame(&mut input, true, opcode::CONTINUATION, b"c");
    put_frame(&mut input, true, opcode::PONG, b"");
    put_frame(&mut input, true, opcode::CLOSE, b"\x03\xe8");
    let piece = |first, last, data: &str| Event::Piece { first, last, data: BytesMut::from(data) };
    let expected = [
        piece(true, false, "ab"),
        Event::Ping(BytesMut::from("you?")),
        piece(false, false, ""),
        piece(false, true, "c"),
        Event::Pong,
        Event::Close,
    ];
    assert_eq!(decode_all(&mut Decoder::default(), &mut input).unwrap(), expected);
}

#[test]
fn random_messages_survive_any_cut() {
    for seed in 1u64..60 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut wire, mut expected) = (BytesMut::new(), Vec::new());
        for _ in 0..20 {
            let length = random.below(70_000);
            let message = random.bytes(length);
            let cut = random.below(length as u64 + 1);
            put_frame(&mut wire, false, opcode::BINARY, &message[..cut]);
            put_frame(&mut wire, true, opcode::CONTINUATION, &message[cut..]);
            expected.push(message);
        }
        let (mut decoder, mut input, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
        while !wire.is_empty() {
            let cut = (1 + random.below(9000)).min(wire.len());
            input.extend_from_slice(&wire.split_to(cut));
            for event in decode_all(&mut decoder, &mut input).unwrap() {
                let Event::Piece { first, data, .. } = event else { panic!("{event:?}") };
                if first {
                    found.push(Vec::new());
                }
                found.last_mut().unwrap().extend_from_slice(&data);
            }
        }
        assert!(found == expected, "seed {seed}");
    }
}

#[test]
fn hostile_frames_are_refused() {
    let table: [(&[u8], FrameError); 9] = [
        (b"\xc2\x80\0\0\0\0", FrameError::Reserved(0x40)),
        (b"\x83\x80\0\0\0\0", FrameError::Opcode(3)),
        (b"\x8b\x80\0\0\0\0", FrameError::Opcode(11)),
        (b"\x82\x05hello", FrameError::Unmasked),
        (b"\x09\x80\0\0\0\0", FrameError::Control),
        (b"\x89\xfe\0\x7e\0\0\0\0", FrameError::Control),
        (b"\x80\x80\0\0\0\0", FrameError::Order),
        (b"\x02\x80\0\0\0\0\x82\x80\0\0\0\0", FrameError::Order),
        (b"\x82\xff\x80\0\0\0\0\0\0\0\0\0\0\0", FrameError::Length),
    ];
    for (bytes, error) in table {
        let result = decode_all(&mut Decoder::default(), &mut BytesMut::from(bytes));
        assert_eq!(result.unwrap_err(), error, "{bytes:02x?}");
    }
}

#[test]
fn giant_announced_lengths_keep_nothing() {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    input.extend_from_slice(b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0");
    for _ in 0..100 {
        input.extend_from_slice(&[5; 1000]);
        let events = decode_all(&mut decoder, &mut input).unwrap();
        assert_eq!(events.len(), 1);
        assert!(input.is_empty());
    }
}

#[test]
fn random_bytes_never_panic() {
    for seed in 1u64..2000 {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let length = random.below(300);
        let mut bytes = random.bytes(length);
        if bytes.len() > 1 {
            (bytes[0], bytes[1]) = (bytes[0] & 0x8f, bytes[1] | 0x80);
        }
        let _ = decode_all(&mut Decoder::default(), &mut BytesMut::from(&bytes[..]));
    }
}
