//! The daemon's side of the containerd shim protocol, version 2: which shim serves a pod ([`HandlerTable`]), how it is
//! started and found again ([`Launcher`]), what is asked of it ([`Shim`]), and what it reports ([`events`]).
//!
//! Any shim is driven by the protocol alone. Ours differs in two points, both named by [`ShimKind`]: it writes the
//! container's log itself, and it serves `ReopenLog`. What is ours in it has a version, which the shim announces.
//! A shim's process is held by a descriptor ([`HeldProcess`]), so that one that hangs can be ended without its help.

mod bootstrap;
mod checkpoint;
mod connection;
mod dead_socket;
mod error;
pub mod events;
mod exec_sync;
mod handler;
mod held;
mod launcher;
mod saying;
mod log_pipe;
pub mod microvm;
mod options;
mod probe;
mod process_tree;
mod shim;
mod usage;

pub use bootstrap::{AnswerError, Endpoint, ShimKind};
pub use error::RuntimeError;
pub use exec_sync::{ExecError, ExecOutput, ExecRunner};
pub use handler::{Handler, HandlerError, HandlerTable, OWN_BINARY, OWN_TYPE, RuntimeConfig, UnknownHandler};
pub use held::{HeldProcess, ProcessName};
pub use launcher::Launcher;
pub use options::{GenericOptions, OwnOptions};
pub use probe::{Means, means, measure, user_namespaces};
pub use saying::said;
pub use shim::{CreateTask, Deadlines, ExecProcess, Exit, Mount, Shim, ShimConfig, TaskState, TaskStatus};
