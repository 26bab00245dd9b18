//! Image references: parsed and normalised once, trusted afterwards.
//!
//! The grammar is the one of the distribution project, with Docker's defaults: no domain means `docker.io`, a
//! single name there belongs to `library/`, and neither tag nor digest means `latest`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, DigestError, shown};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
const OFFICIAL_PREFIX: &str = "library";
const DEFAULT_TAG: &str = "latest";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// Why a text names no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {problem}")]
pub struct ReferenceError {
    text: String,
    problem: Problem,
}

/// What is wrong with the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it is empty")]
    Empty,
    #[error("it carries a scheme; leave {0:?} away")]
    Scheme(String),
    #[error("the registry {0:?} is no host name, host:port or [IPv6]:port")]
    Domain(String),
    #[error("the repository name is missing")]
    NoRepository,
    #[error("the repository name has {0} characters, more than {MAX_REPOSITORY}")]
    RepositoryTooLong(usize),
    #[error("the repository name {0:?} must be lower case")]
    UpperCase(String),
    #[error(
        "{0:?} is no part of a repository name: parts are a-z and 0-9, separated inside by one '.', one or two \
         '_' or any number of '-'"
    )]
    Component(String),
    #[error("64 hexadecimal digits are an image id, not a name")]
    LooksLikeId,
    #[error(
        "{0:?} is no tag: 1 to {MAX_TAG} characters of A-Z, a-z, 0-9, '_', '.', '-', not starting with '.' or '-'"
    )]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

/// A normalised image reference: at least one of tag and digest is set.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    domain: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads what a user or the kubelet wrote and fills in the defaults.
    ///
    /// # Errors
    /// When the text is no reference; the error says which part is wrong.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        parse(text).map_err(|problem| ReferenceError { text: shown(text), problem })
    }

    /// The registry, as `host` or `host:port`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path inside the registry, such as `library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, absent only when there is a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest that pins the image.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// `domain/repository`, without tag and digest.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.domain, self.repository)
    }

    /// The same repository, pinned to `digest` and without a tag: the form of CRI's repo digests.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            domain: self.domain.clone(),
            repository: self.repository.clone(),
            tag: None,
            digest: Some(digest),
        }
    }

    /// `domain/repository:tag` without the digest: the form of CRI's repo tags.
    #[must_use]
    pub fn without_digest(&self) -> Option<Self> {
        self.tag.as_ref()?;
        Some(Self { digest: None, ..self.clone() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

impl TryFrom<String> for Reference {
    type Error = ReferenceError;

    fn try_from(text: String) -> Result<Self, ReferenceError> {
        Self::parse(&text)
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> Self {
        reference.to_string()
    }
}

fn parse(text: &str) -> Result<Reference, Problem> {
    if text.is_empty() {
        return Err(Problem::Empty);
    }
    if let Some(at) = text.find("://") {
        return Err(Problem::Scheme(shown(&text[..at + 3])));
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (text, None),
    };
    let (domain, rest) = split_domain(rest)?;
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(parse_tag(tag)?)),
        None => (rest, None),
    };
    check_repository(path)?;
    let (domain, repository) = normalise(domain, path)?;
    let tag = match (&tag, &digest) {
        (None, None) => Some(DEFAULT_TAG.to_owned()),
        _ => tag,
    };
    Ok(Reference { domain, repository, tag, digest })
}

/// The first component is a registry when it could not be a repository's: it has a dot, a port or upper case, or
/// it is `localhost`.
fn split_domain(text: &str) -> Result<(Option<&str>, &str), Problem> {
    let Some((first, rest)) = text.split_once('/') else { return Ok((None, text)) };
    let is_domain =
        first == "localhost" || first.contains(['.', ':']) || first.bytes().any(|b| b.is_ascii_uppercase());
    if !is_domain {
        return Ok((None, text));
    }
    if !valid_domain(first) {
        return Err(Problem::Domain(shown(first)));
    }
    Ok((Some(first), rest))
}

fn normalise(domain: Option<&str>, path: &str) -> Result<(String, String), Problem> {
    let domain = match domain {
        None | Some(LEGACY_DEFAULT_DOMAIN) => DEFAULT_DOMAIN,
        Some(domain) => domain,
    };
    let repository = if domain == DEFAULT_DOMAIN && !path.contains('/') {
        format!("{OFFICIAL_PREFIX}/{path}")
    } else {
        path.to_owned()
    };
    if repository.len() > MAX_REPOSITORY {
        return Err(Problem::RepositoryTooLong(repository.len()));
    }
    Ok((domain.to_owned(), repository))
}

fn check_repository(path: &str) -> Result<(), Problem> {
    if path.is_empty() {
        return Err(Problem::NoRepository);
    }
    if path.len() == 64 && path.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(Problem::LooksLikeId);
    }
    if path.len() > MAX_REPOSITORY {
        return Err(Problem::RepositoryTooLong(path.len()));
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(Problem::UpperCase(shown(path)));
    }
    match path.split('/').find(|part| !valid_component(part)) {
        Some(part) => Err(Problem::Component(shown(part))),
        None => Ok(()),
    }
}

/// Runs of letters and digits, separated by one of `.`, `_`, `__` or dashes.
fn valid_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !part.starts_with(alphanumeric) || !part.ends_with(alphanumeric) {
        return false;
    }
    part.split(alphanumeric)
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn parse_tag(tag: &str) -> Result<String, Problem> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let valid = tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-');
    if valid { Ok(tag.to_owned()) } else { Err(Problem::Tag(shown(tag))) }
}

fn valid_domain(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) if port.starts_with(':') => (address, Some(&port[1..])),
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let host_valid = if text.starts_with('[') {
        host.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        host.len() <= 253 && host.split('.').all(valid_label)
    };
    // parse::<u16> alone would let "+80" through.
    let port_valid = port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok());
    host_valid && port_valid
}

fn valid_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !label.starts_with('-')
        && !label.ends_with('-')
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
