//! Connects to a port inside a pod, from the pod's own network namespace.
//!
//! Invariant: the thread that enters the namespace does nothing else and ends; the socket it made stays in there.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sched::{CloneFlags, setns};
use tokio::sync::oneshot;

/// Loopback answers at once, unless the listener's queue is full.
const PATIENCE: Duration = Duration::from_secs(5);

/// Connects to `port` on the loopback of the namespace at `netns`, or of the node: first by IPv4, then by IPv6.
///
/// # Errors
/// The first refusal, when both refuse; that of the namespace, when it cannot be entered.
pub async fn dial(netns: Option<&Path>, port: u16) -> io::Result<tokio::net::TcpStream> {
    let netns = netns.map(Path::to_owned);
    let (answer, answered) = oneshot::channel();
    std::thread::Builder::new().name("dial".to_owned()).stack_size(64 << 10).spawn(move || {
        // Who asked may have gone; then the connection is closed here.
        let _ = answer.send(connect(netns, port));
    })?;
    let stream = answered.await.map_err(|_| io::Error::other("the thread that connects panicked"))??;
    stream.set_nonblocking(true)?;
    tokio::net::TcpStream::from_std(stream)
}

fn connect(netns: Option<PathBuf>, port: u16) -> io::Result<TcpStream> {
    if let Some(path) = netns {
        setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    }
    let first = match TcpStream::connect_timeout(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)), PATIENCE) {
        Ok(stream) => return Ok(stream),
        Err(error) => error,
    };
    TcpStream::connect_timeout(&SocketAddr::from((Ipv6Addr::LOCALHOST, port)), PATIENCE).map_err(|_| first)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn both_families_are_tried_and_the_first_refusal_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(dial(None, port).await.unwrap().peer_addr().unwrap().is_ipv4());
        drop(listener);
        assert_eq!(dial(None, port).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(dial(None, port).await.unwrap().peer_addr().unwrap().is_ipv6());
    }

    #[tokio::test]
    async fn a_namespace_that_is_gone_is_an_error() {
        assert!(dial(Some(Path::new("/nonexistent/netns")), 1).await.is_err());
    }
}
