//! What can go wrong in the shim, and the one place that maps it to ttrpc's status codes.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ttrpc::{Code, get_status};

use crate::backend::{Failure, FailureKind};
use crate::vm::VmError;

#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    #[error("task {0}: not found")]
    NoTask(String),
    /// It does not come to its end, and what was asked has to wait for that.
    #[error("a task is being created and was not after {0:?}")]
    Creating(Duration),
    #[error("exec {exec} of task {task}: not found")]
    NoExec { task: String, exec: String },
    #[error("{0}: already exists")]
    Exists(String),
    #[error("{0}: process already finished")]
    Finished(String),
    #[error("{what}: cannot {operation} while {state}")]
    State { what: String, operation: &'static str, state: &'static str },
    #[error("{0}")]
    Invalid(String),
    /// What the container uses does not allow this limit now.
    #[error("{0}")]
    Limit(String),
    #[error(transparent)]
    Isolation(#[from] cofferdam_vm::UnknownIsolation),
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error("{0} is not supported by this shim")]
    Unsupported(&'static str),
    #[error("{0}")]
    Runtime(Failure),
    /// It was killed, or died: nothing that it did is undone.
    #[error("{0}")]
    ChildLost(Failure),
    #[error("{operation} {}: {source}", path.display())]
    Path { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
}

impl ShimError {
    pub fn path(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| ShimError::Path { operation, path, source }
    }

    pub fn io(operation: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| ShimError::Io { operation, source }
    }

    fn code(&self) -> Code {
        match self {
            ShimError::NoTask(_) | ShimError::NoExec { .. } | ShimError::Finished(_) => Code::NOT_FOUND,
            ShimError::Exists(_) => Code::ALREADY_EXISTS,
            ShimError::State { .. } | ShimError::Limit(_) | ShimError::Creating(_) => {
                Code::FAILED_PRECONDITION
            }
            ShimError::Vm(error) => error.code(),
            ShimError::Invalid(_) | ShimError::Isolation(_) => Code::INVALID_ARGUMENT,
            ShimError::Unsupported(_) => Code::UNIMPLEMENTED,
            ShimError::Runtime(failure) => match failure.kind {
                FailureKind::ExecutableNotFound
                | FailureKind::ExecutableNotPermitted
                | FailureKind::ExecutableInvalid
                | FailureKind::Spec => Code::INVALID_ARGUMENT,
                FailureKind::Checkpoint => Code::FAILED_PRECONDITION,
                FailureKind::Rootfs | FailureKind::Runtime => Code::UNKNOWN,
            },
            ShimError::ChildLost(_) => Code::UNKNOWN,
            ShimError::Path { source, .. } | ShimError::Io { source, .. } if exhausted(source) => {
                Code::RESOURCE_EXHAUSTED
            }
            ShimError::Path { .. } | ShimError::Io { .. } => Code::INTERNAL,
        }
    }
}

/// No room, inodes, descriptors, processes or memory.
fn exhausted(error: &io::Error) -> bool {
    let codes = [libc::ENOSPC, libc::EDQUOT, libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EAGAIN];
    error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

impl From<ShimError> for ttrpc::Error {
    fn from(error: ShimError) -> Self {
        ttrpc::Error::RpcStatus(get_status(error.code(), error.to_string()))
    }
}

/// Failures that tests inject, in builds for tests only.
#[cfg(feature = "failpoints")]
impl From<cofferdam_failpoints::Injected> for ShimError {
    fn from(injected: cofferdam_failpoints::Injected) -> Self {
        ShimError::Io { operation: "pass", source: injected.into() }
    }
}
