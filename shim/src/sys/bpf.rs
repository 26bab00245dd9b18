//! Programs that the kernel asks about a cgroup's device accesses. See bpf(2) and cgroups(7).
//!
//! Invariant: the memory that a call points to lives in the function that makes the call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::cgroup::devices::Instruction;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// Beside the programs of others: an access must please all of them.
const ALLOW_MULTI: u32 = 2;
const LOG_SIZE: usize = 64 << 10;

/// Zero padding at the end may be left out: the kernel takes what is not there as zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Why the kernel does not take a program.
#[derive(Debug, thiserror::Error)]
#[error("load the device filter ({}): {error}", if log.is_empty() { "no verifier log" } else { log })]
pub struct Rejected {
    pub error: io::Error,
    /// What the verifier says about it.
    pub log: String,
}

/// Loads a program that decides on device accesses.
pub fn load_device_filter(program: &[Instruction]) -> Result<OwnedFd, Rejected> {
    load(program, &mut []).or_else(|_| {
        // The log costs memory and time, so it is asked for only when there is something to explain.
        let mut log = vec![0; LOG_SIZE];
        load(program, &mut log).map_err(|error| {
            let length = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
            Rejected { error, log: String::from_utf8_lossy(&log[..length]).trim().replace('\n', "; ") }
        })
    })
}

fn load(program: &[Instruction], log: &mut [u8]) -> io::Result<OwnedFd> {
    // Some of the kernel's helpers want a licence; none is called here, but the pointer must lead somewhere.
    let license = c"Apache-2.0";
    let mut order = Load {
        program_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        instructions: program.as_ptr().addr() as u64,
        license: license.as_ptr().addr() as u64,
        ..Load::default()
    };
    order.name[..10].copy_from_slice(b"cf_devices");
    if !log.is_empty() {
        order.log_level = 1;
        order.log_size = u32::try_from(log.len()).unwrap_or(u32::MAX);
        order.log = log.as_mut_ptr().addr() as u64;
    }
    // SAFETY: the structure is the kernel's `union bpf_attr` for this command, passed with its size; the program, the
    // licence and the log are borrowed until the call returns, and the kernel writes only to the log, within its size.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const order, size_of::<Load>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel has just made this descriptor for us, close-on-exec as all of its kind.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes `program` decide for the cgroup and all below it, for as long as the cgroup lives.
pub fn attach_device_filter(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let order = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the structure is the kernel's `union bpf_attr` for this command, passed with its size and only read; both
    // descriptors are borrowed until the call returns.
    match unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const order, size_of::<Attach>()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
