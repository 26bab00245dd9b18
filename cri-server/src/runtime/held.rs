//! A process of the node held by a descriptor, whoever its parent is: its end is seen, and a signal reaches it or nobody.
//!
//! Invariant: what is held is the process that had the number when it was opened, never a later one of the same number.
//! pidfd_open(2), proc_pid_stat(5)

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::shim::Exit;

/// A process that can be found again after the daemon's restart: its number, and when it was started, in the kernel's
/// clock ticks since boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessName {
    pub pid: u32,
    pub started: u64,
}

/// A process held by a descriptor.
pub struct HeldProcess {
    name: ProcessName,
    process: AsyncFd<OwnedFd>,
}

impl fmt::Debug for HeldProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HeldProcess").field(&self.name).finish()
    }
}

impl HeldProcess {
    /// The process with this number; none when there is no such process. Needs a runtime around it.
    #[must_use]
    pub fn open(pid: u32) -> Option<Self> {
        let number = i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(Pid::from_raw)?;
        let process = pidfd_open(number, PidfdFlags::empty()).ok()?;
        let started = Stat::of(pid)?.started;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, and asks for what an OwnedFd keeps by itself"
        )]
        let process = AsyncFd::with_interest(process, Interest::READABLE).ok()?;
        Some(Self { name: ProcessName { pid, started }, process })
    }

    /// The process that was named before, if it is still there.
    #[must_use]
    pub fn find(name: ProcessName) -> Option<Self> {
        Self::open(name.pid).filter(|found| found.name == name)
    }

    /// The shim that says in its bundle that it serves `id`, and whose command line agrees.
    #[must_use]
    pub fn shim_of(bundle: &Path, id: &str) -> Option<Self> {
        let text = std::fs::read_to_string(bundle.join("shim.pid")).ok()?;
        let found = Self::open(text.trim().parse().ok()?)?;
        let command = std::fs::read(format!("/proc/{}/cmdline", found.name.pid)).unwrap_or_default();
        command.split(|byte| *byte == 0).any(|word| word == id.as_bytes()).then_some(found)
    }

    #[must_use]
    pub fn name(&self) -> ProcessName {
        self.name
    }

    /// Resolves when it has ended; whether its parent has asked for its exit does not matter.
    pub async fn ended(&self) {
        // An error means that it cannot be watched, which is no end.
        if self.process.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    #[must_use]
    pub fn has_ended(&self) -> bool {
        let mut watched = [PollFd::new(self.process.get_ref(), PollFlags::IN)];
        poll(&mut watched, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
    }

    /// Sends SIGKILL and waits; false when it is still there after `patience`.
    pub async fn kill(&self, patience: Duration) -> bool {
        // One that has ended by itself is as good.
        let _ = pidfd_send_signal(self.process.get_ref(), Signal::KILL);
        tokio::time::timeout(patience, self.ended()).await.is_ok()
    }

    /// Sends a signal by its number.
    ///
    /// # Errors
    /// When the process has ended, or the signal has no name, as real-time signals.
    pub fn signal_number(&self, number: i32) -> io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(io::ErrorKind::InvalidInput)?;
        Ok(pidfd_send_signal(self.process.get_ref(), signal)?)
    }

    /// How it ended, as long as its parent has not asked.
    #[must_use]
    pub fn exit(&self) -> Option<Exit> {
        let stat = Stat::of(self.name.pid)?;
        let status = stat.exit_status().filter(|_| stat.started == self.name.started)?;
        Some(Exit { status, exited_at: Some(SystemTime::now()), pid: self.name.pid })
    }
}

/// What counts here of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    state: char,
    started: u64,
    /// As wait(2) would tell it; 0 while it runs.
    code: u32,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name may hold anything, parentheses too. The first field here is the third of the manual.
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let field = |number: usize| fields.get(number - 3);
        Some(Self {
            state: field(3)?.chars().next()?,
            started: field(22)?.parse().ok()?,
            code: field(52)?.parse().ok()?,
        })
    }

    /// 128 plus the signal's number where a signal ended it.
    fn exit_status(&self) -> Option<u32> {
        let signal = self.code & 0x7f;
        (self.state == 'Z').then(|| if signal == 0 { (self.code >> 8) & 0xff } else { 128 + signal })
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[tokio::test]
    async fn the_end_and_the_exit_of_somebody_elses_child_are_seen() {
        for (script, expected) in [("exit 7", 7), ("kill -9 $$", 137)] {
            let script = format!("read go; {script}");
            let mut command = Command::new("sh");
            command.args(["-c", &script]).stdin(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let held = HeldProcess::open(child.id()).unwrap();
            assert!(!held.has_ended() && held.exit().is_none());
            drop(child.stdin.take());
            held.ended().await;
            assert!(held.has_ended());
            assert_eq!(held.exit().unwrap().status, expected);
            child.wait().unwrap();
            assert!(held.exit().is_none(), "whoever has the number now is another");
        }
    }

    #[tokio::test]
    async fn a_stopped_process_is_killed_and_another_start_is_another_process() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let held = HeldProcess::open(child.id()).unwrap();
        held.signal_number(libc::SIGSTOP).unwrap();
        let name = held.name();
        assert!(HeldProcess::find(name).is_some());
        assert!(HeldProcess::find(ProcessName { started: name.started + 1, ..name }).is_none());
        assert!(held.kill(Duration::from_secs(5)).await);
        child.wait().unwrap();
        assert!(HeldProcess::find(name).is_none());
    }

    #[test]
    fn a_wait_status_becomes_a_shells_code() {
        let stat = |state: char, code: u32| {
            let zeros = ["0"; 29].join(" ");
            let text =
                format!("7 (a) b) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 99 {zeros} {code}\n");
            Stat::parse(&text).unwrap()
        };
        assert_eq!(stat('Z', 0x0300).exit_status(), Some(3));
        assert_eq!(stat('Z', 15).exit_status(), Some(143));
        assert_eq!(stat('Z', 0x80 | 11).exit_status(), Some(139));
        assert_eq!((stat('S', 0).exit_status(), stat('S', 0).started), (None, 99));
    }
}
