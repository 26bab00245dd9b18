//! Images that lost a part: out of use, and made whole again from what is stored, if all blobs are.
//!
//! Invariant: as for a pull, no record on disk names a part that is not on disk: the record goes before the part comes
//! anew, and comes back after a sync.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use super::error::ImageError;
use super::fetch::Origin;
use super::pull::{Board, blocking};
use super::record::{Catalogue, ImageRecord};
use super::{ImageService, durable};

impl ImageService {
    /// Takes images out of use that are no longer whole.
    pub(super) async fn break_images(&self) {
        let _changing = self.changes.lock().await;
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        let images = std::mem::take(&mut catalogue.images);
        for (id, image) in images {
            match self.missing_part(&image) {
                None => drop(catalogue.images.insert(id, image)),
                Some(part) => {
                    self.notices.add(format!(
                        "image {id} {:?} is not whole, it lacks {part}; it is made whole or pulled again",
                        image.repo_tags
                    ));
                    catalogue.broken.insert(id, image);
                }
            }
        }
        self.catalogue.store(Arc::new(catalogue));
    }

    /// Unpacks what is missing of images whose blobs are all here; answers what they are called.
    pub async fn repair(self: &Arc<Self>) -> Vec<String> {
        let broken: Vec<_> = self.catalogue.load().broken.values().cloned().collect();
        let mut repaired = Vec::new();
        for image in broken {
            let name = image.repo_tags.first().cloned().unwrap_or_else(|| image.id.to_string());
            match self.repair_one(&image).await {
                Ok(true) => {
                    tracing::info!(image = %image.id, name, "made whole again from what is stored");
                    repaired.push(name);
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(image = %image.id, name, error = %crate::report::chain(&error), "it cannot be made whole; it will be pulled again when asked for");
                }
            }
        }
        repaired
    }

    async fn repair_one(self: &Arc<Self>, image: &Arc<ImageRecord>) -> Result<bool, ImageError> {
        let _keeping = self.garbage.read().await;
        let is_whole = |image: &ImageRecord| image.blobs().all(|blob| self.content.size(blob).is_some());
        // An artifact's folder is made by a pull.
        if image.artifact.is_some() || !is_whole(image) {
            return Ok(false);
        }
        self.disown_missing(&image.layers).await?;
        let (board, _progress) = Board::new();
        board.begin(&image.layers);
        let origin = Origin::Stored("what is stored".to_owned());
        self.fetch_layers(&origin, &image.layers, &board).await?;
        failpoint!("image.repair.layers_unpacked");
        let (content, snapshots, diff_ids) = (self.content.clone(), self.snapshots.clone(), image.diff_ids());
        blocking(move || -> Result<(), ImageError> {
            snapshots.settle(&diff_ids)?;
            durable::sync(&[content.folder(), &snapshots.layers().folder()])
        })
        .await??;
        failpoint!("image.repair.synced");
        let is_wanted = self.record_repaired(ImageRecord::clone(image)).await?;
        if !is_wanted {
            // What was unpacked for it is nobody's.
            self.want_sweep();
        }
        Ok(is_wanted)
    }
}
