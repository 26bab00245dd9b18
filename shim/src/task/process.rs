//! What the container's first process and its execs have in common: a state, an exit that many wait for, streams.

use std::sync::{Mutex, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::sync::watch;

use super::io::{Stdio, Streams};
use super::state::{Exit, Lifecycle, Refused};
use crate::error::ShimError;

pub struct Process {
    /// How messages name it.
    name: String,
    pub stdio: Stdio,
    /// The OCI process of an exec, as JSON.
    pub spec: String,
    pub streams: Streams,
    state: Mutex<Lifecycle>,
    exit: watch::Sender<Option<Exit>>,
    /// Held while a start is under way, so that the exit of a short-lived process is told after its start.
    pub starting: tokio::sync::Mutex<()>,
}

impl Process {
    pub fn new(name: String, stdio: Stdio, state: Lifecycle) -> Self {
        let exit = watch::Sender::new(None);
        let (streams, starting) = (Streams::default(), tokio::sync::Mutex::default());
        Process { name, stdio, spec: String::new(), streams, state: Mutex::new(state), exit, starting }
    }

    pub fn with_spec(self, spec: String) -> Self {
        Process { spec, ..self }
    }

    pub fn state(&self) -> Lifecycle {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the transition, or says that `operation` does not fit.
    pub fn transit(
        &self,
        operation: &'static str,
        next: impl FnOnce(&Lifecycle) -> Result<Lifecycle, Refused>,
    ) -> Result<Lifecycle, ShimError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        *state = next(&state).map_err(|Refused(name)| self.refuse(operation, name))?;
        Ok(*state)
    }

    pub fn refuse(&self, operation: &'static str, state: &'static str) -> ShimError {
        ShimError::State { what: self.name.clone(), operation, state }
    }

    /// From here on the pid belongs to nobody. False for the end of a process that is not this one any more.
    pub fn mark_stopped(&self, exit: Exit) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let another = state.live_pid().is_some_and(|live| live != exit.pid);
        if !another {
            *state = state.stopped(exit);
        }
        !another
    }

    /// Lets everybody who waits know.
    pub fn announce(&self, exit: Exit) {
        self.exit.send_replace(Some(exit));
    }

    pub async fn wait(&self) -> Exit {
        let mut exits = self.exit.subscribe();
        loop {
            if let Some(exit) = *exits.borrow_and_update() {
                return exit;
            }
            if exits.changed().await.is_err() {
                // Cannot happen while `self` holds the sender; waiting on is the honest answer.
                std::future::pending::<()>().await;
            }
        }
    }

    pub fn signal(&self, signal: u32) -> Result<(), ShimError> {
        let state = self.state();
        let Some(pid) = state.live_pid() else {
            return Err(match state {
                Lifecycle::Stopped(_) => ShimError::Finished(self.name.clone()),
                _ => self.refuse("signal", state.name()),
            });
        };
        let number = i32::try_from(signal).unwrap_or_default();
        let sent = match Signal::try_from(number) {
            Ok(signal) => kill(Pid::from_raw(pid), signal),
            Err(_) => send_real_time(pid, number),
        };
        sent.map_err(|errno| match errno {
            nix::errno::Errno::ESRCH => ShimError::Finished(self.name.clone()),
            nix::errno::Errno::EINVAL => ShimError::Invalid(format!("signal {signal} does not exist")),
            other => ShimError::io("send the signal")(other.into()),
        })
    }
}

/// Real-time signals have no name in the library.
fn send_real_time(pid: i32, number: i32) -> nix::Result<()> {
    crate::sys::kill(pid, number)
}
