//! WebSocket: frames and the channels of remotecommand and port-forward.

use std::sync::Arc;

use bytes::BytesMut;

use super::super::link::{Engine, Hub, LinkError};
use super::super::websocket::{Channels, Decoder, Event, FrameError, Plan};
use super::bench::{Bench, Choices, End, read};

/// The protocols by a choice.
fn plan(choices: &mut Choices) -> Plan {
    let command = |base64, close_signal| Plan {
        base64,
        close_signal,
        channels: 5,
        greetings: vec![(1, Vec::new())],
        last: Some(3),
    };
    match choices.below(4) {
        0 => command(false, true),
        1 => command(false, false),
        2 => command(true, false),
        _ => Plan { channels: 4, greetings: vec![(0, vec![80, 0])], ..Plan::default() },
    }
}

pub fn check(bytes: &[u8]) {
    let (mut choices, wire) = Choices::of(bytes);
    let plan = plan(&mut choices);
    let pieces = choices.cut(wire);
    assert_eq!(decoded(&[wire]), decoded(&pieces));
    let whole = carried(&plan, &[wire]);
    let again = carried(&plan, &pieces);
    assert_eq!((&whole.result, &whole.output), (&again.result, &again.output));
    for (one, other) in whole.channels.iter().zip(&again.channels) {
        if whole.result.is_ok() {
            assert_eq!(one, other);
        } else {
            // In small pieces a message is passed on before the fault in it is seen.
            assert!(other.0.starts_with(&one.0), "{one:?} became {other:?}");
        }
    }
}

fn decoded(pieces: &[&[u8]]) -> (Vec<Event>, Result<(), FrameError>) {
    let (mut decoder, mut input, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
    for piece in pieces {
        input.extend_from_slice(piece);
        loop {
            match decoder.decode(&mut input) {
                Ok(Some(event)) => join(&mut events, event),
                Ok(None) => break,
                Err(error) => return (events, Err(error)),
            }
        }
        assert!(input.len() < 14 + 125, "{} bytes wait", input.len());
    }
    (events, Ok(()))
}

fn join(events: &mut Vec<Event>, event: Event) {
    match (events.last_mut(), event) {
        (
            Some(Event::Piece { last: end @ false, data, .. }),
            Event::Piece { first: false, last, data: more },
        ) => {
            data.extend_from_slice(&more);
            *end = last;
        }
        (_, event) => events.push(event),
    }
}

struct Carried {
    result: Result<(), LinkError>,
    output: BytesMut,
    channels: Vec<(Vec<u8>, Option<End>)>,
}

fn carried(plan: &Plan, pieces: &[&[u8]]) -> Carried {
    let hub = Arc::new(Hub::default());
    let (machine, mut handles) = Channels::new(&hub, plan.clone());
    let mut bench = Bench::new(hub, machine);
    let result = pieces.iter().try_for_each(|piece| bench.feed(piece));
    let channels = handles.iter_mut().map(|(reader, _)| read(reader, usize::MAX)).collect();
    bench.collect();
    assert!(!bench.machine.paused(), "all was read and the machine still waits");
    bench.finish();
    Carried { result, output: bench.output, channels }
}

/// A frame as a client sends it.
pub fn put(output: &mut Vec<u8>, fin: bool, opcode: u8, data: &[u8]) {
    output.push(u8::from(fin) << 7 | opcode);
    match data.len() {
        length @ 0..=125 => output.push(0x80 | length as u8),
        length => {
            output.push(0x80 | 126);
            output.extend_from_slice(&u16::try_from(length).expect("the cuts are small").to_be_bytes());
        }
    }
    let mask = [0x12, 0x34, 0x56, 0x78];
    output.extend_from_slice(&mask);
    output.extend(data.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
}
