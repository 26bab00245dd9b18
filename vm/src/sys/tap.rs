//! A tap in the calling thread's network namespace. See the kernel's networking/tuntap document.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;

#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Makes the tap `name`, whose packets carry virtio's header. It goes when the last descriptor of it is closed.
///
/// # Errors
/// When the kernel refuses, or the name does not fit.
pub fn make(name: &str) -> io::Result<OwnedFd> {
    if name.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let device = File::options().read(true).write(true).open("/dev/net/tun")?;
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the descriptor is open, and the structure has the size and layout of `struct ifreq`, which the kernel reads
    // and writes during the call alone.
    let outcome = unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF, std::ptr::from_mut(&mut request)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(device.into()) }
}
