//! What is kept of a container, and the states it goes through.
//!
//! ```text
//!             prepared             StartContainer             exit noticed
//! Creating ─────────────▶ Created ───────────────▶ Running ─────────────────▶ Exited
//!     │ failed, undone       │  │ could not be started                           ▲
//!     ▼                      │  └────────────────────────────────────────────────┤
//!   (gone)                   └───────────── stopped before its start ────────────┘
//!
//! RemoveContainer: any state ──▶ Removing ──▶ (gone)
//! ```
//!
//! A state is stored before the work it stands for begins, an exit as soon as it is known. The removal of an exited
//! container needs no record of its own: whatever ends it half-way, the exit is still true, and the kubelet asks again.

use std::path::PathBuf;

use cofferdam_proto::cri;
use serde::{Deserialize, Serialize};

use crate::model::{ContainerId, SandboxId};
use crate::registry::Digest;

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// As a shell tells it: 128 plus the signal's number for a killed process.
    pub code: i32,
    /// Nanoseconds since the epoch.
    pub finished_at: i64,
    pub cause: ExitCause,
    pub message: String,
}

/// Why a container ended, in the kubelet's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitCause {
    Completed,
    Error,
    OomKilled,
    StartError,
    /// The shim died and the exit code with it.
    Unknown,
}

impl ExitCause {
    /// The cause of an exit that was seen.
    #[must_use]
    pub fn of(code: i32, oom_killed: bool) -> Self {
        match (code, oom_killed) {
            (0, _) => Self::Completed,
            (_, true) => Self::OomKilled,
            (_, false) => Self::Error,
        }
    }

    /// The `reason` of a container's status.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Completed => "Completed",
            Self::Error => "Error",
            Self::OomKilled => "OOMKilled",
            Self::StartError => "StartError",
            Self::Unknown => "Unknown",
        }
    }
}

/// The state of a container with that state's data. Times are nanoseconds since the epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    Creating,
    Created,
    Running {
        /// The container's first process, in the daemon's pid namespace.
        pid: u32,
        started_at: i64,
    },
    Exited {
        /// 0 when it never ran.
        started_at: i64,
        exit: Exit,
    },
    /// Until it is gone it is told as what it was, so that an exit stays an exit.
    Removing {
        was: Box<ContainerState>,
    },
}

/// A state as this version stores it, or as the one before did: it did not keep what a container under removal was.
fn stored_state<'de, D: serde::Deserializer<'de>>(from: D) -> Result<ContainerState, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Before {
        Removing,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Now(ContainerState),
        Before(Before),
    }
    Ok(match Stored::deserialize(from)? {
        Stored::Now(state) => state,
        Stored::Before(Before::Removing) => {
            let exit = Exit { code: 255, finished_at: 0, cause: ExitCause::Unknown, message: String::new() };
            ContainerState::Exited { started_at: 0, exit }.removing()
        }
    })
}

/// A transition that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the container is {state}: it cannot {event}")]
pub struct Refused {
    state: &'static str,
    event: &'static str,
}

impl ContainerState {
    /// All it needs is there.
    ///
    /// # Errors
    /// When the container is not being created.
    pub fn prepared(&self) -> Result<Self, Refused> {
        match self {
            Self::Creating => Ok(Self::Created),
            Self::Created | Self::Running { .. } | Self::Exited { .. } | Self::Removing { .. } => {
                Err(self.refuse("be created"))
            }
        }
    }

    /// Its process runs.
    ///
    /// # Errors
    /// When the container was not waiting for its start.
    pub fn started(&self, pid: u32, started_at: i64) -> Result<Self, Refused> {
        match self {
            Self::Created => Ok(Self::Running { pid, started_at }),
            Self::Creating | Self::Running { .. } | Self::Exited { .. } | Self::Removing { .. } => {
                Err(self.refuse("be started"))
            }
        }
    }

    /// Its process ended, or it will never have one. The first exit that is known stays.
    #[must_use]
    pub fn exited(&self, exit: Exit) -> Self {
        match self {
            Self::Running { started_at, .. } => Self::Exited { started_at: *started_at, exit },
            Self::Creating | Self::Created => Self::Exited { started_at: 0, exit },
            Self::Exited { .. } | Self::Removing { .. } => self.clone(),
        }
    }

    /// Its removal has begun.
    #[must_use]
    pub fn removing(&self) -> Self {
        match self {
            Self::Creating | Self::Created | Self::Running { .. } | Self::Exited { .. } => {
                Self::Removing { was: Box::new(self.clone()) }
            }
            Self::Removing { .. } => self.clone(),
        }
    }

    /// What users are told: the state that it had before its removal began.
    #[must_use]
    pub fn told(&self) -> &Self {
        match self {
            Self::Removing { was } => was.told(),
            Self::Creating | Self::Created | Self::Running { .. } | Self::Exited { .. } => self,
        }
    }

    /// The word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
            Self::Removing { .. } => "being removed",
        }
    }

    fn refuse(&self, event: &'static str) -> Refused {
        Refused { state: self.name(), event }
    }
}

/// What is stored of a container. All but `state` and `resources` is fixed when it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    pub id: ContainerId,
    pub sandbox: SandboxId,
    pub config: cri::ContainerConfig,
    /// The image's id: the digest of its configuration.
    pub image_id: String,
    /// What people call the image: as the user wrote it, if the kubelet says so, and never an id where there is a name.
    /// Empty in records of older versions.
    #[serde(default)]
    pub image_name: String,
    /// What ContainerStatus tells as `image_ref`: a repository digest, or the id where there is none.
    pub image_ref: String,
    /// The image's layers by diff id, bottom first: it may be removed while the container lives.
    pub layers: Vec<Digest>,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Where the CRI log goes; none when the kubelet gave no path.
    pub log_path: Option<PathBuf>,
    /// The signal that asks it to stop, by number.
    pub stop_signal: i32,
    /// As the OCI specification names it: a path (cgroupfs) or slice:prefix:name (systemd).
    pub cgroups_path: String,
    /// The image volumes: which of its mounts, and the image's id.
    #[serde(default)]
    pub volumes: Vec<(usize, String)>,
    /// It is restored from a checkpoint at its start.
    #[serde(default)]
    pub restored: bool,
    /// The user that runs its first process.
    pub user: Option<cri::LinuxContainerUser>,
    /// What its spec puts into force, known once the spec is built.
    #[serde(default)]
    pub resources: Option<cri::LinuxContainerResources>,
    #[serde(deserialize_with = "stored_state")]
    pub state: ContainerState,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(code: i32) -> Exit {
        Exit { code, finished_at: 9, cause: ExitCause::of(code, false), message: String::new() }
    }

    #[test]
    fn states_of_the_version_before_are_read() {
        #[derive(Deserialize)]
        struct Record {
            #[serde(deserialize_with = "stored_state")]
            state: ContainerState,
        }
        let read = |text: &str| serde_json::from_str::<Record>(text).map(|record| record.state);
        let before = read(r#"{"state":"removing"}"#).unwrap();
        assert!(matches!(before.told(), ContainerState::Exited { exit, .. } if exit.code == 255));
        let now = serde_json::to_string(&ContainerState::Created.removing()).unwrap();
        assert_eq!(read(&format!("{{\"state\":{now}}}")).unwrap(), ContainerState::Created.removing());
        assert_eq!(read(r#"{"state":"creating"}"#).unwrap(), ContainerState::Creating);
        assert!(read(r#"{"state":"gone"}"#).is_err());
    }

    #[test]
    fn a_container_starts_once() {
        let running = ContainerState::Running { pid: 4, started_at: 5 };
        assert_eq!(ContainerState::Created.started(4, 5), Ok(running.clone()));
        let ended = running.exited(exit(0));
        for state in [ContainerState::Creating, running, ended.clone(), ended.removing()] {
            assert!(state.started(4, 5).is_err(), "{state:?}");
        }
    }

    #[test]
    fn the_first_exit_stays() {
        let ended = ContainerState::Running { pid: 4, started_at: 5 }.exited(exit(3));
        assert_eq!(ended.exited(exit(137)), ended);
        assert_eq!(ended.removing().exited(exit(137)), ended.removing());
    }

    #[test]
    fn a_removal_does_not_hide_what_it_was() {
        let ended = ContainerState::Running { pid: 4, started_at: 5 }.exited(exit(3));
        assert_eq!(*ended.removing().removing().told(), ended);
        assert_eq!(*ContainerState::Created.told(), ContainerState::Created);
    }

    #[test]
    fn a_clean_end_is_no_oom_kill() {
        assert_eq!(ExitCause::of(0, true), ExitCause::Completed);
        assert_eq!(ExitCause::of(137, true), ExitCause::OomKilled);
        assert_eq!(ExitCause::of(137, false), ExitCause::Error);
    }
}
