//! SPDY: frames, header blocks, and the machine with its streams.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::super::link::{Hub, LinkError, PipeReader, PipeWriter};
use super::super::spdy::frame::LONGEST_CONTROL;
use super::super::spdy::headers::{BlockWriter, Inflater, LONGEST_BLOCK, MOST_HEADERS, plain};
use super::super::spdy::{Decoder, Frame, FrameError, Headers, Incoming, Rules, SpdyServer};
use super::bench::{Bench, Choices, End, read, write};

/// Every frame that is complete, the pieces of data put together again.
pub fn decode(
    decoder: &mut Decoder,
    input: &mut BytesMut,
    frames: &mut Vec<Frame>,
) -> Result<(), FrameError> {
    while let Some(frame) = decoder.decode(input)? {
        match (frames.last_mut(), frame) {
            (Some(Frame::Data { id, fin: end @ false, data }), Frame::Data { id: same, fin, data: more })
                if *id == same =>
            {
                data.extend_from_slice(&more);
                *end = fin;
            }
            (_, frame) => frames.push(frame),
        }
    }
    Ok(())
}

/// The same frames come out however the bytes are cut, and little waits.
pub fn frames(bytes: &[u8]) {
    let (mut choices, wire) = Choices::of(bytes);
    let mut whole = Vec::new();
    let result = decode(&mut Decoder::default(), &mut BytesMut::from(wire), &mut whole);
    let (mut decoder, mut input, mut found, mut again) =
        (Decoder::default(), BytesMut::new(), Vec::new(), Ok(()));
    for piece in choices.cut(wire) {
        input.extend_from_slice(piece);
        again = decode(&mut decoder, &mut input, &mut found);
        if again.is_err() {
            break;
        }
        assert!(input.len() <= LONGEST_CONTROL + 8, "{} bytes wait", input.len());
    }
    assert_eq!((whole, result), (found, again));
}

/// A block is bounded, and what is read from it is what was written.
pub fn headers(bytes: &[u8]) {
    let (mut choices, rest) = Choices::of(bytes);
    if let Ok(headers) = Headers::parse(rest) {
        assert!(headers.len() <= MOST_HEADERS);
        assert_eq!(plain(&headers), rest);
        let (mut writer, mut inflater) = (BlockWriter::default(), Inflater::default());
        for _ in 0..2 {
            let block = inflater.inflate(&writer.write(&headers));
            assert!(block.is_ok_and(|block| block == rest) || rest.len() > LONGEST_BLOCK);
        }
    }
    // The bytes as compressed blocks, some with a good beginning: the two bytes and the dictionary's checksum.
    let mut inflater = Inflater::default();
    let begun =
        choices.below(2) == 0 && inflater.inflate(&BlockWriter::default().write(&Headers::default())).is_ok();
    let blocks = if begun { choices.cut(rest) } else { vec![rest] };
    for block in blocks {
        match inflater.inflate(block) {
            Ok(block) => {
                assert!(block.len() <= LONGEST_BLOCK);
                let _ = Headers::parse(&block);
            }
            Err(_) => break,
        }
    }
}

const MOST_STREAMS: usize = 8;

type Server = (Bench<SpdyServer>, mpsc::Receiver<Incoming>);

pub fn rules() -> Rules {
    Rules { admit: |headers| !headers.is_empty(), most: MOST_STREAMS, last: Some("error") }
}

pub fn server() -> Server {
    let hub = Arc::new(Hub::default());
    let (server, incoming) = SpdyServer::new(hub.clone(), rules());
    (Bench::new(hub, server), incoming)
}

/// What streams got, by their numbers.
type Streams = BTreeMap<u32, (Headers, Vec<u8>, Option<End>)>;

/// Feeds pieces to a machine whose streams nobody touches until the end.
fn untouched(pieces: &[&[u8]]) -> (Result<(), LinkError>, Vec<Frame>, Streams) {
    let (mut bench, mut incoming) = server();
    let result = pieces.iter().try_for_each(|piece| bench.feed(piece));
    let mut streams = Streams::new();
    let mut open = Vec::new();
    while let Ok(Incoming { id, headers, mut reader, writer }) = incoming.try_recv() {
        let (data, end) = read(&mut reader, usize::MAX);
        streams.insert(id, (headers, data, end));
        open.push((reader, writer));
    }
    assert!(open.len() <= MOST_STREAMS, "{} streams are open", open.len());
    let mut frames = Vec::new();
    decode(&mut Decoder::default(), &mut bench.output, &mut frames).expect("what we write can be read");
    // Credit is given in pieces that depend on the cuts.
    frames.retain(|frame| !matches!(frame, Frame::WindowUpdate { .. }));
    (result, frames, streams)
}

/// The same bytes in any cut have the same effect; and whatever streams do meanwhile, the machine goes on.
pub fn connection(bytes: &[u8]) {
    let (mut choices, wire) = Choices::of(bytes);
    let whole = untouched(&[wire]);
    let pieces = choices.cut(wire);
    assert_eq!(whole, untouched(&pieces));
    busy(&mut choices, &pieces);
}

struct Handles {
    reader: Option<PipeReader>,
    writer: Option<PipeWriter>,
}

fn busy(choices: &mut Choices, pieces: &[&[u8]]) {
    let (mut bench, mut incoming) = server();
    let mut handles: Vec<Handles> = Vec::new();
    for piece in pieces {
        if bench.feed(piece).is_err() {
            break;
        }
        while let Ok(stream) = incoming.try_recv() {
            handles.push(Handles { reader: Some(stream.reader), writer: Some(stream.writer) });
        }
        if !handles.is_empty() {
            let chosen = choices.below(handles.len());
            act(choices, &mut handles[chosen]);
        }
        if choices.below(3) == 0 {
            bench.collect();
        }
    }
    bench.collect();
    for reader in handles.iter_mut().filter_map(|handle| handle.reader.as_mut()) {
        read(reader, usize::MAX);
    }
    bench.collect();
    assert!(!super::super::link::Engine::paused(&bench.machine), "all was read and the machine still waits");
    bench.finish();
    let mut frames = Vec::new();
    decode(&mut Decoder::default(), &mut bench.output, &mut frames).expect("what we write can be read");
    assert!(bench.output.is_empty(), "a frame is cut off");
    assert!(matches!(frames.last(), Some(Frame::GoAway { .. })), "no farewell");
}

fn act(choices: &mut Choices, handles: &mut Handles) {
    let much = 1 + choices.below(40_000);
    match choices.below(6) {
        0 | 1 => drop(handles.reader.as_mut().map(|reader| read(reader, much))),
        2 | 3 => drop(handles.writer.as_mut().map(|writer| write(writer, &vec![7; much]))),
        4 => handles.reader = None,
        _ => handles.writer = None,
    }
}
