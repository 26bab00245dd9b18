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
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use super::error::RegistryError;

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
    const ALL: Self = Self { pull: true, resolve: true, push: true };
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

    fn plain(base: Url, upstream: bool) -> Self {
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
fn read(file: &Path) -> Result<Option<Vec<u8>>, RegistryError> {
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
fn default_host(domain: &str) -> Result<Host, RegistryError> {
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

/// Reads the text of a hosts.toml.
///
/// # Errors
/// When it is no TOML or a known key has a wrong value.
pub fn parse(text: &str, file: &Path, domain: &str) -> Result<Vec<Host>, RegistryError> {
    let bad = |problem: String| RegistryError::Config { file: file.to_owned(), problem };
    let table: Table = text.parse().map_err(|error: toml::de::Error| bad(error.to_string()))?;
    let mut hosts = Vec::new();
    if let Some(entries) = table.get("host") {
        let entries = entries.as_table().ok_or_else(|| bad("host is no table".to_owned()))?;
        for (url, keys) in entries {
            let section = format!("host.\"{url}\"");
            let keys = keys.as_table().ok_or_else(|| bad(format!("{section} is no table")))?;
            let parser = Section { file, name: section };
            hosts.push(parser.host(url, keys, false)?);
        }
    }
    // Keys outside any [host] are those of the registry itself.
    let parser = Section { file, name: String::new() };
    let server = match table.get("server") {
        Some(value) => value.as_str().ok_or_else(|| bad("server is no text".to_owned()))?.to_owned(),
        None => String::new(),
    };
    if server.is_empty() {
        let mut host = default_host(domain)?;
        parser.apply(&table, &mut host)?;
        hosts.push(host);
    } else {
        hosts.push(parser.host(&server, &table, true)?);
    }
    Ok(hosts)
}

/// One table of a hosts.toml, with what its errors need to know.
struct Section<'a> {
    file: &'a Path,
    name: String,
}

impl Section<'_> {
    fn bad(&self, key: &str, problem: impl fmt::Display) -> RegistryError {
        let at = if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) };
        RegistryError::Config { file: self.file.to_owned(), problem: format!("{at}: {problem}") }
    }

    fn host(&self, address: &str, keys: &Table, upstream: bool) -> Result<Host, RegistryError> {
        let full = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let mut base = Url::parse(&full).map_err(|error| self.bad(address, error))?;
        if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
            return Err(self.bad(address, "expected http://host or https://host"));
        }
        if !base.username().is_empty() || base.password().is_some() {
            return Err(
                self.bad("the address", "a login does not belong here; use `header` or a pull secret")
            );
        }
        if base.host_str() == Some("docker.io") {
            base.set_host(Some("registry-1.docker.io")).map_err(|error| self.bad(address, error))?;
        }
        base.set_query(None);
        base.set_fragment(None);
        let overridden = self.flag(keys, "override_path")?;
        let path = base.path().trim_end_matches('/').to_owned();
        let path = if overridden || path.ends_with("/v2") { path } else { format!("{path}/v2") };
        base.set_path(&path);
        let mut host = Host::plain(base, upstream);
        self.apply(keys, &mut host)?;
        Ok(host)
    }

    /// Takes over every key but `server`, `host` and `override_path`.
    fn apply(&self, keys: &Table, host: &mut Host) -> Result<(), RegistryError> {
        for (key, value) in keys {
            match key.as_str() {
                "capabilities" => host.capabilities = self.capabilities(value)?,
                "ca" => host.transport.ca = self.authorities(value)?,
                "client" => host.transport.client = self.client(value)?,
                "skip_verify" => host.transport.skip_verify = self.flag(keys, key)?,
                "header" => host.headers = self.headers(value)?,
                "dial_timeout" => host.transport.dial_timeout = Some(self.duration(value)?),
                "override_path" => {}
                "server" | "host" if self.name.is_empty() => {}
                unknown => tracing::warn!(
                    file = %self.file.display(), section = self.name, key = unknown,
                    "unknown key in hosts.toml is not used"
                ),
            }
        }
        Ok(())
    }

    fn flag(&self, keys: &Table, key: &str) -> Result<bool, RegistryError> {
        match keys.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| self.bad(key, "expected true or false")),
        }
    }

    fn capabilities(&self, value: &Value) -> Result<Capabilities, RegistryError> {
        let mut capabilities = Capabilities { pull: false, resolve: false, push: false };
        let list = value.as_array().ok_or_else(|| self.bad("capabilities", "expected a list"))?;
        if list.is_empty() {
            return Ok(Capabilities::ALL);
        }
        for entry in list {
            match entry.as_str() {
                Some("pull") => capabilities.pull = true,
                Some("resolve") => capabilities.resolve = true,
                Some("push") => capabilities.push = true,
                _ => return Err(self.bad("capabilities", format!("{entry} is none of pull, resolve, push"))),
            }
        }
        Ok(capabilities)
    }

    fn authorities(&self, value: &Value) -> Result<Vec<Vec<u8>>, RegistryError> {
        let paths = texts(value).ok_or_else(|| self.bad("ca", "expected a path or a list of paths"))?;
        paths.into_iter().map(|path| self.pem("ca", path)).collect()
    }

    /// A path of a file with certificate and key, a list of those, or a list of pairs of paths.
    fn client(&self, value: &Value) -> Result<Option<Vec<u8>>, RegistryError> {
        let wrong = || self.bad("client", "expected a path, a list of paths or a list of pairs of paths");
        let entries = match value {
            Value::String(_) => std::slice::from_ref(value),
            Value::Array(list) => list.as_slice(),
            _ => return Err(wrong()),
        };
        if entries.len() > 1 {
            tracing::warn!(file = %self.file.display(), "only the first client certificate is used");
        }
        let Some(first) = entries.first() else { return Ok(None) };
        let paths = texts(first).filter(|paths| (1..=2).contains(&paths.len())).ok_or_else(wrong)?;
        let mut pem = Vec::new();
        // The second of a pair may be empty: then the first file holds the key too.
        for path in paths.into_iter().filter(|path| !path.is_empty()) {
            pem.extend(self.pem("client", path)?);
            pem.push(b'\n');
        }
        Ok(Some(pem))
    }

    /// Reads a PEM file; relative paths start at the folder of the hosts.toml.
    fn pem(&self, key: &str, path: &str) -> Result<Vec<u8>, RegistryError> {
        let full = self.file.parent().unwrap_or(Path::new("/")).join(path);
        read(&full)?.ok_or_else(|| self.bad(key, format!("{} does not exist", full.display())))
    }

    fn headers(&self, value: &Value) -> Result<HeaderMap, RegistryError> {
        let table = value.as_table().ok_or_else(|| self.bad("header", "expected a table"))?;
        let mut headers = HeaderMap::new();
        for (name, values) in table {
            let header: HeaderName = name.parse().map_err(|error| self.bad("header", error))?;
            let values = texts(values).ok_or_else(|| self.bad(name, "expected a text or a list of texts"))?;
            for text in values {
                let mut value: HeaderValue = text
                    .parse()
                    .map_err(|_| self.bad(name, "the value has characters a header cannot carry"))?;
                value.set_sensitive(true);
                headers.append(header.clone(), value);
            }
        }
        Ok(headers)
    }

    fn duration(&self, value: &Value) -> Result<Duration, RegistryError> {
        value
            .as_str()
            .and_then(parse_duration)
            .ok_or_else(|| self.bad("dial_timeout", "expected a duration such as \"5s\" or \"1m30s\""))
    }
}

/// A text, or a list of only texts.
fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A duration as Go writes it: numbers with units, one after another.
fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |i| digits + i);
        let seconds = match &rest[digits..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_end..];
    }
    (!total.is_zero()).then_some(total)
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
