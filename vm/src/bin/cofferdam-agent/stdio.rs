//! Standard streams: the host's stream on one side, a FIFO that the container code opens on the other.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cofferdam_vm::agent::STREAMS;
use cofferdam_vm::channel::{Stream, answer};
use rustix::fs::{CWD, Mode, mkfifoat};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::pipe;

/// Guests of some kernels lose data in longer writes.
const CHUNK: usize = 16 << 10;

/// A FIFO that goes away with the value; both ends may be open longer.
struct Fifo(PathBuf);

impl Drop for Fifo {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

impl Fifo {
    fn make(name: &str) -> io::Result<Fifo> {
        let path = Path::new(STREAMS).join(name);
        mkfifoat(CWD, &path, Mode::RUSR | Mode::WUSR)?;
        Ok(Fifo(path))
    }
}

/// From the host to a process; the end goes through as well.
pub async fn input(mut stream: Stream, name: &str) -> io::Result<()> {
    // Open for both directions, so that it needs no reader yet; the container code only reads.
    let opened = Fifo::make(name).and_then(|fifo| {
        let sender = pipe::OpenOptions::new().read_write(true).open_sender(&fifo.0)?;
        Ok((fifo, sender))
    });
    let (_fifo, mut sender) = match opened {
        Ok(opened) => opened,
        Err(error) => return answer(&mut stream, Err(error.to_string())).await,
    };
    answer(&mut stream, Ok(())).await?;
    tokio::io::copy(&mut stream, &mut sender).await?;
    drop(sender);
    // The stream stays until the host lets go of it.
    let mut rest = [0; 64];
    while stream.read(&mut rest).await? > 0 {}
    Ok(())
}

/// From a process to the host. The end of the FIFO is that of its last writer, and comes after all it wrote.
pub async fn output(mut stream: Stream, name: &str) -> io::Result<()> {
    let opened = Fifo::make(name).and_then(|fifo| {
        let receiver = pipe::OpenOptions::new().open_receiver(&fifo.0)?;
        Ok((fifo, receiver))
    });
    let (_fifo, receiver) = match opened {
        Ok(opened) => opened,
        Err(error) => return answer(&mut stream, Err(error.to_string())).await,
    };
    answer(&mut stream, Ok(())).await?;
    let mut buffer = vec![0; CHUNK];
    loop {
        // Nothing is read before the kernel reports something: a writer that is not there yet is no end.
        receiver.readable().await?;
        match receiver.try_read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => stream.write_all(&buffer[..count]).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        stream.flush().await?;
    }
    stream.shutdown().await
}
