//! From a plan to a machine, in phases that are types; each is consumed by the next.
//!
//! ```text
//! Plan ──prepare──▶ Prepared ──launch──▶ Launched ──greet──▶ Greeted ──set_up──▶ Machine
//!                      └───────────────────┴──────────────────┴── fail: all that runs is ended
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use tokio::task::JoinSet;
use tokio_util::compat::TokioAsyncReadCompatExt;

use crate::agent::{Agent, AgentError, Guest, GuestSetup};
use crate::channel::Channel;
use crate::config::{ConfigError, Parts, VmConfig};
use crate::machine::{Machine, Processes};
use crate::share::{Share, ShareError};
use crate::vmm::qemu::Qemu;
use crate::vmm::{Accelerator, Launch, Monitor, MonitorError, Nic};

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Share(#[from] ShareError),
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error("{operation}: {source}")]
    Io { operation: &'static str, source: io::Error },
    #[error("the guest does not come up under {accelerator}: {source}{}", quoted(.console))]
    Guest { accelerator: Accelerator, source: AgentError, console: String },
}

fn quoted(console: &str) -> String {
    if console.is_empty() { String::new() } else { format!("; its console says: {console}") }
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

/// Where the machine's processes are put, by their pids: the pod's cgroup.
pub type Place<'a> = &'a (dyn Fn(i32) -> io::Result<()> + Sync);

/// virtiofsd runs.
#[derive(Debug)]
pub struct Prepared {
    plan: Plan,
    parts: Parts,
    share: Share,
    share_end: OwnedFd,
}

/// The guest boots.
#[derive(Debug)]
pub struct Launched {
    config: VmConfig,
    accelerator: Accelerator,
    processes: Processes,
    channel: Channel,
    driver: JoinSet<()>,
}

/// The guest's agent has answered.
#[derive(Debug)]
pub struct Greeted {
    launched: Launched,
    agent: Agent,
    guest: Guest,
}

impl Plan {
    /// Finds the files and starts virtiofsd.
    ///
    /// # Errors
    /// When something is missing; nothing runs then.
    pub fn prepare(self, place: Place<'_>) -> Result<Prepared, BootError> {
        let parts = self.config.parts()?;
        let log = self.log("virtiofsd.log")?;
        let (share, share_end) = Share::start(&parts.virtiofsd, &self.folder.join("share"), Some(log))?;
        place(share.pid())
            .map_err(|source| BootError::Io { operation: "put virtiofsd into the pod's cgroup", source })?;
        Ok(Prepared { plan: self, parts, share, share_end })
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
    pub fn launch(self, place: Place<'_>) -> Result<Launched, BootError> {
        let failed = |source| BootError::Io { operation: "make the channel", source };
        let (ours, theirs) = UnixStream::pair().map_err(failed)?;
        ours.set_nonblocking(true).map_err(failed)?;
        let ours = tokio::net::UnixStream::from_std(ours).map_err(failed)?;
        let log = self.plan.log("monitor.log")?;
        let Prepared { plan, parts, share, share_end } = self;
        let Plan { config, accelerator, nics, .. } = plan;
        let (memory, cpus) = (config.memory, config.cpus);
        let launch =
            Launch { parts, accelerator, memory, cpus, channel: theirs.into(), share: Some(share_end), nics };
        let monitor = Qemu::start(launch, Some(log))?;
        place(monitor.pid())
            .map_err(|source| BootError::Io { operation: "put the monitor into the pod's cgroup", source })?;
        let (channel, driving) = Channel::host(ours.compat());
        let mut driver = JoinSet::new();
        driver.spawn(driving);
        let processes = Processes { monitor: Box::new(monitor), share };
        Ok(Launched { config, accelerator, processes, channel, driver })
    }
}

impl Launched {
    /// Waits for the agent.
    ///
    /// # Errors
    /// When it does not answer in time, with the end of the console; everything is ended then.
    pub async fn greet(self) -> Result<Greeted, BootError> {
        let greeting = Agent::greet(&self.channel, self.config.boot_deadline());
        let greeted = tokio::select! {
            greeted = greeting => greeted,
            () = self.processes.monitor.exited() => Err(crate::channel::ChannelError::Ended.into()),
        };
        match greeted {
            Ok((agent, guest)) => Ok(Greeted { launched: self, agent, guest }),
            Err(error) => Err(self.fail(error).await),
        }
    }

    async fn fail(self, source: AgentError) -> BootError {
        let console = self.processes.monitor.console().await;
        BootError::Guest { accelerator: self.accelerator, source, console }
    }
}

impl Greeted {
    /// Makes the guest the pod's.
    ///
    /// # Errors
    /// When the agent refuses; everything is ended then.
    pub async fn set_up(self, setup: &GuestSetup) -> Result<Machine, BootError> {
        match self.agent.set_up(setup).await {
            Ok(()) => Ok(self.into_machine()),
            Err(error) => Err(self.launched.fail(error).await),
        }
    }

    /// The machine without a pod.
    pub fn into_machine(self) -> Machine {
        let Greeted { launched, agent, guest } = self;
        let Launched { accelerator, processes, channel, driver, .. } = launched;
        Machine::new(processes, channel, agent, guest, accelerator, driver)
    }
}
