//! The listeners of all mappings.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};

use super::mapping::Mapping;
use crate::cli::error::CliError;

/// After a failed accept, as for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// Listeners, each with the port of the pod that it stands for.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    all: Vec<(TcpListener, u16)>,
    /// Whose turn it is to be asked first.
    turn: usize,
}

impl Listeners {
    /// Listens where the mapping says; answers the addresses. Of the two loopbacks the second may be missing: not every node has
    /// IPv6. Both have the same port.
    pub(super) async fn add(&mut self, mapping: &Mapping) -> Result<Vec<(SocketAddr, u16)>, CliError> {
        let (mut bound, mut port): (Vec<(SocketAddr, u16)>, _) = (Vec::new(), mapping.local);
        for address in mapping.addresses() {
            let address = SocketAddr::new(address, port);
            let listener = match TcpListener::bind(address).await {
                Ok(listener) => listener,
                Err(error) if !bound.is_empty() && is_without_family(&error) => continue,
                Err(source) => return Err(CliError::Listen { address, source }),
            };
            let local = listener.local_addr().map_err(CliError::Setup)?;
            port = local.port();
            bound.push((local, mapping.remote));
            self.all.push((listener, mapping.remote));
        }
        Ok(bound)
    }

    /// The next connection and the port of the pod that it is for. Losing the future loses no connection.
    pub(super) async fn accept(&mut self) -> Result<(TcpStream, u16), CliError> {
        loop {
            let accepted = poll_fn(|cx| {
                for at in 0..self.all.len() {
                    let at = (self.turn + at) % self.all.len();
                    let (listener, remote) = &self.all[at];
                    if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                        let remote = *remote;
                        self.turn = at + 1;
                        return Poll::Ready(accepted.map(|(stream, _)| (stream, remote)));
                    }
                }
                Poll::Pending
            });
            match accepted.await {
                Ok(accepted) => return Ok(accepted),
                // Connections that were broken off before we came to them, and the like.
                Err(error) => {
                    eprintln!("cofferdam: accept a connection: {error}");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

fn is_without_family(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRNOTAVAIL | libc::EAFNOSUPPORT))
}
