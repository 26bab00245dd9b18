//! The codec: tables, random frames in random cuts, hostile bytes.

use bytes::{BufMut, BytesMut};

use super::client::{Deflater, data};
use super::frame::{self, Decoder, Frame, FrameError, LONGEST_CONTROL, Leave, Reset, kind};
use super::headers::{BlockWriter, HeaderError, Headers, plain};

/// A small generator, so that a failure can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> usize {
        (self.next() % bound) as usize
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

fn decode_all(decoder: &mut Decoder, input: &mut BytesMut) -> Result<Vec<Frame>, FrameError> {
    let mut frames = Vec::new();
    while let Some(frame) = decoder.decode(input)? {
        frames.push(frame);
    }
    Ok(frames)
}

fn one(output: &BytesMut) -> Frame {
    let mut frames = decode_all(&mut Decoder::default(), &mut output.clone()).unwrap();
    assert_eq!(frames.len(), 1, "{frames:?}");
    frames.remove(0)
}

fn control(kind: u16, flags: u8, body: &[u8]) -> BytesMut {
    let mut output = BytesMut::new();
    frame::put_control(&mut output, kind, flags, body);
    output
}

#[test]
fn control_frames_are_read_as_they_are_written() {
    let mut output = BytesMut::new();
    frame::put_reset(&mut output, 5, Reset::Refused);
    assert_eq!(&output[..], b"\x80\x03\x00\x03\x00\x00\x00\x08\x00\x00\x00\x05\x00\x00\x00\x03");
    assert_eq!(one(&output), Frame::RstStream { id: 5, status: 3 });
    output.clear();
    frame::put_goaway(&mut output, 9, Leave::Protocol);
    assert_eq!(one(&output), Frame::GoAway { last: 9, status: 1 });
    output.clear();
    frame::put_ping(&mut output, 7);
    assert_eq!(one(&output), Frame::Ping(7));
    output.clear();
    frame::put_window_update(&mut output, 3, 32768);
    assert_eq!(one(&output), Frame::WindowUpdate { id: 3, delta: 32768 });
    let settings = control(kind::SETTINGS, 0, b"\0\0\0\x01\x01\0\0\x07\0\x01\0\0");
    assert_eq!(one(&settings), Frame::Settings(vec![(7, 65536)]));
    output.clear();
    frame::put_syn_reply(&mut output, 1, &BlockWriter::default().write(&Headers::default()));
    assert_eq!(one(&output), Frame::SynReply { id: 1, fin: false, headers: Headers::default() });
}

#[test]
fn a_window_larger_than_the_field_is_capped() {
    let mut output = BytesMut::new();
    frame::put_window_update(&mut output, 3, usize::MAX);
    assert_eq!(one(&output), Frame::WindowUpdate { id: 3, delta: 0x7fff_ffff });
}

/// What a random frame is after its pieces are put together again.
fn joined(frames: Vec<Frame>) -> Vec<Frame> {
    let mut joined: Vec<Frame> = Vec::new();
    for frame in frames {
        match (joined.last_mut(), frame) {
            (Some(Frame::Data { id, fin: end @ false, data }), Frame::Data { id: same, fin, data: more })
                if *id == same =>
            {
                data.put_slice(&more);
                *end = fin;
            }
            (_, frame) => joined.push(frame),
        }
    }
    joined
}

fn random_frame(random: &mut Random, deflater: &mut Deflater, output: &mut BytesMut) -> Frame {
    let id = (random.next() as u32 & 0x3fff_ffff) | 1;
    match random.below(7) {
        0 => {
            let (name, value) = (format!("name{}", random.below(99)), "x".repeat(random.below(300)));
            deflater.syn(output, id, 1, &[(&name, &value), ("port", "80")]);
            let headers = [(name, value), ("port".to_owned(), "80".to_owned())].into_iter().collect();
            Frame::SynStream { id, fin: true, unidirectional: false, headers }
        }
        1 => {
            frame::put_ping(output, id);
            Frame::Ping(id)
        }
        2 => {
            frame::put_reset(output, id, Reset::Cancel);
            Frame::RstStream { id, status: 5 }
        }
        3 => {
            let delta = random.below(1 << 31);
            frame::put_window_update(output, id, delta);
            Frame::WindowUpdate { id, delta: delta as u32 }
        }
        _ => {
            let length = random.below(5000);
            let bytes = random.bytes(length);
            data(output, id, true, &bytes);
            Frame::Data { id, fin: true, data: BytesMut::from(&bytes[..]) }
        }
    }
}

#[test]
fn random_frames_survive_any_cut() {
    for seed in 1u64..40 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (mut deflater, mut wire) = (Deflater::default(), BytesMut::new());
        let expected: Vec<_> = (0..60).map(|_| random_frame(&mut random, &mut deflater, &mut wire)).collect();
        let (mut decoder, mut input, mut found) = (Decoder::default(), BytesMut::new(), Vec::new());
        while !wire.is_empty() {
            let cut = (1 + random.below(3000)).min(wire.len());
            input.extend_from_slice(&wire.split_to(cut));
            found.extend(decode_all(&mut decoder, &mut input).unwrap());
        }
        assert!(input.is_empty());
        assert_eq!(joined(found), expected, "seed {seed}");
    }
}

#[test]
fn random_bytes_never_panic_and_hold_little() {
    for seed in 1u64..400 {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
        for _ in 0..40 {
            let length = random.below(2000);
            let mut bytes = random.bytes(length);
            if seed % 2 == 0 && bytes.len() > 8 {
                // Often a plausible head, so that the parsers behind it are met too.
                bytes[..8].copy_from_slice(&[
                    0x80,
                    3,
                    0,
                    random.below(11) as u8,
                    0,
                    0,
                    0,
                    random.below(64) as u8,
                ]);
            }
            input.extend_from_slice(&bytes);
            if decode_all(&mut decoder, &mut input).is_err() {
                break;
            }
            assert!(input.len() <= LONGEST_CONTROL + 8, "{} bytes wait", input.len());
        }
    }
}

#[test]
fn hostile_frames_are_refused() {
    let table: [(BytesMut, FrameError); 9] = [
        (BytesMut::from(&b"\x80\x02\x00\x06\x00\x00\x00\x04"[..]), FrameError::Version(2)),
        (
            BytesMut::from(&b"\x80\x03\x00\x01\x00\xff\xff\xff"[..]),
            FrameError::TooLong { kind: 1, length: 0xff_ffff },
        ),
        (control(kind::PING, 0, b"\0\0"), FrameError::Malformed(kind::PING)),
        (control(kind::PING, 0, b"\0\0\0\0\0"), FrameError::Malformed(kind::PING)),
        (control(kind::RST_STREAM, 0, b"\0\0\0\0"), FrameError::Malformed(kind::RST_STREAM)),
        (control(kind::SYN_STREAM, 0, b"\0\0\0\x01\0\0"), FrameError::Malformed(kind::SYN_STREAM)),
        (control(kind::SETTINGS, 0, b"\xff\xff\xff\xff"), FrameError::Malformed(kind::SETTINGS)),
        (control(kind::HEADERS, 0, b"\0\0\0\x01garbage"), HeaderError::Corrupt.into()),
        (BytesMut::from(&b"\0\0\0\0\0\0\0\x01"[..]), FrameError::NoStream),
    ];
    for (mut input, error) in table {
        assert_eq!(decode_all(&mut Decoder::default(), &mut input).unwrap_err(), error);
    }
}

#[test]
fn a_flood_of_headers_is_refused() {
    let mut deflater = Deflater::default();
    let headers: Headers = (0..1000).map(|number| (format!("h{number}"), "")).collect();
    let mut output = BytesMut::new();
    frame::put_syn_stream(&mut output, 1, 0, &deflater.deflate(&plain(&headers)));
    let error = decode_all(&mut Decoder::default(), &mut output).unwrap_err();
    assert_eq!(error, HeaderError::TooMany(1000).into());
}

#[test]
fn unknown_control_frames_are_skipped_without_keeping_them() {
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    // Type 10 announces 16 MiB, which come in pieces and are gone at once.
    input.put_slice(b"\x80\x03\x00\x0a\x00\xff\xff\xff");
    let mut left = 0xff_ffff;
    while left > 0 {
        let piece = left.min(60_000);
        input.put_bytes(0xaa, piece);
        left -= piece;
        assert_eq!(decoder.decode(&mut input).unwrap(), None);
        assert!(input.is_empty());
    }
    frame::put_ping(&mut input, 1);
    assert_eq!(decoder.decode(&mut input).unwrap(), Some(Frame::Ping(1)));
}

#[test]
fn an_empty_last_data_frame_is_seen() {
    let mut output = BytesMut::new();
    data(&mut output, 3, true, b"");
    assert_eq!(one(&output), Frame::Data { id: 3, fin: true, data: BytesMut::new() });
}
