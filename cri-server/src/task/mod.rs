//! Ending a task and waiting for its end, whatever state its shim is in: asked first, forced then, without its help at
//! last.
//!
//! A shim may be dead, may hang, or may have lost its socket. The daemon holds its process, the container's first process
//! and the cgroup, so that it needs none of its answers: see [`end`](end()) and [`wait`](wait()).

mod end;
mod wait;

use std::path::Path;
use std::sync::Arc;

pub use end::end;
pub use wait::{End, Left, wait};

use crate::cgroup::CgroupError;
use crate::runtime::{Handler, RuntimeError, Shim};

/// The namespace of tasks in shims: the one that other tools know for Kubernetes.
pub const NAMESPACE: &str = "k8s.io";

/// What is left of a task.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    #[error("shim")]
    Runtime(#[from] RuntimeError),
    #[error("cgroup")]
    Cgroup(#[from] CgroupError),
}

/// The task to end.
#[derive(Clone)]
pub struct Ending<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// None when it is not configured any more: then the task is ended without its shim's own clean-up.
    pub handler: Option<&'a Handler>,
    pub shim: Option<Arc<Shim>>,
    /// As in the task's spec.
    pub cgroups_path: &'a str,
    /// The shim may serve other tasks of the pod: it is not killed for this one.
    pub shared: bool,
}
