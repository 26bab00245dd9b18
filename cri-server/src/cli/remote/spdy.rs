//! Streams on a connection, from the side that opens them.
//!
//! Invariant: what is sent keeps within the credit that the server gave, per stream and in sum, so that a reader that stops on
//! one stream stops that one. What comes is taken as it comes: TCP is its window, as the server knows it.

use std::sync::Arc;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Semaphore, mpsc};

use super::RemoteError;
use crate::streaming::remote::BoxDuplex;
use crate::streaming::spdy::frame::{put_data_head, put_ping, put_syn_stream};
use crate::streaming::spdy::{BlockWriter, Decoder, Frame, Headers};

/// The credit that SPDY/3.1 gives each stream and the connection at first.
const WINDOW: usize = 64 * 1024;
/// The most credit that is kept; more than a server would give.
const MOST_CREDIT: usize = 1 << 30;
const PIECE: usize = 16 * 1024;
/// Frames that wait for the socket.
const QUEUE: usize = 4;
const READ: usize = 32 * 1024;

/// A connection with its streams. Their ids are 1, 3, 5 and so on, in the order of the headers.
pub(in crate::cli) struct Opened {
    pub(in crate::cli) sender: Sender,
    pub(in crate::cli) receiver: Receiver,
    pub(in crate::cli) writer: Writer,
}

/// Puts data on streams. Cheap to clone.
#[derive(Clone, Debug)]
pub(in crate::cli) struct Sender {
    queue: mpsc::Sender<BytesMut>,
    credit: Arc<Credit>,
}

/// Takes what the server says.
pub(in crate::cli) struct Receiver {
    io: ReadHalf<BoxDuplex>,
    decoder: Decoder,
    input: BytesMut,
    credit: Arc<Credit>,
    answers: mpsc::Sender<BytesMut>,
}

/// Carries frames to the socket.
pub(in crate::cli) struct Writer {
    io: WriteHalf<BoxDuplex>,
    queue: mpsc::Receiver<BytesMut>,
    greeting: BytesMut,
}

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::cli) enum Event {
    /// A piece of a stream's data; `fin` with the last.
    Data { id: u32, data: BytesMut, fin: bool },
    /// A stream is over before its end.
    Reset { id: u32 },
}

#[derive(Debug)]
struct Credit {
    connection: Semaphore,
    streams: Vec<Semaphore>,
}

/// The id of the stream with the headers number `place`.
fn id_of(place: usize) -> u32 {
    u32::try_from(2 * place + 1).unwrap_or(u32::MAX)
}

/// Opens a stream for each of `headers`.
pub(in crate::cli) fn open(io: BoxDuplex, headers: &[Headers]) -> Opened {
    let (mut greeting, mut blocks) = (BytesMut::new(), BlockWriter::default());
    for (place, headers) in headers.iter().enumerate() {
        put_syn_stream(&mut greeting, id_of(place), 0, &blocks.write(headers));
    }
    let streams = headers.iter().map(|_| Semaphore::new(WINDOW)).collect();
    let credit = Arc::new(Credit { connection: Semaphore::new(WINDOW), streams });
    let (read, write) = tokio::io::split(io);
    let (frames, queue) = mpsc::channel(QUEUE);
    let receiver = Receiver {
        io: read,
        decoder: Decoder::default(),
        input: BytesMut::new(),
        credit: Arc::clone(&credit),
        answers: frames.clone(),
    };
    Opened {
        sender: Sender { queue: frames, credit },
        receiver,
        writer: Writer { io: write, queue, greeting },
    }
}

impl Credit {
    fn stream(&self, id: u32) -> Option<&Semaphore> {
        self.streams.get(usize::try_from(id / 2).ok()?)
    }

    /// Waits until `count` bytes may be sent on the stream.
    async fn take(&self, id: u32, count: u32) -> Result<(), RemoteError> {
        let stream = self.stream(id).ok_or(RemoteError::Ended)?;
        stream.acquire_many(count).await.map_err(|_| RemoteError::Ended)?.forget();
        self.connection.acquire_many(count).await.map_err(|_| RemoteError::Ended)?.forget();
        Ok(())
    }

    fn give(&self, id: u32, delta: u32) {
        let window = if id == 0 { Some(&self.connection) } else { self.stream(id) };
        if let Some(window) = window {
            let room = MOST_CREDIT.saturating_sub(window.available_permits());
            window.add_permits(usize::try_from(delta).unwrap_or(MOST_CREDIT).min(room));
        }
    }

    fn close(&self) {
        self.connection.close();
        self.streams.iter().for_each(Semaphore::close);
    }
}

impl Sender {
    /// Sends data, as fast as the server takes it.
    pub(in crate::cli) async fn send(&self, id: u32, data: &[u8]) -> Result<(), RemoteError> {
        for piece in data.chunks(PIECE) {
            self.credit.take(id, u32::try_from(piece.len()).unwrap_or(u32::MAX)).await?;
            self.frame(id, false, piece).await?;
        }
        Ok(())
    }

    /// Ends our direction of a stream.
    pub(in crate::cli) async fn end(&self, id: u32) -> Result<(), RemoteError> {
        self.frame(id, true, &[]).await
    }

    async fn frame(&self, id: u32, fin: bool, data: &[u8]) -> Result<(), RemoteError> {
        let mut frame = BytesMut::with_capacity(8 + data.len());
        put_data_head(&mut frame, id, fin, data.len());
        frame.put_slice(data);
        self.queue.send(frame).await.map_err(|_| RemoteError::Ended)
    }
}

impl Receiver {
    /// The next event; `None` at the end of the session. Losing the future loses nothing.
    pub(in crate::cli) async fn next(&mut self) -> Result<Option<Event>, RemoteError> {
        let next = self.event().await;
        if !matches!(next, Ok(Some(_))) {
            // Nobody gives credit any more.
            self.credit.close();
        }
        next
    }

    async fn event(&mut self) -> Result<Option<Event>, RemoteError> {
        loop {
            match self.decoder.decode(&mut self.input)? {
                Some(Frame::Data { id, fin, data }) => return Ok(Some(Event::Data { id, data, fin })),
                Some(Frame::RstStream { id, .. }) => return Ok(Some(Event::Reset { id })),
                Some(Frame::GoAway { .. }) => return Ok(None),
                Some(Frame::WindowUpdate { id, delta }) => self.credit.give(id, delta),
                Some(Frame::Ping(id)) if id.is_multiple_of(2) => self.answer(id),
                Some(_) => {}
                None => {
                    self.input.reserve(READ);
                    if self.io.read_buf(&mut self.input).await.map_err(RemoteError::Lost)? == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn answer(&self, ping: u32) {
        let mut frame = BytesMut::new();
        put_ping(&mut frame, ping);
        // A full queue says as well that we are alive.
        let _ = self.answers.try_send(frame);
    }
}

impl Writer {
    /// Carries frames until the connection breaks. Who reads hears of it with better words, so this never returns.
    pub(in crate::cli) async fn run(mut self) -> std::convert::Infallible {
        if self.io.write_all(&self.greeting).await.is_ok() {
            while self.io.flush().await.is_ok() {
                let Some(frame) = self.queue.recv().await else { break };
                if self.io.write_all(&frame).await.is_err() {
                    break;
                }
            }
        }
        // Senders hear of it.
        self.queue.close();
        std::future::pending().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::streaming::spdy::frame::{Leave, put_goaway, put_window_update};

    fn opened(count: usize) -> (Opened, tokio::io::DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let headers: Vec<Headers> =
            (0..count).map(|n| [("streamtype", format!("s{n}"))].into_iter().collect()).collect();
        (open(Box::new(near), &headers), far)
    }

    #[tokio::test]
    async fn streams_are_opened_and_data_keeps_within_the_credit() {
        let (Opened { sender, mut receiver, writer }, mut far) = opened(2);
        let server = async {
            let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
            let (mut opened, mut got, mut granted) = (Vec::new(), 0, false);
            loop {
                match decoder.decode(&mut input).unwrap() {
                    Some(Frame::SynStream { id, headers, .. }) => {
                        opened.push((id, headers.get("streamtype").unwrap().to_owned()));
                    }
                    Some(Frame::Data { fin: true, .. }) => return (opened, got),
                    Some(Frame::Data { data, .. }) => got += data.len(),
                    Some(frame) => panic!("{frame:?}"),
                    None => {
                        let read = tokio::time::timeout(Duration::from_millis(200), far.read_buf(&mut input));
                        if read.await.is_err() {
                            assert_eq!((got, granted), (WINDOW, false), "it stops at the window's end");
                            granted = true;
                            let mut grant = BytesMut::new();
                            put_window_update(&mut grant, 0, 1 << 20);
                            put_window_update(&mut grant, 3, 1 << 20);
                            far.write_all(&grant).await.unwrap();
                        }
                    }
                }
            }
        };
        let client = async {
            sender.send(3, &vec![7; 200_000]).await.unwrap();
            sender.end(3).await.unwrap();
        };
        let work = async { tokio::join!(server, client).0 };
        let (opened, got) = tokio::select! {
            done = work => done,
            _ = writer.run() => unreachable!(),
            event = receiver.next() => panic!("{event:?}"),
        };
        assert_eq!(opened, [(1, "s0".to_owned()), (3, "s1".to_owned())]);
        assert_eq!(got, 200_000);
    }

    #[tokio::test]
    async fn the_end_of_the_session_frees_who_waits_for_credit() {
        let (Opened { sender, mut receiver, writer }, mut far) = opened(1);
        let mut bye = BytesMut::new();
        put_data_head(&mut bye, 1, true, 2);
        bye.put_slice(b"ok");
        put_goaway(&mut bye, 1, Leave::Ok);
        far.write_all(&bye).await.unwrap();
        let data = BytesMut::from(&b"ok"[..]);
        assert_eq!(receiver.next().await.unwrap(), Some(Event::Data { id: 1, data, fin: true }));
        let data = vec![0; 2 * WINDOW];
        let ended = async { tokio::join!(sender.send(1, &data), receiver.next()) };
        let (sent, next) = tokio::select! {
            both = ended => both,
            _ = writer.run() => unreachable!(),
        };
        assert!(sent.is_err() && next.unwrap().is_none());
    }
}
