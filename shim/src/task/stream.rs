//! One descriptor on the runtime: a pipe, a FIFO or a terminal's master side.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::termios::Winsize;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// What is read at once. The buffer lives only while there is something to read.
const CHUNK: usize = 16 * 1024;

pub struct Stream(AsyncFd<OwnedFd>);

/// A pipe whose ends no other program inherits by accident: (read, write).
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

impl Stream {
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        Ok(Stream(sys::watch(fd, Interest::READABLE | Interest::WRITABLE)?))
    }

    /// Opened for both directions: then there is always a reader and a writer, so that neither their absence nor their
    /// end is an event.
    fn fifo(path: &Path) -> io::Result<Self> {
        Self::open_fifo(path, OFlags::RDWR)
    }

    fn open_fifo(path: &Path, direction: OFlags) -> io::Result<Self> {
        let flags = direction | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode);
        if kind != rustix::fs::FileType::Fifo {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a FIFO"));
        }
        Stream::new(fd)
    }

    /// Reads only, so that the end comes when the last writer goes. A writer that is not there yet is no end: nothing
    /// is read before the kernel reports that something happened.
    pub fn fifo_until_closed(path: &Path) -> io::Result<Self> {
        Self::open_fifo(path, OFlags::RDONLY)
    }

    /// Stays open whatever becomes of the writers; only CloseIO ends it.
    pub fn fifo_kept_open(path: &Path) -> io::Result<Self> {
        Self::fifo(path)
    }

    pub fn fifo_writer(path: &Path) -> io::Result<Self> {
        Self::fifo(path)
    }

    /// Reads what is there into the empty `buffer`; 0 is the end.
    pub async fn read_into(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match self.try_read_into(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                read => return read,
            }
        }
    }

    pub fn try_read_into(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        buffer.reserve(CHUNK);
        match rustix::io::read(self.0.get_ref(), rustix::buffer::spare_capacity(buffer)) {
            Ok(n) => Ok(n),
            // How a terminal says that its last user is gone.
            Err(Errno::IO) => Ok(0),
            Err(Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
            Err(errno) => Err(errno.into()),
        }
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            match rustix::io::write(self.0.get_ref(), bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(rustix::termios::tcsetwinsize(self.0.get_ref(), size)?)
    }
}
