//! Monitors behind one trait.
//!
//! Invariant: a monitor is one confined process, held by a pidfd; dropping the value ends it.

pub mod cloud_hypervisor;
mod console;
pub mod qemu;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use crate::agent::MODULES;
use crate::config::{MachineType, MonitorKind, Parts};
use crate::sys::socket;
use crate::wire::MonitorEnd;

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
    /// QEMU's.
    pub machine: MachineType,
    /// The monitor's end of the channel to the agent.
    pub channel: MonitorEnd,
    /// Where virtiofsd waits for the monitor.
    pub share: Option<ShareSocket>,
    pub nics: Vec<Nic>,
    /// The machine's own, on the node.
    pub folder: PathBuf,
}

/// Starts the machine; its guest begins to boot at once. `log` is the monitor's standard error.
///
/// # Errors
/// When the program cannot be started, or does not do what it is told; nothing runs then.
pub async fn start(
    kind: MonitorKind,
    launch: Launch,
    log: Option<OwnedFd>,
    place: Place<'_>,
) -> Result<Box<dyn Monitor>, MonitorError> {
    Ok(match kind {
        MonitorKind::Qemu => Box::new(qemu::Qemu::start(launch, log, place)?),
        MonitorKind::CloudHypervisor => {
            Box::new(cloud_hypervisor::CloudHypervisor::start(launch, log, place).await?)
        }
    })
}

/// Where a machine's processes are put, by their pids: the pod's cgroup.
pub type Place<'a> = &'a (dyn Fn(i32) -> io::Result<()> + Sync);

/// A socket with a name on which one virtiofsd listens for its monitor; the name goes with the value.
#[derive(Debug)]
pub struct ShareSocket(PathBuf);

impl ShareSocket {
    /// Takes over the name.
    pub fn new(path: PathBuf) -> Self {
        ShareSocket(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// For a monitor that takes a connection.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn connect(&self) -> io::Result<UnixStream> {
        socket::connect(&self.0)
    }
}

impl Drop for ShareSocket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.0));
    }
}

/// What the guest's first process has to know, as the end of the kernel's line.
fn guest_words(has_pci: bool, channel: &MonitorEnd) -> String {
    let vsock = channel.kernel_words();
    let groups = [has_pci.then_some("pci"), vsock.is_some().then_some("vsock")];
    let groups: Vec<&str> = groups.into_iter().flatten().collect();
    let modules = (!groups.is_empty()).then(|| format!("{MODULES}={}", groups.join(",")));
    [modules, vsock].into_iter().flatten().map(|word| format!(" {word}")).collect()
}

/// The longest name that a disk can have in a guest.
const LONGEST_NAME: usize = 20;

/// Names of disks and shares become identifiers in the monitors' languages.
fn checked<'a>(operation: &'static str, name: &'a str) -> Result<&'a str, MonitorError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
        return Err(MonitorError::Name { operation, name: name.to_owned() });
    }
    Ok(name)
}

/// Much of a console's end, and little enough for an error's text.
const CONSOLE_EXCERPT: usize = 2000;

/// The end of what a guest printed, without what a terminal would obey.
fn excerpt(text: &str) -> String {
    let plain: Vec<char> =
        text.trim().chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect();
    plain[plain.len().saturating_sub(CONSOLE_EXCERPT)..].iter().collect()
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
    #[error("put the monitor into the pod's cgroup: {0}")]
    Place(io::Error),
    #[error("{monitor} cannot {operation} in a running machine")]
    Unsupported { monitor: &'static str, operation: &'static str },
    #[error("{operation}: talk to the monitor: {source}")]
    Talk { operation: &'static str, source: io::Error },
    #[error("{operation}: the monitor refuses: {words}")]
    Refused { operation: &'static str, words: String },
    #[error("{operation}: the monitor does not answer")]
    Silent { operation: &'static str },
    #[error("{operation}: the machine has no slot left")]
    NoSlot { operation: &'static str },
    #[error("{operation}: {name:?} is no name for it: letters, digits, - and _, at most 20")]
    Name { operation: &'static str, name: String },
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
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
    /// Serves the guest one more folder, on whose socket a virtiofsd listens.
    async fn add_share(&self, tag: &str, socket: ShareSocket) -> Result<(), MonitorError>;
    /// Gives the guest one more disk, read-only; `name` is its serial number.
    async fn add_disk(&self, name: &str, image: OwnedFd) -> Result<(), MonitorError>;
    async fn add_nic(&self, nic: Nic) -> Result<(), MonitorError>;
    /// Has the monitor end itself in order, whatever its guest does; [`Monitor::exited`] tells when it has.
    async fn stop(&self) -> Result<(), MonitorError>;
    /// The end of what the guest's kernel has printed, also when the monitor has ended. Not trusted, not long.
    async fn console(&self) -> String;
    /// Ends the machine at once, as pulling the plug does.
    fn kill(&self);
}
