//! Sessions as the daemon's logic sees them, the same for SPDY and WebSocket.
//!
//! Invariant: a session owns its one connection task; dropping the [`StatusSink`] or the [`ForwardSession`] ends the
//! connection and with it every half that came from it (reads and writes then fail, they never hang).

mod command;
mod forward;
pub mod negotiate;
pub mod pairing;
pub mod resize;
mod status;

pub use command::{CommandSession, spdy_command, websocket_command};
pub use forward::{Forward, ForwardSession, spdy_forward, tunnel_forward, websocket_forward};
pub use resize::{Resizes, TerminalSize};
pub use status::{Outcome, StatusSink};

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};

use super::link::LinkError;

/// A connection that was upgraded already.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> Io for T {}

pub type BoxRead = Box<dyn AsyncRead + Unpin + Send>;
pub type BoxWrite = Box<dyn AsyncWrite + Unpin + Send>;
/// Both directions of a forwarded connection; `shutdown` closes ours alone, theirs stays open.
pub type BoxDuplex = Box<dyn Io>;

/// Which streams a command session carries, as the CRI request named them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// A terminal: there is no stderr then, and resizes are expected.
    pub tty: bool,
}

/// How long a session waits.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For the client to create the streams of a command.
    pub creation: Duration,
    /// Without a byte in either direction.
    pub idle: Duration,
    /// For the second stream of a forwarded connection.
    pub pairing: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        let (creation, idle, pairing) = (30, 4 * 3600, 30);
        Self {
            creation: Duration::from_secs(creation),
            idle: Duration::from_secs(idle),
            pairing: Duration::from_secs(pairing),
        }
    }
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    #[error("the client did not create the streams {missing} within {limit:?}")]
    Streams { missing: String, limit: Duration },
    #[error("the client left before the session began")]
    Gone,
    #[error("the connection failed before the session began")]
    Link(#[source] LinkError),
}

#[cfg(test)]
mod tests;
