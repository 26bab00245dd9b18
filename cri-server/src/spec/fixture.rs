//! A made-up host and node for the tables of this module's tests.

use std::io;
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;

use super::host::{Host, HostDevice, HostEntry, HostPropagation};

/// Devices as a small /dev would have them; everything below /shared is a shared mount.
pub struct MadeUpHost {
    devices: Vec<(PathBuf, HostDevice)>,
}

fn character(major: u32, minor: u32) -> HostDevice {
    HostDevice { typ: LinuxDeviceType::C, major, minor, mode: 0o666, uid: 0, gid: 0 }
}

impl Default for MadeUpHost {
    fn default() -> Self {
        let devices = [
            ("/dev/fuse", character(10, 229)),
            ("/dev/null", character(1, 3)),
            ("/dev/snd/pcm/one", character(116, 1)),
            ("/dev/snd/timer", character(116, 33)),
        ];
        Self { devices: devices.into_iter().map(|(path, device)| (path.into(), device)).collect() }
    }
}

impl Host for MadeUpHost {
    fn entry(&self, path: &Path) -> io::Result<HostEntry> {
        if let Some((_, device)) = self.devices.iter().find(|(known, _)| known == path) {
            return Ok(HostEntry::Device(device.clone()));
        }
        match path.to_str() {
            Some("/dev/snd" | "/dev") => Ok(HostEntry::Folder),
            Some("/etc/passwd") => Ok(HostEntry::Other),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn devices_below(&self, folder: &Path) -> io::Result<Vec<(PathBuf, HostDevice)>> {
        Ok(self.devices.iter().filter(|(path, _)| path.starts_with(folder)).cloned().collect())
    }

    fn propagation(&self, path: &Path) -> io::Result<HostPropagation> {
        Ok(HostPropagation { shared: path.starts_with("/shared"), slave: false })
    }
}

/// An image whose `config` is this.
pub fn image(config: &serde_json::Value) -> oci_spec::image::ImageConfiguration {
    let text = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
    });
    serde_json::from_value(text).unwrap()
}
