//! `[runtimes.NAME.vm]`: the machines of a handler with `isolation = "vm"`. Passed on to the shim, which knows what it
//! means; here it is only read, so that a wrong key is found when the configuration is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The keys there are.
pub const KEYS: [&str; 14] = [
    "monitor",
    "machine",
    "channel",
    "virtiofsd",
    "firmware",
    "kernel",
    "image",
    "memory",
    "min_memory",
    "guest_memory",
    "monitor_memory",
    "cpus",
    "emulation",
    "boot_seconds",
];

/// What is not set is the shim's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MicroVm {
    /// The monitor: its name, or its program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor: Option<PathBuf>,
    /// The monitor's kind of machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub machine: Option<String>,
    /// Over what the agent in the guest is reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<String>,
    /// The program that serves folders to guests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub virtiofsd: Option<PathBuf>,
    /// The monitor's firmware.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// The guest's kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// The guest's initramfs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// MiB of a machine whose pod has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// MiB that every machine has at least.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_memory: Option<u32>,
    /// MiB that the guest's own system takes of a machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guest_memory: Option<u32>,
    /// MiB that a machine's processes may take beside its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub monitor_memory: Option<u32>,
    /// Processors of a machine whose pod has no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u32>,
    /// Whether machines may run without KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emulation: Option<bool>,
    /// Seconds until the guest's agent must have answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_seconds: Option<u32>,
}

impl MicroVm {
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_is_listed() {
        let all: String = KEYS
            .iter()
            .map(|key| match *key {
                "memory" | "min_memory" | "guest_memory" | "monitor_memory" | "cpus" | "boot_seconds" => {
                    format!("{key} = 1\n")
                }
                "emulation" => format!("{key} = true\n"),
                _ => format!("{key} = \"/x\"\n"),
            })
            .collect();
        let read: MicroVm = toml::from_str(&all).unwrap();
        assert_eq!(toml::Table::try_from(&read).unwrap().len(), KEYS.len());
        assert!(!read.is_empty() && MicroVm::default().is_empty());
    }
}
