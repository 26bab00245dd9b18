//! The socket that a shim leaves behind when it dies before it can remove it.
//!
//! Invariant: the socket of a shim that lives is never removed, however busy the shim is; it may serve others of its group.

use std::io;

use tokio::net::UnixStream;

use super::bootstrap::Endpoint;

/// Removes the socket if nobody listens there any more.
pub(super) async fn remove(endpoint: &Endpoint) {
    let Some(path) = endpoint.socket_path() else { return };
    // Not a blocking socket: that would hold up its thread while the queue of a shim that hangs is full.
    let connected = UnixStream::connect(path).await;
    let refused = connected.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    if refused && let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "socket of a dead shim stays");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};

    use super::*;
    use crate::runtime::bootstrap::ShimKind;

    #[test]
    fn only_a_dead_shims_socket_goes_and_a_full_queue_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s.sock");
        let listener = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
        bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        listen(&listener, 0).unwrap();
        let waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let endpoint = Endpoint {
            address: format!("unix://{}", path.display()),
            version: 3,
            kind: ShimKind::Foreign,
            protocol: 1,
            process: None,
        };
        let look = {
            let endpoint = endpoint.clone();
            move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
                runtime.block_on(remove(&endpoint));
            }
        };
        let (done, ended) = std::sync::mpsc::channel();
        let first = look.clone();
        std::thread::spawn(move || {
            first();
            done.send(()).unwrap();
        });
        ended.recv_timeout(Duration::from_secs(5)).expect("a thread of the daemon waits for a shim");
        assert!(path.exists(), "its shim lives");
        drop((listener, waiting));
        look();
        assert!(!path.exists());
    }
}
