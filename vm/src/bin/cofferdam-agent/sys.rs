//! System calls that no library wraps.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Loads a kernel module. One that is there already is fine. See finit_module(2).
pub fn load_module(file: &File) -> io::Result<()> {
    let parameters: &CStr = c"";
    // SAFETY: the descriptor is open and the string lives until the call returns.
    let outcome = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if outcome == 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        error => Err(error),
    }
}

/// Gives the calling thread a network namespace of its own. See unshare(2).
pub fn new_network() -> io::Result<()> {
    // SAFETY: unshare(2) takes flags alone, and this one changes which network the thread sees and nothing in memory.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Turns the machine off; returns when the kernel refuses. See reboot(2).
pub fn power_off() {
    // SAFETY: sync(2) takes nothing; reboot(2) takes a number and ends the machine, whose state nobody needs.
    unsafe {
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
}
