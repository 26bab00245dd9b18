//! Answers the login challenges of registries: basic, and bearer tokens from a token service.
//!
//! Invariant: an answer is kept and used only for the (host, repository, secret) that it was made for, so one
//! pod's login never serves another's pull.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::HeaderValue;
use reqwest::{StatusCode, Url};
use serde::Deserialize;

use super::challenge::Challenge;
use super::client::Registry;
use super::credentials::{Secret, basic_header, bearer_header};
use super::error::RegistryError;
use super::hosts::{Host, authority};
use super::request::Ask;
use super::transport;

/// Tokens of clouds are large, but not this large.
const MAX_TOKEN_BODY: u64 = 256 << 10;
const MAX_CACHED: usize = 512;
/// What a token lives when its service does not say, as the token protocol defines.
const DEFAULT_TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last moments: it must still be valid when the request arrives.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
/// How long we go on sending a password unasked.
const BASIC_LIFE: Duration = Duration::from_secs(600);
const CLIENT_ID: &str = "cofferdam";

#[derive(PartialEq, Eq, Hash)]
struct CacheKey {
    host: String,
    repository: String,
    secret: [u8; 32],
}

struct Cached {
    header: HeaderValue,
    expires: Instant,
}

/// Answers that were accepted before.
#[derive(Default)]
pub(super) struct AuthCache {
    entries: Mutex<HashMap<CacheKey, Cached>>,
}

impl AuthCache {
    fn key(host: &Host, ask: &Ask<'_>, secret: &Secret) -> CacheKey {
        CacheKey {
            host: host.base.as_str().to_owned(),
            repository: ask.reference.name(),
            secret: secret.fingerprint(),
        }
    }

    /// The header to send before the host asks for one.
    pub(super) fn get(&self, host: &Host, ask: &Ask<'_>, secret: &Secret) -> Option<HeaderValue> {
        if let Secret::Registry { token } = secret {
            return bearer_header(token);
        }
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let cached = entries.get(&Self::key(host, ask, secret))?;
        (cached.expires > Instant::now()).then(|| cached.header.clone())
    }

    fn put(&self, host: &Host, ask: &Ask<'_>, secret: &Secret, answer: &Answer) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if entries.len() >= MAX_CACHED {
            entries.retain(|_, cached| cached.expires > now);
        }
        if entries.len() >= MAX_CACHED {
            entries.clear();
        }
        let cached = Cached { header: answer.header.clone(), expires: now + answer.life };
        entries.insert(Self::key(host, ask, secret), cached);
    }
}

struct Answer {
    header: HeaderValue,
    life: Duration,
}

/// A token service as a challenge names it.
struct Service<'a> {
    realm: Url,
    service: Option<&'a str>,
    scope: String,
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    expires_in: Option<u64>,
}

impl Registry {
    /// The header that answers the challenges of `host`; `None` when there is no secret or no way to use it.
    pub(super) async fn answer(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        secret: &Secret,
        challenges: &[Challenge],
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let named = |scheme: &str| challenges.iter().find(|challenge| challenge.scheme == scheme);
        let answer = match (named("bearer"), named("basic"), secret) {
            // It was sent already, and is all there is.
            (_, _, Secret::Registry { .. }) => None,
            (Some(bearer), _, _) => Some(self.token_answer(host, ask, secret, bearer).await?),
            (None, Some(_), Secret::Password { username, password }) => {
                let header = basic_header(username, password)?;
                Some(Answer { header, life: BASIC_LIFE })
            }
            (None, _, _) => None,
        };
        if let Some(answer) = &answer {
            self.auth().put(host, ask, secret, answer);
        }
        Ok(answer.map(|answer| answer.header))
    }

    async fn token_answer(
        &self,
        host: &Host,
        ask: &Ask<'_>,
        secret: &Secret,
        challenge: &Challenge,
    ) -> Result<Answer, RegistryError> {
        let service = Service::read(host, ask, challenge)?;
        if *secret != Secret::Anonymous && host.base.scheme() == "https" && service.realm.scheme() != "https"
        {
            return Err(RegistryError::Protocol {
                host: host.name(),
                problem: "its token service does not use HTTPS, so the pull secret was not sent".to_owned(),
            });
        }
        self.fetch_token(host, secret, &service).await.map_err(|source| RegistryError::Login {
            host: host.name(),
            service: authority(&service.realm),
            source: Box::new(source),
        })
    }

    async fn fetch_token(
        &self,
        host: &Host,
        secret: &Secret,
        service: &Service<'_>,
    ) -> Result<Answer, RegistryError> {
        match secret {
            Secret::Identity { username, token } => {
                if let Some(answer) = self.refresh(host, service, token, !username.is_empty()).await? {
                    return Ok(answer);
                }
                // Services without the OAuth form take the identity token as a password.
                self.token_by_get(host, service, Some(basic_header(username, token)?)).await
            }
            Secret::Password { username, password } => {
                self.token_by_get(host, service, Some(basic_header(username, password)?)).await
            }
            Secret::Anonymous | Secret::Registry { .. } => self.token_by_get(host, service, None).await,
        }
    }

    /// Exchanges an identity token; `None` when the service does not offer that.
    async fn refresh(
        &self,
        host: &Host,
        service: &Service<'_>,
        token: &str,
        has_username: bool,
    ) -> Result<Option<Answer>, RegistryError> {
        let form = [
            ("grant_type", "refresh_token"),
            ("client_id", CLIENT_ID),
            ("service", service.service.unwrap_or_default()),
            ("scope", &service.scope),
            ("refresh_token", token),
        ];
        let request = self.client_for(host, &service.realm)?.post(service.realm.clone()).form(&form);
        // Redirects are not followed: the body is the secret.
        let response = transport::send(request, &service.realm, self.config().header_timeout).await?;
        match response.status() {
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => Ok(None),
            StatusCode::UNAUTHORIZED if has_username => Ok(None),
            _ => self.read_token(response).await.map(Some),
        }
    }

    async fn token_by_get(
        &self,
        host: &Host,
        service: &Service<'_>,
        authorization: Option<HeaderValue>,
    ) -> Result<Answer, RegistryError> {
        let mut url = service.realm.clone();
        if let Some(name) = service.service {
            url.query_pairs_mut().append_pair("service", name);
        }
        for scope in service.scope.split_ascii_whitespace() {
            url.query_pairs_mut().append_pair("scope", scope);
        }
        let response = self.get_token_page(host, url, authorization).await?;
        self.read_token(response).await
    }

    async fn read_token(&self, response: reqwest::Response) -> Result<Answer, RegistryError> {
        let service = authority(response.url());
        if !response.status().is_success() {
            return Err(self.failure(&service, response).await);
        }
        let timeout = self.config().header_timeout;
        let body = transport::read_body(response, "a token", MAX_TOKEN_BODY, timeout).await?;
        let broken =
            |problem: &str| RegistryError::Protocol { host: service.clone(), problem: problem.to_owned() };
        // The parser's own message could quote the token.
        let body: TokenBody =
            serde_json::from_slice(&body).map_err(|_| broken("its token answer is not the expected JSON"))?;
        let token = if body.token.is_empty() { &body.access_token } else { &body.token };
        if token.is_empty() {
            return Err(broken("its token answer holds no token"));
        }
        let header = bearer_header(token).ok_or_else(|| broken("its token cannot be sent in a header"))?;
        // Longer than a day means a mistake; ask again then.
        let life = body.expires_in.map_or(DEFAULT_TOKEN_LIFE, |s| Duration::from_secs(s.min(86_400)));
        Ok(Answer { header, life: life.max(DEFAULT_TOKEN_LIFE).saturating_sub(TOKEN_MARGIN) })
    }
}

impl<'a> Service<'a> {
    fn read(host: &Host, ask: &Ask<'_>, challenge: &'a Challenge) -> Result<Self, RegistryError> {
        let broken =
            |problem: &str| RegistryError::Protocol { host: host.name(), problem: problem.to_owned() };
        let realm = challenge.parameter("realm").ok_or_else(|| broken("its login names no token service"))?;
        let realm =
            Url::parse(realm).map_err(|_| broken("its login names a token service that is no URL"))?;
        if !matches!(realm.scheme(), "http" | "https") || realm.host_str().is_none() {
            return Err(broken("its login names a token service that is not on the web"));
        }
        let scope = challenge.parameter("scope").map_or_else(
            || format!("repository:{}:pull", ask.reference.repository()),
            |scope| scope.split_ascii_whitespace().map(pull_only).collect::<Vec<_>>().join(" "),
        );
        Ok(Self { realm, service: challenge.parameter("service"), scope })
    }
}

/// A pull asks for the right to pull and no more, whatever the registry proposes.
fn pull_only(scope: &str) -> String {
    match scope.strip_prefix("repository:").and_then(|rest| rest.rsplit_once(':')) {
        Some((name, _)) => format!("repository:{name}:pull"),
        None => scope.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_reduced_to_pull() {
        for (scope, expected) in [
            ("repository:a/b:pull", "repository:a/b:pull"),
            ("repository:host:5000/b:pull,push,*", "repository:host:5000/b:pull"),
            ("aws", "aws"),
            ("registry:catalog:*", "registry:catalog:*"),
        ] {
            assert_eq!(pull_only(scope), expected);
        }
    }
}
