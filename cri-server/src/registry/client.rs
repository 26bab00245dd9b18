//! Asks the hosts of a registry for manifests and opens blobs, one host after another.
//!
//! Invariants: a manifest is given out only after its digest was checked over its bytes; a login and the headers of
//! a host leave for that host only, never for one that it redirects to.

use std::collections::HashSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};

use super::auth::AuthCache;
use super::challenge;
use super::credentials::{Credentials, normalise};
use super::error::{Detail, Failures, RegistryError};
use super::hosts::{self, Host, Transport, authority};
use super::reference::{Digest, Reference};
use super::transport::{self, Clients};

const MAX_MANIFEST: u64 = 4 << 20;
const MAX_ERROR_BODY: u64 = 16 << 10;
const MAX_REDIRECTS: usize = 10;
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

/// One thing that is asked of a registry.
pub(super) struct Ask<'a> {
    pub reference: &'a Reference,
    pub credentials: &'a Credentials,
    /// Behind the repository: `manifests/TAG` or `blobs/DIGEST`.
    pub path: String,
    pub headers: HeaderMap,
    /// The answer is checked against a digest that the caller knows, so who serves it does not matter.
    pub pinned: bool,
}

/// A request that may be redirected.
struct Journey {
    url: Url,
    headers: HeaderMap,
    authorization: Option<HeaderValue>,
    pinned: bool,
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

    /// Asks one host, logs in where it wants that, and returns a successful answer with its body unread.
    pub(super) async fn get(&self, host: &Host, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        if !host.plain_fallback {
            return self.get_with_login(host, ask).await;
        }
        let mut plain = host.clone();
        // From https to http is a change the URL type always allows.
        let _ = plain.base.set_scheme("http");
        let known = self.plain_hosts().contains(host.base.as_str());
        let first = if known { &plain } else { host };
        match self.get_with_login(first, ask).await {
            Err(error @ (RegistryError::Tls { .. } | RegistryError::Unreachable { .. })) if !known => {
                tracing::debug!(host = host.name(), "TLS is not understood, trying plain HTTP on loopback");
                let answer = self.get_with_login(&plain, ask).await;
                match answer {
                    Err(RegistryError::Unreachable { .. }) => return Err(error),
                    _ => self.plain_hosts().insert(host.base.as_str().to_owned()),
                };
                answer
            }
            Err(error @ (RegistryError::Status { .. } | RegistryError::Unreachable { .. })) if known => {
                // It may speak TLS from now on: find out next time.
                self.plain_hosts().remove(host.base.as_str());
                Err(error)
            }
            answer => answer,
        }
    }

    fn plain_hosts(&self) -> std::sync::MutexGuard<'_, HashSet<String>> {
        self.shared.plain.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn get_with_login(&self, host: &Host, ask: &Ask<'_>) -> Result<Response, RegistryError> {
        let mirrors_too = self.config().credentials_for_mirrors;
        let secret = ask.credentials.secret_for(host, ask.reference.domain(), mirrors_too);
        let url = ask_url(host, ask)?;
        let journey = |authorization| Journey {
            url: url.clone(),
            headers: ask.headers.clone(),
            authorization,
            pinned: ask.pinned,
        };
        let sent = self.auth().get(host, ask, secret);
        let mut response = self.travel(host, journey(sent.clone())).await?;
        // A host we were sent to does not get to ask for a login.
        if response.status() == StatusCode::UNAUTHORIZED && response.url().origin() == url.origin() {
            let challenges = challenges(&response);
            match self.answer(host, ask, secret, &challenges).await? {
                Some(header) if Some(&header) != sent.as_ref() => {
                    response = self.travel(host, journey(Some(header))).await?;
                }
                _ => {}
            }
        }
        if response.status().is_success() {
            return Ok(response);
        }
        let name = authority(response.url());
        Err(self.failure(&name, response).await)
    }

    /// Fetches a page of a token service.
    pub(super) async fn get_token_page(
        &self,
        host: &Host,
        url: Url,
        authorization: Option<HeaderValue>,
    ) -> Result<Response, RegistryError> {
        // The token decides what is trusted: it must not come over a downgraded connection.
        self.travel(host, Journey { url, headers: HeaderMap::new(), authorization, pinned: false }).await
    }

    /// Follows redirects. The login goes no further than the first origin, the host's headers nowhere else than
    /// to the host.
    async fn travel(&self, host: &Host, journey: Journey) -> Result<Response, RegistryError> {
        let first = journey.url.clone();
        let mut url = journey.url;
        let mut at_home = true;
        for _ in 0..=MAX_REDIRECTS {
            at_home = at_home && url.origin() == first.origin();
            let mut headers = journey.headers.clone();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if at_home && url.origin() == host.base.origin() {
                headers.extend(host.headers.clone());
            }
            if let (true, Some(authorization)) = (at_home, &journey.authorization) {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let request = self.client_for(host, &url)?.get(url.clone()).headers(headers);
            let response = transport::send(request, &url, self.config().header_timeout).await?;
            let Some(next) = redirect(&response, journey.pinned)? else { return Ok(response) };
            url = next;
        }
        Err(RegistryError::Redirects { host: authority(&first), limit: MAX_REDIRECTS })
    }

    /// The client for a URL that `host` led to: our certificate is shown only to the host itself.
    pub(super) fn client_for(&self, host: &Host, url: &Url) -> Result<Client, RegistryError> {
        let timeout = self.config().connect_timeout;
        if url.origin() == host.base.origin() {
            return self.shared.clients.get(&host.transport, url, timeout);
        }
        // Where certificates are not checked only because it is loopback, elsewhere they are.
        let skip_verify = host.transport.skip_verify && !host.plain_fallback;
        let transport = Transport { client: None, skip_verify, ..host.transport.clone() };
        self.shared.clients.get(&transport, url, timeout)
    }

    /// The error that an unsuccessful answer stands for.
    pub(super) async fn failure(&self, host: &str, response: Response) -> RegistryError {
        let host = host.to_owned();
        let (status, retry_after) = (response.status(), retry_after(response.headers()));
        let timeout = self.config().header_timeout;
        let detail = match transport::read_body(response, "an error", MAX_ERROR_BODY, timeout).await {
            Ok(body) => Detail::from_body(&body),
            Err(_) => Detail::default(),
        };
        match status {
            StatusCode::NOT_FOUND | StatusCode::GONE => RegistryError::Missing { host, detail },
            StatusCode::UNAUTHORIZED => RegistryError::Unauthorized { host, detail },
            StatusCode::FORBIDDEN => RegistryError::Forbidden { host, detail },
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimited { host, retry_after, detail },
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                RegistryError::Unavailable { host, status: status.as_u16(), retry_after, detail }
            }
            status => RegistryError::Status { host, status: status.as_u16(), detail },
        }
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
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

fn accept_manifests() -> HeaderValue {
    HeaderValue::try_from(MANIFEST_TYPES.join(", ")).unwrap_or_else(|_| HeaderValue::from_static("*/*"))
}

fn ask_url(host: &Host, ask: &Ask<'_>) -> Result<Url, RegistryError> {
    let text =
        format!("{}/{}/{}", host.base.as_str().trim_end_matches('/'), ask.reference.repository(), ask.path);
    let mut url = Url::parse(&text)
        .map_err(|error| RegistryError::Protocol { host: host.name(), problem: error.to_string() })?;
    let domain = ask.reference.domain();
    // A mirror of several registries is told which one is meant.
    if normalise(host.base.as_str()) != normalise(domain) {
        url.query_pairs_mut().append_pair("ns", domain);
    }
    Ok(url)
}

fn challenges(response: &Response) -> Vec<challenge::Challenge> {
    let headers = response.headers().get_all(header::WWW_AUTHENTICATE);
    headers.iter().filter_map(|value| value.to_str().ok()).flat_map(challenge::parse).collect()
}

/// Where an answer sends us; `None` when it is the end of the journey.
fn redirect(response: &Response, pinned: bool) -> Result<Option<Url>, RegistryError> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let broken = |problem: &str| RegistryError::Protocol {
        host: authority(response.url()),
        problem: problem.to_owned(),
    };
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.ok_or_else(|| broken("it redirects without saying where to"))?;
    let next =
        response.url().join(location).map_err(|_| broken("it redirects to something that is no URL"))?;
    match (response.url().scheme(), next.scheme()) {
        (_, "https") | ("http", "http") => Ok(Some(next)),
        ("https", "http") if pinned => Ok(Some(next)),
        ("https", "http") => Err(broken("it redirects from HTTPS to plain HTTP")),
        _ => Err(broken("it redirects to something that is not on the web")),
    }
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

/// Seconds or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
