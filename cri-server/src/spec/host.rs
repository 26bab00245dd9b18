//! What a spec has to ask of the host, as a trait, so that the rules can be tested on a made-up one.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxDeviceType;
use rustix::fs::{major, minor};

use super::error::SpecError;

/// How deep a folder of devices is searched; /dev itself has three levels.
const MAX_DEPTH: usize = 8;
/// A folder with more entries than this is no folder of devices.
const MAX_ENTRIES: usize = 10_000;

/// What lies at a path of the host, as far as devices go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEntry {
    Device(HostDevice),
    Folder,
    Other,
}

/// A device node of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    pub typ: LinuxDeviceType,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// How mount events travel between a mount of the host and its copies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostPropagation {
    /// Events here reach the peers.
    pub shared: bool,
    /// Events of a master arrive here.
    pub slave: bool,
}

/// What the builder asks of the host.
pub trait Host {
    /// What lies at `path`, following symlinks: /dev is full of stable names for changing devices.
    ///
    /// # Errors
    /// When it cannot be read.
    fn entry(&self, path: &Path) -> io::Result<HostEntry>;

    /// Every device below `folder`, with its path on the host; symlinks and folders of other file systems' making
    /// (`/dev/pts`, `/dev/shm`, `/dev/mqueue`, `/dev/fd`) are left out.
    ///
    /// # Errors
    /// When the folder cannot be read.
    fn devices_below(&self, folder: &Path) -> io::Result<Vec<(PathBuf, HostDevice)>>;

    /// How events travel at the mount that holds `path`.
    ///
    /// # Errors
    /// When the mounts cannot be read.
    fn propagation(&self, path: &Path) -> io::Result<HostPropagation>;

    /// Whether `path` is the namespace of this kind (as /proc/pid/ns names it) that the daemon itself is in.
    fn is_in(&self, path: &Path, kind: &str) -> bool {
        let number = |path: &Path| fs::metadata(path).ok().map(|data| (data.dev(), data.ino()));
        let theirs = number(path);
        theirs.is_some() && theirs == number(&Path::new("/proc/self/ns").join(kind))
    }
}

/// Reads a localhost seccomp profile.
///
/// # Errors
/// When the file cannot be read.
pub fn read_profile(path: &Path) -> Result<Vec<u8>, SpecError> {
    fs::read(path).map_err(|source| SpecError::Host { path: path.to_owned(), source })
}

/// The host that the daemon runs on.
#[derive(Clone, Copy, Debug, Default)]
pub struct LinuxHost;

fn device(metadata: &fs::Metadata) -> Option<HostDevice> {
    let typ = match metadata.file_type() {
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_block_device() => LinuxDeviceType::B,
        _ => return None,
    };
    Some(HostDevice {
        typ,
        major: major(metadata.rdev()),
        minor: minor(metadata.rdev()),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
    })
}

impl Host for LinuxHost {
    fn entry(&self, path: &Path) -> io::Result<HostEntry> {
        let metadata = fs::metadata(path)?;
        Ok(match device(&metadata) {
            Some(device) => HostEntry::Device(device),
            None if metadata.is_dir() => HostEntry::Folder,
            None => HostEntry::Other,
        })
    }

    fn devices_below(&self, folder: &Path) -> io::Result<Vec<(PathBuf, HostDevice)>> {
        let mut found = Vec::new();
        let mut budget = MAX_ENTRIES;
        walk(folder, MAX_DEPTH, &mut budget, &mut found)?;
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    fn propagation(&self, path: &Path) -> io::Result<HostPropagation> {
        Ok(propagation_in(&fs::read_to_string("/proc/self/mountinfo")?, path))
    }
}

fn walk(
    folder: &Path,
    depth: usize,
    budget: &mut usize,
    found: &mut Vec<(PathBuf, HostDevice)>,
) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        *budget = budget.checked_sub(1).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "too many entries for a device folder")
        })?;
        let path = entry.path();
        // A device may vanish between the listing and here: hot-plug is no error.
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            let foreign = ["pts", "shm", "mqueue", "fd", ".udev", ".lxc", ".lxd-mounts"];
            if depth > 0 && !foreign.iter().any(|name| entry.file_name() == *name) {
                walk(&path, depth - 1, budget, found)?;
            }
        } else if let Some(device) = device(&metadata) {
            found.push((path, device));
        }
    }
    Ok(())
}

/// The octal escapes of mountinfo, undone.
fn unescape(text: &str) -> String {
    ["\\040", "\\011", "\\012", "\\134"]
        .iter()
        .zip([" ", "\t", "\n", "\\"])
        .fold(text.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

/// How events travel at the deepest mount above `path`, from the text of a mountinfo file.
#[must_use]
pub fn propagation_in(mountinfo: &str, path: &Path) -> HostPropagation {
    let mut best = (0, HostPropagation { shared: false, slave: false });
    for line in mountinfo.lines() {
        let mut fields = line.split(' ');
        let Some(point) = fields.nth(4).map(unescape) else { continue };
        if !path.starts_with(&point) {
            continue;
        }
        let optional: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
        let has = |prefix: &str| optional.iter().any(|field| field.starts_with(prefix));
        // Of mounts on top of each other, the later line is the one that is seen.
        if point.len() >= best.0 {
            best = (point.len(), HostPropagation { shared: has("shared:"), slave: has("master:") });
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "23 1 0:1 / / rw,relatime - ext4 /dev/vda rw\n\
        30 23 0:9 / /var/lib rw shared:5 - ext4 /dev/vdb rw\n\
        31 30 0:9 / /var/lib/with\\040space rw shared:7 master:5 - tmpfs tmpfs rw\n\
        32 23 0:9 / /mnt rw shared:9 - tmpfs tmpfs rw\n33 32 0:9 / /mnt rw - tmpfs tmpfs rw\nbroken\n";

    #[test]
    fn the_deepest_and_topmost_mount_decides() {
        let table = [
            ("/etc", false, false),
            ("/var/lib/kubelet", true, false),
            ("/var/library", false, false),
            ("/var/lib/with space/x", true, true),
            ("/mnt/x", false, false),
        ];
        for (path, shared, slave) in table {
            assert_eq!(propagation_in(MOUNTS, Path::new(path)), HostPropagation { shared, slave }, "{path}");
        }
    }

    #[test]
    fn the_hosts_null_device_is_found_by_name_and_by_search() {
        let HostEntry::Device(null) = LinuxHost.entry(Path::new("/dev/null")).unwrap() else {
            panic!("/dev/null is a device")
        };
        assert_eq!((null.typ, null.major, null.minor), (LinuxDeviceType::C, 1, 3));
        let all = LinuxHost.devices_below(Path::new("/dev")).unwrap();
        assert!(all.iter().any(|(path, device)| path == Path::new("/dev/null") && *device == null));
        assert!(!all.iter().any(|(path, _)| path.starts_with("/dev/pts")));
        assert_eq!(LinuxHost.entry(Path::new("/dev")).unwrap(), HostEntry::Folder);
        assert_eq!(LinuxHost.entry(Path::new("/etc/passwd")).unwrap(), HostEntry::Other);
    }
}
