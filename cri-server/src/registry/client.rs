//! Asks the hosts of a registry for manifests, one host after another.
//!
//! Invariant: a manifest is given out only after its digest was checked over its bytes.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};

use super::auth::AuthCache;
use super::credentials::Credentials;
use super::digest::Digest;
use super::error::{Failures, RegistryError};
use super::hosts::{self, Host};
use super::reference::Reference;
use super::request::Ask;
use super::transport::{self, Clients};

const MAX_MANIFEST: u64 = 4 << 20;
/// No host may hold a pull for longer than this before it is tried again.
const MAX_WAIT: Duration = Duration::from_secs(60);

const MANIFEST_TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// How registries are reached.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// The `certs.d` folder.
    pub config_path: Option<PathBuf>,
    /// To establish a connection; `dial_timeout` of a host comes first.
    pub connect_timeout: Duration,
    /// From sending a request to the head of its answer.
    pub header_timeout: Duration,
    /// Between two parts of a body.
    pub idle_timeout: Duration,
    /// How often all hosts are asked before a passing failure is believed.
    pub rounds: u32,
    /// The first wait between rounds; it doubles each time.
    pub back_off: Duration,
    /// Send the login of a registry to its mirrors as well, as containerd does.
    pub credentials_for_mirrors: bool,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            config_path: None,
            connect_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            rounds: 5,
            back_off: Duration::from_millis(250),
            credentials_for_mirrors: false,
        }
    }
}

/// What names some content: its type, digest and size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// A manifest or index, verified.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub descriptor: Descriptor,
    pub bytes: Bytes,
    /// Who served it, for logs.
    pub host: String,
}

/// The client side of all registries. Clones share connections and tokens.
#[derive(Clone)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    config: RegistryConfig,
    clients: Clients,
    auth: AuthCache,
    /// Loopback hosts that were found to speak plain HTTP.
    plain: Mutex<HashSet<String>>,
}

impl Registry {
    /// A client with empty caches; nothing is read or contacted yet.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Self {
        let shared = Shared {
            config,
            clients: Clients::default(),
            auth: AuthCache::default(),
            plain: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The manifest or index behind a tag or digest.
    ///
    /// # Errors
    /// When no host serves it; the error tells what each of them said.
    pub async fn resolve(
        &self,
        reference: &Reference,
        credentials: &Credentials,
    ) -> Result<Resolved, RegistryError> {
        self.fetch_manifest(reference, credentials, reference.digest(), None).await
    }

    /// A manifest that an index named.
    ///
    /// # Errors
    /// As for [`Self::resolve`], and when size or type are not the descriptor's.
    pub async fn manifest(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        credentials: &Credentials,
    ) -> Result<Resolved, RegistryError> {
        self.fetch_manifest(reference, credentials, Some(&descriptor.digest), Some(descriptor.size)).await
    }

    async fn fetch_manifest(
        &self,
        reference: &Reference,
        credentials: &Credentials,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Resolved, RegistryError> {
        let wanted = digest.map(Digest::as_str).or(reference.tag()).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept_manifests());
        let path = format!("manifests/{wanted}");
        let ask = Ask { reference, credentials, path, headers, pinned: digest.is_some() };
        let hosts = self.hosts(reference, !ask.pinned).await?;
        let mut round = 0;
        loop {
            let mut failures = Failures::default();
            for host in &hosts {
                match self.manifest_from(host, &ask, digest, size).await {
                    Ok(resolved) => return Ok(resolved),
                    Err(error) => failures.push(&host.name(), error),
                }
            }
            round += 1;
            if round >= self.config().rounds || !failures.worth_another_round() {
                return Err(failures.into_error(reference.to_string()));
            }
            tokio::time::sleep(self.wait(round, failures.retry_after())).await;
        }
    }

    async fn manifest_from(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        digest: Option<&Digest>,
        size: Option<u64>,
    ) -> Result<Resolved, RegistryError> {
        let response = self.get(host, ask).await?;
        let name = host.name();
        let text =
            |key: &str| response.headers().get(key).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (media_type, announced) = (text("content-type"), text("docker-content-digest"));
        let timeout = self.config().idle_timeout;
        let bytes = transport::read_body(response, "a manifest", MAX_MANIFEST, timeout).await?;
        let expected = match (digest, announced) {
            (Some(digest), _) => Some(digest.clone()),
            (None, Some(announced)) => Some(Digest::parse(&announced).map_err(|error| {
                RegistryError::Protocol { host: name.clone(), problem: format!("its answer is odd: {error}") }
            })?),
            (None, None) => None,
        };
        if let (Some(digest), Some(expected)) = (digest, size)
            && bytes.len() as u64 != expected
        {
            let (digest, actual) = (digest.clone(), bytes.len() as u64);
            return Err(RegistryError::WrongSize { host: name, digest, expected, actual });
        }
        let digest = verify(&name, &bytes, expected)?;
        let media_type = manifest_type(&name, media_type.as_deref(), &bytes)?;
        let descriptor = Descriptor { media_type, digest, size: bytes.len() as u64 };
        Ok(Resolved { descriptor, bytes: bytes.into(), host: name })
    }

    /// The hosts that may be asked, in order.
    pub(super) async fn hosts(
        &self,
        reference: &Reference,
        resolve: bool,
    ) -> Result<Vec<Host>, RegistryError> {
        let (config_path, domain) = (self.config().config_path.clone(), reference.domain().to_owned());
        let loaded = tokio::task::spawn_blocking(move || hosts::load(config_path.as_deref(), &domain))
            .await
            .map_err(|error| RegistryError::Client { source: Box::new(error) })?;
        let mut hosts = loaded?;
        hosts.retain(|host| if resolve { host.capabilities.resolve } else { host.capabilities.pull });
        if hosts.is_empty() {
            return Err(RegistryError::NoCapability {
                registry: reference.domain().to_owned(),
                capability: if resolve { "resolve" } else { "pull" },
                file: self.config().config_path.clone().unwrap_or_default(),
            });
        }
        Ok(hosts)
    }

    /// How long to wait before round `round`, with some chance so that nodes do not come back all at once.
    pub(super) fn wait(&self, round: u32, asked: Option<Duration>) -> Duration {
        let doubled = self.config().back_off.saturating_mul(1 << round.min(10).saturating_sub(1));
        let nanos =
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let jittered = doubled.mul_f64(0.75 + f64::from(nanos % 1000) / 2000.0);
        asked.unwrap_or_default().max(jittered).min(MAX_WAIT)
    }

    pub(super) fn config(&self) -> &RegistryConfig {
        &self.shared.config
    }

    pub(super) fn auth(&self) -> &AuthCache {
        &self.shared.auth
    }

    pub(super) fn clients(&self) -> &Clients {
        &self.shared.clients
    }

    pub(super) fn plain_hosts(&self) -> MutexGuard<'_, HashSet<String>> {
        self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

fn accept_manifests() -> HeaderValue {
    HeaderValue::try_from(MANIFEST_TYPES.join(", ")).unwrap_or_else(|_| HeaderValue::from_static("*/*"))
}

/// The digest of a manifest's bytes, checked against the expected one.
fn verify(host: &str, bytes: &[u8], expected: Option<Digest>) -> Result<Digest, RegistryError> {
    let Some(expected) = expected else { return Ok(Digest::sha256(bytes)) };
    let actual = Digest::of(expected.algorithm(), bytes);
    if actual == expected {
        return Ok(actual);
    }
    Err(RegistryError::DigestMismatch { host: host.to_owned(), expected, actual })
}

/// The media type of a manifest: header and body must not tell different stories, or two readers would see two
/// images behind one digest.
fn manifest_type(host: &str, header: Option<&str>, bytes: &[u8]) -> Result<String, RegistryError> {
    let odd = |problem: &str| RegistryError::Protocol { host: host.to_owned(), problem: problem.to_owned() };
    let body: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|_| odd("its manifest is no JSON"))?;
    let inside = body.get("mediaType").and_then(serde_json::Value::as_str);
    let outside = header.map(|text| text.split(';').next().unwrap_or_default().trim());
    let known = |text: &&str| MANIFEST_TYPES.contains(text);
    match (outside.filter(known), inside) {
        (Some(outside), Some(inside)) if outside != inside => {
            Err(odd("its manifest says another media type than the header"))
        }
        (Some(outside), _) => Ok(outside.to_owned()),
        (None, Some(inside)) if known(&inside) => Ok(inside.to_owned()),
        (None, other) => {
            let media_type = other.or(outside).unwrap_or_default().chars().take(100).collect();
            Err(RegistryError::MediaType { host: host.to_owned(), media_type })
        }
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
