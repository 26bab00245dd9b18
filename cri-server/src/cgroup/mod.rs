//! Control groups as the daemon uses them: which kind the node has, where a container's lie, killing, counting, removing.
//!
//! Invariant: every function is small and blocking, touches only paths below a cgroup mount, and treats "is already
//! gone" as done. Creating a container's own cgroup and writing its limits is the OCI runtime's work, not ours.
//!
//! See cgroups(7), and `admin-guide/cgroup-v2.rst` and `admin-guide/cgroup-v1/` of the kernel.

mod hierarchy;
mod layout;
mod path;
mod procs;
mod tasks;

#[cfg(test)]
mod privileged;

pub use hierarchy::{CgroupError, CgroupPaths, Hierarchies, remove_all, remove_if_empty};
pub use layout::{Driver, Layout, Mounts, OwnCgroups};
pub use path::{DEFAULT_PARENT, Form, cgroups_path, container_path, relative_path};
pub(crate) use procs::keyed;
pub use procs::{KillError, change_oom_score, hold, kill_all, oom_kill_count, processes};
pub use tasks::Cgroups;
