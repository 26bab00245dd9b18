//! What the shim and its short-lived child say to each other: JSON, one message a line, over a socket pair.
//!
//! Invariant: the container's first process holds the child's end until its own exec succeeds, so the end of the
//! stream after a start means "the program runs", and a message before it says why it does not.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::Failure;
use crate::cgroup::CgroupPaths;
use crate::options::Options;

#[derive(Debug, Serialize, Deserialize)]
pub struct Mount {
    pub fs_type: String,
    pub source: String,
    pub target: String,
    pub options: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct CreateOrder {
    pub id: String,
    pub bundle: PathBuf,
    pub options: Options,
    pub rootfs: Vec<Mount>,
    pub console: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ExecOrder {
    pub id: String,
    pub exec_id: String,
    pub bundle: PathBuf,
    pub options: Options,
    pub init_pid: i32,
    pub cgroups: CgroupPaths,
    /// The OCI process, as JSON text.
    pub process: String,
    pub console: Option<PathBuf>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct TaskOrder {
    pub id: String,
    pub bundle: PathBuf,
    pub options: Options,
    /// The first process, where it is not the one that the container was made with.
    pub restored: Option<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct CheckpointOrder {
    pub init_pid: i32,
    pub cgroups: CgroupPaths,
    /// An empty folder.
    pub images: PathBuf,
    /// How long it may take.
    pub limit: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct RestoreOrder {
    pub bundle: PathBuf,
    /// The first process of the container as it was made, which waits.
    pub model: i32,
    pub cgroups: CgroupPaths,
    /// The folder of the images.
    pub images: PathBuf,
    /// How long it may take.
    pub limit: Duration,
}

/// The processes of a checkpoint, all of them stopped.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Restored {
    pub pid: i32,
    /// Those that were stopped when the checkpoint was made, by their numbers in the container.
    pub stopped: Vec<i32>,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Order {
    Create(CreateOrder),
    Start(TaskOrder),
    Exec(ExecOrder),
    Delete(TaskOrder),
    Checkpoint(CheckpointOrder),
    Restore(RestoreOrder),
}

/// What the child found out while it made the container; also kept in the bundle for a later `delete`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Created {
    pub pid: i32,
    pub cgroups: CgroupPaths,
    /// The root filesystem was mounted where the whole host sees it.
    pub mounted_on_host: bool,
    /// Starting takes more than the notification (hooks, an external runtime).
    pub start_by_child: bool,
    /// Deleting takes more than removing folders and cgroups.
    pub delete_by_child: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Report {
    Created(Created),
    /// The pid of an exec's first process.
    Executed(i32),
    Restored(Restored),
    Done,
    Failed(Failure),
    /// Something was degraded; belongs in the shim's log.
    Warning(String),
    /// A detail of a failure that follows or came before.
    Detail(String),
}
