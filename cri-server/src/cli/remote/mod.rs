//! The client of the daemon's streaming server, for exec, attach and port-forward.
//!
//! It speaks SPDY and not WebSocket: there alone each direction of each stream has an end of its own, which input that ends,
//! the status behind all output and a forwarded connection's halves all need. `dial` gets a connection, `spdy` its streams,
//! `command` joins them to our own stdin, stdout and stderr, or to the `terminal`.

mod command;
mod dial;
mod spdy;
mod status;
mod terminal;
mod tls;

use std::io;

use hyper::StatusCode;

use crate::streaming::spdy::FrameError;

pub(super) use command::{Ended, Size, run};
pub(super) use dial::{Target, dial};
pub(super) use spdy::{Event, Opened, Receiver, Sender, open};
pub(super) use status::Outcome;
pub(super) use terminal::has_terminal;

/// What the streams of a command are called in the request's headers.
pub(super) const COMMAND_PROTOCOL: &str = "v4.channel.k8s.io";
/// The same for forwarded connections.
pub(super) const FORWARD_PROTOCOL: &str = "portforward.k8s.io";

/// Why there is no session, or no more.
#[derive(Debug, thiserror::Error)]
pub(super) enum RemoteError {
    #[error("the daemon's answer {url:?} is no URL of a streaming server")]
    Url { url: String },
    #[error("connect to the streaming server at {address}")]
    Connect { address: String, source: io::Error },
    #[error("TLS with the streaming server at {address}")]
    Tls { address: String, source: io::Error },
    #[error("TLS cannot be set up")]
    TlsSetup(#[from] rustls::Error),
    #[error("the streaming server at {address} does not answer")]
    Slow { address: String },
    #[error("ask the streaming server for an upgrade")]
    Http(#[from] hyper::Error),
    #[error("form the request for the streaming server")]
    Request(#[from] hyper::http::Error),
    #[error("the streaming server answered {status} instead of an upgrade: {words}")]
    Refused { status: StatusCode, words: String },
    #[error("the connection to the streaming server was lost")]
    Lost(#[source] io::Error),
    #[error("the connection to the streaming server ended before the end of the session")]
    Ended,
    #[error("the streaming server does not speak SPDY")]
    Protocol(#[from] FrameError),
    #[error("the streaming server's last words are no status: {words:?}")]
    Status { words: String },
}
