//! The built-in pause: the first process of a pod, which holds its namespaces and buries its dead.
//!
//! It touches as little memory as it can: no heap beyond what the runtime library does, no threads, one system call
//! to sleep in.

use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

pub fn run() -> ExitCode {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGCHLD);
    // A blocked signal reaches the first process of a pid namespace even though it has no handler.
    if signals.thread_block().is_err() {
        return ExitCode::FAILURE;
    }
    loop {
        match signals.wait() {
            Ok(Signal::SIGTERM | Signal::SIGINT) => return ExitCode::SUCCESS,
            Ok(_) | Err(Errno::EINTR) => bury(),
            Err(_) => return ExitCode::FAILURE,
        }
    }
}

fn bury() {
    while !matches!(waitpid(None, Some(WaitPidFlag::WNOHANG)), Err(_) | Ok(WaitStatus::StillAlive)) {}
}
