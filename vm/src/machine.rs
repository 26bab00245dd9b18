//! A pod's machine.
//!
//! ```text
//!  (phases of `boot`) ──▶ Running ──stop()──▶ Stopping ──────▶ Ended
//!                            ├──give_up(why)──▶ GivenUp ──────▶ Ended
//!                            └── a process of it ends, or the channel ─▲
//! ```
//! Invariant: it is one whole: when the monitor, virtiofsd or the channel ends, all of it is ended, and everyone who
//! waits is told why. Dropping the machine ends it too.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::agent::{Agent, AgentError, Guest, plain};
use crate::channel::Channel;
use crate::share::Share;
use crate::vmm::{Accelerator, Monitor, MonitorError};
use crate::wire::WireKind;

/// How long the guest may take to turn itself off.
const POWER_OFF: Duration = Duration::from_secs(3);
/// How long the monitor may then take.
const MONITOR_STOP: Duration = Duration::from_secs(1);
/// A killed process is gone sooner than this, or something is wrong with the node.
const DEATH: Duration = Duration::from_secs(5);
/// How long after another part of the machine the monitor may be seen to end, and still be the cause.
const CAUSE: Duration = Duration::from_millis(500);
/// How much of what the guest printed last is told with its end.
const LAST_WORDS: usize = 300;

/// How long a guest may take to find a device that was added.
const DEVICE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, thiserror::Error)]
pub enum AddDiskError {
    #[error(transparent)]
    Monitor(#[from] MonitorError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the guest does not find the disk {name} that was added")]
    NotFound { name: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifecycle {
    Running,
    /// Asked to end.
    Stopping,
    /// Killed by whoever holds it, with the reason.
    GivenUp(String),
    /// With the reason.
    Ended(String),
}

impl Lifecycle {
    fn stopping(&self) -> Self {
        match self {
            Lifecycle::Running | Lifecycle::Stopping => Lifecycle::Stopping,
            Lifecycle::GivenUp(_) | Lifecycle::Ended(_) => self.clone(),
        }
    }

    fn given_up(&self, why: String) -> Self {
        match self {
            Lifecycle::Running => Lifecycle::GivenUp(why),
            Lifecycle::Stopping | Lifecycle::GivenUp(_) | Lifecycle::Ended(_) => self.clone(),
        }
    }

    /// What ended first counts; after a stop it was the stop.
    fn ended(&self, what: &str) -> Self {
        match self {
            Lifecycle::Running => Lifecycle::Ended(what.to_owned()),
            Lifecycle::Stopping => Lifecycle::Ended("the machine was stopped".to_owned()),
            Lifecycle::GivenUp(reason) | Lifecycle::Ended(reason) => Lifecycle::Ended(reason.clone()),
        }
    }
}

/// The processes that a machine consists of.
#[derive(Debug)]
pub(crate) struct Processes {
    pub monitor: Box<dyn Monitor>,
    pub share: Share,
}

impl Processes {
    fn kill(&self) {
        self.monitor.kill();
        self.share.kill();
    }
}

#[derive(Debug)]
pub struct Machine {
    processes: Arc<Processes>,
    channel: Channel,
    agent: Agent,
    guest: Guest,
    accelerator: Accelerator,
    wire: WireKind,
    state: watch::Sender<Lifecycle>,
    /// Drives the channel, and watches the processes.
    _tasks: JoinSet<()>,
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.processes.kill();
    }
}

impl Machine {
    /// Takes over what `boot` has brought up; `driver` holds the task that drives the channel.
    pub(crate) fn new(
        processes: Processes,
        channel: Channel,
        agent: Agent,
        guest: Guest,
        accelerator: Accelerator,
        wire: WireKind,
        mut driver: JoinSet<()>,
    ) -> Self {
        let processes = Arc::new(processes);
        let state = watch::Sender::new(Lifecycle::Running);
        let (watched, told) = (Arc::clone(&processes), state.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let what = tokio::select! {
                () = watched.monitor.exited() => "its monitor ended",
                () = watched.share.exited() => "its virtiofsd ended",
                _ = driver.join_next() => "the channel to its agent ended",
            };
            // The connections of a dying monitor break before it is seen to be dead.
            let what = match timeout(CAUSE, watched.monitor.exited()).await {
                Ok(()) => "its monitor ended",
                Err(_) => what,
            };
            // The guest turns itself off in the end; the rest follows.
            watched.kill();
            let _ = timeout(DEATH, async { tokio::join!(watched.monitor.exited(), watched.share.exited()) })
                .await;
            let what = with_last_words(what, &watched.monitor.console().await);
            told.send_modify(|state| *state = state.ended(&what));
        });
        Machine { processes, channel, agent, guest, accelerator, wire, state, _tasks: tasks }
    }

    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Over what its agent is reached.
    pub fn wire(&self) -> WireKind {
        self.wire
    }

    pub fn channel(&self) -> &Channel {
        &self.channel
    }

    pub fn share(&self) -> &Share {
        &self.processes.share
    }

    pub fn monitor(&self) -> &dyn Monitor {
        &*self.processes.monitor
    }

    /// Gives the guest a disk, and returns once its kernel has it: the device's name in the guest.
    ///
    /// # Errors
    /// When the monitor refuses, or the guest does not find it.
    pub async fn add_disk(&self, name: &str, image: OwnedFd) -> Result<String, AddDiskError> {
        self.monitor().add_disk(name, image).await?;
        let begin = Instant::now();
        while begin.elapsed() < DEVICE {
            let hardware = self.agent.hardware().await?;
            if let Some(disk) = hardware.disks.into_iter().find(|disk| disk.serial == name) {
                return Ok(disk.device);
            }
            tokio::time::sleep(POLL).await;
        }
        Err(AddDiskError::NotFound { name: name.to_owned() })
    }

    pub fn has_ended(&self) -> bool {
        matches!(*self.state.borrow(), Lifecycle::Ended(_))
    }

    /// Returns once it has ended, with the reason.
    pub async fn ended(&self) -> String {
        let mut states = self.state.subscribe();
        loop {
            if let Lifecycle::Ended(reason) = &*states.borrow_and_update() {
                return reason.clone();
            }
            if states.changed().await.is_err() {
                return "the machine is gone".to_owned();
            }
        }
    }

    /// Pulls the plug on a guest that is of no use any more. Who waits for the end is told `why`.
    pub fn give_up(&self, why: impl Into<String>) {
        self.state.send_modify(|state| *state = state.given_up(why.into()));
        self.processes.kill();
    }

    /// Ends it: asks the guest first, then the monitor, then pulls the plug. Ended is done.
    pub async fn stop(&self) {
        self.state.send_modify(|state| *state = state.stopping());
        if !self.has_ended() {
            let asked = async {
                tokio::join!(self.agent.power_off(POWER_OFF), self.processes.monitor.exited());
            };
            if timeout(POWER_OFF, asked).await.is_err() {
                let ended = async {
                    // One that does not do it is killed, as is one that is not listened to.
                    if self.processes.monitor.stop().await.is_ok() {
                        self.processes.monitor.exited().await;
                    }
                };
                drop(timeout(MONITOR_STOP, ended).await);
                self.processes.kill();
            }
        }
        drop(timeout(DEATH, self.ended()).await);
    }
}

/// A panic, or what the agent had to say, is the end of what the guest printed.
fn with_last_words(what: &str, console: &str) -> String {
    let words = console.trim();
    let skipped = words.chars().count().saturating_sub(LAST_WORDS);
    let last = plain(&words.chars().skip(skipped).collect::<String>());
    if last.is_empty() { what.to_owned() } else { format!("{what}; the guest printed last: {last:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_printed_last_is_told_and_does_no_harm() {
        let told = with_last_words("it ended", &format!("{}\n\u{1b}[2J panic\n", "x".repeat(5000)));
        assert!(told.len() < 500 && told.ends_with("[2J panic\""), "{told}");
        assert!(!told.contains(['\u{1b}', '\n']));
        assert_eq!(with_last_words("it ended", " \n"), "it ended");
    }

    #[test]
    fn the_first_end_counts_and_a_stop_is_no_crash() {
        let crashed = Lifecycle::Running.ended("its monitor ended");
        assert_eq!(crashed, Lifecycle::Ended("its monitor ended".into()));
        assert_eq!(crashed.ended("more"), crashed);
        assert_eq!(crashed.stopping(), crashed);
        let stopped = Lifecycle::Running.stopping().ended("its monitor ended");
        assert_eq!(stopped, Lifecycle::Ended("the machine was stopped".into()));
        let given_up = Lifecycle::Running.given_up("it hangs".into());
        assert_eq!(given_up.stopping().ended("its monitor ended"), Lifecycle::Ended("it hangs".into()));
        assert_eq!(Lifecycle::Stopping.given_up("it hangs".into()), Lifecycle::Stopping);
    }
}
