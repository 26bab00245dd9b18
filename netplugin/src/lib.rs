//! The CNI bridge plugin, as a library that the daemon calls in process and as the binary `cofferdam-bridge`.
#![deny(unsafe_code)]

pub mod types;

pub use types::{CniError, CniResult, NetConf, Request};

/// The plugin's name in a configuration's `type`, and the name of its binary.
pub const PLUGIN_TYPE: &str = "cofferdam-bridge";
