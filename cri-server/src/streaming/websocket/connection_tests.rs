//! The machine of the channel protocols without a connection.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::link::{Engine, Hub, LinkError, PipeReader, PipeWriter};
use super::channels::{Channels, Plan};
use super::client::{put_frame, take_frame};
use super::frame::opcode;

struct Bench {
    hub: Arc<Hub>,
    machine: Channels,
    handles: Vec<(PipeReader, PipeWriter)>,
}

fn bench(plan: Plan) -> Bench {
    let hub = Arc::new(Hub::default());
    let (machine, handles) = Channels::new(&hub, plan);
    Bench { hub, machine, handles }
}

impl Bench {
    fn receive(&mut self, opcode: u8, data: &[u8]) -> Result<Vec<(u8, BytesMut)>, LinkError> {
        let mut input = BytesMut::new();
        put_frame(&mut input, true, opcode, data);
        let mut output = BytesMut::new();
        self.machine.receive(&mut input, &mut output)?;
        Ok(self.collect(output))
    }

    fn collect(&mut self, mut output: BytesMut) -> Vec<(u8, BytesMut)> {
        while let Some(id) = self.hub.pop() {
            self.machine.collect(id, &mut output);
        }
        std::iter::from_fn(|| take_frame(&mut output)).collect()
    }
}

fn text(data: &str) -> BytesMut {
    BytesMut::from(data)
}

#[tokio::test]
async fn greetings_come_first_and_channels_carry_bytes() {
    let mut bench =
        bench(Plan { channels: 3, greetings: vec![(1, vec![]), (2, vec![80, 0])], ..Plan::default() });
    bench.handles[1].1.write_all(b"out").await.unwrap();
    let frames = bench.collect(BytesMut::new());
    let expected = [
        (opcode::BINARY, text("\x01")),
        (opcode::BINARY, text("\x02P\0")),
        (opcode::BINARY, text("\x01out")),
    ];
    assert_eq!(frames, expected);
    assert_eq!(bench.receive(opcode::BINARY, b"\0in").unwrap(), []);
    let mut read = [0; 2];
    bench.handles[0].0.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"in");
    // An unknown channel and an empty message are borne.
    assert_eq!(bench.receive(opcode::BINARY, b"\x09x").unwrap(), []);
    assert_eq!(bench.receive(opcode::BINARY, b"").unwrap(), []);
    assert_eq!(bench.receive(opcode::PING, b"p").unwrap(), [(opcode::PONG, text("p"))]);
}

#[tokio::test]
async fn base64_is_decoded_across_fragments_and_encoded() {
    let mut bench = bench(Plan { base64: true, channels: 2, ..Plan::default() });
    let mut input = BytesMut::new();
    put_frame(&mut input, false, opcode::TEXT, b"0aG");
    put_frame(&mut input, false, opcode::CONTINUATION, b"VsbG8gd29y");
    put_frame(&mut input, true, opcode::CONTINUATION, b"bGQ=");
    bench.machine.receive(&mut input, &mut BytesMut::new()).unwrap();
    let mut read = [0; 11];
    bench.handles[0].0.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"hello world");
    bench.handles[1].1.write_all(b"hi").await.unwrap();
    assert_eq!(bench.collect(BytesMut::new()), [(opcode::TEXT, text("1aGk="))]);
    for wrong in [&b"0a"[..], b"0****", b"xaGk="] {
        assert!(matches!(bench.receive(opcode::TEXT, wrong), Err(LinkError::Protocol(_))), "{wrong:?}");
    }
}

#[test]
fn base64_that_goes_on_behind_its_padding_is_refused_in_any_cut() {
    for pieces in [&[&b"0aGk=aGk="[..]][..], &[b"0aGk=", b"aGk="], &[b"0", b"aGk=", b"a", b"Gk="]] {
        let mut bench = bench(Plan { base64: true, channels: 2, ..Plan::default() });
        let mut input = BytesMut::new();
        for (number, piece) in pieces.iter().enumerate() {
            let opcode = if number == 0 { opcode::TEXT } else { opcode::CONTINUATION };
            put_frame(&mut input, number + 1 == pieces.len(), opcode, piece);
        }
        let result = bench.machine.receive(&mut input, &mut BytesMut::new());
        assert!(matches!(result, Err(LinkError::Protocol(_))), "{pieces:?}");
    }
}

#[tokio::test]
async fn a_close_signal_names_one_channel_in_any_cut() {
    for pieces in [&[&[255, 0, 1][..]][..], &[&[255, 0], &[1]], &[&[255], &[0], &[1]]] {
        let mut bench = bench(Plan { close_signal: true, channels: 2, ..Plan::default() });
        let mut input = BytesMut::new();
        for (number, piece) in pieces.iter().enumerate() {
            let opcode = if number == 0 { opcode::BINARY } else { opcode::CONTINUATION };
            put_frame(&mut input, number + 1 == pieces.len(), opcode, piece);
        }
        bench.machine.receive(&mut input, &mut BytesMut::new()).unwrap();
        let limit = std::time::Duration::from_millis(20);
        for (channel, ends) in [(0, true), (1, false)] {
            let end = tokio::time::timeout(limit, bench.handles[channel].0.read(&mut [0; 1])).await;
            assert_eq!(matches!(end, Ok(Ok(0))), ends, "channel {channel}, {pieces:?}");
        }
    }
}

#[tokio::test]
async fn the_close_signal_ends_a_channel_in_version_5_alone() {
    for (close_signal, ends) in [(true, true), (false, false)] {
        let mut bench = bench(Plan { close_signal, channels: 5, ..Plan::default() });
        bench.receive(opcode::BINARY, b"\0last words").unwrap();
        bench.receive(opcode::BINARY, &[255, 0]).unwrap();
        bench.receive(opcode::BINARY, &[255, 99]).unwrap();
        bench.receive(opcode::BINARY, &[255]).unwrap();
        let mut read = [0; 10];
        bench.handles[0].0.read_exact(&mut read).await.unwrap();
        let limit = std::time::Duration::from_millis(20);
        let end = tokio::time::timeout(limit, bench.handles[0].0.read(&mut read)).await;
        assert_eq!(matches!(end, Ok(Ok(0))), ends);
    }
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_the_client_back() {
    let mut bench = bench(Plan { channels: 1, ..Plan::default() });
    let piece = vec![0; 64 * 1024 + 1];
    let mut sent = 0;
    while !bench.machine.paused() {
        bench.receive(opcode::BINARY, &piece).unwrap();
        sent += 1;
        assert!(sent < 100);
    }
    assert_eq!(sent, 4);
    bench.handles.clear();
    bench.collect(BytesMut::new());
    assert!(!bench.machine.paused());
}

#[tokio::test]
async fn the_farewell_sends_the_last_channel_last() {
    let mut bench = bench(Plan { channels: 4, last: Some(1), ..Plan::default() });
    bench.handles[1].1.write_all(b"x").await.unwrap();
    assert_eq!(bench.collect(BytesMut::new()), [], "the status waits");
    for channel in [3, 2] {
        bench.handles[channel].1.write_all(b"x").await.unwrap();
    }
    let mut output = BytesMut::new();
    assert!(bench.machine.finish(&mut output));
    let order: Vec<_> =
        std::iter::from_fn(|| take_frame(&mut output)).map(|(code, data)| (code, data[0])).collect();
    assert_eq!(order, [(2, 2), (2, 3), (2, 1), (opcode::CLOSE, 3)]);
}

#[test]
fn a_close_is_answered_and_ends_the_session() {
    let mut bench = bench(Plan { channels: 1, ..Plan::default() });
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    put_frame(&mut input, true, opcode::CLOSE, b"");
    assert_eq!(bench.machine.receive(&mut input, &mut output), Err(LinkError::Closed));
    assert_eq!(take_frame(&mut output).unwrap().0, opcode::CLOSE);
}
