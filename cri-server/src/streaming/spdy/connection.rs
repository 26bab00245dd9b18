//! The server's end of a SPDY connection as a machine: streams, credit, resets, the farewell.
//!
//! Invariant: what waits for readers is counted per stream and in sum; over a bound nothing more is read from the
//! client. A stream is forgotten when both directions ended and nothing waits, or at a reset.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::sync::mpsc;

use super::super::link::{Engine, Hub, LinkError, Outgoing, PipeReader, PipeWriter, Port, port};
use super::frame::{self, Decoder, Frame, Leave, Reset};
use super::headers::{BlockWriter, Headers};

/// The credit that SPDY/3.1 gives each stream and the connection at first.
const WINDOW: usize = 64 * 1024;
/// A stream that waits with more than this holds the connection up: clients that ignore the windows need a bound.
const STREAM_BOUND: usize = 4 * WINDOW;
/// The same for all streams together.
const SUM_BOUND: usize = 8 << 20;
/// What we widen the windows to, below the bounds, so that a client that minds them is never held up. New credit comes
/// when half is used: each piece of it wakes the client, which costs it as much as sending does.
const STREAM_WINDOW: usize = 3 * WINDOW;
const SUM_WINDOW: usize = SUM_BOUND / 2;
/// The largest data frame that is sent, so that streams take turns.
const PIECE: usize = 32 * 1024;
/// Output beyond which the farewell waits for the socket.
const HIGH: usize = 128 * 1024;

/// A stream that the client opened, answered already.
#[derive(Debug)]
pub struct Incoming {
    pub id: u32,
    pub headers: Headers,
    pub reader: PipeReader,
    pub writer: PipeWriter,
}

/// Which streams are let in.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    pub admit: fn(&Headers) -> bool,
    /// Streams at one time.
    pub most: usize,
    /// The streamtype of the one that speaks at the end only, after all others.
    pub last: Option<&'static str>,
}

#[derive(Debug)]
struct Stream {
    port: Port,
    waiting: usize,
    credit: usize,
    in_ended: bool,
    out_ended: bool,
    /// What it says waits for the farewell.
    late: bool,
}

impl Stream {
    fn done(&self) -> bool {
        self.in_ended && self.out_ended && self.waiting == 0
    }
}

/// The machine; [`super::super::link::start`] drives it.
#[derive(Debug)]
pub struct SpdyServer {
    hub: Arc<Hub>,
    decoder: Decoder,
    blocks: BlockWriter,
    streams: HashMap<u32, Stream>,
    accepted: mpsc::Sender<Incoming>,
    rules: Rules,
    last: u32,
    /// The stream that was refused last because it never was opened.
    unknown: u32,
    waiting: usize,
    /// Streams over their bound.
    full: usize,
    credit: usize,
    /// The connection's window was widened.
    widened: bool,
    /// At the end: the streams whose rest is still to be sent, the next one last.
    parting: Option<Vec<u32>>,
}

impl SpdyServer {
    /// The machine and the streams that it lets in.
    pub fn new(hub: Arc<Hub>, rules: Rules) -> (Self, mpsc::Receiver<Incoming>) {
        let (accepted, incoming) = mpsc::channel(rules.most.max(1));
        let server = Self {
            hub,
            decoder: Decoder::default(),
            blocks: BlockWriter::default(),
            streams: HashMap::new(),
            accepted,
            rules,
            last: 0,
            unknown: 0,
            waiting: 0,
            full: 0,
            credit: 0,
            widened: false,
            parting: None,
        };
        (server, incoming)
    }

    fn handle(&mut self, frame: Frame, output: &mut BytesMut) {
        match frame {
            Frame::SynStream { id, fin, unidirectional, headers } => {
                if let Err(why) = self.open(id, fin, unidirectional, headers, output) {
                    frame::put_reset(output, id, why);
                }
            }
            Frame::Data { id, fin, data } => self.data(id, fin, &data, output),
            Frame::Headers { id, fin, .. } | Frame::SynReply { id, fin, .. } => {
                if fin {
                    self.end_inbound(id);
                }
            }
            Frame::RstStream { id, .. } => {
                if let Some(stream) = self.forget(id) {
                    stream.port.reset();
                }
            }
            // Odd identifiers are the client's own; an even one would be the answer to a ping that was never sent.
            Frame::Ping(id) if id % 2 == 1 => frame::put_ping(output, id),
            // Limits of the client for streams of ours (there are none) and for our sending (TCP's window rules).
            Frame::Ping(_) | Frame::Settings(_) | Frame::WindowUpdate { .. } | Frame::GoAway { .. } => {}
        }
    }

    fn open(
        &mut self,
        id: u32,
        fin: bool,
        unidirectional: bool,
        headers: Headers,
        output: &mut BytesMut,
    ) -> Result<(), Reset> {
        if id.is_multiple_of(2) || id <= self.last {
            return Err(Reset::Protocol);
        }
        self.last = id;
        if self.parting.is_some() || self.streams.len() >= self.rules.most || !(self.rules.admit)(&headers) {
            return Err(Reset::Refused);
        }
        let place = self.accepted.try_reserve().map_err(|_| Reset::Refused)?;
        let (port, reader, writer) = port(&self.hub, id);
        if fin {
            port.end_inbound();
        }
        let late = self.rules.last.is_some() && headers.get("streamtype") == self.rules.last;
        let stream = Stream { port, waiting: 0, credit: 0, in_ended: fin, out_ended: unidirectional, late };
        self.streams.insert(id, stream);
        place.send(Incoming { id, headers, reader, writer });
        frame::put_syn_reply(output, id, &self.blocks.write(&Headers::default()));
        if !self.widened {
            self.widened = true;
            frame::put_window_update(output, 0, SUM_WINDOW - WINDOW);
        }
        if !fin {
            frame::put_window_update(output, id, STREAM_WINDOW - WINDOW);
        }
        Ok(())
    }

    fn data(&mut self, id: u32, fin: bool, data: &[u8], output: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| !stream.in_ended) else {
            // A stream that was reset or forgotten here may have data on its way; one that never was is an error.
            // Told once: its data may come in many small pieces.
            if id > self.last && self.unknown != id {
                self.unknown = id;
                frame::put_reset(output, id, Reset::InvalidStream);
            }
            self.grant(data.len(), output);
            return;
        };
        let kept = stream.port.push(data);
        let dropped = data.len() - kept;
        let was_full = stream.waiting >= STREAM_BOUND;
        stream.waiting += kept;
        stream.credit += dropped;
        self.waiting += kept;
        self.full += usize::from(!was_full && stream.waiting >= STREAM_BOUND);
        if fin {
            self.end_inbound(id);
        } else {
            credit(id, stream, output);
        }
        self.grant(dropped, output);
    }

    fn end_inbound(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.in_ended = true;
        stream.port.end_inbound();
        if stream.done() {
            self.forget(id);
        }
    }

    /// Credit of the whole connection.
    fn grant(&mut self, length: usize, output: &mut BytesMut) {
        self.credit += length;
        if self.credit >= SUM_WINDOW / 2 {
            frame::put_window_update(output, 0, self.credit);
            self.credit = 0;
        }
    }

    fn forget(&mut self, id: u32) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.waiting -= stream.waiting;
        self.full -= usize::from(stream.waiting >= STREAM_BOUND);
        Some(stream)
    }

    /// Takes note of what the reader of a stream consumed.
    fn settle(&mut self, id: u32, output: &mut BytesMut) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let consumed = stream.port.take_consumed().min(stream.waiting);
        let was_full = stream.waiting >= STREAM_BOUND;
        stream.waiting -= consumed;
        stream.credit += consumed;
        self.waiting -= consumed;
        self.full -= usize::from(was_full && stream.waiting < STREAM_BOUND);
        credit(id, stream, output);
        self.grant(consumed, output);
    }

    /// Moves one piece of a stream's output; true if there may be more.
    fn send(&mut self, id: u32, output: &mut BytesMut) -> bool {
        let parting = self.parting.is_some();
        let may = |stream: &&mut Stream| !stream.out_ended && (parting || !stream.late);
        let Some(stream) = self.streams.get_mut(&id).filter(may) else { return false };
        match stream.port.outgoing() {
            Outgoing::Nothing => false,
            Outgoing::Data(length) => {
                let length = length.min(PIECE);
                frame::put_data_head(output, id, false, length);
                stream.port.pull(length, output);
                true
            }
            Outgoing::End => {
                frame::put_data_head(output, id, true, 0);
                stream.out_ended = true;
                false
            }
        }
    }

    /// The streams to end, the one to be ended first at the back.
    fn begin_parting(&mut self) -> Vec<u32> {
        let mut order: Vec<(bool, u32)> =
            self.streams.iter().map(|(id, stream)| (stream.late, *id)).collect();
        order.sort_unstable_by(|left, right| right.cmp(left));
        for stream in self.streams.values() {
            stream.port.close();
        }
        order.into_iter().map(|(_, id)| id).collect()
    }
}

fn credit(id: u32, stream: &mut Stream, output: &mut BytesMut) {
    if stream.credit >= STREAM_WINDOW / 2 && !stream.in_ended {
        frame::put_window_update(output, id, stream.credit);
        stream.credit = 0;
    }
}

impl Engine for SpdyServer {
    fn receive(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), LinkError> {
        loop {
            match self.decoder.decode(input) {
                Ok(Some(frame)) => self.handle(frame, output),
                Ok(None) => return Ok(()),
                Err(error) => {
                    frame::put_goaway(output, self.last, Leave::Protocol);
                    return Err(LinkError::Protocol(error.to_string()));
                }
            }
        }
    }

    fn collect(&mut self, id: u32, output: &mut BytesMut) {
        let Some(stream) = self.streams.get(&id) else { return };
        stream.port.heard();
        self.settle(id, output);
        let more = self.send(id, output);
        let Some(stream) = self.streams.get(&id) else { return };
        if more {
            stream.port.again();
        } else if stream.done() {
            self.forget(id);
        } else if stream.out_ended && stream.port.reader_gone() {
            // Both handles are gone; the client need not send what nobody reads.
            frame::put_reset(output, id, Reset::Cancel);
            self.forget(id);
        }
    }

    fn paused(&self) -> bool {
        self.parting.is_none() && (self.full > 0 || self.waiting >= SUM_BOUND)
    }

    fn finish(&mut self, output: &mut BytesMut) -> bool {
        if self.parting.is_none() {
            self.parting = Some(self.begin_parting());
        }
        while let Some(id) = self.parting.as_ref().and_then(|rest| rest.last().copied()) {
            if output.len() >= HIGH {
                return false;
            }
            if !self.send(id, output) {
                self.parting.as_mut().and_then(Vec::pop);
            }
        }
        frame::put_goaway(output, self.last, Leave::Ok);
        true
    }
}
