//! Sessions of port-forward: one connection that carries many forwarded ones.

use tokio::sync::mpsc;

use super::super::link::Link;
use super::negotiate::{Coding, ForwardProtocol};
use super::{BoxDuplex, BoxWrite, Io, Limits};

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
    forwards: mpsc::Receiver<Forward>,
    link: Link,
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

    /// The next connection; `None` when the client is gone.
    pub async fn next(&mut self) -> Option<Forward> {
        let gone = self.link.gone();
        tokio::select! {
            biased;
            forward = self.forwards.recv() => match forward {
                Some(forward) => Some(forward),
                None => { gone.cancelled().await; None }
            },
            () = gone.cancelled() => None,
        }
    }
}
pub fn spdy_forward(_io: impl Io, _limits: Limits) -> ForwardSession {
    unreachable!()
}
pub fn tunnel_forward(_io: impl Io, _limits: Limits) -> ForwardSession {
    unreachable!()
}
pub fn websocket_forward(_io: impl Io, _coding: Coding, _ports: &[u16], _limits: Limits) -> ForwardSession {
    unreachable!()
}
