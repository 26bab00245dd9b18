//! Monitors behind one trait.
//!
//! Invariant: a monitor is one confined process, held by a pidfd; dropping the value ends it.

pub mod console;
pub mod qemu;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use async_trait::async_trait;

use crate::config::Parts;

/// What executes the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Accelerator {
    Kvm,
    /// Emulation by the monitor itself.
    Tcg,
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accelerator::Kvm => "KVM",
            Accelerator::Tcg => "emulation",
        })
    }
}

/// What is started.
#[derive(Debug)]
pub struct Launch {
    pub parts: Parts,
    pub accelerator: Accelerator,
    /// In MiB.
    pub memory: u32,
    pub cpus: u32,
    /// The monitor's end of the channel to the agent.
    pub channel: OwnedFd,
    /// The monitor's connection to virtiofsd.
    pub share: Option<OwnedFd>,
    pub nics: Vec<Nic>,
}

/// A network card of the guest, in front of a tap.
#[derive(Debug)]
pub struct Nic {
    /// With `IFF_VNET_HDR`.
    pub tap: OwnedFd,
    pub mac: String,
}

/// What may be changed in a running machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub add_share: bool,
    pub add_disk: bool,
    pub add_nic: bool,
    pub balloon: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    #[error("start {}: {source}", program.display())]
    Start { program: PathBuf, source: io::Error },
    #[error("{monitor} cannot {operation} in a running machine")]
    Unsupported { monitor: &'static str, operation: &'static str },
    #[error("{operation}: talk to the monitor: {source}")]
    Talk { operation: &'static str, source: io::Error },
    #[error("{operation}: the monitor refuses: {words}")]
    Refused { operation: &'static str, words: String },
    #[error("{operation}: the monitor does not answer")]
    Silent { operation: &'static str },
}

/// A running machine's monitor.
#[async_trait]
pub trait Monitor: fmt::Debug + Send + Sync {
    fn name(&self) -> &'static str;
    fn capabilities(&self) -> Capabilities;
    fn pid(&self) -> i32;
    /// Returns when the process has ended.
    async fn exited(&self);
    /// Halts the processors.
    async fn pause(&self) -> Result<(), MonitorError>;
    async fn resume(&self) -> Result<(), MonitorError>;
    /// Leaves the guest so many bytes of its memory.
    async fn balloon(&self, bytes: u64) -> Result<(), MonitorError>;
    /// Serves the guest one more folder.
    async fn add_share(&self, tag: &str, connection: OwnedFd) -> Result<(), MonitorError>;
    /// Gives the guest one more disk, read-only.
    async fn add_disk(&self, name: &str, image: OwnedFd) -> Result<(), MonitorError>;
    async fn add_nic(&self, nic: Nic) -> Result<(), MonitorError>;
    /// The end of what the guest's kernel has printed, also when the monitor has ended. Not trusted, not long.
    async fn console(&self) -> String;
    /// Ends the machine at once, as pulling the plug does.
    fn kill(&self);
}
