//! One connection and its many streams: bounded pipes between the handles of streams and the one task that owns the
//! connection, and the loop that drives a protocol machine ([`Engine`]) over the connection.
//!
//! Invariant: memory is bounded per pipe and per connection; when a bound is reached the task stops reading, so TCP
//! holds the peer back. When the task ends, for whatever reason, every pipe ends.

mod drive;
mod pipe;

pub use drive::{Engine, Link, start};
pub use pipe::{Duplex, Hub, Outgoing, PipeReader, PipeWriter, Port, port};

/// Why a connection ended before its time.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum LinkError {
    #[error("the connection ended without a farewell")]
    Gone,
    #[error("the client closed the session")]
    Closed,
    #[error("the connection failed: {0}")]
    Broken(std::io::ErrorKind),
    #[error("nothing moved on the connection for {0:?}")]
    Idle(std::time::Duration),
    #[error("the client broke the protocol: {0}")]
    Protocol(String),
}
