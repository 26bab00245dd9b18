//! Why a sandbox could not be made, stopped or removed.

use std::path::PathBuf;

use crate::cgroup::CgroupError;
use crate::index::LookupError;
use crate::lsm::relabel::RelabelError;
use crate::lsm::selinux::SelinuxError;
use crate::model::SandboxId;
use crate::network::NetworkError;
use crate::nri::NriError;
use crate::operation::Lost;
use crate::runtime::{RuntimeError, UnknownHandler};
use crate::spec::SpecError;
use crate::store::StoreError;
use crate::task::TaskError;

use super::record::Refused;

/// What went wrong with a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("pod sandbox config: {0}")]
    Invalid(String),
    #[error("sandbox {id} of the same pod and attempt is {state}: remove it first")]
    Exists { id: SandboxId, state: &'static str },
    #[error("pod sandbox is {state}: its resources cannot be changed")]
    NotUpdatable { state: &'static str },
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Handler(#[from] UnknownHandler),
    #[error("sandbox {operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("sandbox network")]
    Network(#[from] NetworkError),
    #[error("sandbox spec")]
    Spec(#[from] SpecError),
    #[error("sandbox SELinux label")]
    Selinux(#[from] SelinuxError),
    #[error("sandbox SELinux label of files")]
    Label(#[from] RelabelError),
    #[error("sandbox spec cannot be written")]
    SpecFile(#[source] oci_spec::OciSpecError),
    #[error("pod sandbox's shim")]
    Runtime(#[from] RuntimeError),
    #[error("pod sandbox's cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("pod sandbox's task")]
    Task(#[from] TaskError),
    #[error(transparent)]
    Nri(#[from] NriError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error("{0}")]
    Shared(String),
    #[error("a thread of the daemon ended without a result")]
    Thread(#[from] tokio::task::JoinError),
    #[error("{}", .0.iter().map(|e| crate::report::chain(e)).collect::<Vec<_>>().join("; "))]
    Several(Vec<SandboxError>),
}

impl SandboxError {
    /// One error of many; none of none.
    pub(super) fn collect(mut failures: Vec<Self>) -> Result<(), Self> {
        match failures.len() {
            0 => Ok(()),
            1 => Err(failures.remove(0)),
            _ => Err(Self::Several(failures)),
        }
    }
}
