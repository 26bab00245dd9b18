//! Sessions of port-forward: one connection that carries many forwarded ones.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::link::{Duplex, Engine, Hub, Link, start};
use super::super::spdy::{Headers, Incoming, Rules, SpdyServer};
use super::super::websocket::{Channels, Plan, Tunnel};
use super::negotiate::{Coding, ForwardProtocol};
use super::pairing::{Half, Pair, Pairing};
use super::{BoxDuplex, BoxWrite, Io, Limits};

/// Two streams for each connection.
const MOST_STREAMS: usize = 4096;
/// Channels that one byte, or one digit, can name, in pairs.
const MOST_BINARY_PORTS: usize = 127;
const MOST_BASE64_PORTS: usize = 5;

/// One connection that the client wants inside the pod.
pub struct Forward {
    pub port: u16,
    /// The client's name for this connection; for logs.
    pub request_id: String,
    /// The bytes. `shutdown` passes the end of our direction on; a client may end its own and go on reading.
    pub data: BoxDuplex,
    /// Takes a sentence for the user when the connection fails; closed without a word it says all went well.
    pub error: BoxWrite,
}

/// A client that forwards ports. Dropped, all its connections end.
pub struct ForwardSession {
    source: Source,
    link: Link,
}

enum Source {
    /// Channels that exist from the start.
    Channels(VecDeque<Forward>),
    Streams(Pairs),
}

impl ForwardSession {
    /// Opens a session on an upgraded connection, by the protocol that was agreed. `ports` are those of the request;
    /// only the WebSocket channels depend on them, SPDY clients name the port of each connection.
    pub fn open(io: impl Io, protocol: ForwardProtocol, ports: &[u16], limits: Limits) -> Self {
        match protocol {
            ForwardProtocol::Spdy => spdy_forward(io, limits),
            ForwardProtocol::WebSocket(coding) => websocket_forward(io, coding, ports, limits),
            ForwardProtocol::Tunnel => tunnel_forward(io, limits),
        }
    }

    /// The next connection; `None` when the client is gone. Losing the future loses no connection.
    pub async fn next(&mut self) -> Option<Forward> {
        let gone = self.link.gone();
        tokio::select! {
            biased;
            () = gone.cancelled() => None,
            forward = self.source.next() => Some(forward),
        }
    }
}

impl Source {
    async fn next(&mut self) -> Forward {
        let next = match self {
            Self::Channels(forwards) => forwards.pop_front(),
            Self::Streams(pairs) => pairs.next().await,
        };
        match next {
            Some(forward) => forward,
            // There will be no more; the session still stands until the client leaves.
            None => std::future::pending().await,
        }
    }
}

/// Forwards over SPDY.
pub fn spdy_forward(io: impl Io, limits: Limits) -> ForwardSession {
    streams(io, limits, |server| server)
}

/// Forwards over SPDY in the binary messages of a WebSocket.
pub fn tunnel_forward(io: impl Io, limits: Limits) -> ForwardSession {
    streams(io, limits, Tunnel::new)
}

fn streams<E: Engine>(io: impl Io, limits: Limits, wrap: impl FnOnce(SpdyServer) -> E) -> ForwardSession {
    let hub = Arc::new(Hub::default());
    let (server, incoming) = SpdyServer::new(hub.clone(), Rules { admit, most: MOST_STREAMS, last: None });
    let link = start(io, wrap(server), hub, limits.idle);
    let pairs = Pairs { incoming, halves: Pairing::default(), patience: limits.pairing };
    ForwardSession { source: Source::Streams(pairs), link }
}

/// Forwards over WebSocket: one connection for each port, on channels of its own, the port number ahead of the data.
pub fn websocket_forward(io: impl Io, coding: Coding, ports: &[u16], limits: Limits) -> ForwardSession {
    let most = if coding == Coding::Base64 { MOST_BASE64_PORTS } else { MOST_BINARY_PORTS };
    let ports = &ports[..ports.len().min(most)];
    let announce = |(number, port): (u8, &u16)| {
        let bytes = port.to_le_bytes().to_vec();
        [(2 * number, bytes.clone()), (2 * number + 1, bytes)]
    };
    let plan = Plan {
        base64: coding == Coding::Base64,
        close_signal: false,
        // Bounded by MOST_BINARY_PORTS.
        channels: 2 * ports.len() as u8,
        greetings: (0..).zip(ports).flat_map(announce).collect(),
        last: None,
    };
    let hub = Arc::new(Hub::default());
    let (channels, handles) = Channels::new(&hub, plan);
    let link = start(io, channels, hub, limits.idle);
    let mut handles = handles.into_iter();
    let mut forwards = VecDeque::new();
    for (number, port) in ports.iter().enumerate() {
        let Some((data, error)) = handles.next().zip(handles.next()) else { break };
        forwards.push_back(Forward {
            port: *port,
            request_id: number.to_string(),
            data: Box::new(Duplex { reader: data.0, writer: data.1 }),
            error: Box::new(error.1),
        });
    }
    ForwardSession { source: Source::Channels(forwards), link }
}

fn admit(headers: &Headers) -> bool {
    // The stream's number names it where the client does not.
    Half::of(headers, 1).is_some()
}

/// The streams of SPDY, two by two.
struct Pairs {
    incoming: mpsc::Receiver<Incoming>,
    halves: Pairing<(Incoming, Instant)>,
    patience: Duration,
}

impl Pairs {
    async fn next(&mut self) -> Option<Forward> {
        loop {
            let oldest = self.halves.waiting().map(|(_, since)| *since).min();
            let patience = self.patience;
            let reap = async {
                match oldest {
                    Some(since) => tokio::time::sleep_until(since + patience).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                stream = self.incoming.recv() => {
                    if let Some(forward) = self.pair(stream?) {
                        return Some(forward);
                    }
                }
                // Halves whose other half did not come are dropped, which resets them.
                () = reap => {
                    let now = Instant::now();
                    self.halves.retain(|(_, since)| now < *since + patience);
                }
            }
        }
    }

    fn pair(&mut self, stream: Incoming) -> Option<Forward> {
        // admit() saw to it that there is one.
        let half = Half::of(&stream.headers, stream.id)?;
        let Pair { port, request_id, data, error } = self.halves.add(half, (stream, Instant::now()))?;
        let (data, error) = (data.0, error.0);
        Some(Forward {
            port,
            request_id,
            data: Box::new(Duplex { reader: data.reader, writer: data.writer }),
            // Nobody says anything on the client's side of it.
            error: Box::new(error.writer),
        })
    }
}
