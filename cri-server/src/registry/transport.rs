//! HTTP clients and the errors of connections.
//!
//! One client per set of certificates keeps its own pool of connections. Time-outs bound connecting and waiting for
//! the head of an answer; bodies are bounded by whoever reads them.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::{Client, RequestBuilder, Response, Url};

use super::error::{Cause, RegistryError};
use super::hosts::{Transport, authority, is_loopback};

/// More sets of certificates than a node ever has; beyond that the pools are dropped.
const MAX_CLIENTS: usize = 32;
const KEEP_ALIVE: Duration = Duration::from_secs(30);
const USER_AGENT: &str = concat!("cofferdam/", env!("CARGO_PKG_VERSION"));

/// The clients in use.
#[derive(Debug, Default)]
pub(super) struct Clients {
    pools: Mutex<HashMap<(Transport, bool), Client>>,
}

impl Clients {
    /// The client for `url`. A proxy never serves this machine's loopback.
    pub(super) fn get(
        &self,
        transport: &Transport,
        url: &Url,
        connect_timeout: Duration,
    ) -> Result<Client, RegistryError> {
        let key = (transport.clone(), is_loopback(url));
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = pools.get(&key) {
            return Ok(client.clone());
        }
        let client = build(&key.0, key.1, connect_timeout)
            .map_err(|error| RegistryError::Client { source: Box::new(error.without_url()) })?;
        if pools.len() >= MAX_CLIENTS {
            pools.clear();
        }
        pools.insert(key, client.clone());
        Ok(client)
    }
}

fn build(transport: &Transport, direct: bool, connect_timeout: Duration) -> Result<Client, reqwest::Error> {
    let mut builder = Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(transport.dial_timeout.unwrap_or(connect_timeout))
        .tcp_keepalive(KEEP_ALIVE)
        .danger_accept_invalid_certs(transport.skip_verify);
    if direct {
        builder = builder.no_proxy();
    }
    for pem in &transport.ca {
        for certificate in reqwest::Certificate::from_pem_bundle(pem)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    if let Some(pem) = &transport.client {
        builder = builder.identity(reqwest::Identity::from_pem(pem)?);
    }
    builder.build()
}

/// Sends a request and waits for the head of the answer.
pub(super) async fn send(
    request: RequestBuilder,
    url: &Url,
    timeout: Duration,
) -> Result<Response, RegistryError> {
    match tokio::time::timeout(timeout, request.send()).await {
        Ok(answer) => answer.map_err(|error| connection_error(authority(url), error)),
        Err(_) => Err(RegistryError::Timeout { host: authority(url), what: "answer", after: timeout }),
    }
}

/// Reads the next part of a body.
pub(super) async fn next_chunk(
    response: &mut Response,
    timeout: Duration,
) -> Result<Option<bytes::Bytes>, RegistryError> {
    let host = authority(response.url());
    match tokio::time::timeout(timeout, response.chunk()).await {
        Ok(chunk) => {
            chunk.map_err(|error| RegistryError::Broken { host, source: Box::new(error.without_url()) })
        }
        Err(_) => Err(RegistryError::Timeout { host, what: "send more data", after: timeout }),
    }
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read_body(
    mut response: Response,
    what: &str,
    limit: u64,
    timeout: Duration,
) -> Result<Vec<u8>, RegistryError> {
    let host = authority(response.url());
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) = next_chunk(&mut response, timeout).await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(RegistryError::TooLarge { host: host.clone(), what: what.to_owned(), limit });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    // A body this small has no reason to trickle: the limit holds for all of it.
    match tokio::time::timeout(timeout, read).await {
        Ok(body) => body,
        Err(_) => Err(RegistryError::Timeout { host, what: "finish its answer", after: timeout }),
    }
}

fn connection_error(host: String, error: reqwest::Error) -> RegistryError {
    let tls = is_tls(&error);
    // The URL may carry a CDN's signature.
    let source: Cause = Box::new(error.without_url());
    if tls { RegistryError::Tls { host, source } } else { RegistryError::Unreachable { host, source } }
}

fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<rustls::Error>() {
            return true;
        }
        // An io::Error hides what it wraps from source().
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}
