//! The `[nri]` table of the configuration.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the operator decides about plugins.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where plugins connect; empty: nowhere.
    pub socket: String,
    /// The folder of plugins that the daemon starts; empty: none.
    pub plugin_path: String,
    /// The folder of their configurations.
    pub plugin_config_path: PathBuf,
    /// Seconds from the connection to the registration, and again for the synchronization.
    pub registration_timeout: f64,
    /// Seconds for an answer to any other request.
    pub request_timeout: f64,
    pub default_validator: ValidatorConfig,
}

/// The built-in validator.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ValidatorConfig {
    pub enable: bool,
    pub reject_oci_hook_adjustment: bool,
    pub reject_runtime_default_seccomp_adjustment: bool,
    pub reject_unconfined_seccomp_adjustment: bool,
    pub reject_custom_seccomp_adjustment: bool,
    pub reject_namespace_adjustment: bool,
    pub reject_sysctl_adjustment: bool,
    /// Plugins, by name or by index and name, without which no container is created.
    pub required_plugins: Vec<String>,
    /// The annotation by which a pod does without them.
    pub tolerate_missing_plugins_annotation: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            socket: "/run/cofferdam/nri.sock".to_owned(),
            plugin_path: "/opt/nri/plugins".to_owned(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout: 5.0,
            request_timeout: 2.0,
            default_validator: ValidatorConfig::default(),
        }
    }
}

impl Config {
    /// How long a plugin may take to register, and then to be synchronized.
    #[must_use]
    pub fn registration(&self) -> Duration {
        Duration::try_from_secs_f64(self.registration_timeout).unwrap_or_default()
    }

    /// How long a plugin may take to answer any other request.
    #[must_use]
    pub fn request(&self) -> Duration {
        Duration::try_from_secs_f64(self.request_timeout).unwrap_or_default()
    }

    /// What is wrong, by key.
    #[must_use]
    pub fn wrong_values(&self) -> Vec<(&'static str, String)> {
        let mut wrong = Vec::new();
        for (key, path) in [("nri.socket", &self.socket), ("nri.plugin_path", &self.plugin_path)] {
            if !path.is_empty() && !path.starts_with('/') {
                wrong.push((key, format!("{path:?} is not an absolute path")));
            }
        }
        if self.socket.len() > 107 {
            wrong.push(("nri.socket", "a unix socket's path has 107 bytes at most".to_owned()));
        }
        let times = [
            ("nri.registration_timeout", self.registration_timeout),
            ("nri.request_timeout", self.request_timeout),
        ];
        for (key, seconds) in times {
            if !(0.01..=3600.0).contains(&seconds) {
                wrong.push((key, format!("{seconds} is not between 0.01 and 3600 seconds")));
            }
        }
        wrong
    }
}
