//! The configuration: one value, read once, checked whole, never changed.
//!
//! `config.toml` and then `conf.d/*.toml` beside it, in lexical order; tables are merged, later files win. Every
//! key is optional. Unknown keys are errors that name the nearest right key, and all errors are told at once.

mod keys;
mod maintenance;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use maintenance::MaintenanceConfig;

use crate::cgroup::Driver;
use crate::{cdi, image, network, nri, runtime};

/// Where the configuration is looked for when none is named.
pub const DEFAULT_PATH: &str = "/etc/cofferdam/config.toml";
/// The longest path a unix socket can have, without its closing zero. unix(7)
const MAX_SOCKET_PATH: usize = 107;

/// The whole configuration.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Data that survives a reboot: images, layers, records.
    pub root: PathBuf,
    /// Data that does not: bundles, sockets, namespaces.
    pub state: PathBuf,
    /// Where the CRI is served.
    pub socket: PathBuf,
    /// The handler of pods that name none.
    pub default_runtime: String,
    /// Who makes cgroups; the kubelet is told by RuntimeConfig.
    pub cgroup_driver: CgroupDriver,
    /// Whether pods are told apart by SELinux labels, on a node that has SELinux.
    pub selinux: bool,
    pub image: image::Config,
    pub network: network::Config,
    pub streaming: StreamingConfig,
    pub cdi: cdi::Config,
    pub nri: nri::Config,
    pub metrics: MetricsConfig,
    pub shim: runtime::ShimConfig,
    pub maintenance: MaintenanceConfig,
    pub runtimes: BTreeMap<String, runtime::RuntimeConfig>,
}

/// Who makes cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    Cgroupfs,
    Systemd,
}

/// The streaming server of exec, attach and port-forward.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamingConfig {
    /// Where it listens: an IP address and a port, 0 for any.
    pub address: String,
    /// What URLs name instead, as `host:port`, where clients reach the server by another way.
    pub external_address: String,
    /// The certificate, PEM, followed by what signed it; with the key this turns TLS on. Both are read anew on change.
    pub tls_cert: String,
    /// The certificate's key, PEM.
    pub tls_key: String,
}

/// The daemon's own metrics, for Prometheus.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// An IP address and a port, 0 for any; empty turns them off.
    pub address: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/cofferdam".into(),
            state: "/run/cofferdam".into(),
            socket: "/run/cofferdam/cofferdam.sock".into(),
            default_runtime: "cofferdam".to_owned(),
            image: image::Config::default(),
            network: network::Config::default(),
            streaming: StreamingConfig::default(),
            cdi: cdi::Config::default(),
            nri: nri::Config::default(),
            metrics: MetricsConfig::default(),
            shim: runtime::ShimConfig::default(),
            maintenance: MaintenanceConfig::default(),
            runtimes: runtime::HandlerTable::built_in(),
            cgroup_driver: CgroupDriver::Cgroupfs,
            selinux: false,
        }
    }
}

impl Default for StreamingConfig {
    fn default() -> Self {
        let [external_address, tls_cert, tls_key] = [const { String::new() }; 3];
        Self { address: "127.0.0.1:0".to_owned(), external_address, tls_cert, tls_key }
    }
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { address: "127.0.0.1:9095".to_owned() }
    }
}

/// Everything that is wrong with a configuration.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// One thing that is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: cannot be read: {reason}")]
    Read { path: PathBuf, reason: std::io::Error },
    #[error("{path}: {message}")]
    Syntax { path: PathBuf, message: String },
    #[error("{path}: unknown key {key:?}{}", .nearest.as_ref().map(|n| format!("; did you mean {n:?}?")).unwrap_or_default())]
    UnknownKey { path: PathBuf, key: String, nearest: Option<String> },
    #[error("{key}: {message}")]
    Value { key: &'static str, message: String },
    #[error("{0}")]
    Type(String),
}

/// What the command line sets over the files.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    pub root: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub socket: Option<PathBuf>,
}

impl Config {
    /// Reads `path` and `conf.d/*.toml` beside it. With no path the default one, which may be missing.
    ///
    /// # Errors
    /// All that is wrong: unreadable files, syntax, unknown keys, values.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigErrors> {
        let main = path.unwrap_or(Path::new(DEFAULT_PATH));
        let mut errors = Vec::new();
        let mut merged = toml::Table::new();
        let mut files = Vec::new();
        if path.is_some() || main.exists() {
            files.push(main.to_owned());
        }
        files.extend(drop_ins(main, &mut errors));
        for file in files {
            match read_table(&file) {
                Ok(table) => {
                    errors.extend(keys::unknown(&table).into_iter().map(|unknown| ConfigError::UnknownKey {
                        path: file.clone(),
                        key: unknown.key,
                        nearest: unknown.nearest,
                    }));
                    merge(&mut merged, table);
                }
                Err(error) => errors.push(error),
            }
        }
        if !errors.is_empty() {
            return Err(ConfigErrors(errors));
        }
        let mut config = Self::from_table(merged)?;
        overrides.clone().apply(&mut config);
        let errors = config.wrong_values();
        if errors.is_empty() { Ok(config) } else { Err(ConfigErrors(errors)) }
    }

    fn from_table(table: toml::Table) -> Result<Self, ConfigErrors> {
        let mut config: Self =
            table.try_into().map_err(|e| ConfigErrors(vec![ConfigError::Type(e.to_string())]))?;
        // The built-in handlers stay unless the file defines them anew.
        for (name, handler) in Self::default().runtimes {
            config.runtimes.entry(name).or_insert(handler);
        }
        // Shims must make cgroups in the way that the kubelet is told.
        for handler in config.runtimes.values_mut() {
            handler.systemd_cgroup = config.cgroup_driver == CgroupDriver::Systemd;
            handler.selinux = config.selinux;
        }
        Ok(config)
    }

    fn wrong_values(&self) -> Vec<ConfigError> {
        let mut errors = Vec::new();
        let mut wrong = |key, message: String| errors.push(ConfigError::Value { key, message });
        for (key, path) in [("root", &self.root), ("state", &self.state), ("socket", &self.socket)] {
            if !path.is_absolute() {
                wrong(key, format!("{} is not an absolute path", path.display()));
            }
        }
        for path in self.cdi.spec_dirs.iter().filter(|path| !path.is_absolute()) {
            wrong("cdi.spec_dirs", format!("{} is not an absolute path", path.display()));
        }
        let length = self.socket.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            wrong(
                "socket",
                format!("the path has {length} bytes; a unix socket's has {MAX_SOCKET_PATH} at most"),
            );
        }
        let address = &self.streaming.address;
        if address.parse::<std::net::SocketAddr>().is_err() {
            wrong("streaming.address", format!("{address:?} is no IP address with a port"));
        }
        let address = &self.metrics.address;
        if !address.is_empty() && address.parse::<std::net::SocketAddr>().is_err() {
            wrong("metrics.address", format!("{address:?} is no IP address with a port; \"\" turns it off"));
        }
        if self.streaming.tls_cert.is_empty() != self.streaming.tls_key.is_empty() {
            wrong("streaming.tls_cert", "it and tls_key are given together or not at all".to_owned());
        }
        for (key, message) in self.nri.wrong_values() {
            wrong(key, message);
        }
        if !self.runtimes.contains_key(&self.default_runtime) {
            let known: Vec<&str> = self.runtimes.keys().map(String::as_str).collect();
            let message = format!("no runtime {:?}; there are: {}", self.default_runtime, known.join(", "));
            wrong("default_runtime", message);
        }
        errors
    }

    /// Who makes cgroups.
    #[must_use]
    pub fn driver(&self) -> Driver {
        match self.cgroup_driver {
            CgroupDriver::Cgroupfs => Driver::Cgroupfs,
            CgroupDriver::Systemd => Driver::Systemd,
        }
    }

    /// The defaults as the text of a file.
    ///
    /// # Errors
    /// When a value has no form in TOML, which would be a fault of this program.
    pub fn default_text() -> Result<String, toml::ser::Error> {
        toml::to_string(&Self::default())
    }
}

impl Overrides {
    fn apply(self, config: &mut Config) {
        if let Some(root) = self.root {
            config.root = root;
        }
        if let Some(state) = self.state {
            // Sockets inside the default state folder move along.
            if let Ok(inside) = Path::new(&config.nri.socket).strip_prefix(&config.state) {
                config.nri.socket = state.join(inside).display().to_string();
            }
            if config.socket.starts_with(&config.state) && self.socket.is_none() {
                config.socket = state.join("cofferdam.sock");
            }
            config.state = state;
        }
        if let Some(socket) = self.socket {
            config.socket = socket;
        }
    }
}

fn read_table(path: &Path) -> Result<toml::Table, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|reason| ConfigError::Read { path: path.to_owned(), reason })?;
    text.parse::<toml::Table>()
        .map_err(|e| ConfigError::Syntax { path: path.to_owned(), message: e.to_string() })
}

fn drop_ins(main: &Path, errors: &mut Vec<ConfigError>) -> Vec<PathBuf> {
    let Some(folder) = main.parent().map(|p| p.join("conf.d")) else { return Vec::new() };
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(reason) => {
            errors.push(ConfigError::Read { path: folder, reason });
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> =
        entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "toml")).collect();
    files.sort();
    files
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(old)), toml::Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests;
