//! From a plan to a machine, in phases that are types; each is consumed by the next.
//!
//! ```text
//! Plan ──prepare──▶ Prepared ──launch──▶ Launched ──greet──▶ Greeted ──set_up──▶ Machine
//!                      └───────────────────┴──────────────────┴── fail: all that runs is ended
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::agent::{Agent, AgentError, Guest, GuestSetup, plain};
use crate::channel::{Channel, ChannelError};
use crate::config::{ConfigError, Parts, VmConfig};
use crate::machine::{Machine, Processes};
use crate::share::{Share, ShareError};
use crate::vmm::{self, Accelerator, Launch, MonitorError, Nic, Place, ShareSocket};
use crate::wire::{self, HostEnd, WireError, WireKind};

const MONITOR_LOG: &str = "monitor.log";
/// When what of the boot was done, in nanoseconds since the epoch: for people and benchmarks.
const TIMES: &str = "boot.json";
const LAST_WORDS: usize = 500;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Wire(#[from] WireError),
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
    #[error("the guest does not come up under {accelerator}: {source}{}{}", quoted("monitor", .monitor), quoted("console", .console))]
    Guest { accelerator: Accelerator, source: AgentError, monitor: String, console: String },
}

fn quoted(who: &str, words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; its {who} says: {words}") }
}

/// The end of what the monitor printed.
fn last_words(path: &Path) -> String {
    let bytes = std::fs::read(path).unwrap_or_default();
    plain(String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(LAST_WORDS)..]).trim())
}

/// What a machine is to be.
#[derive(Debug)]
pub struct Plan {
    pub config: VmConfig,
    pub accelerator: Accelerator,
    /// A folder of the pod's own on the host: the share's place, and the logs of the processes.
    pub folder: PathBuf,
    pub nics: Vec<Nic>,
}

/// virtiofsd runs.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    parts: Parts,
    share: Share,
    share_socket: ShareSocket,
}

/// The guest boots.
#[derive(Debug)]
pub struct Launched {
    config: VmConfig,
    folder: PathBuf,
    /// When the monitor was started.
    started: SystemTime,
    accelerator: Accelerator,
    processes: Processes,
    wire: HostEnd,
}

/// The guest's agent has answered.
#[derive(Debug)]
pub struct Greeted {
    up: Up,
    connected: Connected,
}

/// What runs, but for the channel.
#[derive(Debug)]
struct Up {
    folder: PathBuf,
    /// For what belongs to the boot.
    patience: Duration,
    started: SystemTime,
    accelerator: Accelerator,
    wire: WireKind,
    processes: Processes,
}

/// The channel with an agent at its other end.
#[derive(Debug)]
struct Connected {
    channel: Channel,
    driver: JoinSet<()>,
    agent: Agent,
    guest: Guest,
    answered: SystemTime,
}

impl Plan {
    /// Finds the files and starts virtiofsd.
    ///
    /// # Errors
    /// When something is missing; nothing runs then.
    pub fn prepare(self, place: Place<'_>) -> Result<Prepared, BootError> {
        let parts = self.config.parts()?;
        let log = self.log("virtiofsd.log")?;
        let (share, share_socket) = Share::start(&parts.virtiofsd, &self.folder.join("share"), Some(log))?;
        place(share.pid())
            .map_err(|source| BootError::Io { operation: "put virtiofsd into the pod's cgroup", source })?;
        Ok(Prepared { plan: self, parts, share, share_socket })
    }

    fn log(&self, name: &str) -> Result<OwnedFd, BootError> {
        let failed = |source| BootError::Io { operation: "open a log of the machine", source };
        std::fs::create_dir_all(&self.folder).map_err(failed)?;
        let file = std::fs::File::options().create(true).append(true).open(self.folder.join(name));
        file.map(OwnedFd::from).map_err(failed)
    }
}

impl Prepared {
    /// Starts the monitor.
    ///
    /// # Errors
    /// When it cannot be started; virtiofsd is ended then.
    pub async fn launch(self, place: Place<'_>) -> Result<Launched, BootError> {
        let log = self.plan.log(MONITOR_LOG)?;
        let Prepared { plan, parts, share, share_socket } = self;
        let Plan { config, accelerator, nics, folder } = plan;
        let kind = config.monitor_kind();
        let (wire, channel) = wire::make(config.channel, kind, &folder)?;
        let launch = Launch {
            parts,
            accelerator,
            memory: config.memory,
            cpus: config.cpus,
            machine: config.machine,
            channel,
            share: Some(share_socket),
            nics,
            folder: folder.clone(),
        };
        let started = SystemTime::now();
        let monitor = vmm::start(kind, launch, Some(log), place).await?;
        let processes = Processes { monitor, share };
        Ok(Launched { config, folder, started, accelerator, processes, wire })
    }
}

impl Launched {
    /// Waits for the agent.
    ///
    /// # Errors
    /// When it does not answer in time, with the end of the console; everything is ended then.
    pub async fn greet(self) -> Result<Greeted, BootError> {
        let Launched { config, folder, started, accelerator, processes, wire } = self;
        let patience = config.boot_deadline();
        let up = Up { folder, patience, started, accelerator, wire: wire.kind(), processes };
        let greeted = tokio::select! {
            greeted = greet(wire, patience) => greeted,
            () = up.processes.monitor.exited() => Err(ChannelError::Ended.into()),
        };
        match greeted {
            Ok(connected) => Ok(Greeted { up, connected }),
            Err(error) => Err(up.fail(error).await),
        }
    }
}

/// The deadline is for all of it.
async fn greet(wire: HostEnd, deadline: Duration) -> Result<Connected, AgentError> {
    let begin = Instant::now();
    let silent = |_| AgentError::Silent { call: "connect", after: deadline };
    let socket = tokio::time::timeout(deadline, wire.connect()).await.map_err(silent)?;
    let socket = socket.map_err(|error| AgentError::Call { call: "connect", words: error.to_string() })?;
    let (channel, driving) = Channel::host(socket.compat());
    let mut driver = JoinSet::new();
    driver.spawn(driving);
    let (agent, guest) = Agent::greet(&channel, deadline.saturating_sub(begin.elapsed())).await?;
    Ok(Connected { channel, driver, agent, guest, answered: SystemTime::now() })
}

impl Up {
    async fn fail(self, source: AgentError) -> BootError {
        let console = self.processes.monitor.console().await;
        let monitor = last_words(&self.folder.join(MONITOR_LOG));
        BootError::Guest { accelerator: self.accelerator, source, monitor, console }
    }
}

impl Greeted {
    /// Makes the guest the pod's.
    ///
    /// # Errors
    /// When the agent refuses; everything is ended then.
    pub async fn set_up(self, setup: &GuestSetup) -> Result<Machine, BootError> {
        match self.connected.agent.set_up(setup, self.up.patience).await {
            Ok(()) => {
                self.note_times();
                Ok(self.into_machine())
            }
            Err(error) => Err(self.up.fail(error).await),
        }
    }

    fn note_times(&self) {
        let since = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let [started, answered] = [self.up.started, self.connected.answered].map(since);
        let set_up = since(SystemTime::now());
        let text =
            format!("{{\"monitor_started\":{started},\"agent_answered\":{answered},\"set_up\":{set_up}}}\n");
        // Nothing depends on it.
        drop(std::fs::write(self.up.folder.join(TIMES), text));
    }

    /// The machine without a pod.
    pub fn into_machine(self) -> Machine {
        let Greeted { up, connected } = self;
        let Connected { channel, driver, agent, guest, .. } = connected;
        Machine::new(up.processes, channel, agent, guest, up.accelerator, up.wire, driver)
    }
}
