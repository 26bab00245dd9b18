//! Reads the text of a `hosts.toml`: the hosts of one registry, in the order of the file, the registry itself last.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use super::error::RegistryError;
use super::hosts::{Capabilities, Host, default_host, read};

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
    let registry = if server.is_empty() {
        let mut host = default_host(domain)?;
        parser.apply(&table, &mut host)?;
        host
    } else {
        parser.host(&server, &table, true)?
    };
    add_registry(&mut hosts, registry);
    Ok(hosts)
}

/// Adds the registry itself as the last host. Files often name it as a [host] too: that entry, being the more
/// specific one, stands for it then, and nobody is asked twice.
fn add_registry(hosts: &mut Vec<Host>, registry: Host) {
    let same = hosts.iter_mut().find(|host| host.base == registry.base);
    match same {
        Some(host) if host.capabilities.pull && host.capabilities.resolve => host.upstream = true,
        _ => hosts.push(registry),
    }
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

#[cfg(test)]
#[path = "hosts_toml_tests.rs"]
mod tests;
