//! Mounting an image volume beside its container's bundle, and taking it away again.

use cofferdam_failpoints::failpoint;
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam_proto::cri;
use nix::mount::MntFlags;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags};

use super::error::VolumeError;
use super::request::ImageVolume;
use crate::model::ContainerId;
use crate::snapshot::{Snapshots, open_folder_in_root};

/// Whose the files are shown as, for a container with users of its own.
#[derive(Clone, Copy, Debug)]
pub struct Mapping<'a> {
    pub uids: &'a [cri::IdMapping],
    pub gids: &'a [cri::IdMapping],
    /// Our own shim, which can do what the daemon cannot: give a mount a mapping.
    pub shim: &'a Path,
}

/// Mounts `volume` for a container below its bundle and says where. Blocks.
///
/// # Errors
/// When the image has no such folder or the kernel refuses; what was mounted goes with [`unmount_all`].
pub fn mount(
    snapshots: &Snapshots,
    id: &ContainerId,
    bundle: &Path,
    volume: &ImageVolume,
    mapping: Option<Mapping<'_>>,
    label: Option<&str>,
) -> Result<PathBuf, VolumeError> {
    Work { snapshots, id, volume, folder: bundle.join("volumes"), label }.mount(mapping)
}

struct Work<'a> {
    snapshots: &'a Snapshots,
    id: &'a ContainerId,
    volume: &'a ImageVolume,
    folder: PathBuf,
    /// The SELinux label that its files are to have.
    label: Option<&'a str>,
}

impl Work<'_> {
    fn failed<'a, E: Into<std::io::Error>>(
        &'a self,
        operation: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(E) -> VolumeError + 'a {
        let place = self.volume.place.clone();
        move |error| VolumeError::File { place, operation, path: path.to_owned(), source: error.into() }
    }

    fn place(&self, suffix: &str) -> Result<PathBuf, VolumeError> {
        let place = self.folder.join(format!("{}{suffix}", self.volume.index));
        fs::create_dir_all(&place).map_err(self.failed("make", &place))?;
        Ok(place)
    }

    /// The whole image is mounted beside for as long as it takes to find the folder in it.
    fn mount(&self, mapping: Option<Mapping<'_>>) -> Result<PathBuf, VolumeError> {
        let layers = self.snapshots.volume_layers(&self.volume.image.diff_ids(), self.id);
        let mut layers = layers.map_err(|error| VolumeError::Layers {
            place: self.volume.place.clone(),
            source: Box::new(error),
        })?;
        if self.label.is_some() && layers.len() == 1 {
            // Only a file system of its own takes a label, and a stack is of two at least.
            layers.push(self.snapshots.empty());
        }
        let whole = self.place("-whole")?;
        match mapping {
            Some(mapping) => self.mount_mapped(mapping, &layers, &whole)?,
            None => mount_layers(&layers, &whole, self.label)
                .map_err(self.failed("mount the image at", &whole))?,
        }
        failpoint!("volume.whole_mounted");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(CWD, &whole, flags, Mode::empty());
        let laid = opened.map_err(self.failed("open", &whole)).and_then(|view| self.lay(&view));
        failpoint!("volume.laid", infallible);
        detach(&whole);
        failpoint!("volume.whole_unmounted");
        laid
    }

    fn mount_mapped(&self, mapping: Mapping<'_>, layers: &[PathBuf], at: &Path) -> Result<(), VolumeError> {
        let lines = |list: &[cri::IdMapping]| -> String {
            let line = |m: &cri::IdMapping| format!("{}:{}:{}", m.container_id, m.host_id, m.length);
            list.iter().map(line).collect::<Vec<_>>().join(",")
        };
        let refused = |why: String| VolumeError::Mapping { place: self.volume.place.clone(), why };
        let mut child = Command::new(mapping.shim)
            .arg("mount-layers")
            .arg(at)
            .args([lines(mapping.uids), lines(mapping.gids)])
            .args(self.label)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| refused(error.to_string()))?;
        let names: String = layers.iter().map(|layer| format!("{}\n", layer.display())).collect();
        // The shim's own words say why it did not read.
        let written = child.stdin.take().map(|mut stdin| stdin.write_all(names.as_bytes()));
        let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
        match (output.status.success(), written) {
            (true, Some(Ok(()))) => Ok(()),
            _ => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
        }
    }

    /// Mounts the folder that is wanted of the image; from here on no path leads to it but the mount itself.
    fn lay(&self, view: &OwnedFd) -> Result<PathBuf, VolumeError> {
        let sub_path = &self.volume.sub_path;
        let found = open_folder_in_root(view.as_fd(), sub_path).map_err(|errno| match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => {
                VolumeError::NoFolder { place: self.volume.place.clone(), sub_path: sub_path.clone() }
            }
            errno => self.failed("look for", Path::new(sub_path))(errno),
        })?;
        let place = self.place("")?;
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree =
            rustix::mount::open_tree(&found, "", flags).map_err(self.failed("copy the mount for", &place))?;
        rustix::mount::move_mount(&tree, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(self.failed("mount", &place))?;
        failpoint!("volume.moved");
        let only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV;
        rustix::mount::mount_remount(&place, only, "").map_err(self.failed("write-protect", &place))?;
        Ok(place)
    }
}

/// One layer is bound, several are stacked.
fn mount_layers(layers: &[PathBuf], at: &Path, label: Option<&str>) -> Result<(), Errno> {
    if let [only] = layers {
        return rustix::mount::mount_bind(only, at);
    }
    let options = CString::new(options(layers, label)).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    rustix::mount::mount("overlay", at, "overlay", flags, options.as_c_str())
}

/// A label holds commas between its categories, so it stands in quotes.
fn options(layers: &[PathBuf], label: Option<&str>) -> String {
    let names: Vec<_> = layers.iter().map(|path| path.display().to_string()).collect();
    let context = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    format!("lowerdir={}{context}", names.join(":"))
}

fn detach(place: &Path) {
    let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
    while nix::mount::umount2(place, flags).is_ok() {}
}

/// Unmounts all image volumes of the container with this bundle; absent is done. Blocks.
pub fn unmount_all(bundle: &Path) {
    for entry in fs::read_dir(bundle.join("volumes")).into_iter().flatten().flatten() {
        detach(&entry.path());
        failpoint!("volume.unmounted", infallible);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_one_option_whatever_it_holds() {
        let layers = ["/l/a", "/empty"].map(PathBuf::from);
        assert_eq!(options(&layers, None), "lowerdir=/l/a:/empty");
        let label = "system_u:object_r:container_file_t:s0:c1,c2";
        assert_eq!(options(&layers, Some(label)), format!("lowerdir=/l/a:/empty,context=\"{label}\""));
    }
}
