//! The agent's end of the wire: a virtio-serial port, which two threads join to a socket pair. A port has no ends of
//! streams, cannot be read and written by one descriptor without care, and reads as empty while the host is not there.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

const PORTS: &str = "/sys/class/virtio-ports";
const NAME: &str = "cofferdam.agent";
/// The host makes the port before it starts the machine; the driver finds it a moment later.
const TRIES: u32 = 500;
const PAUSE: Duration = Duration::from_millis(10);
/// Guests of some kernels lose data in longer writes.
const CHUNK: usize = 16 << 10;

/// The wire as a socket.
pub fn open() -> io::Result<tokio::net::UnixStream> {
    let device = find()?;
    let port = File::options().read(true).write(true).open(device)?;
    let (ours, theirs) = UnixStream::pair()?;
    let (reader, writer) = (port.try_clone()?, port);
    let (to_socket, from_socket) = (theirs.try_clone()?, theirs);
    thread::Builder::new().name("from host".into()).spawn(move || receive(reader, to_socket))?;
    thread::Builder::new().name("to host".into()).spawn(move || transmit(from_socket, writer))?;
    ours.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(ours)
}

fn find() -> io::Result<String> {
    for _ in 0..TRIES {
        for entry in fs::read_dir(PORTS).into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if name.trim() == NAME {
                return Ok(format!("/dev/{}", entry.file_name().to_string_lossy()));
            }
        }
        thread::sleep(PAUSE);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("there is no port {NAME}")))
}

fn receive(mut port: File, mut socket: UnixStream) {
    let mut buffer = vec![0; CHUNK];
    loop {
        match port.read(&mut buffer) {
            Ok(0) => thread::sleep(PAUSE),
            Ok(count) if socket.write_all(&buffer[..count]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => break,
        }
    }
    drop(socket.shutdown(std::net::Shutdown::Both));
}

fn transmit(mut socket: UnixStream, mut port: File) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(count @ 1..) = socket.read(&mut buffer) {
        if port.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    drop(socket.shutdown(std::net::Shutdown::Both));
}
