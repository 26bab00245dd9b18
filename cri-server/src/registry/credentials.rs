//! What a pull may log in with, and to whom it may be shown.
//!
//! Invariant: a secret is given out only for the host it is meant for, and never printed.

use std::fmt;

use base64::Engine as _;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use reqwest::header::HeaderValue;
use sha2::{Digest as _, Sha256};

use super::error::RegistryError;
use super::hosts::Host;

/// Secrets come from many hands; padding is sometimes missing.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The user name by which Docker marks that the password is an identity token.
const TOKEN_USER: &str = "<token>";

/// The fields of CRI's AuthConfig, as the kubelet sends them.
#[derive(Clone, Copy, Default)]
pub struct AuthFields<'a> {
    pub username: &'a str,
    pub password: &'a str,
    pub auth: &'a str,
    pub server_address: &'a str,
    pub identity_token: &'a str,
    pub registry_token: &'a str,
}

/// What one pull logs in with.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Normalised; `None` means the registry of the image.
    server: Option<String>,
    secret: Secret,
}

/// A login.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) enum Secret {
    #[default]
    Anonymous,
    Password {
        username: String,
        password: String,
    },
    /// Exchanged at the registry's token service for a token that permits the pull.
    Identity {
        username: String,
        token: String,
    },
    /// Already such a token.
    Registry {
        token: String,
    },
}

impl Credentials {
    /// No login.
    #[must_use]
    pub fn anonymous() -> Self {
        Self::default()
    }

    /// A user name and a password for the registry of the image.
    #[must_use]
    pub fn password(username: impl Into<String>, password: impl Into<String>) -> Self {
        let secret = Secret::Password { username: username.into(), password: password.into() };
        Self { server: None, secret }
    }

    /// Reads the fields of an AuthConfig. The most specific secret wins.
    ///
    /// # Errors
    /// When `auth` is not base64 of `user:password`.
    pub fn from_fields(fields: AuthFields<'_>) -> Result<Self, RegistryError> {
        let server = Some(normalise(fields.server_address)).filter(|server| !server.is_empty());
        let secret = if !fields.registry_token.is_empty() {
            Secret::Registry { token: fields.registry_token.to_owned() }
        } else if !fields.identity_token.is_empty() {
            Secret::Identity { username: fields.username.to_owned(), token: fields.identity_token.to_owned() }
        } else if !fields.username.is_empty() {
            password(fields.username, fields.password)
        } else if !fields.auth.is_empty() {
            decode(fields.auth)?
        } else {
            Secret::Anonymous
        };
        Ok(Self { server, secret })
    }

    /// The secret that `host` may see when it serves an image of registry `domain`.
    ///
    /// The registry itself may; a mirror only when it is named, is the registry under another path, or the
    /// operator said that mirrors are trusted.
    pub(super) fn secret_for(&self, host: &Host, domain: &str, mirrors_too: bool) -> &Secret {
        let (name, domain) = (normalise(host.base.as_str()), normalise(domain));
        let meant = match &self.server {
            Some(server) => *server == name || (host.upstream && *server == domain),
            None => host.upstream || name == domain || mirrors_too,
        };
        if meant { &self.secret } else { &Secret::Anonymous }
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("server", &self.server).field("secret", &self.secret).finish()
    }
}

impl Secret {
    /// Tells secrets apart in a cache without keeping them there.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        let (kind, parts): (u8, [&str; 2]) = match self {
            Self::Anonymous => (0, ["", ""]),
            Self::Password { username, password } => (1, [username, password]),
            Self::Identity { username, token } => (2, [username, token]),
            Self::Registry { token } => (3, ["", token]),
        };
        let mut hasher = Sha256::new();
        hasher.update([kind]);
        for part in parts {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.finalize().into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "anonymous",
            Self::Password { .. } => "password",
            Self::Identity { .. } => "identity token",
            Self::Registry { .. } => "registry token",
        })
    }
}

/// `Authorization: Basic …`.
///
/// # Errors
/// When the user name cannot be sent that way.
pub(super) fn basic_header(username: &str, password: &str) -> Result<HeaderValue, RegistryError> {
    let problem = "its user name contains a colon, which a basic login cannot carry";
    let encoded = (!username.contains(':')).then(|| BASE64.encode(format!("{username}:{password}")));
    encoded.and_then(|text| authorization("Basic", &text)).ok_or(RegistryError::Credentials { problem })
}

/// `Authorization: Bearer …`; `None` when the token has characters that a header cannot carry.
pub(super) fn bearer_header(token: &str) -> Option<HeaderValue> {
    authorization("Bearer", token)
}

fn authorization(scheme: &str, value: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}")).ok()?;
    header.set_sensitive(true);
    Some(header)
}

fn password(username: &str, password: &str) -> Secret {
    if username == TOKEN_USER {
        return Secret::Identity { username: String::new(), token: password.to_owned() };
    }
    Secret::Password { username: username.to_owned(), password: password.to_owned() }
}

fn decode(auth: &str) -> Result<Secret, RegistryError> {
    let problem = |problem| RegistryError::Credentials { problem };
    let bytes = BASE64.decode(auth.trim()).map_err(|_| problem("its auth field is no base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| problem("its auth field holds no text"))?;
    let (username, secret) =
        text.split_once(':').ok_or_else(|| problem("its auth field is not user:password"))?;
    // Some writers fill the buffer up with zeros.
    Ok(password(username, secret.trim_end_matches('\0')))
}

/// `host[:port]` in lower case, without a scheme's own port; all names of Docker Hub are one.
pub(super) fn normalise(address: &str) -> String {
    let (scheme, rest) = address.split_once("://").unwrap_or(("", address));
    let host = rest.split('/').next().unwrap_or_default().to_ascii_lowercase();
    let host = match scheme {
        "http" => host.strip_suffix(":80").unwrap_or(&host),
        _ => host.strip_suffix(":443").unwrap_or(&host),
    };
    match host {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
#[path = "credentials_tests.rs"]
mod tests;
