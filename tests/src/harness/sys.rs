//! The harness's own system calls: what a child does before exec, bringing loopback up, inherited descriptors.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Makes the command's process die with the thread that starts it, and run in the network namespace `netns`.
pub fn bind_to_us(command: &mut Command, netns: Option<RawFd>) {
    let prepare = move || {
        // SAFETY: setns and prctl are async-signal-safe, take plain numbers and touch no memory of ours. The
        // descriptor is held open by the caller's `Netns` while the command runs.
        let failed = unsafe {
            netns.is_some_and(|fd| libc::setns(fd, libc::CLONE_NEWNET) != 0)
                || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0
        };
        if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: `prepare` allocates nothing and takes no lock.
    unsafe { command.pre_exec(prepare) };
}

/// Sets the loopback link of the calling thread's network namespace up.
pub fn loopback_up() -> io::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: an all-zero ifreq is valid: it is plain data.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (field, byte) in request.ifr_name.iter_mut().zip(b"lo") {
        *field = *byte as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&socket);
    // SAFETY: the descriptor is open, and SIOCSIFFLAGS reads one ifreq, which lives through the call.
    if unsafe { libc::ioctl(fd, libc::SIOCSIFFLAGS, &request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A descriptor that this process was started with, and that nothing else in it uses.
pub fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: the caller names a descriptor that its parent left open for it alone; a wrong number gives errors.
    unsafe { OwnedFd::from_raw_fd(number) }
}
