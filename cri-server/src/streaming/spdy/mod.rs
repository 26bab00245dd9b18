//! SPDY/3.1, the server side: `frame` and `headers` are pure codecs, `connection` is the machine that serves streams.
//!
//! Only what Kubernetes clients use is served: streams that the client opens. Windows: the client gets credit as the
//! readers consume; for what we send, TCP is the window, because the Go clients never grant credit and would stall.

mod connection;
mod dictionary;
pub mod frame;
pub mod headers;

pub use connection::{Incoming, Rules, SpdyServer};
pub use frame::{Decoder, Frame, FrameError};
pub use headers::{BlockWriter, HeaderError, Headers};

#[cfg(test)]
pub(super) mod client;
#[cfg(test)]
mod connection_tests;
#[cfg(test)]
pub(super) mod frame_tests;
