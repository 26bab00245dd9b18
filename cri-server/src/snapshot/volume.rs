//! The layers of an image that is mounted as a volume.
//!
//! Invariant: they are noted as the container's before anybody hears of them, and no sweep takes them then.

use cofferdam_failpoints::failpoint;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::{Snapshots, look_like};
use crate::model::ContainerId;
use crate::registry::Digest;

impl Snapshots {
    /// The directories that make up an image volume of the container, top first, kept as long as its writable layer is. An
    /// overlay without a writable layer needs two; there is one where the image has no layers. Blocks.
    ///
    /// # Errors
    /// When the container has no writable layer or a layer is missing.
    pub fn volume_layers(&self, layers: &[Digest], id: &ContainerId) -> Result<Vec<PathBuf>, SnapshotError> {
        // Before the lock: this may read many directories.
        let corrections = self.corrections(layers)?;
        let home = self.container(id);
        let mut containers = self.containers();
        let mut lower = self.lower(layers)?;
        let path = home.join("volumes.json");
        let unprepared = || io::Error::new(io::ErrorKind::NotFound, "the container is not prepared");
        let standing =
            containers.get_mut(id).ok_or_else(|| SnapshotError::io("find", &path)(unprepared()))?;
        let new = layers.iter().filter(|layer| !standing.volumes.contains(layer)).cloned();
        let all: Vec<Digest> = standing.volumes.iter().cloned().chain(new).collect();
        if all != standing.volumes {
            let text =
                serde_json::to_vec(&all).map_err(|e| SnapshotError::io("describe", &path)(e.into()))?;
            fs::write(&path, text).map_err(SnapshotError::io("write", &path))?;
            failpoint!("snapshot.volume.noted");
            standing.volumes = all;
        }
        if let (Some(top), false) = (lower.first(), corrections.is_empty()) {
            let over = home.join(format!("volume-{}", name(layers)));
            if !over.exists() {
                let scratch = over.with_extension("tmp");
                make(&scratch, top, |scratch| corrections.make(scratch, None))?;
                fs::rename(&scratch, &over).map_err(SnapshotError::io("rename to", &over))?;
            }
            lower.insert(0, over);
        } else if let [only] = lower.as_slice()
            && *only != self.root.join("empty")
        {
            lower.push(self.root.join("empty"));
        }
        Ok(lower)
    }
}

/// A name for what lies over these layers.
fn name(layers: &[Digest]) -> String {
    let text: String = layers.iter().map(|layer| format!("{layer}\n")).collect();
    Digest::sha256(text.as_bytes()).hex()[..16].to_owned()
}

/// Makes a directory anew that looks like `top`, and fills it.
fn make(
    directory: &Path,
    top: &Path,
    fill: impl FnOnce(&Path) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(SnapshotError::io("remove", directory)(error));
        }
        Ok(()) | Err(_) => {}
    }
    fs::create_dir(directory).map_err(SnapshotError::io("make directory", directory))?;
    look_like(directory, top, None)?;
    fill(directory)
}
