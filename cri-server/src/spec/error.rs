//! Why no spec can be built. Each variant says what was asked for and where; [`SpecError::kind`] says whose turn it is.

use std::io;
use std::path::PathBuf;

use super::user::UserError;

/// Whom an error concerns, for the one place that maps errors to gRPC codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecErrorKind {
    /// The request contradicts itself or names something that does not exist.
    Invalid,
    /// Cofferdam does not serve this field of the CRI.
    Unsupported,
    /// The node lacks what the request needs.
    Unavailable,
    /// The host could not be asked.
    Host,
}

/// Why no spec can be built.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("the request has no {0}")]
    Missing(&'static str),
    #[error("no command specified: neither the container nor its image names one")]
    NoCommand,
    #[error("{field} {value:?} is not valid: {why}")]
    Invalid { field: &'static str, value: String, why: &'static str },
    #[error("sysctl {name:?} is not allowed: {why}")]
    Sysctl { name: String, why: &'static str },
    #[error("{0} are not supported by this runtime")]
    Unsupported(&'static str),
    #[error("{what} {value:?} is not available on this node: {why}")]
    Unavailable { what: &'static str, value: String, why: &'static str },
    #[error("the runtime handler {handler:?} cannot give a pod a user namespace: {why}")]
    UserNamespace { handler: String, why: String },
    #[error("a privileged container needs a privileged sandbox")]
    PrivilegedInPlainSandbox,
    #[error(
        "mount of {host_path:?} asks for {asked} propagation, but it lies on a {found} mount of the host"
    )]
    Propagation { host_path: PathBuf, asked: &'static str, found: &'static str },
    #[error("cannot inspect {path:?} on the host")]
    Host { path: PathBuf, source: io::Error },
    #[error("{path:?} is neither a device nor a folder of devices")]
    NotADevice { path: PathBuf },
    #[error("the seccomp profile {name:?} cannot be read as one")]
    SeccompProfile { name: String, source: serde_json::Error },
    #[error(transparent)]
    User(#[from] UserError),
}

impl SpecError {
    /// Whom this concerns.
    #[must_use]
    pub fn kind(&self) -> SpecErrorKind {
        match self {
            Self::Missing(_)
            | Self::NoCommand
            | Self::Invalid { .. }
            | Self::Sysctl { .. }
            | Self::PrivilegedInPlainSandbox
            | Self::NotADevice { .. }
            | Self::SeccompProfile { .. }
            | Self::User(_) => SpecErrorKind::Invalid,
            Self::Unsupported(_) => SpecErrorKind::Unsupported,
            Self::Unavailable { .. } | Self::UserNamespace { .. } | Self::Propagation { .. } => {
                SpecErrorKind::Unavailable
            }
            Self::Host { .. } => SpecErrorKind::Host,
        }
    }
}
