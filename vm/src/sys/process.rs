//! A confined child process, held by a pidfd: it dies with its parent's thread, and is never mistaken for another.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The highest capability that any kernel is known to have, with room for more.
const MOST_CAPABILITIES: libc::c_ulong = 63;
const CAPABILITY_VERSION: u32 = 0x2008_0522;

/// What to run, and how far it is kept apart.
#[derive(Debug, Clone, Default)]
pub struct Program {
    pub path: PathBuf,
    pub arguments: Vec<OsString>,
    /// A network namespace of its own, with nothing in it.
    pub no_network: bool,
    /// Mounts that it makes are its own; those of the node go on arriving.
    pub own_mounts: bool,
    pub no_capabilities: bool,
}

/// A child and the only handle to it.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: AsyncFd<OwnedFd>,
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
        self.bury();
    }
}

impl Program {
    /// Starts it with `passed` open under the same numbers, and `errors` as its standard error. `prepare` is what else it
    /// does to itself first, in its own namespaces: it runs between fork and exec and may not allocate.
    ///
    /// # Errors
    /// When it cannot be started; nothing is left then.
    pub fn spawn(
        &self,
        passed: &[BorrowedFd<'_>],
        errors: Option<OwnedFd>,
        prepare: impl FnMut() -> io::Result<()> + Send + Sync + 'static,
    ) -> io::Result<Child> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(errors.map_or_else(Stdio::null, Stdio::from));
        let steps = Steps {
            parent: std::process::id().cast_signed(),
            numbers: passed.iter().map(AsRawFd::as_raw_fd).collect(),
            no_network: self.no_network,
            own_mounts: self.own_mounts,
            no_capabilities: self.no_capabilities,
        };
        let mut prepare = prepare;
        // SAFETY: between fork and exec only system calls are made: `steps` and its vector were made before, nothing is
        // allocated and no lock is taken; `prepare` is bound by its contract to the same.
        unsafe {
            command.pre_exec(move || {
                steps.namespaces()?;
                prepare()?;
                steps.confine()
            });
        }
        let pid = command.spawn()?.id().cast_signed();
        Child::hold(pid)
    }
}

struct Steps {
    parent: i32,
    numbers: Vec<RawFd>,
    no_network: bool,
    own_mounts: bool,
    no_capabilities: bool,
}

impl Steps {
    fn namespaces(&self) -> io::Result<()> {
        let network = if self.no_network { libc::CLONE_NEWNET } else { 0 };
        let mounts = if self.own_mounts { libc::CLONE_NEWNS } else { 0 };
        // SAFETY: unshare(2) takes flags alone.
        check(unsafe { libc::unshare(network | mounts) })?;
        if self.own_mounts {
            let flags = libc::MS_REC | libc::MS_SLAVE;
            let (root, none) = (c"/".as_ptr(), std::ptr::null());
            // SAFETY: mount(2) reads C strings that live as long as the program; the others may be null.
            check(unsafe { libc::mount(none, root, none, flags, std::ptr::null()) })?;
        }
        Ok(())
    }

    fn confine(&self) -> io::Result<()> {
        for number in &self.numbers {
            // SAFETY: fcntl(2) changes a flag of a descriptor that this process has by its parent's choice.
            check(unsafe { libc::fcntl(*number, libc::F_SETFD, 0) })?;
        }
        // SAFETY: prctl(2) with plain integers sets attributes of this process alone.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
        // SAFETY: getppid(2) takes nothing.
        if unsafe { libc::getppid() } != self.parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: as above.
        check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
        if self.no_capabilities { drop_capabilities() } else { Ok(()) }
    }
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

fn drop_capabilities() -> io::Result<()> {
    for number in 0..=MOST_CAPABILITIES {
        // SAFETY: prctl(2) with plain integers; numbers that the kernel does not know are refused and change nothing.
        unsafe {
            libc::prctl(libc::PR_CAPBSET_DROP, number, 0, 0, 0);
        }
    }
    let header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    // Effective, permitted and inheritable, twice 32 bits.
    let none = [0_u32; 6];
    // SAFETY: capset(2) reads a header and two sets of the layout of this version; both live until it returns.
    let outcome = unsafe { libc::syscall(libc::SYS_capset, std::ptr::from_ref(&header), none.as_ptr()) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn check(outcome: libc::c_int) -> io::Result<()> {
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

impl Child {
    /// Takes hold of a child that this thread has just made: it cannot have been waited for.
    fn hold(pid: i32) -> io::Result<Child> {
        let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(raw, PidfdFlags::empty()).inspect_err(|_| {
            // Still ours and not waited for, so the number is its own.
            let _ = rustix::process::kill_process(raw, Signal::KILL);
        })?;
        // SAFETY: the descriptor is owned by the value that is registered, so it stays open while registered.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?;
        Ok(Child { pid, pidfd })
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// For joining its namespaces.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.get_ref().as_fd()
    }

    /// Does nothing to one that has ended.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(self.pidfd.get_ref(), Signal::KILL);
    }

    pub async fn exited(&self) {
        // An error means that it cannot be watched, which is no reason to take it for alive.
        drop(self.pidfd.readable().await);
        self.bury();
    }

    pub fn is_alive(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::PidFd(self.pidfd()), options), Ok(None))
    }

    /// Whoever waits for all children of this process may have been faster.
    fn bury(&self) {
        let _ = waitid(WaitId::PidFd(self.pidfd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(words: &[&str]) -> Program {
        Program {
            path: words[0].into(),
            arguments: words[1..].iter().map(Into::into).collect(),
            no_capabilities: true,
            ..Program::default()
        }
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_and_a_dropped_one_dies() {
        let child = program(&["/bin/sh", "-c", "exit 3"]).spawn(&[], None, || Ok(())).unwrap();
        child.exited().await;
        assert!(!child.is_alive());
        let child = program(&["/bin/sleep", "1000"]).spawn(&[], None, || Ok(())).unwrap();
        assert!(child.is_alive());
        let pid = child.pid();
        drop(child);
        for _ in 0..100 {
            let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(" Z ") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("{pid} lives on");
    }

    #[tokio::test]
    async fn a_child_has_no_capabilities_even_as_root() {
        let words = "grep -q 'CapEff:.0000000000000000' /proc/self/status && grep -q 'CapBnd:.0000000000000000' /proc/self/status";
        let (read, write) = std::io::pipe().unwrap();
        let script = format!("{words} && echo none >&2");
        let child =
            program(&["/bin/sh", "-c", &script]).spawn(&[], Some(OwnedFd::from(write)), || Ok(())).unwrap();
        child.exited().await;
        assert_eq!(io::read_to_string(read).unwrap(), "none\n");
    }
}
