//! An image is whole or absent after a power cut, for the price of one sync.
//!
//! The parts of an image appear as they come, and are not synced one by one. When all are there, the file system is synced
//! once; only then is the record written that names them. What has no record is removed at start.
//!
//! Invariant: at no moment does a record on disk name a part that is not on disk. So a record of an image that lost a part
//! goes before the part comes anew.

use cofferdam_failpoints::failpoint;
use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::ImageService;
use super::error::ImageError;
use super::record::{ImageRecord, LayerRecord};
use crate::registry::Digest;
use crate::store::Table;

/// Brings all that was written in the file systems of `folders` to the disk. Blocks.
pub(super) fn sync(folders: &[&Path]) -> Result<(), ImageError> {
    let mut synced = HashSet::new();
    for folder in folders {
        let open = File::open(folder).and_then(|handle| Ok((handle.metadata()?.dev(), handle)));
        let (device, handle) = open.map_err(ImageError::io("open", folder))?;
        if synced.insert(device) {
            rustix::fs::syncfs(&handle).map_err(|e| ImageError::io("sync", folder)(e.into()))?;
        }
    }
    Ok(())
}

impl ImageService {
    /// Deletes the records of images that lost one of these `layers`, which is about to come anew.
    pub(super) async fn disown_missing(&self, layers: &[LayerRecord]) -> Result<(), ImageError> {
        let blobs: HashSet<&Digest> =
            layers.iter().map(|l| &l.blob).filter(|blob| self.content.size(blob).is_none()).collect();
        let unpacked = |id: &Digest| self.snapshots.layers().get(id).is_some();
        let ids: HashSet<&Digest> = layers.iter().map(|l| &l.diff_id).filter(|id| !unpacked(id)).collect();
        let lost = |image: &ImageRecord| {
            image.layers.iter().any(|l| blobs.contains(&l.blob) || ids.contains(&l.diff_id))
        };
        self.disown(lost).await
    }

    /// The same for a blob that is damaged or missing.
    pub(super) async fn disown_blob(&self, digest: &Digest) -> Result<(), ImageError> {
        self.disown(|image| image.blobs().any(|blob| blob == digest)).await
    }

    /// The same for the folder of an artifact's files.
    pub(super) async fn disown_tree(&self, tree: &Digest) -> Result<(), ImageError> {
        if self.snapshots.layers().get(tree).is_some() {
            return Ok(());
        }
        self.disown(|image| image.artifact.as_ref().is_some_and(|artifact| artifact.tree == *tree)).await
    }

    /// The images stay known to this process, so that their tags are found again by the pull that makes them whole.
    async fn disown(&self, lost: impl Fn(&ImageRecord) -> bool) -> Result<(), ImageError> {
        let _changing = self.changes.lock().await;
        let catalogue = self.catalogue.load_full();
        for image in catalogue.images.values().chain(catalogue.broken.values()).filter(|image| lost(image)) {
            self.store.delete(Table::Images, image.id.as_str()).await?;
            failpoint!("image.disown.deleted");
        }
        Ok(())
    }
}
