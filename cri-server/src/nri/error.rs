//! Why plugins keep a pod or a container from going on, and why plugins cannot be served.

use std::path::PathBuf;

use super::connection::CallError;
use super::wire::WireError;
use crate::spec::SpecError;

/// What went wrong with NRI.
#[derive(Debug, thiserror::Error)]
pub enum NriError {
    #[error("{operation} NRI socket {path}")]
    Socket { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("{operation} {path}")]
    Folder { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("NRI plugin {plugin} refused {call}")]
    Refused { plugin: String, call: &'static str, source: CallError },
    #[error("NRI plugins {one} and {other} both set {field}")]
    Conflict { one: String, other: String, field: String },
    #[error("NRI plugin {plugin} asks for {what}: {why}")]
    Invalid { plugin: String, what: &'static str, why: String },
    #[error("NRI validator {plugin} refuses the adjustments: {reason}")]
    Rejected { plugin: String, reason: String },
    #[error("what NRI plugins ask for")]
    Adjust(#[from] SpecError),
}

/// Why a plugin was not taken.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("it did not register within {0:?}")]
    NotRegistered(std::time::Duration),
    #[error("it ended the connection before it was registered")]
    Ended,
    #[error("its {what} {value:?} is wrong: {why}")]
    Identity { what: &'static str, value: String, why: &'static str },
    #[error("{call} failed")]
    Call { call: &'static str, source: CallError },
    #[error("it subscribes to events that do not exist: {0:#x}")]
    Events(i32),
    #[error("it does not understand a synchronization in parts")]
    Parts,
    #[error("what is to be synchronized does not fit a message")]
    TooLarge(#[source] WireError),
}
