//! The only place that waits for child processes.
//!
//! The shim is the subreaper of everything its containers leave behind, so each death arrives here: for a process
//! somebody watches the status is handed over, the rest is buried. Invariant: a status is never lost between the birth
//! of a process and the moment its pid becomes known: deaths nobody asked for yet are kept while a launch is under way.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

use crate::sys;

#[derive(Default)]
struct Deaths {
    watched: HashMap<i32, oneshot::Sender<u32>>,
    unclaimed: HashMap<i32, u32>,
    launches: usize,
}

#[derive(Default)]
pub struct Reaper {
    deaths: Mutex<Deaths>,
}

/// While one of these lives, the statuses of unknown processes are kept for whoever learns their pid.
pub struct Launching(Arc<Reaper>);

impl Drop for Launching {
    fn drop(&mut self) {
        let mut deaths = self.0.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        deaths.launches -= 1;
        if deaths.launches == 0 {
            deaths.unclaimed.clear();
        }
    }
}

impl Reaper {
    /// Blocks SIGCHLD and turns it into a readable descriptor. Children get their mask back from the standard library.
    pub fn signals() -> io::Result<AsyncFd<SignalFd>> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        sys::watch(signals, Interest::READABLE)
    }

    pub fn launching(self: &Arc<Self>) -> Launching {
        self.deaths.lock().unwrap_or_else(PoisonError::into_inner).launches += 1;
        Launching(Arc::clone(self))
    }

    /// The exit status of `pid`, as a shell would report it (128 + signal for a killed process).
    pub fn watch(&self, pid: i32) -> oneshot::Receiver<u32> {
        let (sender, receiver) = oneshot::channel();
        let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
        match deaths.unclaimed.remove(&pid) {
            // The receiver is in our hand, so the value cannot be refused.
            Some(status) => drop(sender.send(status)),
            None => drop(deaths.watched.insert(pid, sender)),
        }
        receiver
    }

    /// Buries the dead until the process ends.
    pub async fn run(self: Arc<Self>, signals: AsyncFd<SignalFd>) -> io::Result<()> {
        loop {
            let mut ready = signals.readable().await?;
            while let Ok(Some(_)) = signals.get_ref().read_signal() {}
            ready.clear_ready();
            self.bury();
        }
    }

    fn bury(&self) {
        loop {
            let (pid, status) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code.unsigned_abs()),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid.as_raw(), 128 + (signal as i32).unsigned_abs())
                }
                Ok(WaitStatus::StillAlive) | Err(nix::errno::Errno::ECHILD) => return,
                Ok(_) | Err(_) => continue,
            };
            let mut deaths = self.deaths.lock().unwrap_or_else(PoisonError::into_inner);
            match deaths.watched.remove(&pid) {
                // A watcher that went away has no use for the status.
                Some(watcher) => drop(watcher.send(status)),
                None if deaths.launches > 0 => drop(deaths.unclaimed.insert(pid, status)),
                None => {}
            }
        }
    }
}
