//! The one place where errors of the domain become gRPC codes.
//!
//! The message is the error with all its sources. The code is the innermost cause's that is known: a full disk, or no more
//! descriptors, is RESOURCE_EXHAUSTED wherever it was met.

use std::error::Error;
use std::sync::Arc;

use tonic::{Code, Status};

use crate::cdi::CdiError;
use crate::cgroup::KillError;
use crate::container::{ContainerError, Fault};
use crate::event::Lagged;
use crate::image::ImageError;
use crate::index::LookupError;
use crate::lsm::relabel::RelabelError;
use crate::network::NetworkError;
use crate::nri::NriError;
use crate::pod::PodError;
use crate::report::{chain, exhausted};
use crate::runtime::{ExecError, RuntimeError};
use crate::sandbox::SandboxError;
use crate::spec::{SpecError, SpecErrorKind};
use crate::volume::VolumeError;

/// The status that a call answers for `error`.
pub fn status(error: &(dyn Error + 'static)) -> Status {
    Status::new(code(error), chain(error))
}

fn code(error: &(dyn Error + 'static)) -> Code {
    if exhausted(error) {
        return Code::ResourceExhausted;
    }
    let mut cause = Some(error);
    let mut known = None;
    while let Some(error) = cause {
        known = of_one(error).or(known);
        cause = error.source();
    }
    known.unwrap_or(Code::Internal)
}

/// The code of this error alone, where it decides one.
fn of_one(error: &(dyn Error + 'static)) -> Option<Code> {
    if let Some(error) = error.downcast_ref::<Arc<SandboxError>>() {
        return Some(code(error.as_ref()));
    }
    if let Some(error) = error.downcast_ref::<Arc<ContainerError>>() {
        return Some(code(error.as_ref()));
    }
    if let Some(error) = error.downcast_ref::<Arc<ImageError>>() {
        return Some(code(error.as_ref()));
    }
    if let Some(error) = error.downcast_ref::<LookupError>() {
        return Some(match error {
            LookupError::NotFound { .. } => Code::NotFound,
            LookupError::Ambiguous { .. } => Code::InvalidArgument,
        });
    }
    if let Some(error) = error.downcast_ref::<SandboxError>() {
        return of_sandbox(error);
    }
    if let Some(error) = error.downcast_ref::<ContainerError>() {
        return of_container(error);
    }
    if let Some(error) = error.downcast_ref::<SpecError>() {
        return Some(match error.kind() {
            SpecErrorKind::Invalid => Code::InvalidArgument,
            SpecErrorKind::Unsupported => Code::Unimplemented,
            SpecErrorKind::Unavailable => Code::FailedPrecondition,
            SpecErrorKind::Host => Code::Internal,
        });
    }
    if let Some(error) = error.downcast_ref::<NriError>() {
        return of_nri(error);
    }
    if let Some(NetworkError::Port { .. } | NetworkError::PodCidr { .. }) =
        error.downcast_ref::<NetworkError>()
    {
        return Some(Code::InvalidArgument);
    }
    if let Some(KillError::Survivors { .. }) = error.downcast_ref::<KillError>() {
        return Some(Code::DeadlineExceeded);
    }
    if error.is::<Lagged>() {
        return Some(Code::DataLoss);
    }
    if let Some(error) = error.downcast_ref::<RuntimeError>() {
        return of_runtime(error);
    }
    error.downcast_ref::<PodError>().and(None)
}

fn of_sandbox(error: &SandboxError) -> Option<Code> {
    match error {
        SandboxError::Invalid(_) | SandboxError::Handler(_) => Some(Code::InvalidArgument),
        SandboxError::Exists { .. } => Some(Code::AlreadyExists),
        SandboxError::Refused(_) | SandboxError::NotUpdatable { .. } => Some(Code::FailedPrecondition),
        SandboxError::Nri(error) => of_nri(error),
        _ => None,
    }
}

fn of_container(error: &ContainerError) -> Option<Code> {
    match error {
        ContainerError::Invalid(_)
        | ContainerError::Handler(_)
        | ContainerError::User(_)
        | ContainerError::BadCheckpoint { .. } => Some(Code::InvalidArgument),
        ContainerError::Parts(error) => error.is_about_the_input().then_some(Code::InvalidArgument),
        ContainerError::NoArchive { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Some(Code::NotFound)
        }
        ContainerError::Start { fault: Fault::Exhausted, .. } => Some(Code::ResourceExhausted),
        ContainerError::Start { fault: Fault::Input, .. } => Some(Code::InvalidArgument),
        ContainerError::Volume(error) => of_volume(error),
        ContainerError::Cdi(error) => of_cdi(error),
        ContainerError::Relabel(RelabelError::System(_)) => Some(Code::InvalidArgument),
        ContainerError::Relabel(RelabelError::Stopped(_)) => Some(Code::Unavailable),
        ContainerError::Exists { .. } => Some(Code::AlreadyExists),
        ContainerError::NoImage { .. } => Some(Code::NotFound),
        ContainerError::Refused(_)
        | ContainerError::NotRunning { .. }
        | ContainerError::NotUpdatable { .. }
        | ContainerError::NoCheckpoint(_)
        | ContainerError::NoRestore(_)
        | ContainerError::SandboxNotReady { .. } => Some(Code::FailedPrecondition),
        ContainerError::Nri(error) => of_nri(error),
        ContainerError::Unkillable { .. }
        | ContainerError::CheckpointTime { .. }
        | ContainerError::Exec(ExecError::DeadlineExceeded { .. }) => Some(Code::DeadlineExceeded),
        _ => None,
    }
}

fn of_cdi(error: &CdiError) -> Option<Code> {
    match error {
        CdiError::Name { .. } => Some(Code::InvalidArgument),
        CdiError::Unknown { .. } => Some(Code::NotFound),
        CdiError::Unsupported(_) => Some(Code::Unimplemented),
        CdiError::Conflict { .. } | CdiError::Off | CdiError::Edit { .. } | CdiError::Host { .. } => {
            Some(Code::FailedPrecondition)
        }
        CdiError::Spec(_) => None,
    }
}

fn of_volume(error: &VolumeError) -> Option<Code> {
    match error {
        // Of images here, only one that is named ambiguously.
        VolumeError::Invalid { .. } | VolumeError::Image { .. } => Some(Code::InvalidArgument),
        VolumeError::NoImage { .. } | VolumeError::NoFolder { .. } => Some(Code::NotFound),
        VolumeError::Mapping { .. } => Some(Code::FailedPrecondition),
        VolumeError::Layers { .. } | VolumeError::File { .. } => None,
    }
}

fn of_nri(error: &NriError) -> Option<Code> {
    match error {
        NriError::Refused { .. }
        | NriError::Conflict { .. }
        | NriError::Invalid { .. }
        | NriError::Rejected { .. } => Some(Code::FailedPrecondition),
        NriError::Socket { .. } | NriError::Folder { .. } | NriError::Adjust(_) => None,
    }
}

fn of_runtime(error: &RuntimeError) -> Option<Code> {
    match error {
        RuntimeError::FailedPrecondition { .. } | RuntimeError::ShimMissing { .. } => {
            Some(Code::FailedPrecondition)
        }
        RuntimeError::Shim { code: ttrpc::Code::INVALID_ARGUMENT, .. } => Some(Code::InvalidArgument),
        RuntimeError::Shim { code: ttrpc::Code::RESOURCE_EXHAUSTED, .. } => Some(Code::ResourceExhausted),
        RuntimeError::Unimplemented { .. } => Some(Code::Unimplemented),
        RuntimeError::Unavailable { .. } | RuntimeError::ConnectionLost { .. } => Some(Code::Unavailable),
        RuntimeError::Timeout { .. } | RuntimeError::ShimHangs { .. } => Some(Code::DeadlineExceeded),
        _ => None,
    }
}
