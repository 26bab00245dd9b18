//! What can go wrong in a command, and the one place that gives each failure its CNI code.

use crate::ipam::{LeaseError, RangeError, StoreError};
use crate::nat::NatError;
use crate::sys::netlink::NetlinkError;
use crate::sys::netns::NetnsError;
use crate::sys::sysctl::SysctlError;
use crate::types::{CniError, ErrorCode, IpNet};

#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("CNI version {asked:?} is not spoken; 0.3.1, 0.4.0, 1.0.0 and 1.1.0 are")]
    Version { asked: String },
    #[error("{command} needs CNI version {needed} or newer, the configuration has {asked}")]
    CommandVersion { command: &'static str, needed: &'static str, asked: String },
    #[error("{key}: {why}")]
    UnsupportedField { key: &'static str, why: String },
    #[error("{name}: {why}")]
    Environment { name: &'static str, why: String },
    #[error("{key}: {why}")]
    Config { key: &'static str, why: String },
    #[error("ipam")]
    Range(#[from] RangeError),
    #[error("subnet {subnet} is configured, but the kernel has that address family switched off")]
    NoFamily { subnet: IpNet },
    #[error("cannot give the pod an address")]
    Lease(#[from] LeaseError),
    #[error("cannot keep the record of leases")]
    Store(#[from] StoreError),
    #[error("cannot work in the pod's network namespace")]
    Netns(#[from] NetnsError),
    #[error("cannot set up the pod's links")]
    Netlink(#[from] NetlinkError),
    #[error("cannot set up masquerade and host ports")]
    Nat(#[from] NatError),
    #[error("cannot switch a kernel setting")]
    Sysctl(#[from] SysctlError),
    #[error("link {name} exists and is of kind {kind:?}, not a bridge")]
    NotABridge { name: String, kind: String },
    #[error("{ifname} of container {container} is attached already; it must be detached first")]
    AlreadyAttached { container: String, ifname: String },
    #[error("the pod's network namespace is the host's own")]
    HostNamespace,
    #[error("{what}")]
    Check { what: String },
    #[error("{} of the steps of the clean-up failed: {}", .0.len(), list(.0))]
    Several(Vec<PluginError>),
}

fn list(errors: &[PluginError]) -> String {
    let texts: Vec<String> = errors.iter().map(|e| CniError::from_error(e.code(), e).to_string()).collect();
    texts.join("; ")
}

impl PluginError {
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Version { .. } | Self::CommandVersion { .. } => ErrorCode::IncompatibleVersion,
            Self::UnsupportedField { .. } => ErrorCode::UnsupportedField,
            Self::Environment { .. } | Self::HostNamespace => ErrorCode::InvalidEnvironment,
            Self::Config { .. } | Self::Range(_) | Self::NotABridge { .. } => ErrorCode::InvalidConfig,
            Self::NoFamily { .. } => ErrorCode::Unsupported,
            Self::Lease(LeaseError::OutOfRange(_)) => ErrorCode::InvalidConfig,
            Self::Lease(LeaseError::Exhausted { .. } | LeaseError::Taken { .. }) => ErrorCode::NoAddress,
            Self::Store(StoreError::Decode { .. } | StoreError::Version { .. }) => ErrorCode::Decode,
            Self::Store(StoreError::File { .. } | StoreError::Lock { .. }) | Self::Sysctl(_) => ErrorCode::Io,
            Self::Netns(NetnsError::Open { .. } | NetnsError::NotANamespace { .. }) => {
                ErrorCode::UnknownContainer
            }
            Self::Netns(_) | Self::Netlink(_) | Self::Nat(NatError::Netlink(_)) => ErrorCode::Kernel,
            Self::Nat(NatError::PortTaken { .. }) => ErrorCode::HostPortTaken,
            Self::Nat(NatError::Contended) => ErrorCode::TryAgainLater,
            Self::AlreadyAttached { .. } => ErrorCode::AlreadyAttached,
            Self::Check { .. } => ErrorCode::CheckFailed,
            Self::Several(errors) => errors.first().map_or(ErrorCode::Kernel, Self::code),
        }
    }

    /// Success when nothing failed.
    pub fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match (errors.pop(), errors.is_empty()) {
            (None, _) => Ok(()),
            (Some(only), true) => Err(only),
            (Some(last), false) => {
                errors.push(last);
                Err(Self::Several(errors))
            }
        }
    }
}

/// The error as an answer to a request made in `version`.
pub fn answer(error: &PluginError, version: &str) -> CniError {
    CniError::from_error(error.code(), error).in_version(version)
}

/// Failures that tests inject, in builds for tests only.
#[cfg(feature = "failpoints")]
mod injected {
    use super::{NatError, PluginError, StoreError};
    use cofferdam_failpoints::Injected;

    impl From<Injected> for PluginError {
        fn from(injected: Injected) -> Self {
            Self::Check { what: injected.to_string() }
        }
    }

    impl From<Injected> for StoreError {
        fn from(injected: Injected) -> Self {
            Self::File { what: "pass", path: injected.0.into(), source: injected.into() }
        }
    }

    impl From<Injected> for NatError {
        fn from(_: Injected) -> Self {
            Self::Contended
        }
    }
}
