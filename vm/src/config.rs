//! What an operator says about the machines: `[runtimes.NAME.vm]` of the daemon's configuration, as the shim gets it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// No guest of ours boots with less.
const LEAST_MEMORY: u32 = 96;

/// Where each program or file is looked for when the configuration does not say.
const MONITORS: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"];
const CLOUD_HYPERVISORS: [&str; 2] = ["/usr/bin/cloud-hypervisor", "/usr/local/bin/cloud-hypervisor"];
const SHARERS: [&str; 4] =
    ["/usr/libexec/virtiofsd", "/usr/local/bin/virtiofsd", "/usr/bin/virtiofsd", "/usr/lib/qemu/virtiofsd"];
const FIRMWARES: [&str; 2] = ["/usr/share/qemu/qboot.rom", "/usr/share/qemu/bios-microvm.bin"];

/// Which monitor's language is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MonitorKind {
    #[default]
    Qemu,
    CloudHypervisor,
}

impl MonitorKind {
    const QEMU: &str = "qemu";
    const CLOUD_HYPERVISOR: &str = "cloud-hypervisor";

    /// The kind by its name, or by the file name of its program.
    fn of(monitor: &Path) -> Self {
        let name = monitor.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(Self::CLOUD_HYPERVISOR) {
            MonitorKind::CloudHypervisor
        } else {
            MonitorKind::Qemu
        }
    }
}

impl fmt::Display for MonitorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MonitorKind::Qemu => Self::QEMU,
            MonitorKind::CloudHypervisor => Self::CLOUD_HYPERVISOR,
        })
    }
}

/// What QEMU makes of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MachineType {
    /// virtio-mmio alone: the fastest boot, and nothing can be added to a running machine.
    #[default]
    Microvm,
    /// The same with a PCI Express bus beside it, to which devices can be added.
    MicrovmPci,
    /// A PC with PCI Express.
    Q35,
}

/// Over what the agent in the guest is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelKind {
    /// vsock where the node has it for this monitor, else virtio-serial.
    #[default]
    Auto,
    VirtioSerial,
    Vsock,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VmConfig {
    /// `qemu`, `cloud-hypervisor`, or the path of one of their programs, whose file name says which it is. When empty, QEMU
    /// is looked for where distributions put it.
    pub monitor: PathBuf,
    /// QEMU's machine.
    pub machine: MachineType,
    pub channel: ChannelKind,
    /// The program that serves a folder to the guest (virtio-fs); looked for when empty.
    pub virtiofsd: PathBuf,
    /// The monitor's firmware; looked for when empty.
    pub firmware: PathBuf,
    /// The guest's kernel: `vmlinux` with a PVH entry (boots fastest), or `bzImage`.
    pub kernel: PathBuf,
    /// The guest's initramfs, made by `cofferdam vm build-image`.
    pub image: PathBuf,
    /// Of each machine, in MiB.
    pub memory: u32,
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
            machine: MachineType::default(),
            channel: ChannelKind::default(),
            virtiofsd: PathBuf::new(),
            firmware: PathBuf::new(),
            kernel: "/usr/lib/cofferdam/vm/kernel".into(),
            image: "/usr/lib/cofferdam/vm/initramfs".into(),
            memory: 256,
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
    /// QEMU's.
    pub firmware: Option<PathBuf>,
    pub kernel: PathBuf,
    pub image: PathBuf,
}

impl VmConfig {
    pub fn monitor_kind(&self) -> MonitorKind {
        MonitorKind::of(&self.monitor)
    }

    pub fn boot_deadline(&self) -> Duration {
        Duration::from_secs(self.boot_seconds.into())
    }

    /// Finds the files, or says all that is wrong.
    pub fn parts(&self) -> Result<Parts, ConfigError> {
        let mut wrong = Vec::new();
        if self.memory < LEAST_MEMORY {
            wrong.push(format!("memory = {} MiB is less than {LEAST_MEMORY}", self.memory));
        }
        if self.cpus == 0 || self.cpus > 255 {
            wrong.push(format!("cpus = {} is not between 1 and 255", self.cpus));
        }
        if self.boot_seconds == 0 {
            wrong.push("boot_seconds = 0 leaves no time to boot".to_owned());
        }
        let kind = self.monitor_kind();
        if kind == MonitorKind::CloudHypervisor {
            if self.channel == ChannelKind::VirtioSerial {
                wrong.push("channel = \"virtio-serial\" is for QEMU; Cloud Hypervisor has vsock".to_owned());
            }
            if self.machine != MachineType::default() {
                wrong.push("machine is for QEMU; Cloud Hypervisor has one kind of machine".to_owned());
            }
        }
        let named_only = [MonitorKind::QEMU, MonitorKind::CLOUD_HYPERVISOR].map(Path::new);
        let named =
            if named_only.contains(&self.monitor.as_path()) { Path::new("") } else { self.monitor.as_path() };
        let (programs, package) = match kind {
            MonitorKind::Qemu => (MONITORS, "Debian: qemu-system-x86"),
            MonitorKind::CloudHypervisor => (CLOUD_HYPERVISORS, "its releases are static programs"),
        };
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
            monitor: find("monitor", named, &programs, package),
            virtiofsd: find(
                "virtiofsd",
                &self.virtiofsd,
                &SHARERS,
                "Debian: virtiofsd, or qemu-system-common up to 12",
            ),
            firmware: match kind {
                MonitorKind::Qemu => {
                    Some(find("firmware", &self.firmware, &FIRMWARES, "Debian: qemu-system-data"))
                }
                // It boots kernels without any.
                MonitorKind::CloudHypervisor => None,
            },
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

    #[test]
    fn a_monitor_is_named_or_a_path_that_says_which_it_is() {
        let kind = |text: &str| VmConfig { monitor: text.into(), ..VmConfig::default() }.monitor_kind();
        for text in ["", "qemu", "/usr/bin/qemu-system-x86_64", "/opt/other"] {
            assert_eq!(kind(text), MonitorKind::Qemu, "{text}");
        }
        for text in ["cloud-hypervisor", "/opt/cloud-hypervisor-static"] {
            assert_eq!(kind(text), MonitorKind::CloudHypervisor, "{text}");
        }
    }

    #[test]
    fn what_cloud_hypervisor_does_not_have_is_refused() {
        let text = r#"{"monitor":"cloud-hypervisor","channel":"virtio-serial","machine":"q35"}"#;
        let config: VmConfig = serde_json::from_str(text).unwrap();
        let words = config.parts().unwrap_err().to_string();
        for part in ["vsock", "one kind of machine", "no kernel"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        assert!(!words.contains("firmware"), "{words}");
    }
}
