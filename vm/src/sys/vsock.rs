//! What the crate `vsock` does not wrap: taking an address for a machine on this node.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use tokio::io::unix::AsyncFd;
use vsock::{VsockListener, VsockStream};

const DEVICE: &str = "/dev/vhost-vsock";
/// `_IOW(0xAF, 0x60, __u64)`, from linux/vhost.h.
const SET_GUEST_CID: libc::c_ulong = 0x4008_af60;
/// 0 to 2 have meanings of their own, and this is "any".
const FIRST: u32 = 3;
const ANY: u32 = u32::MAX;
const TRIES: usize = 32;

/// A device whose guest has an address that no other on this node has; it is the guest's as long as the device is open.
///
/// # Errors
/// When the node has no vhost-vsock.
pub fn reserve() -> io::Result<(OwnedFd, u32)> {
    let device = File::options().read(true).write(true).open(DEVICE)?;
    for _ in 0..TRIES {
        let cid = random()?;
        if !(FIRST..ANY).contains(&cid) {
            continue;
        }
        let wide = u64::from(cid);
        // SAFETY: the descriptor is open, and the kernel reads eight bytes of a value that lives until the call returns.
        let outcome = unsafe { libc::ioctl(device.as_raw_fd(), SET_GUEST_CID, &raw const wide) };
        if outcome == 0 {
            return Ok((device.into(), cid));
        }
        match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EADDRINUSE) => {}
            error => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// # Errors
/// When the descriptor cannot be watched.
pub fn watch_listener(listener: VsockListener) -> io::Result<AsyncFd<VsockListener>> {
    // SAFETY: the descriptor is owned by the value that is registered, so it stays open while registered.
    Ok(unsafe { AsyncFd::register(listener) }?)
}

/// # Errors
/// When the descriptor cannot be watched.
pub fn watch_stream(stream: VsockStream) -> io::Result<AsyncFd<VsockStream>> {
    // SAFETY: as above.
    Ok(unsafe { AsyncFd::register(stream) }?)
}

fn random() -> io::Result<u32> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
