//! RFC 6455, the server side: `frame` is the pure codec, `channels` the machine of the `channel.k8s.io` protocols,
//! `tunnel` carries another machine's bytes (SPDY) in binary messages.

mod channels;
pub mod frame;
mod tunnel;

pub use channels::{Channels, Plan};
pub use frame::{Decoder, Event, FrameError};
pub use tunnel::Tunnel;

#[cfg(test)]
pub(super) mod client;
#[cfg(test)]
mod connection_tests;
#[cfg(test)]
mod frame_tests;
