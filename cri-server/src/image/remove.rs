//! Removing images, sweeping what no image needs, and saying how much is stored.
//!
//! Invariant: mark and sweep from the records and the containers; nothing is swept while a pull, whose parts no record names yet,
//! is under way.

use cofferdam_failpoints::failpoint;
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::ImageService;
use super::error::ImageError;
use super::pull::blocking;
use super::record::{Catalogue, Found};
use crate::content::Doomed;
use crate::operation::Stage;
use crate::registry::Digest;
use crate::snapshot::{Garbage, Usage};
use crate::store::Table;

/// How long an answer waits for the bytes of what was removed. The kubelet looks at the disk when it has its answer, to
/// see whether pods have to go as well; beyond this time it is better served with the answer.
const BYTES: Duration = Duration::from_secs(2);

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
    ///
    /// A removal of the same text that is under way is joined, and goes on when its caller leaves.
    pub async fn remove(self: &Arc<Self>, text: &str) -> Result<(), Arc<ImageError>> {
        let (service, named) = (Arc::clone(self), text.to_owned());
        let begin = |stage: Stage| async move {
            stage.set("forgetting the record");
            if service.forget(&named).await? {
                stage.set("sweeping what no image needs");
                service.sweep_when_idle().await;
            }
            Ok(())
        };
        let joined = self.removals.join(text, begin).await;
        joined.map_err(|_lost| Arc::new(ImageError::Interrupted("the removal")))?
    }

    /// Removes the record; answers whether there was one.
    pub(super) async fn forget(&self, text: &str) -> Result<bool, ImageError> {
        let changing = self.changes.lock().await;
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        let found = match catalogue.find(text) {
            // One that is not whole is not made whole any more either.
            Found::None => catalogue.find_broken(text),
            found @ (Found::One(_) | Found::Several) => found,
        };
        let image = match found {
            Found::One(image) => image,
            Found::None => return Ok(false),
            Found::Several => return Err(ImageError::Ambiguous(text.to_owned())),
        };
        if image.pinned {
            return Err(ImageError::Pinned(text.to_owned()));
        }
        self.store.delete(Table::Images, image.id.as_str()).await?;
        failpoint!("image.remove.record_deleted", infallible);
        catalogue.images.remove(&image.id);
        catalogue.broken.remove(&image.id);
        self.catalogue.store(Arc::new(catalogue));
        drop(changing);
        self.want_sweep();
        Ok(true)
    }

    /// Sweeps if that is wanted and possible now; otherwise the pull under way does it at its end.
    pub(super) async fn sweep_when_idle(self: &Arc<Self>) {
        self.sweep_waiting(BYTES).await;
    }

    /// The same; names are gone when this returns, bytes go in a task of the service that is waited for so long.
    pub(super) async fn sweep_waiting(self: &Arc<Self>, time: Duration) {
        if !self.sweep_wanted.load(Ordering::Acquire) {
            return;
        }
        let service = Arc::clone(self);
        let detached = blocking(move || service.detach_unused()).await;
        match detached {
            Ok(Some(garbage)) => {
                let removal = self.tasks.spawn_blocking(move || {
                    garbage.remove().iter().for_each(|error| warn(error));
                });
                let _goes_on = tokio::time::timeout(time, removal).await;
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "sweep"),
        }
    }

    /// Takes the names of all that no record names. To be called before the first pull: what was not recorded was not
    /// synced either, and after a power cut may have a name and not its bytes. These go in a task of the service.
    pub async fn distrust_unrecorded(self: &Arc<Self>) {
        self.sweep_waiting(Duration::ZERO).await;
    }

    /// Sweeps whether or not anything says that there is something, as far as no pull is under way; answers what could not be
    /// removed.
    pub async fn sweep(self: &Arc<Self>) -> Vec<String> {
        self.want_sweep();
        let service = Arc::clone(self);
        let swept = blocking(move || {
            let unused = service.detach_unused();
            unused.map(|unused| unused.remove()).unwrap_or_default()
        });
        swept.await.unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Takes away the names of all that nobody uses. Quick, for pulls wait meanwhile; the bytes are the caller's to remove.
    fn detach_unused(&self) -> Option<Unused> {
        let _alone = self.garbage.try_write().ok()?;
        if !self.sweep_wanted.swap(false, Ordering::AcqRel) {
            return None;
        }
        let catalogue = self.catalogue.load();
        let records: Vec<_> = catalogue.images.values().chain(catalogue.broken.values()).collect();
        let layers: HashSet<Digest> = records.iter().flat_map(|image| image.diff_ids()).collect();
        let blobs: HashSet<&Digest> = records.iter().flat_map(|image| image.blobs()).collect();
        let mut unused = Unused {
            blobs: self.content.take_doomed(),
            layers: self.snapshots.sweep(&layers),
            failures: Vec::new(),
        };
        failpoint!("image.sweep.layers_detached", infallible);
        for (digest, _) in self.content.list() {
            if !blobs.contains(&digest) {
                match self.content.detach(&digest) {
                    Ok(blob) => unused.blobs.extend(blob),
                    Err(error) => unused.failures.push(crate::report::chain(&error)),
                }
            }
        }
        self.pairs().retain(|(blob, _)| blobs.contains(blob));
        failpoint!("image.sweep.detached", infallible);
        Some(unused)
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

/// What has no name any more but still its bytes.
struct Unused {
    blobs: Vec<Doomed>,
    layers: Garbage,
    failures: Vec<String>,
}

impl Unused {
    /// Blocks, for large layers long; answers what could not be removed.
    fn remove(self) -> Vec<String> {
        let blobs = self.blobs.into_iter().filter_map(|blob| blob.remove().err());
        let blobs: Vec<_> = blobs.map(|error| crate::report::chain(&error)).collect();
        failpoint!("image.sweep.blobs_removed", infallible);
        let layers: Vec<_> =
            self.layers.remove().into_iter().map(|error| crate::report::chain(&error)).collect();
        failpoint!("image.sweep.layers_removed", infallible);
        self.failures.into_iter().chain(blobs).chain(layers).collect()
    }
}

fn warn(error: &str) {
    tracing::warn!(error, "something unused could not be removed");
}
