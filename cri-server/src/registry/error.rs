//! What can go wrong with a registry, told so that an operator knows what to do. Never holds a secret: no URL (a
//! CDN signs them), no header, no credential.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::digest::Digest;

/// A boxed cause.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a registry did not give what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    #[error("{reference} was not found; check name and tag. Asked: {tried}")]
    NotFound { reference: String, tried: Tried },
    /// No host served it, and the last one, the registry itself, failed for the reason that is the source.
    #[error("no host serves {reference}; asked: {tried}")]
    NoHost {
        reference: String,
        tried: Tried,
        #[source]
        last: Box<RegistryError>,
    },
    #[error("no host of {registry} may be asked to {capability}; add the capability to a host in {}", file.display())]
    NoCapability { registry: String, capability: &'static str, file: PathBuf },
    #[error("{host} does not have it{detail}")]
    Missing { host: String, detail: Detail },
    #[error("{host} wants a valid login{detail}; check the image's name and the pull secret")]
    Unauthorized { host: String, detail: Detail },
    #[error(
        "{host} refuses access{detail}; the account lacks the right to pull, or the repository does not exist"
    )]
    Forbidden { host: String, detail: Detail },
    #[error("{host} limits the rate of requests{detail}; pull with an account, use a mirror or try later")]
    RateLimited { host: String, retry_after: Option<Duration>, detail: Detail },
    #[error("{host} is out of order: HTTP status {status}{detail}; try later or use a mirror")]
    Unavailable { host: String, status: u16, retry_after: Option<Duration>, detail: Detail },
    #[error("{host} cannot be reached; check its name, DNS, the network and proxy settings")]
    Unreachable {
        host: String,
        #[source]
        source: Cause,
    },
    #[error("the connection to {host} broke while data was read")]
    Broken {
        host: String,
        #[source]
        source: Cause,
    },
    #[error("{host} did not {what} within {} s; check the network or raise the time-out", after.as_secs_f32())]
    Timeout { host: String, what: &'static str, after: Duration },
    #[error(
        "TLS with {host} failed; set `ca` to the registry's own CA in its hosts.toml, or \"http://…\" when it speaks \
         plain HTTP"
    )]
    Tls {
        host: String,
        #[source]
        source: Cause,
    },
    #[error(
        "{host} sent bytes with digest {actual} instead of {expected}; the registry or a proxy corrupts data"
    )]
    DigestMismatch { host: String, expected: Digest, actual: Digest },
    #[error("{host} sent more than the {limit} bytes that are allowed for {what}")]
    TooLarge { host: String, what: String, limit: u64 },
    #[error("{host} sent {actual} bytes instead of the {expected} of {digest}; the registry is damaged")]
    WrongSize { host: String, digest: Digest, expected: u64, actual: u64 },
    #[error(
        "{host} offers media type {media_type:?}, which is not supported; push the image again with a newer tool"
    )]
    MediaType { host: String, media_type: String },
    #[error("{host} does not speak the registry protocol: {problem}")]
    Protocol { host: String, problem: String },
    #[error("{host} answers with the unexpected HTTP status {status}{detail}; is it a registry?")]
    Status { host: String, status: u16, detail: Detail },
    #[error("{host} redirects more than {limit} times")]
    Redirects { host: String, limit: usize },
    #[error("the login at {service} for {host} failed")]
    Login {
        host: String,
        service: String,
        #[source]
        source: Box<RegistryError>,
    },
    #[error("the pull secret is unusable: {problem}")]
    Credentials { problem: &'static str },
    #[error("{}: {problem}; correct the file", file.display())]
    Config { file: PathBuf, problem: String },
    #[error("cannot read {}", file.display())]
    ConfigFile {
        file: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no HTTP client can be made; is a certificate or key in its configuration damaged?")]
    Client {
        #[source]
        source: Cause,
    },
}

impl RegistryError {
    /// The error that decides what the caller is told: what the registry itself said, where several hosts were
    /// asked.
    #[must_use]
    pub fn decisive(&self) -> &Self {
        match self {
            Self::NoHost { last, .. } => last.decisive(),
            Self::Login { source, .. } => source.decisive(),
            other => other,
        }
    }

    /// Whether the image is simply not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self.decisive(), Self::NotFound { .. } | Self::Missing { .. })
    }

    /// Whether another attempt at the same host may succeed.
    pub(super) fn is_transient(&self) -> bool {
        matches!(
            self.decisive(),
            Self::RateLimited { .. }
                | Self::Unavailable { .. }
                | Self::Unreachable { .. }
                | Self::Broken { .. }
                | Self::Timeout { .. }
        )
    }

    /// How long the host asked us to wait.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self.decisive() {
            Self::RateLimited { retry_after, .. } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// What a registry said about a failure, made safe to show; empty when it said nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail(String);

impl Detail {
    const MAX: usize = 200;

    /// Takes the first error of a registry's JSON error body.
    #[must_use]
    pub fn from_body(body: &[u8]) -> Self {
        let Ok(value) = serde_json::from_slice::<serde_json::Value>(body) else { return Self::default() };
        let error = value.pointer("/errors/0").unwrap_or(&value);
        let text = |key: &str| error.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        let said = [text("code"), text("message"), text("details")].map(clean);
        let said: Vec<&str> = said.iter().map(String::as_str).filter(|s| !s.is_empty()).collect();
        Self(said.join(": "))
    }
}

fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(Detail::MAX).collect()
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

/// One host that was asked, and why it did not help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub host: String,
    pub reason: String,
}

/// The hosts that were asked, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried(pub Vec<Attempt>);

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, attempt) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            write!(f, "{separator}{}", attempt.reason)?;
        }
        Ok(())
    }
}

/// The failures of one round over the hosts of a registry.
#[derive(Debug, Default)]
pub(super) struct Failures(Vec<(String, RegistryError)>);

impl Failures {
    pub(super) fn push(&mut self, host: &str, error: RegistryError) {
        tracing::debug!(host, error = %chain(&error), "registry host did not help");
        self.0.push((host.to_owned(), error));
    }

    /// Whether to ask the hosts again: when the registry itself may do better, or a mirror is only busy. A dead
    /// mirror must not hold up a clear answer of the registry.
    pub(super) fn worth_another_round(&self) -> bool {
        let busy = |error: &RegistryError| {
            matches!(error.decisive(), RegistryError::RateLimited { .. } | RegistryError::Unavailable { .. })
        };
        self.0.last().is_some_and(|(_, error)| error.is_transient()) || self.0.iter().any(|(_, e)| busy(e))
    }

    /// The shortest wait that any host asked for: the first of them may help.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.0.iter().filter_map(|(_, error)| error.retry_after()).min()
    }

    /// Puts the failures of a round that began with host number `first` into the order of the hosts.
    pub(super) fn began_with(&mut self, first: usize) {
        let first = first.min(self.0.len());
        self.0.rotate_right(first);
    }

    /// One error for the whole round. The last host is the registry itself and decides.
    pub(super) fn into_error(mut self, reference: String) -> RegistryError {
        let attempts =
            self.0.iter().map(|(host, error)| Attempt { host: host.clone(), reason: chain(error) }).collect();
        let tried = Tried(attempts);
        let alone = self.0.len() == 1;
        match self.0.pop() {
            Some((_, RegistryError::Missing { .. })) | None => RegistryError::NotFound { reference, tried },
            Some((_, error)) if alone => error,
            Some((_, error)) => RegistryError::NoHost { reference, tried, last: Box::new(error) },
        }
    }
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Foreign errors often repeat their cause in their own text.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
