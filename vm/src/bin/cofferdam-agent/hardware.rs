//! What the kernel has found of the machine.

use std::fs;
use std::io;
use std::path::Path;

use cofferdam_proto::agent::{Disk, HardwareResponse};

const BLOCK: &str = "/sys/block";
const CARDS: &str = "/sys/class/net";
const VIRTIO: &str = "/sys/bus/virtio/devices";
/// Of virtio-fs, as the virtio specification numbers devices.
const FILE_SYSTEM: u32 = 26;
const SECTOR: u64 = 512;

pub fn look() -> io::Result<HardwareResponse> {
    let memory = fs::read_to_string("/proc/meminfo")?;
    Ok(HardwareResponse {
        disks: names(BLOCK)?.into_iter().filter_map(disk).collect(),
        cards: names(CARDS)?.iter().filter_map(|name| card(name)).collect(),
        shares: shares()?,
        memory: total(&memory).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))?,
        ..Default::default()
    })
}

/// A folder that is not there has nothing in it.
fn names(folder: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
}

fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// One that has just come has no serial number for a moment, and is not told before it has.
fn disk(device: String) -> Option<Disk> {
    let folder = Path::new(BLOCK).join(&device);
    let serial = text(&folder.join("serial"))?;
    let sectors: u64 = text(&folder.join("size"))?.parse().ok()?;
    Some(Disk { device, serial, size: sectors * SECTOR, ..Default::default() })
}

/// Those that the machine has; others are the kernel's own.
fn card(name: &str) -> Option<String> {
    let folder = Path::new(CARDS).join(name);
    folder.join("device").exists().then(|| text(&folder.join("address")))?
}

fn shares() -> io::Result<u32> {
    let kind = |name: &String| {
        let text = text(&Path::new(VIRTIO).join(name).join("device"))?;
        u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()
    };
    let count = names(VIRTIO)?.iter().filter(|name| kind(name) == Some(FILE_SYSTEM)).count();
    u32::try_from(count).map_err(io::Error::other)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_of_memory_is_read() {
        assert_eq!(total("MemTotal:         186240 kB\nMemFree: 1 kB\n"), Some(186_240 << 10));
        assert_eq!(total("MemFree: 1 kB\n"), None);
    }
}
