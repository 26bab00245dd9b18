//! What an operator says about the machines: `[runtimes.NAME.vm]` of the daemon's configuration, as the shim gets it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// No guest of ours boots with less.
const LEAST_MEMORY: u32 = 96;

/// Where each program or file is looked for when the configuration does not say.
const MONITORS: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"];
const SHARERS: [&str; 4] =
    ["/usr/libexec/virtiofsd", "/usr/local/bin/virtiofsd", "/usr/bin/virtiofsd", "/usr/lib/qemu/virtiofsd"];
const FIRMWARES: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/bios-microvm.bin"];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// The monitor's program; looked for where distributions put QEMU when empty.
    pub monitor: PathBuf,
    /// The program that serves a folder to the guest (virtio-fs); looked for when empty.
    pub virtiofsd: PathBuf,
    /// The monitor's firmware; looked for when empty.
    pub firmware: PathBuf,
    /// The guest's kernel: `vmlinux` with a PVH entry (boots fastest), or `bzImage`.
    pub kernel: PathBuf,
    /// The guest's initramfs, made by `cofferdam vm build-image`.
    pub image: PathBuf,
    /// Of a machine whose pod has no limit of memory, in MiB.
    pub memory: u32,
    /// No machine has less, in MiB.
    pub min_memory: u32,
    /// Of a machine's memory, what the guest's own system takes: it comes on top of a pod's limit. In MiB.
    pub guest_memory: u32,
    /// What the monitor and virtiofsd may take beside the machine's memory, in MiB.
    pub monitor_memory: u32,
    /// Of a machine whose pod has no limit of processor time.
    pub cpus: u32,
    /// Whether machines may run under emulation where KVM cannot be used: slow, and meant for tests.
    pub emulation: bool,
    /// How long a machine may take until its agent answers, in seconds.
    pub boot_seconds: u32,
}

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            monitor: PathBuf::new(),
            virtiofsd: PathBuf::new(),
            firmware: PathBuf::new(),
            kernel: "/usr/lib/cofferdam/vm/kernel".into(),
            image: "/usr/lib/cofferdam/vm/initramfs".into(),
            memory: 256,
            min_memory: 128,
            guest_memory: 96,
            monitor_memory: 160,
            cpus: 1,
            emulation: false,
            boot_seconds: 30,
        }
    }
}

/// Everything that keeps machines of this configuration from being started, at once.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("microVMs cannot be started: {}", .0.join("; "))]
pub struct ConfigError(pub Vec<String>);

/// The files that a machine is started from; all were there when it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    pub monitor: PathBuf,
    pub virtiofsd: PathBuf,
    pub firmware: PathBuf,
    pub kernel: PathBuf,
    pub image: PathBuf,
}

impl VmConfig {
    pub fn boot_deadline(&self) -> Duration {
        Duration::from_secs(self.boot_seconds.into())
    }

    /// Finds the files, or says all that is wrong.
    pub fn parts(&self) -> Result<Parts, ConfigError> {
        let mut wrong = Vec::new();
        for (key, value) in [("memory", self.memory), ("min_memory", self.min_memory)] {
            if value < LEAST_MEMORY {
                wrong.push(format!("{key} = {value} MiB is less than {LEAST_MEMORY}"));
            }
        }
        if self.cpus == 0 || self.cpus > 255 {
            wrong.push(format!("cpus = {} is not between 1 and 255", self.cpus));
        }
        if self.boot_seconds == 0 {
            wrong.push("boot_seconds = 0 leaves no time to boot".to_owned());
        }
        let mut find = |what: &str, named: &Path, usual: &[&str], hint: &str| {
            let found = if named.as_os_str().is_empty() {
                usual.iter().map(PathBuf::from).find(|path| path.is_file())
            } else {
                named.is_file().then(|| named.to_owned())
            };
            found.unwrap_or_else(|| {
                let places =
                    if named.as_os_str().is_empty() { usual.join(", ") } else { named.display().to_string() };
                wrong.push(format!("no {what} at {places} ({hint})"));
                PathBuf::new()
            })
        };
        let parts = Parts {
            monitor: find("monitor", &self.monitor, &MONITORS, "Debian: qemu-system-x86"),
            virtiofsd: find(
                "virtiofsd",
                &self.virtiofsd,
                &SHARERS,
                "Debian: virtiofsd, or qemu-system-common up to 12",
            ),
            firmware: find("firmware", &self.firmware, &FIRMWARES, "Debian: qemu-system-data"),
            kernel: find("kernel", &self.kernel, &[], "cofferdam vm build-image"),
            image: find("guest image", &self.image, &[], "cofferdam vm build-image"),
        };
        if wrong.is_empty() { Ok(parts) } else { Err(ConfigError(wrong)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_told_at_once() {
        let config = VmConfig {
            memory: 1,
            cpus: 0,
            kernel: "/no/kernel".into(),
            image: "/no/image".into(),
            ..VmConfig::default()
        };
        let words = config.parts().unwrap_err().to_string();
        for part in ["memory = 1", "cpus = 0", "/no/kernel", "/no/image", "build-image"] {
            assert!(words.contains(part), "{part}: {words}");
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        let error = serde_json::from_str::<VmConfig>(r#"{"memmory":1}"#).unwrap_err();
        assert!(error.to_string().contains("memmory"));
    }
}
