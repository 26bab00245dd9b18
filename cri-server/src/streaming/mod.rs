//! Streams of exec, attach and port-forward: the wire protocols that kubelets and crictl speak.
//!
//! `spdy` and `websocket` hold pure protocol machines (bytes in, bytes out), `link` drives one over a connection,
//! `remote` is what the rest of the daemon sees: one kind of session, whatever the transport.

pub mod link;
pub mod remote;
pub mod spdy;
pub mod websocket;
