//! RFC 6455, the server side.
