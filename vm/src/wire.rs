//! The one byte stream between a guest's agent and the node, on which the channel runs.
//!
//! ```text
//! virtio-serial   a socket pair; one end is the monitor's, and the guest's port is the other
//! vsock           the guest connects to a port of the node; the kernel says which guest it was
//! hybrid vsock    the guest connects to a port, and the monitor to the Unix socket NAME_PORT
//! ```
//! With vsock the guest announces itself, so nobody asks again and again whether it is there. Invariant: a wire is made
//! once: whoever in the guest comes later finds nobody listening.

use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};

use crate::config::{ChannelKind, MonitorKind};
use crate::sys::vsock::{reserve, watch_listener, watch_stream};

/// What the kernel gives to the guest's first process: `vsock:PORT`, or nothing for virtio-serial.
pub const VARIABLE: &str = "COFFERDAM_CHANNEL";
const VSOCK: &str = "vsock:";
/// Guests of some kernels lose data in longer writes.
const CHUNK: usize = 16 << 10;
/// Of hybrid vsock, where each machine has ports of its own.
const HYBRID_PORT: u32 = 1024;
/// The monitor's socket for it, below the machine's folder.
pub const HYBRID_SOCKET: &str = "vsock";
const ANY_PORT: u32 = u32::MAX;

#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("channel = \"vsock\": the node has no vhost-vsock: {0}")]
    NoVsock(io::Error),
    #[error("make the channel: {0}")]
    Make(io::Error),
    #[error("wait for the guest's end of the channel: {0}")]
    Wait(io::Error),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WireKind {
    VirtioSerial,
    Vsock,
    HybridVsock,
}

impl fmt::Display for WireKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WireKind::VirtioSerial => "virtio-serial",
            WireKind::Vsock => "vsock",
            WireKind::HybridVsock => "hybrid vsock",
        })
    }
}

/// What the monitor is started with.
#[derive(Debug)]
pub enum MonitorEnd {
    Serial(OwnedFd),
    /// `device` is vhost-vsock's, with the guest's address taken.
    Vsock {
        device: OwnedFd,
        cid: u32,
        port: u32,
    },
    /// The monitor's socket is [`HYBRID_SOCKET`] in the machine's folder.
    Hybrid {
        port: u32,
    },
}

impl MonitorEnd {
    /// What the kernel's line has to say, so that the agent takes the same way.
    pub fn kernel_words(&self) -> Option<String> {
        match self {
            MonitorEnd::Serial(_) => None,
            MonitorEnd::Vsock { port, .. } | MonitorEnd::Hybrid { port } => {
                Some(format!("{VARIABLE}={VSOCK}{port}"))
            }
        }
    }
}

/// This side of it, before the guest is there.
#[derive(Debug)]
pub enum HostEnd {
    Serial(tokio::net::UnixStream),
    Vsock { listener: AsyncFd<VsockListener>, cid: u32 },
    Hybrid(HybridListener),
}

/// Its name goes with the value.
#[derive(Debug)]
pub struct HybridListener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
}

impl Drop for HybridListener {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

/// A wire that is up.
pub trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Both ends, as the configuration, the monitor and the node allow. `folder` is the machine's.
///
/// # Errors
/// When what the configuration asks for is not there.
pub fn make(
    wanted: ChannelKind,
    monitor: MonitorKind,
    folder: &Path,
) -> Result<(HostEnd, MonitorEnd), WireError> {
    match (monitor, wanted) {
        (MonitorKind::CloudHypervisor, _) => hybrid(folder).map_err(WireError::Make),
        (MonitorKind::Qemu, ChannelKind::VirtioSerial) => serial().map_err(WireError::Make),
        (MonitorKind::Qemu, ChannelKind::Vsock) => {
            let (device, cid) = reserve().map_err(WireError::NoVsock)?;
            in_kernel(device, cid).map_err(WireError::Make)
        }
        (MonitorKind::Qemu, ChannelKind::Auto) => {
            let made = reserve().and_then(|(device, cid)| in_kernel(device, cid));
            made.or_else(|_| serial()).map_err(WireError::Make)
        }
    }
}

fn serial() -> io::Result<(HostEnd, MonitorEnd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((HostEnd::Serial(tokio::net::UnixStream::from_std(ours)?), MonitorEnd::Serial(theirs.into())))
}

fn in_kernel(device: OwnedFd, cid: u32) -> io::Result<(HostEnd, MonitorEnd)> {
    let listener = VsockListener::bind(&VsockAddr::new(VMADDR_CID_ANY, ANY_PORT))?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    Ok((HostEnd::Vsock { listener: watch_listener(listener)?, cid }, MonitorEnd::Vsock { device, cid, port }))
}

fn hybrid(folder: &Path) -> io::Result<(HostEnd, MonitorEnd)> {
    let path = folder.join(format!("{HYBRID_SOCKET}_{HYBRID_PORT}"));
    let listener = crate::sys::socket::listen(&path)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    Ok((HostEnd::Hybrid(HybridListener { listener, path }), MonitorEnd::Hybrid { port: HYBRID_PORT }))
}

impl HostEnd {
    pub fn kind(&self) -> WireKind {
        match self {
            HostEnd::Serial(_) => WireKind::VirtioSerial,
            HostEnd::Vsock { .. } => WireKind::Vsock,
            HostEnd::Hybrid(_) => WireKind::HybridVsock,
        }
    }

    /// Waits for the guest, however long it takes; nobody else is let in.
    ///
    /// # Errors
    /// When waiting itself fails.
    pub async fn connect(self) -> Result<Box<dyn Wire>, WireError> {
        let connected: io::Result<Box<dyn Wire>> = match self {
            HostEnd::Serial(stream) => Ok(Box::new(stream)),
            HostEnd::Hybrid(hybrid) => {
                hybrid.listener.accept().await.map(|(stream, _)| Box::new(stream) as _)
            }
            HostEnd::Vsock { listener, cid } => {
                accept(&listener, cid).await.map(|stream| Box::new(stream) as _)
            }
        };
        connected.map_err(WireError::Wait)
    }
}

/// The first connection of the guest `cid`; those of others are closed.
async fn accept(listener: &AsyncFd<VsockListener>, cid: u32) -> io::Result<VsockWire> {
    loop {
        let mut ready = listener.readable().await?;
        match ready.try_io(|listener| listener.get_ref().accept()) {
            Ok(Ok((stream, from))) if from.cid() == cid => return VsockWire::new(stream),
            Ok(Ok(_)) | Err(_) => {}
            Ok(Err(error)) => return Err(error),
        }
    }
}

/// In the guest: the way that the kernel's line named, or nothing when it is virtio-serial.
///
/// # Errors
/// When the node does not listen.
pub fn announce(named: Option<&str>) -> io::Result<Option<VsockWire>> {
    let Some(port) = named.and_then(|text| text.strip_prefix(VSOCK)) else { return Ok(None) };
    let port = port.parse().map_err(|_| io::Error::other(format!("{VARIABLE} names no port")))?;
    let stream = VsockStream::connect(&VsockAddr::new(VMADDR_CID_HOST, port))?;
    VsockWire::new(stream).map(Some)
}

/// A vsock connection, written to in pieces that no kernel loses.
#[derive(Debug)]
pub struct VsockWire(AsyncFd<VsockStream>);

impl VsockWire {
    fn new(stream: VsockStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(VsockWire(watch_stream(stream)?))
    }
}

impl AsyncRead for VsockWire {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            let room = buffer.initialize_unfilled();
            if let Ok(outcome) = ready.try_io(|stream| (&mut stream.get_ref()).read(room)) {
                return Poll::Ready(outcome.map(|count| buffer.advance(count)));
            }
        }
    }
}

impl AsyncWrite for VsockWire {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let bytes = &bytes[..bytes.len().min(CHUNK)];
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            if let Ok(outcome) = ready.try_io(|stream| (&mut stream.get_ref()).write(bytes)) {
                return Poll::Ready(outcome);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.0.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests;
