//! `[maintenance]`: how often the daemon looks after what lies on the node.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How often, and how hard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MaintenanceConfig {
    /// Between sweeps of what belongs to nobody; 0: only at the daemon's start.
    pub sweep_seconds: u64,
    /// Between looks at all that is stored, whether it is damaged; 0: never.
    pub verify_seconds: u64,
    /// What such a look reads in a second at the most; 0: as fast as it can.
    pub verify_bytes_per_second: u64,
}

impl Default for MaintenanceConfig {
    fn default() -> Self {
        Self { sweep_seconds: 300, verify_seconds: 7 * 24 * 3600, verify_bytes_per_second: 20 << 20 }
    }
}

impl MaintenanceConfig {
    /// The time between sweeps.
    #[must_use]
    pub fn sweep_interval(&self) -> Option<Duration> {
        (self.sweep_seconds > 0).then(|| Duration::from_secs(self.sweep_seconds))
    }

    /// The time between looks.
    #[must_use]
    pub fn verify_interval(&self) -> Option<Duration> {
        (self.verify_seconds > 0).then(|| Duration::from_secs(self.verify_seconds))
    }
}
