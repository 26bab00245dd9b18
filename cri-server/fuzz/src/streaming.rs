//! The files are the daemon's own.

#[path = "../../src/streaming/checks/mod.rs"]
pub mod checks;
#[path = "../../src/streaming/link/mod.rs"]
pub mod link;
#[path = "../../src/streaming/remote/mod.rs"]
pub mod remote;
#[path = "../../src/streaming/spdy/mod.rs"]
pub mod spdy;
#[path = "../../src/streaming/websocket/mod.rs"]
pub mod websocket;
