//! What is kept of a sandbox, and the states it goes through.
//!
//! ```text
//!              built                    pause ended, or StopPodSandbox
//! Creating ───────────────▶ Ready ─────────────────────────────────────▶ NotReady
//!     │ failed, undone        │ RemovePodSandbox (stops first)               │ RemovePodSandbox
//!     ▼                       ▼                                              ▼
//!   (gone)                 Removing ◀──────────────────────────────────────────
//!     │ failed, undo failed too                │ all is gone
//!     ▼                                        ▼
//!  NotReady                                  (gone)
//! ```
//!
//! A state is stored before the work it stands for begins; after a crash `Creating` is undone and `Removing` is
//! finished.

use std::net::IpAddr;

use cofferdam_proto::cri;
use serde::{Deserialize, Serialize};

use crate::model::SandboxId;

/// The state of a sandbox with that state's data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    Creating,
    Ready {
        /// The pause process, in the daemon's pid namespace.
        pid: u32,
    },
    NotReady,
    Removing,
}

/// A transition that the state does not allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sandbox is {state}: it cannot {event}")]
pub struct Refused {
    state: &'static str,
    event: &'static str,
}

impl SandboxState {
    /// The pause process runs and the network is attached.
    ///
    /// # Errors
    /// When the sandbox is not being created.
    pub fn built(&self, pid: u32) -> Result<Self, Refused> {
        match self {
            Self::Creating => Ok(Self::Ready { pid }),
            Self::Ready { .. } | Self::NotReady | Self::Removing => Err(self.refuse("become ready")),
        }
    }

    /// The pause process ended, the pod was stopped, or its creation could not be undone. Idempotent.
    #[must_use]
    pub fn ended(&self) -> Self {
        match self {
            Self::Creating | Self::Ready { .. } | Self::NotReady => Self::NotReady,
            Self::Removing => Self::Removing,
        }
    }

    /// The word for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready { .. } => "ready",
            Self::NotReady => "not ready",
            Self::Removing => "being removed",
        }
    }

    fn refuse(&self, event: &'static str) -> Refused {
        Refused { state: self.name(), event }
    }
}

/// What is stored of a sandbox. All but `status` is fixed when it is made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxRecord {
    pub id: SandboxId,
    pub config: cri::PodSandboxConfig,
    /// The name of the runtime handler, resolved: never empty.
    pub handler: String,
    /// What the kubelet called it: empty for the default.
    pub requested_handler: String,
    /// Nanoseconds since the epoch.
    pub created_at: i64,
    /// Whether the pod has a network namespace of its own.
    pub own_network: bool,
    /// Of the pause container, as its spec names it.
    #[serde(default)]
    pub cgroups_path: Option<String>,
    /// Of its processes and files, where the node's SELinux tells pods apart.
    #[serde(default)]
    pub selinux_level: Option<String>,
    pub status: SandboxStatus,
}

/// The part of a sandbox that changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    pub state: SandboxState,
    /// The primary address first.
    pub ips: Vec<IpAddr>,
    /// Whether a network may be attached: set before ADD, unset after DEL.
    pub attached: bool,
    /// Whether the kubelet has asked for its end: what then is not taken back at once is tried again until it is.
    #[serde(default)]
    pub stopped: bool,
    /// What the kubelet has said of the pod's size since; none while its first request stands.
    #[serde(default)]
    pub resized: Option<PodResources>,
}

/// The size of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodResources {
    /// The sum of its containers'.
    pub resources: Option<cri::LinuxContainerResources>,
    /// What the pod itself takes.
    pub overhead: Option<cri::LinuxContainerResources>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sandbox_being_created_becomes_ready() {
        assert_eq!(SandboxState::Creating.built(7), Ok(SandboxState::Ready { pid: 7 }));
        for state in [SandboxState::Ready { pid: 7 }, SandboxState::NotReady, SandboxState::Removing] {
            assert!(state.built(8).is_err(), "{state:?}");
        }
    }

    #[test]
    fn an_end_never_brings_back_a_sandbox_being_removed() {
        assert_eq!(SandboxState::Ready { pid: 7 }.ended(), SandboxState::NotReady);
        assert_eq!(SandboxState::Removing.ended(), SandboxState::Removing);
    }
}
