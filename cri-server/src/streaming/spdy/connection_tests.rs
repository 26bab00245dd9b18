//! The machine without a connection: bounds, resets, credit, the farewell.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::super::link::{Engine, Hub, LinkError};
use super::client::{Deflater, data};
use super::connection::{Incoming, Rules, SpdyServer};
use super::frame::{self, Decoder, Frame};

struct Bench {
    hub: Arc<Hub>,
    server: SpdyServer,
    incoming: mpsc::Receiver<Incoming>,
    deflater: Deflater,
    decoder: Decoder,
    input: BytesMut,
}

fn bench(most: usize) -> Bench {
    let hub = Arc::new(Hub::default());
    let (server, incoming) = SpdyServer::new(
        hub.clone(),
        Rules { admit: |headers| headers.get("no").is_none(), most, last: Some("error") },
    );
    let (deflater, decoder, input) = (Deflater::default(), Decoder::default(), BytesMut::new());
    Bench { hub, server, incoming, deflater, decoder, input }
}

impl Bench {
    fn open(&mut self, id: u32) -> Incoming {
        self.deflater.syn(&mut self.input, id, 0, &[("streamtype", "data")]);
        let answers = self.turn().unwrap();
        // The answer, and wider windows: the stream's, and the connection's the first time.
        let [Frame::SynReply { .. }, widened @ ..] = &answers[..] else { panic!("{answers:?}") };
        assert!((1..=2).contains(&widened.len()), "{answers:?}");
        assert!(widened.iter().all(|frame| matches!(frame, Frame::WindowUpdate { .. })), "{answers:?}");
        self.incoming.try_recv().unwrap()
    }

    fn send(&mut self, id: u32, fin: bool, bytes: &[u8]) -> Vec<Frame> {
        data(&mut self.input, id, fin, bytes);
        self.turn().unwrap()
    }

    /// Gives the machine what waits, and reads what it answers.
    fn turn(&mut self) -> Result<Vec<Frame>, LinkError> {
        let mut output = BytesMut::new();
        self.server.receive(&mut self.input, &mut output)?;
        while let Some(id) = self.hub.pop() {
            self.server.collect(id, &mut output);
        }
        Ok(self.decoded(&mut output))
    }

    fn decoded(&mut self, output: &mut BytesMut) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.decoder.decode(output).unwrap() {
            frames.push(frame);
        }
        frames
    }
}

#[tokio::test]
async fn a_stream_carries_both_directions_and_both_ends() {
    let mut bench = bench(8);
    let mut stream = bench.open(1);
    assert_eq!(bench.send(1, false, b"hello "), vec![]);
    assert_eq!(bench.send(1, true, b"world"), vec![]);
    let mut text = String::new();
    stream.reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello world");
    stream.writer.write_all(b"answer").await.unwrap();
    stream.writer.shutdown().await.unwrap();
    let sent = |fin, text: &[u8]| Frame::Data { id: 1, fin, data: BytesMut::from(text) };
    assert_eq!(bench.turn().unwrap(), vec![sent(false, b"answer"), sent(true, b"")]);
    // Forgotten: what still comes is dropped, without an answer.
    assert_eq!(bench.send(1, false, b"late"), vec![]);
}

#[tokio::test]
async fn what_waits_is_bounded_even_if_the_client_ignores_its_window() {
    let mut bench = bench(8);
    let mut stream = bench.open(1);
    let piece = vec![7; 32 * 1024];
    let mut sent = 0;
    while !bench.server.paused() {
        bench.send(1, false, &piece);
        sent += piece.len();
        assert!(sent <= 1 << 20);
    }
    assert_eq!(sent, 256 * 1024);
    let mut buffer = vec![0; 40 * 1024];
    stream.reader.read_exact(&mut buffer).await.unwrap();
    // Less than half of the window was used: no credit yet, but the bound is kept again.
    assert_eq!(bench.turn().unwrap(), []);
    assert!(!bench.server.paused());
    buffer.resize(60 * 1024, 0);
    stream.reader.read_exact(&mut buffer).await.unwrap();
    let delta = 100 * 1024;
    assert_eq!(bench.turn().unwrap(), [Frame::WindowUpdate { id: 1, delta }]);
}

/// The credit of a client that minds its windows: the connection's under 0.
fn credit(windows: &mut std::collections::BTreeMap<u32, u32>, frames: &[Frame]) {
    for frame in frames {
        if let Frame::WindowUpdate { id, delta } = frame {
            *windows.entry(*id).or_insert(64 * 1024) += delta;
        }
    }
}

#[tokio::test]
async fn a_client_that_minds_its_windows_is_never_held_up() {
    let mut bench = bench(8);
    let mut windows = std::collections::BTreeMap::new();
    for id in [1, 3] {
        bench.deflater.syn(&mut bench.input, id, 0, &[("streamtype", "data")]);
        let frames = bench.turn().unwrap();
        credit(&mut windows, &frames);
    }
    let mut read = bench.incoming.try_recv().unwrap();
    let _unread = bench.incoming.try_recv().unwrap();
    // The second stream's window is used up, and nobody reads.
    let frames = bench.send(3, false, &vec![7; windows[&3] as usize]);
    credit(&mut windows, &frames);
    *windows.get_mut(&0).unwrap() -= windows[&3];
    let mut moved = 0;
    while moved < 20 << 20 {
        let piece = windows[&1].min(windows[&0]).min(32 * 1024);
        assert!(piece > 0, "no credit is left after {moved} bytes: {windows:?}");
        let frames = bench.send(1, false, &vec![7; piece as usize]);
        assert!(!bench.server.paused());
        for id in [0, 1] {
            *windows.get_mut(&id).unwrap() -= piece;
        }
        credit(&mut windows, &frames);
        read.reader.read_exact(&mut vec![0; piece as usize]).await.unwrap();
        credit(&mut windows, &bench.turn().unwrap());
        moved += piece;
    }
}

#[tokio::test]
async fn a_gone_reader_holds_nothing_up() {
    let mut bench = bench(8);
    let stream = bench.open(1);
    let piece = vec![7; 100 * 1024];
    for _ in 0..3 {
        bench.send(1, false, &piece);
    }
    assert!(bench.server.paused());
    drop(stream.reader);
    bench.turn().unwrap();
    assert!(!bench.server.paused());
    for _ in 0..20 {
        bench.send(1, false, &piece);
        assert!(!bench.server.paused());
    }
    // With the writer gone too, the client hears that nobody listens.
    drop(stream.writer);
    let frames = bench.turn().unwrap();
    assert!(
        matches!(frames[..], [Frame::Data { fin: true, .. }, Frame::RstStream { id: 1, status: 5 }]),
        "{frames:?}"
    );
}

#[tokio::test]
async fn a_reset_fails_one_stream_alone() {
    let mut bench = bench(8);
    let (mut first, mut second) = (bench.open(1), bench.open(3));
    bench.send(1, false, b"lost");
    frame::put_reset(&mut bench.input, 1, frame::Reset::Cancel);
    assert_eq!(bench.turn().unwrap(), vec![]);
    let error = first.reader.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(first.writer.write(b"x").await.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe);
    bench.send(3, true, b"fine");
    let mut text = String::new();
    second.reader.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "fine");
}

#[tokio::test]
async fn streams_beyond_the_rules_are_refused_one_by_one() {
    let mut bench = bench(2);
    let refused = |id, status| vec![Frame::RstStream { id, status }];
    bench.deflater.syn(&mut bench.input, 1, 0, &[("no", "")]);
    assert_eq!(bench.turn().unwrap(), refused(1, 3));
    let kept = (bench.open(3), bench.open(5));
    bench.deflater.syn(&mut bench.input, 7, 0, &[]);
    assert_eq!(bench.turn().unwrap(), refused(7, 3));
    bench.deflater.syn(&mut bench.input, 7, 0, &[]);
    assert_eq!(bench.turn().unwrap(), refused(7, 1), "an identifier is used once");
    bench.deflater.syn(&mut bench.input, 8, 0, &[]);
    assert_eq!(bench.turn().unwrap(), refused(8, 1), "even identifiers are the server's");
    assert_eq!(bench.send(99, false, b"x"), refused(99, 2));
    drop(kept);
}

#[tokio::test]
async fn a_thousand_streams_leave_nothing() {
    let mut bench = bench(4);
    for number in 0..1000 {
        let id = 2 * number + 1;
        let mut stream = bench.open(id);
        bench.send(id, true, b"data");
        stream.writer.write_all(b"data").await.unwrap();
        let mut read = Vec::new();
        stream.reader.read_to_end(&mut read).await.unwrap();
        drop(stream);
        bench.turn().unwrap();
    }
    assert!(!bench.server.paused());
    bench.open(2001);
}

#[tokio::test]
async fn pings_of_the_client_are_answered_and_overlarge_windows_borne() {
    let mut bench = bench(4);
    let _stream = bench.open(1);
    frame::put_ping(&mut bench.input, 11);
    frame::put_ping(&mut bench.input, 12);
    for _ in 0..3 {
        frame::put_window_update(&mut bench.input, 1, 0x7fff_ffff);
        frame::put_window_update(&mut bench.input, 0, 0x7fff_ffff);
    }
    assert_eq!(bench.turn().unwrap(), vec![Frame::Ping(11)]);
}

#[tokio::test]
async fn garbage_is_answered_with_a_farewell_and_fails_every_stream() {
    let mut bench = bench(4);
    let mut stream = bench.open(1);
    bench.input.extend_from_slice(b"GET / HTTP/1.1\r\n");
    bench.input[0] = 0x80;
    let mut output = BytesMut::new();
    let error = bench.server.receive(&mut bench.input, &mut output).unwrap_err();
    assert!(matches!(error, LinkError::Protocol(_)));
    assert_eq!(bench.decoded(&mut output), vec![Frame::GoAway { last: 1, status: 1 }]);
    drop(bench);
    assert!(stream.reader.read_u8().await.is_err());
}

#[tokio::test]
async fn the_farewell_brings_the_error_stream_last() {
    let mut bench = bench(4);
    bench.deflater.syn(&mut bench.input, 1, 0, &[("streamtype", "error")]);
    bench.turn().unwrap();
    let mut error = bench.incoming.try_recv().unwrap();
    let mut stdout = bench.open(3);
    error.writer.write_all(b"status").await.unwrap();
    assert_eq!(bench.turn().unwrap(), [], "the status waits");
    stdout.writer.write_all(&[1; 60_000]).await.unwrap();
    let mut output = BytesMut::new();
    assert!(bench.server.finish(&mut output));
    let frames = bench.decoded(&mut output);
    let order: Vec<_> = frames
        .iter()
        .map(|frame| match frame {
            Frame::Data { id, fin, data } => (*id, *fin, data.len()),
            other => (0, matches!(other, Frame::GoAway { status: 0, .. }), 0),
        })
        .collect();
    let expected =
        [(3, false, 32768), (3, false, 27232), (3, true, 0), (1, false, 6), (1, true, 0), (0, true, 0)];
    assert_eq!(order, expected);
    assert!(stdout.writer.write(b"x").await.is_err());
}

#[test]
fn data_for_a_stream_that_never_was_is_refused_once_however_it_comes() {
    let mut bench = bench(4);
    data(&mut bench.input, 7, false, b"nobody");
    let mut whole = bench.input.split();
    let mut answers = Vec::new();
    while !whole.is_empty() {
        bench.input.extend_from_slice(&whole.split_to(1));
        answers.extend(bench.turn().unwrap());
    }
    assert_eq!(answers, [Frame::RstStream { id: 7, status: 2 }]);
}
