//! Shims that serve nobody, told by their command line: they name the daemon's state folder and a task.
//!
//! Invariant: a process is killed through a descriptor that was taken before its command line and its start were compared
//! again, so that never another one that got its number is hit.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::io;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{Orphan, ReconcileError};

/// How long a killed process may take to be gone.
const DIES: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };
/// What all shims are called.
const NAME: &str = "containerd-shim";

/// All shims that were started for the daemon with this state folder.
pub(super) fn shims(state: &Path) -> Vec<(String, Orphan)> {
    let state = state.to_string_lossy().into_owned();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| {
        let id = task_of(&fs::read(format!("/proc/{pid}/cmdline")).ok()?, &state)?;
        let started = started(pid)?;
        Some((id.clone(), Orphan::Shim { pid, started, id }))
    })
    .collect()
}

/// The task of a shim that was started with this state folder as the daemon's address.
fn task_of(command_line: &[u8], state: &str) -> Option<String> {
    let words: Vec<&str> =
        command_line.split(|byte| *byte == 0).map(|word| std::str::from_utf8(word).unwrap_or("")).collect();
    let program = words.first()?.rsplit('/').next()?;
    if !program.starts_with(NAME) {
        return None;
    }
    let value = |name: &str| {
        let at =
            words.iter().position(|word| word.trim_start_matches('-') == name && word.starts_with('-'))?;
        words.get(at + 1).copied()
    };
    // The clean-up of a dead shim is its own caller's.
    let is_server = words.iter().rfind(|word| !word.is_empty()).is_none_or(|last| *last != "delete");
    (is_server && value("address") == Some(state)).then(|| value("id").map(str::to_owned)).flatten()
}

/// When a process was started, in the kernel's ticks since the boot. proc_pid_stat(5), field 22.
fn started(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

/// Kills the process that was found; one that has ended is done.
pub(super) fn kill(pid: i32, since: u64) -> Result<(), ReconcileError> {
    let failed = |error: rustix::io::Errno| ReconcileError::Process { pid, source: io::Error::from(error) };
    let Some(number) = Pid::from_raw(pid) else { return Ok(()) };
    let handle = match pidfd_open(number, PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        handle => handle.map_err(failed)?,
    };
    if started(pid) != Some(since) {
        return Ok(());
    }
    match pidfd_send_signal(&handle, Signal::KILL) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        sent => sent.map_err(failed)?,
    }
    failpoint!("reconcile.shim_killed");
    // One that the kernel holds in a system call is met again by the next sweep.
    let mut ended = [PollFd::new(&handle, PollFlags::IN)];
    match poll(&mut ended, Some(&DIES)) {
        Ok(0) => Err(failed(rustix::io::Errno::TIMEDOUT)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shim_is_known_by_its_daemon_and_task() {
        let line = |text: &str| text.replace(' ', "\0").into_bytes();
        let of = |text: &str| task_of(&line(text), "/run/a");
        let ours = "/usr/bin/containerd-shim-cofferdam-v1 -namespace k8s.io -address /run/a -id t1 start";
        assert_eq!(of(ours).as_deref(), Some("t1"));
        assert_eq!(of("containerd-shim-runc-v2 -namespace x -id t2 -address /run/a").as_deref(), Some("t2"));
        for other in [
            "containerd-shim-runc-v2 -namespace x -id t2 -address /run/b",
            "containerd-shim-runc-v2 -id t2 -address /run/a -bundle /b delete",
            "vim -id t2 -address /run/a",
            "containerd-shim-runc-v2 -address /run/a",
            "",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
