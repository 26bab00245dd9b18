//! SPDY in a WebSocket: the borders of messages and frames mean nothing, and what is between them passes by.

use std::sync::Arc;

use tokio::sync::mpsc::Receiver;

use super::super::link::Hub;
use super::super::spdy::{Incoming, SpdyServer};
use super::super::websocket::Tunnel;
use super::super::websocket::frame::opcode;
use super::bench::{Bench, Choices};
use super::{spdy, websocket};

pub fn check(bytes: &[u8]) {
    let (mut choices, rest) = Choices::of(bytes);
    if choices.below(4) == 0 {
        // As they are: whatever it is, the machine survives it.
        let (mut bench, _open) = tunnel();
        let _ = choices.cut(rest).into_iter().try_for_each(|piece| bench.feed(piece));
        bench.collect();
        return bench.finish();
    }
    let (mut plain, _open) = spdy::server();
    let (mut wrapped, _kept) = tunnel();
    let mut within = false;
    for piece in choices.cut(rest) {
        let result = plain.feed(piece);
        let mut frames = Vec::new();
        if choices.below(5) == 0 {
            websocket::put(&mut frames, true, opcode::PONG, b"");
        }
        let fin = choices.below(2) == 0;
        let opcode = if within { opcode::CONTINUATION } else { opcode::BINARY };
        websocket::put(&mut frames, fin, opcode, piece);
        within = !fin;
        assert_eq!(result, wrapped.feed(&frames));
        if result.is_err() {
            break;
        }
    }
    assert_eq!(&unwrap(&wrapped.output)[..], &plain.output[..]);
}

/// The machine and the streams that it lets in: one that nobody can receive would be refused.
fn tunnel() -> (Bench<Tunnel<SpdyServer>>, Receiver<Incoming>) {
    let hub = Arc::new(Hub::default());
    let (server, incoming) = SpdyServer::new(hub.clone(), spdy::rules());
    (Bench::new(hub, Tunnel::new(server)), incoming)
}

/// The data of a server's binary messages; a close frame ends them.
fn unwrap(mut frames: &[u8]) -> Vec<u8> {
    let mut found = Vec::new();
    while let [first, second, rest @ ..] = frames {
        assert_eq!((first & 0xf0, second & 0x80), (0x80, 0), "whole messages, not masked");
        let (length, rest) = match second {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => panic!("so much is not written here"),
            short => (usize::from(*short), rest),
        };
        let (data, rest) = rest.split_at(length);
        match first & 0x0f {
            opcode::BINARY => found.extend_from_slice(data),
            opcode::CLOSE => assert!(rest.is_empty(), "words after the farewell"),
            other => panic!("a frame with opcode {other}"),
        }
        frames = rest;
    }
    found
}
