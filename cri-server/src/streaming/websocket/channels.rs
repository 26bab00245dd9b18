//! The `channel.k8s.io` protocols: the first byte (or digit) of a message names the channel, the rest is its data.
//!
//! Invariant: messages go to their channel as they come; what waits for readers is bounded, over the bound nothing
//! more is read from the client.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, BytesMut};

use super::super::link::{Engine, Hub, LinkError, Outgoing, PipeReader, PipeWriter, Port, port};
use super::frame::{self, Decoder, Event, close, opcode};

/// Data of one message; a multiple of three, so that base64 needs no padding in between.
const PIECE: usize = 24 * 1024;
const BOUND: usize = 256 * 1024;
const HIGH: usize = 128 * 1024;
/// The channel of version 5 on which the client ends another one.
const CLOSE_SIGNAL: u8 = 255;

/// What the channels are.
/// Base64 has a digit for a channel, so ten at most.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    pub base64: bool,
    /// Version 5: channel 255 ends the channel that its one byte names.
    pub close_signal: bool,
    pub channels: u8,
    /// Messages that tell the client that the session stands.
    pub greetings: Vec<(u8, Vec<u8>)>,
    /// Who speaks at the end only, after all others.
    pub last: Option<u8>,
}

/// The message that is being read.
#[derive(Debug, Default)]
struct Message {
    channel: Option<u8>,
    /// Base64 digits that do not make a group of four yet.
    digits: Vec<u8>,
    /// The padding of base64 was read: the message has nothing more to say.
    padded: bool,
    /// The close signal named its channel.
    signalled: bool,
}

impl Message {
    /// What a piece of base64 and the digits left from the piece before it stand for.
    fn decode(&mut self, data: &[u8], last: bool) -> Result<Vec<u8>, LinkError> {
        let wrong = || LinkError::Protocol("a message is not base64".into());
        self.digits.extend_from_slice(data);
        let whole = if last { self.digits.len() } else { self.digits.len() / 4 * 4 };
        let group: Vec<u8> = self.digits.drain(..whole).collect();
        // Padding ends the message, also when the pieces happen to be cut behind it.
        if self.padded && !group.is_empty() {
            return Err(wrong());
        }
        self.padded |= group.ends_with(b"=");
        STANDARD.decode(group).map_err(|_| wrong())
    }
}

/// The machine; [`super::super::link::start`] drives it.
#[derive(Debug)]
pub struct Channels {
    decoder: Decoder,
    plan: Plan,
    ports: Vec<Port>,
    waiting: Vec<usize>,
    greeting: BytesMut,
    message: Message,
    /// At the end: the channels whose rest is still to be sent, the next one last.
    parting: Option<Vec<u8>>,
}

impl Channels {
    /// The machine and the handles of its channels, by number.
    pub fn new(hub: &Arc<Hub>, plan: Plan) -> (Self, Vec<(PipeReader, PipeWriter)>) {
        let mut ports = Vec::new();
        let mut handles = Vec::new();
        for channel in 0..plan.channels {
            let (port, reader, writer) = port(hub, channel.into());
            ports.push(port);
            handles.push((reader, writer));
        }
        if let Some(port) = ports.first() {
            // So that the greeting is collected though nobody writes.
            port.again();
        }
        let waiting = vec![0; ports.len()];
        let mut greeting = BytesMut::new();
        for (channel, data) in &plan.greetings {
            put_message(plan.base64, *channel, data, &mut greeting);
        }
        let (decoder, message) = (Decoder::default(), Message::default());
        (Self { decoder, plan, ports, waiting, greeting, message, parting: None }, handles)
    }

    fn handle(&mut self, event: Event, output: &mut BytesMut) -> Result<(), LinkError> {
        match event {
            Event::Piece { first, last, data } => {
                if first {
                    self.message = Message::default();
                }
                self.piece(&data, last)
            }
            Event::Ping(data) => {
                frame::put_pong(output, &data);
                Ok(())
            }
            Event::Pong => Ok(()),
            Event::Close => {
                frame::put_close(output, close::NORMAL);
                Err(LinkError::Closed)
            }
        }
    }

    fn piece(&mut self, data: &[u8], last: bool) -> Result<(), LinkError> {
        let (channel, data) = match (self.message.channel, data) {
            (Some(channel), data) => (channel, data),
            (None, [first, rest @ ..]) => (self.channel(*first)?, rest),
            (None, []) => return Ok(()),
        };
        self.message.channel = Some(channel);
        if !self.plan.base64 {
            self.deliver(channel, data);
            return Ok(());
        }
        let data = self.message.decode(data, last)?;
        self.deliver(channel, &data);
        Ok(())
    }

    fn channel(&self, first: u8) -> Result<u8, LinkError> {
        if !self.plan.base64 {
            return Ok(first);
        }
        let digit = char::from(first).to_digit(10).and_then(|digit| u8::try_from(digit).ok());
        digit.ok_or_else(|| LinkError::Protocol("a message does not begin with a digit".into()))
    }

    fn deliver(&mut self, channel: u8, data: &[u8]) {
        if channel == CLOSE_SIGNAL && self.plan.close_signal {
            // One byte, whatever follows it and however the message is cut.
            if let Some(named) = data.first().filter(|_| !self.message.signalled) {
                self.message.signalled = true;
                if let Some(port) = self.ports.get(usize::from(*named)) {
                    port.end_inbound();
                }
            }
            return;
        }
        // Data for a channel that does not exist is dropped, as by the other servers of these protocols.
        if let Some(port) = self.ports.get(usize::from(channel)) {
            self.waiting[usize::from(channel)] += port.push(data);
        }
    }

    /// Moves one piece of a channel's output; true if there may be more.
    fn send(&self, channel: u8, output: &mut BytesMut) -> bool {
        if self.parting.is_none() && self.plan.last == Some(channel) {
            return false;
        }
        let port = &self.ports[usize::from(channel)];
        // The end of one channel cannot be said; the end of the connection says it for all.
        let Outgoing::Data(length) = port.outgoing() else { return false };
        let length = length.min(PIECE);
        if self.plan.base64 {
            let mut data = BytesMut::with_capacity(length);
            port.pull(length, &mut data);
            put_message(true, channel, &data, output);
        } else {
            frame::put_head(output, opcode::BINARY, 1 + length);
            output.put_u8(channel);
            port.pull(length, output);
        }
        true
    }

    fn begin_parting(&self) -> Vec<u8> {
        for port in &self.ports {
            port.close();
        }
        let others = (0..self.plan.channels).rev().filter(|channel| Some(*channel) != self.plan.last);
        self.plan.last.into_iter().chain(others).collect()
    }
}

fn put_message(base64: bool, channel: u8, data: &[u8], output: &mut BytesMut) {
    if base64 {
        let text = STANDARD.encode(data);
        frame::put_head(output, opcode::TEXT, 1 + text.len());
        output.put_u8(b'0' + channel);
        output.put_slice(text.as_bytes());
    } else {
        frame::put_head(output, opcode::BINARY, 1 + data.len());
        output.put_u8(channel);
        output.put_slice(data);
    }
}

impl Engine for Channels {
    fn receive(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), LinkError> {
        loop {
            let result = match self.decoder.decode(input) {
                Ok(Some(event)) => self.handle(event, output),
                Ok(None) => return Ok(()),
                Err(error) => Err(LinkError::Protocol(error.to_string())),
            };
            if let Err(error) = result {
                if matches!(error, LinkError::Protocol(_)) {
                    frame::put_close(output, close::PROTOCOL);
                }
                return Err(error);
            }
        }
    }

    fn collect(&mut self, id: u32, output: &mut BytesMut) {
        let Some((channel, port)) = u8::try_from(id).ok().zip(self.ports.get(id as usize)) else { return };
        port.heard();
        let waiting = &mut self.waiting[usize::from(channel)];
        *waiting -= port.take_consumed().min(*waiting);
        output.extend_from_slice(&std::mem::take(&mut self.greeting));
        if self.send(channel, output) {
            self.ports[usize::from(channel)].again();
        }
    }

    fn paused(&self) -> bool {
        self.parting.is_none() && self.waiting.iter().any(|waiting| *waiting >= BOUND)
    }

    fn finish(&mut self, output: &mut BytesMut) -> bool {
        if self.parting.is_none() {
            self.parting = Some(self.begin_parting());
        }
        while let Some(channel) = self.parting.as_ref().and_then(|rest| rest.last().copied()) {
            if output.len() >= HIGH {
                return false;
            }
            if !self.send(channel, output) {
                self.parting.as_mut().and_then(Vec::pop);
            }
        }
        frame::put_close(output, close::NORMAL);
        true
    }
}
