//! Reads one blob from whichever host gives it, over as many connections as that takes.
//!
//! Invariant: the bytes given out are, in order and without gap or repetition, those from the asked offset to the
//! descriptor's size. Whether they are the right bytes is for the reader's digest to say.

use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::Stream;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode};

use super::client::{Descriptor, Registry};
use super::credentials::Credentials;
use super::error::{Failures, RegistryError};
use super::hosts::{Host, authority};
use super::reference::Reference;
use super::request::Ask;
use super::transport;

/// A connection that breaks only after this much has helped: the count of failures starts again.
const PROGRESS: u64 = 256 << 10;

/// Less than this within one idle time-out is a trickle.
const TRICKLE: u64 = 1 << 10;
/// How long to wait for the end of an answer whose bytes are all there.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// A blob that is being read.
pub struct Blob {
    registry: Registry,
    reference: Reference,
    descriptor: Descriptor,
    credentials: Credentials,
    /// Loaded with the first read.
    hosts: Option<Vec<Host>>,
    /// The host to ask next.
    current: usize,
    /// How many hosts have sent wrong bytes.
    rejected: usize,
    connection: Option<Connection>,
    /// How far the reader has come.
    position: u64,
    /// Failures since the last real progress, and where that was.
    failures: u32,
    progress: u64,
    ignore_range: bool,
}

struct Connection {
    response: Response,
    /// Bytes to drop because the server began further back than it was asked to.
    skip: u64,
    /// What came since the last check of the speed, and how long we waited for it.
    received: u64,
    waited: Duration,
}

impl Connection {
    /// The next bytes. A server that lets only a trickle through is as good as a dead one.
    async fn next(&mut self, timeout: Duration) -> Result<Option<Bytes>, RegistryError> {
        let before = Instant::now();
        let chunk = transport::next_chunk(&mut self.response, timeout).await?;
        // Only our own waiting counts: a slow reader is not the server's fault.
        self.waited += before.elapsed();
        self.received += chunk.as_ref().map_or(0, |bytes| bytes.len() as u64);
        if self.waited >= timeout {
            if self.received < TRICKLE && chunk.is_some() {
                let (host, what) = (authority(self.response.url()), "send more than a trickle");
                return Err(RegistryError::Timeout { host, what, after: self.waited });
            }
            (self.received, self.waited) = (0, Duration::ZERO);
        }
        Ok(chunk)
    }
}

impl Registry {
    /// Opens a blob at `offset`; nothing is sent before the first read.
    #[must_use]
    pub fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        credentials: &Credentials,
    ) -> Blob {
        Blob {
            registry: self.clone(),
            reference: reference.clone(),
            descriptor: descriptor.clone(),
            credentials: credentials.clone(),
            hosts: None,
            current: 0,
            rejected: 0,
            connection: None,
            position: offset,
            failures: 0,
            progress: offset,
            ignore_range: false,
        }
    }
}

impl Blob {
    /// How many bytes of the blob have been given out, those before the first offset included.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The host that serves it now, for messages.
    #[must_use]
    pub fn host(&self) -> Option<String> {
        self.hosts.as_ref()?.get(self.current).map(Host::name)
    }

    /// Begins again from the first byte at another host, because the bytes of this one were not those of the
    /// digest. Says whether there is another one; if not, nothing changes.
    pub fn restart_elsewhere(&mut self) -> bool {
        let hosts = self.hosts.as_ref().map_or(0, Vec::len);
        if self.rejected + 1 >= hosts {
            return false;
        }
        self.rejected += 1;
        self.current = (self.current + 1) % hosts;
        self.connection = None;
        (self.position, self.progress, self.failures) = (0, 0, 0);
        true
    }

    /// The next bytes; `None` after the last one. A dropped call loses nothing: call again.
    ///
    /// # Errors
    /// When no host serves the blob, or not with the descriptor's size.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            if self.position >= self.descriptor.size {
                return self.finish().await;
            }
            if self.connection.is_none() {
                self.connection = Some(self.connect().await?);
            }
            match self.read().await {
                Ok(Some(bytes)) => return Ok(Some(bytes)),
                Ok(None) => {}
                Err(error) => self.broken(error).await?,
            }
        }
    }

    /// The same as a stream; it ends after an error.
    #[must_use]
    pub fn into_stream(self) -> Pin<Box<dyn Stream<Item = Result<Bytes, RegistryError>> + Send>> {
        Box::pin(futures::stream::try_unfold(self, |mut blob| async move {
            Ok(blob.chunk().await?.map(|bytes| (bytes, blob)))
        }))
    }

    /// One read from the open connection; `None` when all of it was to be dropped.
    async fn read(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(connection) = &mut self.connection else { return Ok(None) };
        let timeout = self.registry.config().idle_timeout;
        let host = authority(connection.response.url());
        let Some(mut bytes) = connection.next(timeout).await? else {
            let (digest, expected, actual) = (
                self.descriptor.digest.clone(),
                self.descriptor.size,
                self.position.saturating_sub(connection.skip),
            );
            return Err(RegistryError::WrongSize { host, digest, expected, actual });
        };
        let dropped = connection.skip.min(bytes.len() as u64);
        connection.skip -= dropped;
        // At most the chunk's own length, so it fits.
        bytes = bytes.split_off(dropped as usize);
        if bytes.is_empty() {
            return Ok(None);
        }
        if bytes.len() as u64 > self.descriptor.size - self.position {
            self.connection = None;
            return Err(self.too_large(host));
        }
        self.position += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// After the last byte nothing may follow. Waiting for the end also frees the connection for the next blob.
    async fn finish(&mut self) -> Result<Option<Bytes>, RegistryError> {
        let Some(mut connection) = self.connection.take() else { return Ok(None) };
        match transport::next_chunk(&mut connection.response, END_TIMEOUT).await {
            Ok(Some(more)) if !more.is_empty() => Err(self.too_large(authority(connection.response.url()))),
            // All bytes are there; how the connection ends does not matter.
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// Decides what a broken read means: another attempt after a wait, or the end.
    async fn broken(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.connection = None;
        let worth_it = error.is_transient() || matches!(error, RegistryError::WrongSize { .. });
        if self.position - self.progress >= PROGRESS {
            self.progress = self.position;
            self.failures = 0;
        }
        self.failures += 1;
        if !worth_it || self.failures >= self.registry.config().rounds {
            return Err(error);
        }
        if self.failures > 1 {
            self.current = (self.current + 1) % self.hosts.as_ref().map_or(1, |hosts| hosts.len().max(1));
        }
        tracing::debug!(
            digest = %self.descriptor.digest, position = self.position, failures = self.failures,
            error = %super::error::chain(&error), "reading a blob goes on after an interruption"
        );
        tokio::time::sleep(self.registry.wait(self.failures, None)).await;
        Ok(())
    }

    /// Asks the hosts in turn, beginning with the current one, until one of them delivers.
    async fn connect(&mut self) -> Result<Connection, RegistryError> {
        if self.hosts.is_none() {
            self.hosts = Some(self.registry.hosts(&self.reference, false).await?);
        }
        let hosts = self.hosts.clone().unwrap_or_default();
        loop {
            let mut failures = Failures::default();
            for turn in 0..hosts.len() {
                let at = (self.current + turn) % hosts.len();
                match self.open(&hosts[at]).await {
                    Ok(connection) => {
                        self.current = at;
                        return Ok(connection);
                    }
                    Err(error) => failures.push(&hosts[at].name(), error),
                }
            }
            failures.began_with(self.current);
            self.failures += 1;
            if self.failures >= self.registry.config().rounds || !failures.worth_another_round() {
                let what = format!("{} of {}", self.descriptor.digest, self.reference.name());
                return Err(failures.into_error(what));
            }
            tokio::time::sleep(self.registry.wait(self.failures, failures.retry_after())).await;
        }
    }

    async fn open(&mut self, host: &Host) -> Result<Connection, RegistryError> {
        let from = if self.ignore_range { 0 } else { self.position };
        let response = match self.registry.get(host, &self.ask(from)).await {
            // "Range not satisfiable": take it from the start.
            Err(RegistryError::Status { status: 416, .. }) if from > 0 => {
                self.ignore_range = true;
                self.registry.get(host, &self.ask(0)).await?
            }
            answer => answer?,
        };
        let start = self.start_of(&response)?;
        let expected = self.descriptor.size - start;
        if let Some(actual) = response.content_length().filter(|length| *length != expected) {
            let (host, digest) = (authority(response.url()), self.descriptor.digest.clone());
            return Err(RegistryError::WrongSize {
                host,
                digest,
                expected: self.descriptor.size,
                actual: actual.saturating_add(start),
            });
        }
        Ok(Connection { response, skip: self.position - start, received: 0, waited: Duration::ZERO })
    }

    fn ask(&self, from: u64) -> Ask<'_> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
        if let (true, Ok(range)) = (from > 0, HeaderValue::try_from(format!("bytes={from}-"))) {
            headers.insert(header::RANGE, range);
        }
        Ask {
            reference: &self.reference,
            credentials: &self.credentials,
            path: format!("blobs/{}", self.descriptor.digest),
            headers,
            pinned: true,
        }
    }

    /// Where in the blob an answer begins: at most at our position.
    fn start_of(&self, response: &Response) -> Result<u64, RegistryError> {
        if response.status() != StatusCode::PARTIAL_CONTENT {
            return Ok(0);
        }
        let range = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let start = range
            .and_then(|text| text.strip_prefix("bytes "))
            .and_then(|text| text.split_once('-'))
            .and_then(|(start, _)| start.trim().parse().ok())
            .filter(|start| *start <= self.position);
        start.ok_or_else(|| RegistryError::Protocol {
            host: authority(response.url()),
            problem: "it sent another part of a blob than it was asked for".to_owned(),
        })
    }

    fn too_large(&self, host: String) -> RegistryError {
        RegistryError::TooLarge {
            host,
            what: self.descriptor.digest.to_string(),
            limit: self.descriptor.size,
        }
    }
}
