//! What an operator says about the machines: `[runtimes.NAME.vm]` of the daemon's configuration, as the shim gets it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::architecture::Architecture;

/// No guest of ours boots with less.
const LEAST_MEMORY: u32 = 96;

/// Where each program or file is looked for when the configuration does not say.
const MONITORS_X86_64: [&str; 2] = ["/usr/bin/qemu-system-x86_64", "/usr/local/bin/qemu-system-x86_64"];
const MONITORS_AARCH64: [&str; 2] = ["/usr/bin/qemu-system-aarch64", "/usr/local/bin/qemu-system-aarch64"];
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
    /// The monitor's firmware; looked for when empty. Guests on arm64 need none.
    pub firmware: PathBuf,
    /// The guest's kernel: `vmlinux` with a PVH entry (boots fastest) or `bzImage`, on arm64 `Image`. The machine is one
    /// for the kernel.
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
            machine: MachineType::default(),
            channel: ChannelKind::default(),
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
    /// Of the kernel, so of the machine.
    pub architecture: Architecture,
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
        let architecture = Architecture::of_kernel_file(&self.kernel);
        if architecture == Architecture::Aarch64 && self.machine != MachineType::default() {
            wrong.push("machine is for x86_64; QEMU's for arm64 is always virt".to_owned());
        }
        let (programs, package, has_firmware) = match (kind, architecture) {
            (MonitorKind::Qemu, Architecture::X86_64) => (MONITORS_X86_64, "Debian: qemu-system-x86", true),
            (MonitorKind::Qemu, Architecture::Aarch64) => {
                (MONITORS_AARCH64, "Debian: qemu-system-arm", false)
            }
            // It boots kernels without any firmware.
            (MonitorKind::CloudHypervisor, _) => {
                (CLOUD_HYPERVISORS, "its releases are static programs", false)
            }
        };
        let named_firmware = kind == MonitorKind::Qemu && !self.firmware.as_os_str().is_empty();
        let needs_firmware = has_firmware || named_firmware;
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
            architecture,
            monitor: find("monitor", named, &programs, package),
            virtiofsd: find(
                "virtiofsd",
                &self.virtiofsd,
                &SHARERS,
                "Debian: virtiofsd, or qemu-system-common up to 12",
            ),
            firmware: needs_firmware
                .then(|| find("firmware", &self.firmware, &FIRMWARES, "Debian: qemu-system-data")),
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
    fn the_machine_is_one_for_the_kernel() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let mut arm = [0; 64];
        arm[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let config = VmConfig {
            monitor: file("qemu", b""),
            virtiofsd: file("virtiofsd", b""),
            kernel: file("kernel", &arm),
            image: file("initramfs", b""),
            ..VmConfig::default()
        };
        let parts = config.parts().unwrap();
        assert_eq!((parts.architecture, parts.firmware), (Architecture::Aarch64, None));
        let nowhere = VmConfig { monitor: PathBuf::new(), image: "/no/image".into(), ..config };
        let words = nowhere.parts().unwrap_err().to_string();
        let told = words.contains("qemu-system-arm");
        assert!(told || MONITORS_AARCH64.iter().any(|path| Path::new(path).is_file()), "{words}");
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
