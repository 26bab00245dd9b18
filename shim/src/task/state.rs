//! The life of one process of a container, its first one or an exec.
//!
//! ```text
//! Added ──start──► Running ◄──resume── Paused
//!                  ▲  │  └────pause────►  │
//! Created ──start──┘  └──exit──► Stopped ◄┘
//!    └────────────exit───────────►
//! ```
//! An exec begins as Added (no process yet), a container as Created (its first process waits). Invariant: a pid is
//! only given out while the process cannot have been waited for, so a signal never hits a stranger.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    pub pid: i32,
    pub status: u32,
    /// Since the epoch.
    pub at: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifecycle {
    Added,
    Created { pid: i32 },
    Running { pid: i32 },
    Paused { pid: i32 },
    Stopped(Exit),
}

/// The operation does not fit the state, whose name this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused(pub &'static str);

impl Lifecycle {
    pub fn name(&self) -> &'static str {
        match self {
            Lifecycle::Added => "added",
            Lifecycle::Created { .. } => "created",
            Lifecycle::Running { .. } => "running",
            Lifecycle::Paused { .. } => "paused",
            Lifecycle::Stopped(_) => "stopped",
        }
    }

    /// The process that can be signalled now.
    pub fn live_pid(&self) -> Option<i32> {
        match self {
            Lifecycle::Created { pid } | Lifecycle::Running { pid } | Lifecycle::Paused { pid } => Some(*pid),
            Lifecycle::Added | Lifecycle::Stopped(_) => None,
        }
    }

    pub fn pid(&self) -> Option<i32> {
        match self {
            Lifecycle::Stopped(exit) => Some(exit.pid),
            Lifecycle::Added
            | Lifecycle::Created { .. }
            | Lifecycle::Running { .. }
            | Lifecycle::Paused { .. } => self.live_pid(),
        }
    }

    pub fn exit(&self) -> Option<Exit> {
        match self {
            Lifecycle::Stopped(exit) => Some(*exit),
            Lifecycle::Added
            | Lifecycle::Created { .. }
            | Lifecycle::Running { .. }
            | Lifecycle::Paused { .. } => None,
        }
    }

    pub fn started(&self, new_pid: i32) -> Result<Self, Refused> {
        match self {
            Lifecycle::Added | Lifecycle::Created { .. } => Ok(Lifecycle::Running { pid: new_pid }),
            Lifecycle::Running { .. } | Lifecycle::Paused { .. } | Lifecycle::Stopped(_) => {
                Err(Refused(self.name()))
            }
        }
    }

    pub fn paused(&self) -> Result<Self, Refused> {
        match self {
            Lifecycle::Running { pid } => Ok(Lifecycle::Paused { pid: *pid }),
            Lifecycle::Added
            | Lifecycle::Created { .. }
            | Lifecycle::Paused { .. }
            | Lifecycle::Stopped(_) => Err(Refused(self.name())),
        }
    }

    pub fn resumed(&self) -> Result<Self, Refused> {
        match self {
            Lifecycle::Paused { pid } => Ok(Lifecycle::Running { pid: *pid }),
            Lifecycle::Added
            | Lifecycle::Created { .. }
            | Lifecycle::Running { .. }
            | Lifecycle::Stopped(_) => Err(Refused(self.name())),
        }
    }

    /// The first exit counts; there is no second.
    pub fn stopped(&self, exit: Exit) -> Self {
        match self {
            Lifecycle::Stopped(first) => Lifecycle::Stopped(*first),
            Lifecycle::Added
            | Lifecycle::Created { .. }
            | Lifecycle::Running { .. }
            | Lifecycle::Paused { .. } => Lifecycle::Stopped(exit),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Exit = Exit { pid: 5, status: 3, at: Duration::ZERO };

    #[test]
    fn only_a_running_process_is_paused_and_only_a_paused_one_resumed() {
        let running = Lifecycle::Created { pid: 5 }.started(5).unwrap();
        let paused = running.paused().unwrap();
        assert_eq!(paused.resumed(), Ok(running));
        assert_eq!(running.resumed(), Err(Refused("running")));
        assert_eq!(Lifecycle::Added.paused(), Err(Refused("added")));
    }

    #[test]
    fn nothing_follows_the_first_exit() {
        let stopped = Lifecycle::Running { pid: 5 }.stopped(EXIT);
        assert_eq!(stopped.stopped(Exit { status: 9, ..EXIT }).exit(), Some(EXIT));
        assert_eq!(stopped.started(6), Err(Refused("stopped")));
        assert_eq!((stopped.live_pid(), stopped.pid()), (None, Some(5)));
    }
}
