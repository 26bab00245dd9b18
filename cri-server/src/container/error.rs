//! Why something could not be done with a container.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::cdi::CdiError;
use crate::cgroup::CgroupError;
use crate::image::ImageError;
use crate::index::LookupError;
use crate::io::IoError;
use crate::lsm::apparmor::AppArmorError;
use crate::lsm::relabel::RelabelError;
use crate::lsm::selinux::SelinuxError;
use crate::model::ContainerId;
use crate::nri::NriError;
use crate::operation::Lost;
use crate::runtime::{RuntimeError, UnknownHandler};
use crate::snapshot::SnapshotError;
use crate::spec::{SpecError, UserError};
use crate::store::StoreError;
use crate::task::TaskError;
use crate::volume::VolumeError;

use super::record::Refused;

/// What went wrong with a container.
#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error("container config: {0}")]
    Invalid(String),
    #[error("pod sandbox {id} is {state}")]
    SandboxNotReady { id: String, state: &'static str },
    #[error("container {id} of the same name and attempt is {state}: remove it first")]
    Exists { id: ContainerId, state: &'static str },
    #[error("image {image:?} is not on this node: pull it first")]
    NoImage { image: String },
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Handler(#[from] UnknownHandler),
    #[error("container {operation} {path}")]
    File { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("container image")]
    Image(#[from] ImageError),
    #[error("container root filesystem")]
    Snapshot(#[from] SnapshotError),
    #[error("container user")]
    User(#[from] UserError),
    #[error("container spec")]
    Spec(#[from] SpecError),
    #[error("container AppArmor profile")]
    AppArmor(#[from] AppArmorError),
    #[error("container SELinux label")]
    Selinux(#[from] SelinuxError),
    #[error("container SELinux label of a mount")]
    Relabel(#[from] RelabelError),
    #[error("container spec file")]
    SpecFile(#[source] oci_spec::OciSpecError),
    #[error(transparent)]
    Volume(#[from] VolumeError),
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error("container streams")]
    Io(#[from] IoError),
    #[error("container runtime")]
    Runtime(#[from] RuntimeError),
    #[error("container cgroup")]
    Cgroup(#[from] CgroupError),
    #[error("container task")]
    Task(#[from] TaskError),
    #[error(transparent)]
    Nri(#[from] NriError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("a layer of its image was found damaged after it was created: create it again")]
    Spoiled,
    #[error("cannot start the container: {message}")]
    Start { message: String, fault: Fault },
    #[error("the container is {state}, not running")]
    NotRunning { state: &'static str },
    #[error("the container is {state}: its resources cannot be changed")]
    NotUpdatable { state: &'static str },
    #[error("the container cannot be checkpointed: {0}")]
    NoCheckpoint(String),
    #[error("the container cannot be restored: {0}")]
    NoRestore(String),
    #[error("checkpoint archive {path}")]
    NoArchive { path: PathBuf, source: std::io::Error },
    #[error("checkpoint {name:?}: {problem}")]
    BadCheckpoint { name: String, problem: String },
    #[error("checkpoint")]
    Parts(#[source] SnapshotError),
    #[error("image {name:?} that the checkpoint's container was made of")]
    BaseImage { name: String, source: Arc<ImageError> },
    #[error("the checkpoint was not done within {after:?}")]
    CheckpointTime { after: Duration },
    #[error("resources of the container")]
    Update(#[source] RuntimeError),
    #[error("the end of the container was not settled within {after:?} of SIGKILL")]
    Unkillable { after: Duration },
    #[error("the container does not end")]
    Survives { source: CgroupError },
    #[error(transparent)]
    Exec(#[from] crate::runtime::ExecError),
    #[error(transparent)]
    Lost(#[from] Lost),
    #[error(transparent)]
    Owner(#[from] crate::owner::OwnerError),
    #[error("a thread of the daemon ended without a result")]
    Thread(#[from] tokio::task::JoinError),
    #[error("{0}")]
    Shared(String),
}

/// Why a container cannot be started, as far as its caller can do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The node has run out of something: see [`crate::report::exhausted`].
    Exhausted,
    /// It asks for what there is not, or for what its handler cannot give.
    Input,
    Unknown,
}

impl ContainerError {
    /// Whose fault it is that a container cannot be started.
    pub(super) fn fault(&self) -> Fault {
        let told = |code| matches!(self, Self::Runtime(RuntimeError::Shim { code: own, .. }) if *own == code);
        if crate::report::exhausted(self) || told(ttrpc::Code::RESOURCE_EXHAUSTED) {
            Fault::Exhausted
        } else if told(ttrpc::Code::INVALID_ARGUMENT) {
            Fault::Input
        } else {
            Fault::Unknown
        }
    }
}
