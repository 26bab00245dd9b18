//! Removing images, sweeping what no image needs, and saying how much is stored.
//!
//! Invariant: mark and sweep from the records and the containers; nothing is swept while a pull, whose parts no record names yet,
//! is under way.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::ImageService;
use super::error::ImageError;
use super::pull::blocking;
use super::record::{Catalogue, Found};
use crate::registry::Digest;
use crate::snapshot::{Garbage, Usage};
use crate::store::Table;

/// What images and containers take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Blobs and unpacked layers.
    pub images: Usage,
    /// Writable layers.
    pub containers: Usage,
}

impl ImageService {
    /// Removes the image with this id or reference, with all its names. Absent means done. Containers made of it keep their
    /// layers.
    ///
    /// # Errors
    /// When it is pinned, the text fits several images, or the store fails.
    pub async fn remove(self: &Arc<Self>, text: &str) -> Result<(), ImageError> {
        let changing = self.changes.lock().await;
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        let image = match catalogue.find(text) {
            Found::One(image) => image,
            Found::None => return Ok(()),
            Found::Several => return Err(ImageError::Ambiguous(text.to_owned())),
        };
        if image.pinned {
            return Err(ImageError::Pinned(text.to_owned()));
        }
        self.store.delete(Table::Images, image.id.as_str()).await?;
        catalogue.images.remove(&image.id);
        self.catalogue.store(Arc::new(catalogue));
        drop(changing);
        self.want_sweep();
        self.sweep_when_idle().await;
        Ok(())
    }

    /// Sweeps if that is wanted and possible now; otherwise the pull under way does it at its end.
    pub(super) async fn sweep_when_idle(self: &Arc<Self>) {
        if self.sweep_wanted.load(Ordering::Acquire) {
            let service = Arc::clone(self);
            if let Err(error) = blocking(move || service.sweep_if_idle()).await {
                tracing::warn!(%error, "sweep");
            }
        }
    }

    /// The same for callers that may block.
    pub(super) fn sweep_if_idle(&self) {
        let garbage = self.detach_unused();
        // Outside of the lock: pulls and containers need not wait until the disk has forgotten large layers.
        for error in garbage.map(Garbage::remove).unwrap_or_default() {
            tracing::warn!(error = %crate::report::chain(&error), "an unused layer could not be removed");
        }
    }

    fn detach_unused(&self) -> Option<Garbage> {
        let _alone = self.garbage.try_write().ok()?;
        if !self.sweep_wanted.swap(false, Ordering::AcqRel) {
            return None;
        }
        let catalogue = self.catalogue.load();
        let records: Vec<_> = catalogue.images.values().chain(catalogue.broken.values()).collect();
        let layers: HashSet<Digest> = records.iter().flat_map(|image| image.diff_ids()).collect();
        let blobs: HashSet<&Digest> = records.iter().flat_map(|image| image.blobs()).collect();
        for (digest, _) in self.content.list() {
            if !blobs.contains(&digest)
                && let Err(error) = self.content.remove(&digest)
            {
                tracing::warn!(error = %crate::report::chain(&error), "an unused blob could not be removed");
            }
        }
        Some(self.snapshots.sweep(&layers))
    }

    /// How much is stored.
    ///
    /// # Errors
    /// When the daemon is shutting down.
    pub async fn disk_usage(&self) -> Result<DiskUsage, ImageError> {
        let (content, snapshots) = (self.content.clone(), self.snapshots.clone());
        blocking(move || {
            let mut usage = DiskUsage::default();
            for (_, size) in content.list() {
                usage.images.bytes += size;
                usage.images.inodes += 1;
            }
            for (_, layer) in snapshots.layers().list() {
                usage.images.bytes += layer.bytes;
                usage.images.inodes += layer.inodes;
            }
            for id in snapshots.container_ids() {
                match snapshots.usage(&id) {
                    Ok(one) => {
                        usage.containers.bytes += one.bytes;
                        usage.containers.inodes += one.inodes;
                    }
                    Err(error) => tracing::debug!(container = %id, %error, "writable layer not measured"),
                }
            }
            usage
        })
        .await
    }

    /// Where images and containers are stored.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}
