//! One request to one host: login, redirects, and what its answer means.
//!
//! Invariant: a login, the headers and the certificate of a host leave for that host only, never for one that it
//! redirects to.

use std::time::{Duration, SystemTime};

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, Response, StatusCode, Url};

use super::challenge;
use super::client::Registry;
use super::credentials::{Credentials, normalise};
use super::error::{Detail, RegistryError};
use super::hosts::{Host, Transport, authority};
use super::reference::Reference;
use super::transport;

const MAX_ERROR_BODY: u64 = 16 << 10;
const MAX_REDIRECTS: usize = 10;

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
            return self.clients().get(&host.transport, url, timeout);
        }
        // Where certificates are not checked only because it is loopback, elsewhere they are.
        let skip_verify = host.transport.skip_verify && !host.plain_fallback;
        let transport = Transport { client: None, skip_verify, ..host.transport.clone() };
        self.clients().get(&transport, url, timeout)
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
#[path = "request_tests.rs"]
mod tests;
