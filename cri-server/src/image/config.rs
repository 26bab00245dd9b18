//! What the operator can set about images.
//!
//! Invariant: every value a hostile image could exhaust has a default bound here.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::snapshot::Limits;

/// Section `[image]` of the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The `certs.d` folder with a `hosts.toml` for each registry.
    pub registry_config: PathBuf,
    /// Unpacked bytes that one layer may have.
    pub max_layer_bytes: u64,
    /// Entries that one layer may have.
    pub max_layer_entries: u64,
    /// Layers that one image may have.
    pub max_layers: usize,
    /// Layers downloaded and unpacked at the same time, over all pulls; 0 means two for each processor, at most 4.
    pub max_parallel_layers: usize,
    /// References of images that are never removed.
    pub pinned: Vec<String>,
    /// Send the login of a registry to its mirrors as well.
    pub credentials_for_mirrors: bool,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        Self {
            registry_config: PathBuf::from("/etc/containerd/certs.d"),
            max_layer_bytes: limits.max_bytes,
            max_layer_entries: limits.max_entries,
            max_layers: 127,
            max_parallel_layers: 0,
            pinned: Vec::new(),
            credentials_for_mirrors: false,
        }
    }
}

impl Config {
    pub(super) fn parallel_layers(&self) -> usize {
        if self.max_parallel_layers > 0 {
            return self.max_parallel_layers;
        }
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        (2 * processors).min(4)
    }

    pub(super) fn limits(&self) -> Limits {
        Limits::new(self.max_layer_bytes, self.max_layer_entries)
    }
}
