//! Another machine inside a WebSocket: its bytes travel in binary messages, whose borders mean nothing.

use bytes::BytesMut;

use super::super::link::{Engine, LinkError};
use super::frame::{self, Decoder, Event, close, opcode};

/// Wraps the machine `E`.
#[derive(Debug)]
pub struct Tunnel<E> {
    engine: E,
    decoder: Decoder,
    input: BytesMut,
    output: BytesMut,
}

impl<E: Engine> Tunnel<E> {
    pub fn new(engine: E) -> Self {
        Self { engine, decoder: Decoder::default(), input: BytesMut::new(), output: BytesMut::new() }
    }

    /// Sends what the machine wrote as one message.
    fn wrap(&mut self, output: &mut BytesMut) {
        if !self.output.is_empty() {
            frame::put_head(output, opcode::BINARY, self.output.len());
            output.extend_from_slice(&self.output);
            self.output.clear();
        }
    }

    fn handle(&mut self, event: Event, output: &mut BytesMut) -> Result<(), LinkError> {
        match event {
            Event::Piece { data, .. } => {
                self.input.extend_from_slice(&data);
                let result = self.engine.receive(&mut self.input, &mut self.output);
                self.wrap(output);
                if result.is_err() {
                    frame::put_close(output, close::PROTOCOL);
                }
                result
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
}

impl<E: Engine> Engine for Tunnel<E> {
    fn receive(&mut self, input: &mut BytesMut, output: &mut BytesMut) -> Result<(), LinkError> {
        loop {
            match self.decoder.decode(input) {
                Ok(Some(event)) => self.handle(event, output)?,
                Ok(None) => return Ok(()),
                Err(error) => {
                    frame::put_close(output, close::PROTOCOL);
                    return Err(LinkError::Protocol(error.to_string()));
                }
            }
        }
    }

    fn collect(&mut self, id: u32, output: &mut BytesMut) {
        self.engine.collect(id, &mut self.output);
        self.wrap(output);
    }

    fn paused(&self) -> bool {
        self.engine.paused()
    }

    fn finish(&mut self, output: &mut BytesMut) -> bool {
        let finished = self.engine.finish(&mut self.output);
        self.wrap(output);
        if finished {
            frame::put_close(output, close::NORMAL);
        }
        finished
    }
}
