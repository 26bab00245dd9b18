//! Which hosts serve a registry, and how: containerd's `certs.d` folder, read as it is.
//!
//! ```text
//! <config_path>/registry.example_5000_/hosts.toml     also registry.example:5000/, and _default/ for all others
//!                                      *.crt *.cert *.key     where there is no hosts.toml
//! ```
//! The file is containerd's, not ours: a key we do not know is named in a warning and skipped. Files are read
//! again for every pull, so an edit needs no restart.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use super::error::RegistryError;
use super::hosts_toml::parse;

const FILE: &str = "hosts.toml";
/// A file larger than this is not a hosts.toml.
const MAX_FILE: u64 = 1 << 20;

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

impl Capabilities {
    pub(super) const ALL: Self = Self { pull: true, resolve: true, push: true };
}

/// Certificates and connection options; equal ones share a pool of connections.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Transport {
    /// PEM files of further trusted authorities.
    pub ca: Vec<Vec<u8>>,
    /// Certificate and key in PEM.
    pub client: Option<Vec<u8>>,
    pub skip_verify: bool,
    pub dial_timeout: Option<Duration>,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("ca", &self.ca.len())
            .field("client", &self.client.is_some())
            .field("skip_verify", &self.skip_verify)
            .field("dial_timeout", &self.dial_timeout)
            .finish()
    }
}

/// One host that serves a registry's content.
#[derive(Clone)]
pub struct Host {
    /// Up to and with `/v2`, without a slash at the end.
    pub base: Url,
    pub capabilities: Capabilities,
    pub transport: Transport,
    pub headers: HeaderMap,
    /// The registry itself, not a mirror of it.
    pub upstream: bool,
    /// Loopback registries often speak plain HTTP: try it when TLS is not understood.
    pub plain_fallback: bool,
}

impl Host {
    /// `host` or `host:port`, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        authority(&self.base)
    }

    pub(super) fn plain(base: Url, upstream: bool) -> Self {
        Self {
            base,
            capabilities: Capabilities::ALL,
            transport: Transport::default(),
            headers: HeaderMap::new(),
            upstream,
            plain_fallback: false,
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Header values may be secrets.
        f.debug_struct("Host")
            .field("base", &self.base.as_str())
            .field("capabilities", &self.capabilities)
            .field("transport", &self.transport)
            .field("headers", &self.headers.keys().collect::<Vec<_>>())
            .field("upstream", &self.upstream)
            .finish_non_exhaustive()
    }
}

/// `host` or `host:port` of a URL.
#[must_use]
pub fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

/// The hosts of the registry `domain`, in the order in which they are asked.
///
/// # Errors
/// When a file is there but cannot be used: to go on without it could contact the wrong host.
pub fn load(config_path: Option<&Path>, domain: &str) -> Result<Vec<Host>, RegistryError> {
    let Some(folder) = config_path.and_then(|path| folder_for(path, domain)) else {
        return Ok(vec![default_host(domain)?]);
    };
    let file = folder.join(FILE);
    match read(&file)? {
        Some(text) => {
            let text = String::from_utf8(text).map_err(|_| RegistryError::Config {
                file: file.clone(),
                problem: "it is no UTF-8 text".to_owned(),
            })?;
            parse(&text, &file, domain)
        }
        None => {
            let mut host = default_host(domain)?;
            add_legacy_files(&folder, &mut host.transport)?;
            if !host.transport.ca.is_empty() {
                // Whoever installs an authority wants it to be checked, on loopback as well.
                host.transport.skip_verify = false;
                host.plain_fallback = false;
            }
            Ok(vec![host])
        }
    }
}

fn folder_for(config_path: &Path, domain: &str) -> Option<PathBuf> {
    // Colons are awkward in paths of some systems, so the form with underscores comes first.
    let escaped = split_port(domain).map(|(host, port)| format!("{host}_{port}_"));
    let names = escaped.iter().map(String::as_str).chain([domain, "_default"]);
    names.map(|name| config_path.join(name)).find(|folder| folder.is_dir())
}

fn split_port(domain: &str) -> Option<(&str, &str)> {
    let (host, port) = domain.rsplit_once(':')?;
    (!port.contains(']')).then_some((host, port))
}

/// Reads a file whole; `None` when it does not exist.
pub(super) fn read(file: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
    let failed = |source| RegistryError::ConfigFile { file: file.to_owned(), source };
    match std::fs::metadata(file) {
        Ok(meta) if meta.len() > MAX_FILE || !meta.is_file() => Err(RegistryError::Config {
            file: file.to_owned(),
            problem: format!("it is no regular file of up to {MAX_FILE} bytes"),
        }),
        Ok(_) => std::fs::read(file).map(Some).map_err(failed),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// The host of a registry about which no file says anything.
pub(super) fn default_host(domain: &str) -> Result<Host, RegistryError> {
    let name = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let port = split_port(domain).map(|(_, port)| port);
    let scheme = if port == Some("80") { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{name}/v2")).map_err(|error| RegistryError::Protocol {
        host: name.to_owned(),
        problem: format!("it is no host name: {error}"),
    })?;
    let mut host = Host::plain(base, true);
    if is_loopback(&host.base) && scheme == "https" {
        // A certificate proves nothing about one's own loopback.
        host.plain_fallback = true;
        host.transport.skip_verify = true;
    }
    Ok(host)
}

/// Whether a URL stays on this machine.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some("localhost") => true,
        Some(host) => host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback()),
        None => false,
    }
}

/// Docker's older layout: every *.crt is an authority, X.cert and X.key are the client's.
fn add_legacy_files(folder: &Path, transport: &mut Transport) -> Result<(), RegistryError> {
    let failed = |source| RegistryError::ConfigFile { file: folder.to_owned(), source };
    let entries: Result<Vec<_>, _> = std::fs::read_dir(folder).map_err(failed)?.collect();
    let mut files: Vec<PathBuf> = entries.map_err(failed)?.into_iter().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => transport.ca.extend(read(&file)?),
            Some("cert") => transport.client = Some(legacy_client(&file)?),
            _ => {}
        }
    }
    Ok(())
}

fn legacy_client(certificate: &Path) -> Result<Vec<u8>, RegistryError> {
    let key = certificate.with_extension("key");
    let missing = |file: &Path| RegistryError::Config {
        file: file.to_owned(),
        problem: format!("it is missing, but {} needs it", certificate.display()),
    };
    let mut pem = read(certificate)?.ok_or_else(|| missing(certificate))?;
    pem.push(b'\n');
    pem.extend(read(&key)?.ok_or_else(|| missing(&key))?);
    Ok(pem)
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
