//! The few things that need `unsafe` or raw descriptors, wrapped so that their callers do not.
//!
//! Invariant: every function here takes and gives owned or borrowed typed values; a raw number enters only where it
//! came from the command line or from a foreign library.
#![allow(unsafe_code)]

pub mod bpf;
pub mod mount;
pub mod program;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{ForkResult, Pid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What `fork` returned, and to whom.
pub enum Forked {
    Parent(Pid),
    Child,
}

/// Splits a single-threaded process in two. See fork(2).
pub fn fork() -> nix::Result<Forked> {
    // SAFETY: no process of this binary ever has a second thread, so the child may go on using the allocator and
    // every other part of the library as the parent could.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Forked::Parent(child)),
        ForkResult::Child => Ok(Forked::Child),
    }
}

/// Takes over a descriptor whose number was handed down by the process that started this one.
pub fn adopt(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFD only asks whether the number is open and changes nothing.
    if fd <= 2 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the number is open, and by the contract between parent and child nobody else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor that a cloned process shares with its creator by number.
#[derive(Debug, Clone, Copy)]
pub struct SharedFd(RawFd);

impl SharedFd {
    pub fn of(fd: &OwnedFd) -> Self {
        SharedFd(fd.as_raw_fd())
    }

    /// Writes all of `bytes`, or says why not.
    pub fn write_all(self, mut bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the owner keeps the descriptor open for the whole life of the process (it is leaked on purpose by
        // the child command), and a forked copy of the process has it under the same number.
        let fd = unsafe { BorrowedFd::borrow_raw(self.0) };
        while !bytes.is_empty() {
            match nix::unistd::write(fd, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

/// Closes every inherited descriptor from `first` on. See close_range(2).
pub fn close_from(first: u32) {
    // SAFETY: called at the very start of a process, before it opened anything of its own; closing what nobody in this
    // process owns cannot break an owner. A kernel without the call leaves them open, which is harmless.
    unsafe {
        libc::syscall(libc::SYS_close_range, first, u32::MAX, 0);
    }
}

/// Mounts classically, with options as one string. See mount(2).
pub fn mount(source: &str, target: &Path, fs_type: &str, flags: u64, data: &str) -> nix::Result<()> {
    let flags = nix::mount::MsFlags::from_bits_truncate(flags);
    let data = if data.is_empty() { None } else { Some(data) };
    nix::mount::mount(Some(source), target, Some(fs_type), flags, data)
}

/// Makes the calling process the parent of its orphaned descendants. See PR_SET_CHILD_SUBREAPER in prctl(2).
pub fn become_subreaper() -> io::Result<()> {
    // SAFETY: the call takes plain integers and only sets an attribute of the calling process.
    match unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps permitted capabilities across the change of the user id. See PR_SET_KEEPCAPS in prctl(2).
pub fn keep_capabilities(keep: bool) -> io::Result<()> {
    // SAFETY: the call takes plain integers and only sets an attribute of the calling process.
    match unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, libc::c_ulong::from(keep), 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Forbids the process and its children to gain privileges by exec. See PR_SET_NO_NEW_PRIVS in prctl(2).
pub fn forbid_new_privileges() -> io::Result<()> {
    // SAFETY: the call takes plain integers and only sets an attribute of the calling process.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends the process at once, running no destructor: for a forked copy that must not undo its parent's doings.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit(2) takes an integer, never returns and touches no memory of the process.
    unsafe { libc::_exit(status) }
}

/// Sends any signal by its number. See kill(2).
pub fn kill(pid: i32, signal: i32) -> nix::Result<()> {
    if pid <= 0 {
        return Err(Errno::EINVAL);
    }
    // SAFETY: the call takes plain integers; a positive pid names exactly one process.
    Errno::result(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Registers an owned descriptor with the runtime.
pub fn watch<T: AsRawFd + std::os::fd::AsFd>(owner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    // SAFETY: a type that implements AsFd gives out a descriptor that it keeps open and unchanged, and AsyncFd takes
    // the owner over, so the registration ends before the descriptor does.
    Ok(unsafe { AsyncFd::register_with_interest(owner, interest) }?)
}

/// Gives every signal its default effect, for the program that is about to take this process's place. signal(2)
pub fn default_signals() {
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL installs no handler, and the process has one thread and is about to exec. The kernel refuses
        // the two signals that cannot be changed, the C library its own two.
        unsafe {
            libc::signal(number, libc::SIG_DFL);
        }
    }
}

/// Ends this process when `parent` does, also when that has happened already. See PR_SET_PDEATHSIG in prctl(2).
pub fn die_with(parent: i32) -> io::Result<()> {
    // SAFETY: the call takes plain integers and only sets an attribute of the calling process.
    if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if nix::unistd::getppid().as_raw() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
}

/// Lets no process look into this one, not even its equals, until it runs another program. See PR_SET_DUMPABLE in
/// prctl(2).
pub fn forbid_looking_in() -> io::Result<()> {
    // SAFETY: the call takes plain integers and only sets an attribute of the calling process.
    match unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Keeps the descriptors from `first` on from whatever program this process runs. See close_range(2).
pub fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: the call takes plain integers and only marks descriptors; none is closed.
    match unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes the program that `command` starts die with this process. See PR_SET_PDEATHSIG in prctl(2).
pub fn die_together(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    let parent = std::process::id().cast_signed();
    // SAFETY: what runs between fork and exec are two system calls; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || die_with(parent));
    }
}
