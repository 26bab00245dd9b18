//! Streams of exec, attach and port-forward: the server that kubelets and crictl are sent to, and what they reach.
//!
//! `spdy` and `websocket` hold pure protocol machines (bytes in, bytes out), `link` drives one over a connection,
//! `remote` is what the rest sees: one kind of session, whatever the transport. `server` lets in who has a `token`;
//! `exec`, `attach` and `forward` connect the session with a container or a pod.

mod attach;
#[cfg(test)]
mod checks;
mod copy;
mod dial;
mod exec;
mod forward;
pub mod link;
pub mod remote;
mod server;
mod session;
pub mod spdy;
mod tls;
mod token;
pub mod websocket;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;

pub use attach::Request as AttachRequest;
pub use exec::Request as ExecRequest;
pub use forward::Request as ForwardRequest;
pub use remote::Streams;
pub use tls::{TlsError, fingerprint};
pub use token::TokenError;

use crate::config::StreamingConfig;
use crate::container::Containers;
use crate::ports::Ports;
use server::Server;
use tls::Certificate;
use token::Tokens;

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("listen for streaming clients at {address}")]
    Address { address: String, source: std::io::Error },
    #[error("certificate of the streaming server")]
    Tls(#[from] TlsError),
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
    /// Scheme, host and port of every URL.
    base: Arc<str>,
    tls: Option<Arc<Certificate>>,
}

impl Streaming {
    /// Listens until the daemon ends. URLs name the external address, or the bound one if there is none.
    ///
    /// # Errors
    /// When the address cannot be listened at, or there is no certificate where one is configured.
    pub async fn serve(config: &StreamingConfig, parts: Parts) -> Result<Self, ListenError> {
        let (cert, key) = (Path::new(&config.tls_cert), Path::new(&config.tls_key));
        let tls = !config.tls_cert.is_empty();
        let tls = if tls { Some(Arc::new(Certificate::load(cert, key)?)) } else { None };
        let failed = |source| ListenError::Address { address: config.address.clone(), source };
        let (listener, bound) = bind(&config.address).await.map_err(failed)?;
        let external = &config.external_address;
        let authority = if external.is_empty() { bound.to_string() } else { external.clone() };
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base: Arc<str> = format!("{scheme}://{authority}").into();
        tracing::info!(%bound, %base, "streaming");
        let tokens = Arc::new(Tokens::default());
        let tracker = parts.ports.tracker.clone();
        tracker.spawn(Server::new(parts, Arc::clone(&tokens), tls.clone()).listen(listener));
        Ok(Self { tokens, base, tls })
    }

    /// The URL where a client finds what `ticket` says, once and soon.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn url(&self, ticket: Ticket) -> Result<String, TokenError> {
        let kind = ticket.kind();
        let token = self.tokens.issue(ticket)?;
        Ok(format!("{}/{kind}/{token}", self.base))
    }

    /// The fingerprint of the certificate that a client of the next URL sees; none without TLS.
    #[must_use]
    pub fn fingerprint(&self) -> Option<String> {
        self.tls.as_ref().map(|tls| tls.fingerprint())
    }
}

async fn bind(address: &str) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
