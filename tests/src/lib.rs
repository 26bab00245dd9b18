//! What the end-to-end tests, the fixture builder and the benchmark share.
//!
//! - [`client`]: typed CRI clients over a unix socket, and builders for the messages.
//! - [`fakes`]: what others connect to the daemon, made to misbehave.
//! - [`fixtures`]: images made from busybox, written to registries and archives.
//! - [`harness`]: a daemon on a throwaway node, a registry of its own, and the check that nothing is left behind.
//! - [`powercut`]: a disk that records what is written, and what a power cut may leave of it.
//! - [`soak`]: random work on a node, checked round by round.
//! - [`streams`]: clients of the streaming server, down to the bytes.
//!
//! Nothing in here talks to a network other than loopback.

pub mod client;
pub mod fakes;
pub mod fixtures;
pub mod harness;
pub mod powercut;
pub mod soak;
pub mod streams;
