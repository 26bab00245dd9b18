//! Images of the node: pulled, imported, listed, removed.
//!
//! Invariants: a record is written last, when every part is unpacked and on disk (see `durable`), so that an image is whole or
//! absent; reads take no lock; compressed blobs are kept beside the unpacked layers, so that an export gives back the very
//! bytes that were pulled.
//!
//! ```text
//! <root>/content   blobs, see `content`
//! <root>/layers    unpacked layers, see `snapshot`
//! metadata.redb    table images: one record for each image id
//! ```

mod artifact;
mod config;
mod durable;
mod error;
mod export;
mod fetch;
mod import;
mod manifest;
mod platform;
mod pull;
mod pull_counts;
mod record;
mod remove;
mod repair;
#[cfg(test)]
mod tests;
mod usage;
mod verify;

use cofferdam_failpoints::failpoint;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::{RwLock, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use artifact::{ArtifactFile, ArtifactRecord};
pub use config::Config;
pub use error::ImageError;
pub use manifest::{Platform, RunConfig};
pub use pull::{LayerProgress, LayerStage, Pull, PullResult, PullUnderWay};
pub use pull_counts::PullCounts;
pub use record::{ImageRecord, ImageUser, LayerRecord};
pub use remove::DiskUsage;
pub use usage::{ImageUsage, Pruned, Stored};
pub use verify::{Damage, Look, Verified};

use crate::content::Content;
use crate::notices::Notices;
use crate::operation::{Operations, UnderWay};
use crate::registry::{Digest, Registry, RegistryConfig};
use crate::snapshot::Snapshots;
use crate::store::{Store, Table};
use record::{Catalogue, Found};

/// Configurations beyond this are no configurations.
const MAX_CONFIG: u64 = 8 << 20;
const MAX_MANIFEST: u64 = 4 << 20;

/// The images of this node.
pub struct ImageService {
    root: PathBuf,
    config: Config,
    registry: Registry,
    content: Arc<Content>,
    snapshots: Arc<Snapshots>,
    store: Arc<Store>,
    catalogue: ArcSwap<Catalogue>,
    /// Held by whoever changes the catalogue.
    changes: tokio::sync::Mutex<()>,
    flights: Mutex<Vec<pull::Flight>>,
    pulls: PullCounts,
    /// Pulls belong to the service, not to their callers.
    tasks: TaskTracker,
    removals: Operations<Result<(), Arc<ImageError>>>,
    slots: Arc<Semaphore>,
    /// One unpacking for each layer, whoever wants it.
    layer_locks: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
    /// Blobs that were read on this node, each with the diff id that it has: those of the records, and of pulls that have
    /// no record yet. Another image's word for a pair counts for nothing.
    pairs: Mutex<HashSet<(Digest, Digest)>>,
    /// Shared by pulls, whose blobs and layers no record names yet; exclusive for the sweep.
    garbage: RwLock<()>,
    sweep_wanted: AtomicBool,
    notices: Arc<Notices>,
    /// Cancelled when the daemon ends.
    stopping: CancellationToken,
}

impl ImageService {
    /// Opens the images under `root`, and sets aside records of images that are no longer whole. Blocks; call it before
    /// serving. What nobody needs goes with the first [`Self::sweep`].
    ///
    /// # Errors
    /// When directories or the store cannot be read.
    pub fn open(
        root: &Path,
        config: Config,
        store: Arc<Store>,
        notices: Arc<Notices>,
    ) -> Result<Arc<Self>, ImageError> {
        let content = Arc::new(Content::open(root, &notices)?);
        let snapshots = Snapshots::open(root, &notices)?;
        let registry = Registry::new(RegistryConfig {
            config_path: Some(config.registry_config.clone()),
            credentials_for_mirrors: config.credentials_for_mirrors,
            ..RegistryConfig::default()
        });
        let slots = Arc::new(Semaphore::new(config.parallel_layers()));
        let tasks = TaskTracker::new();
        let service = Self {
            root: root.to_owned(),
            registry,
            content,
            snapshots,
            catalogue: ArcSwap::from_pointee(Catalogue::default()),
            changes: tokio::sync::Mutex::new(()),
            flights: Mutex::default(),
            pulls: PullCounts::default(),
            removals: Operations::new("RemoveImage", tasks.clone()),
            tasks,
            slots,
            layer_locks: Mutex::default(),
            pairs: Mutex::default(),
            garbage: RwLock::new(()),
            sweep_wanted: AtomicBool::new(true),
            notices,
            stopping: CancellationToken::new(),
            config,
            store,
        };
        service.load()?;
        Ok(Arc::new(service))
    }

    fn load(&self) -> Result<(), ImageError> {
        let mut records: Vec<(String, ImageRecord)> = self.store.load(Table::Images)?;
        // A crash between two writes may leave a tag on two images: the later one has it.
        records.sort_by_key(|(_, record)| std::cmp::Reverse(record.pulled_at));
        let mut seen = HashSet::new();
        let mut catalogue = Catalogue::default();
        for (_, mut record) in records {
            record.repo_tags.retain(|tag| seen.insert(tag.clone()));
            record.pinned = self.is_pinned(&record.repo_tags);
            let missing = self.missing_part(&record);
            self.pairs().extend(record.layers.iter().map(LayerRecord::pair));
            let id = record.id.clone();
            match missing {
                None => catalogue.images.insert(id, Arc::new(record)),
                Some(part) => {
                    self.notices.add(format!(
                        "image {id} {:?} is not whole, it lacks {part}; it is made whole or pulled again",
                        record.repo_tags
                    ));
                    catalogue.broken.insert(id, Arc::new(record))
                }
            };
        }
        self.catalogue.store(Arc::new(catalogue));
        Ok(())
    }

    fn missing_part(&self, record: &ImageRecord) -> Option<String> {
        let blob = record.blobs().find(|digest| self.content.size(digest).is_none());
        let layer =
            || record.diff_ids().into_iter().find(|layer| self.snapshots.layers().get(layer).is_none());
        blob.map(|digest| format!("blob {digest}")).or_else(|| layer().map(|layer| format!("layer {layer}")))
    }

    fn is_pinned(&self, tags: &[String]) -> bool {
        let pinned =
            self.config.pinned.iter().filter_map(|text| crate::registry::Reference::parse(text).ok());
        pinned.map(|reference| reference.to_string()).any(|name| tags.contains(&name))
    }

    /// Layers and writable layers, for whoever makes containers.
    #[must_use]
    pub fn snapshots(&self) -> &Arc<Snapshots> {
        &self.snapshots
    }

    /// Every image.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<ImageRecord>> {
        self.catalogue.load().images.values().cloned().collect()
    }

    /// The image with this id, reference or beginning of an id.
    ///
    /// # Errors
    /// When there is none, or the beginning fits several.
    pub fn find(&self, text: &str) -> Result<Arc<ImageRecord>, ImageError> {
        match self.catalogue.load().find(text) {
            Found::One(image) => Ok(image),
            Found::None => Err(ImageError::NotFound(text.to_owned())),
            Found::Several => Err(ImageError::Ambiguous(text.to_owned())),
        }
    }

    /// The image's configuration as its publisher wrote it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn oci_config(&self, image: &ImageRecord) -> Result<serde_json::Value, ImageError> {
        let bytes = self.content.read(&image.id, MAX_CONFIG)?;
        serde_json::from_slice(&bytes).map_err(|e| ImageError::Malformed {
            what: "image configuration",
            digest: image.id.to_string(),
            problem: e.to_string(),
        })
    }

    /// What the image's manifest notes about it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn annotations(&self, image: &ImageRecord) -> Result<HashMap<String, String>, ImageError> {
        #[derive(serde::Deserialize)]
        struct Noted {
            #[serde(default)]
            annotations: Option<HashMap<String, String>>,
        }
        let bytes = self.content.read(&image.manifest, MAX_MANIFEST)?;
        let noted: Noted = serde_json::from_slice(&bytes).map_err(|e| ImageError::Malformed {
            what: "manifest",
            digest: image.manifest.to_string(),
            problem: e.to_string(),
        })?;
        Ok(noted.annotations.unwrap_or_default())
    }

    /// Records an image whose parts are all there. Its tags leave other images.
    async fn record(&self, image: ImageRecord) -> Result<Arc<ImageRecord>, ImageError> {
        let _changing = self.changes.lock().await;
        self.record_locked(image).await
    }

    /// Records an image that was made whole, unless it was removed meanwhile; answers whether.
    async fn record_repaired(&self, image: ImageRecord) -> Result<bool, ImageError> {
        let _changing = self.changes.lock().await;
        if !self.catalogue.load().broken.contains_key(&image.id) {
            return Ok(false);
        }
        self.record_locked(image).await?;
        Ok(true)
    }

    /// With `changes` held.
    async fn record_locked(&self, mut image: ImageRecord) -> Result<Arc<ImageRecord>, ImageError> {
        let mut catalogue = Catalogue::clone(&self.catalogue.load());
        let known = catalogue.images.get(&image.id).or_else(|| catalogue.broken.get(&image.id));
        if let Some(known) = known {
            merge(&mut image.repo_tags, &known.repo_tags);
            merge(&mut image.repo_digests, &known.repo_digests);
        }
        image.pinned = self.is_pinned(&image.repo_tags);
        let image = Arc::new(image);
        self.store.put(Table::Images, image.id.as_str(), &*image).await?;
        failpoint!("image.record.stored", infallible);
        let without_tags = |other: &ImageRecord| {
            let mut less = ImageRecord::clone(other);
            less.repo_tags.retain(|tag| !image.repo_tags.contains(tag));
            less.pinned = self.is_pinned(&less.repo_tags);
            (less != *other).then(|| Arc::new(less))
        };
        for other in catalogue.images.values_mut().filter(|other| other.id != image.id) {
            if let Some(less) = without_tags(other) {
                self.store.put(Table::Images, less.id.as_str(), &*less).await?;
                *other = less;
            }
        }
        // In memory only: the record of an image that is not whole may be gone so that its parts can come anew.
        for other in catalogue.broken.values_mut().filter(|other| other.id != image.id) {
            *other = without_tags(other).unwrap_or_else(|| Arc::clone(other));
        }
        catalogue.broken.remove(&image.id);
        catalogue.images.insert(image.id.clone(), image.clone());
        self.catalogue.store(Arc::new(catalogue));
        Ok(image)
    }

    /// What is being done to images now, beside pulls.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.removals.under_way()
    }

    /// What of it has just been found to be over its stage's deadline.
    #[must_use]
    pub fn newly_overdue(&self) -> Vec<UnderWay> {
        self.removals.newly_overdue()
    }

    /// What was pulled since the daemon's start.
    #[must_use]
    pub fn pulls(&self) -> &PullCounts {
        &self.pulls
    }

    /// Waits for pulls under way; new ones are refused. For shutting down.
    pub async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn want_sweep(&self) {
        self.sweep_wanted.store(true, Ordering::Release);
    }
}

/// Adds what is missing, keeping the order.
fn merge(into: &mut Vec<String>, from: &[String]) {
    for name in from {
        if !into.contains(name) {
            into.push(name.clone());
        }
    }
}

pub(crate) fn now_nanos() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
