//! The pure parts of the daemon's streaming server, compiled without the rest of the daemon, which would cost a build
//! of many minutes and is no parser.

pub mod streaming;
