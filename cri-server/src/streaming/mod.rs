//! Streams of exec, attach and port-forward: the server that kubelets and crictl are sent to, and what they reach.
//!
//! `spdy` and `websocket` hold pure protocol machines (bytes in, bytes out), `link` drives one over a connection,
//! `remote` is what the rest sees: one kind of session, whatever the transport. `server` lets in who has a `token`;
//! `exec`, `attach` and `forward` connect the session with a container or a pod.

mod attach;
mod copy;
mod exec;
mod forward;
pub mod link;
pub mod remote;
mod server;
pub mod spdy;
mod token;
pub mod websocket;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use attach::Request as AttachRequest;
pub use exec::Request as ExecRequest;
pub use forward::Request as ForwardRequest;
pub use remote::Streams;
pub use token::TokenError;

use crate::container::Containers;
use crate::ports::Ports;
use server::Server;
use token::Tokens;

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("listen for streaming clients at {address}")]
pub struct ListenError {
    address: String,
    source: std::io::Error,
}

/// What a token is good for.
pub enum Ticket {
    Exec(ExecRequest),
    Attach(AttachRequest),
    Forward(ForwardRequest),
}

impl Ticket {
    /// The first part of its URL's path.
    fn kind(&self) -> &'static str {
        match self {
            Self::Exec(_) => "exec",
            Self::Attach(_) => "attach",
            Self::Forward(_) => "portforward",
        }
    }
}

/// What sessions work with.
#[derive(Clone)]
pub struct Parts {
    pub ports: Arc<Ports>,
    pub containers: Arc<Containers>,
}

/// The streaming server, as its callers see it: a ticket goes in, a URL comes out.
#[derive(Clone)]
pub struct Streaming {
    tokens: Arc<Tokens<Ticket>>,
    /// Host and port as URLs name them.
    authority: String,
}

impl Streaming {
    /// Listens at `address` until the daemon ends. URLs name `external`, or the address itself if that is empty.
    ///
    /// # Errors
    /// When the address cannot be listened at.
    pub async fn serve(address: &str, external: &str, parts: Parts) -> Result<Self, ListenError> {
        let (listener, bound) =
            bind(address).await.map_err(|source| ListenError { address: address.to_owned(), source })?;
        let authority = if external.is_empty() { bound.to_string() } else { external.to_owned() };
        tracing::info!(%bound, authority, "streaming");
        let tokens = Arc::new(Tokens::default());
        let tracker = parts.ports.tracker.clone();
        tracker.spawn(Server::new(parts, Arc::clone(&tokens)).listen(listener));
        Ok(Self { tokens, authority })
    }

    /// The URL where a client finds what `ticket` says, once and soon.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn url(&self, ticket: Ticket) -> Result<String, TokenError> {
        let kind = ticket.kind();
        let token = self.tokens.issue(ticket)?;
        Ok(format!("http://{}/{kind}/{token}", self.authority))
    }
}

async fn bind(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
