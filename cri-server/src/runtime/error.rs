//! Why a shim could not be started or did not do what was asked. One enum for the whole module, so that callers
//! can decide on a variant without unpacking layers.

use std::path::PathBuf;
use std::time::Duration;

use ttrpc::Code;

use super::bootstrap::AnswerError;

/// What went wrong between the daemon and a shim.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// The shim's executable is nowhere.
    #[error("runtime handler {handler:?}: no executable {binary:?} in {}", .searched.join(", "))]
    ShimMissing {
        /// The handler that wants it.
        handler: String,
        /// The file's name or path.
        binary: PathBuf,
        /// The places looked at.
        searched: Vec<String>,
    },
    /// A bundle folder that shims cannot work with.
    #[error("bundle {} cannot serve task {id:?}: shims expect its folder to be named after the task", .bundle.display())]
    Bundle {
        /// The task.
        id: String,
        /// The folder.
        bundle: PathBuf,
    },
    /// A file operation in the bundle or the state folder failed.
    #[error("{operation} {}", .path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The shim's executable could not be run.
    #[error("run {} {action}", .binary.display())]
    Spawn {
        /// The executable.
        binary: PathBuf,
        /// `start` or `delete`.
        action: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The shim's command ended with a failure.
    #[error("{} {action} failed ({status}): {output}", .binary.display())]
    ShimFailed {
        /// The executable.
        binary: PathBuf,
        /// `start` or `delete`.
        action: &'static str,
        /// How it ended.
        status: String,
        /// The beginning of what it printed.
        output: String,
    },
    /// The shim's command gave no answer in time; it was killed.
    #[error("{} {action} did not answer within {after:?}", .binary.display())]
    ShimHangs {
        /// The executable.
        binary: PathBuf,
        /// `start` or `delete`.
        action: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The shim's answer is not understood.
    #[error("answer of {} {action}", .binary.display())]
    Answer {
        /// The executable.
        binary: PathBuf,
        /// `start` or `delete`.
        action: &'static str,
        /// What is wrong with it.
        source: AnswerError,
    },
    /// Nobody serves at the shim's address.
    #[error("connect to shim at {address}")]
    Connect {
        /// The address.
        address: String,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The task or process does not exist, or has ended already.
    #[error("{call}: not found: {message}")]
    NotFound {
        /// The method.
        call: &'static str,
        /// The shim's words.
        message: String,
    },
    /// The task or process exists already.
    #[error("{call}: already exists: {message}")]
    AlreadyExists {
        /// The method.
        call: &'static str,
        /// The shim's words.
        message: String,
    },
    /// The task is not in a state that allows the call.
    #[error("{call}: not possible now: {message}")]
    FailedPrecondition {
        /// The method.
        call: &'static str,
        /// The shim's words.
        message: String,
    },
    /// The shim does not offer the call.
    #[error("{call}: not offered by this shim: {message}")]
    Unimplemented {
        /// The method.
        call: &'static str,
        /// The shim's words.
        message: String,
    },
    /// The shim says that it cannot serve now.
    #[error("{call}: unavailable: {message}")]
    Unavailable {
        /// The method.
        call: &'static str,
        /// The shim's words.
        message: String,
    },
    /// The connection ended before the answer came.
    #[error("{call}: connection to the shim was lost")]
    ConnectionLost {
        /// The method.
        call: &'static str,
    },
    /// The shim did not answer in time.
    #[error("{call}: no answer from the shim within {after:?}")]
    Timeout {
        /// The method.
        call: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// Any other refusal.
    #[error("{call}: {message}")]
    Shim {
        /// The method.
        call: &'static str,
        /// The status code on the wire.
        code: Code,
        /// The shim's words.
        message: String,
    },
    /// The answer could not be decoded, or the request not be encoded.
    #[error("{call}: malformed message")]
    Message {
        /// The method.
        call: &'static str,
        /// What is wrong with it.
        source: protobuf::Error,
    },
}

impl RuntimeError {
    /// Whether the thing asked about is gone: for a teardown that means done.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// Whether the shim itself is gone or does not answer any more, so that asking it again is useless.
    #[must_use]
    pub fn is_shim_lost(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::ConnectionLost { .. } | Self::Timeout { .. })
    }

    /// The shim's refusal of `call`, sorted by its code.
    pub(super) fn refused(call: &'static str, code: Code, message: String) -> Self {
        match code {
            Code::NOT_FOUND => Self::NotFound { call, message },
            Code::ALREADY_EXISTS => Self::AlreadyExists { call, message },
            Code::FAILED_PRECONDITION => Self::FailedPrecondition { call, message },
            Code::UNIMPLEMENTED => Self::Unimplemented { call, message },
            Code::UNAVAILABLE => Self::Unavailable { call, message },
            code => Self::Shim { call, code, message },
        }
    }
}
