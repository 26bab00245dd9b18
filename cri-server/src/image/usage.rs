//! What takes room, and what of it could be freed.

use cofferdam_failpoints::failpoint;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use super::ImageService;
use super::error::ImageError;
use super::pull::blocking;
use super::record::ImageRecord;
use crate::model::ContainerId;
use crate::registry::Digest;
use crate::snapshot::Usage;

/// How long the bytes of pruned images are waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// One image and what it takes.
#[derive(Clone, Debug)]
pub struct ImageUsage {
    pub image: Arc<ImageRecord>,
    /// Blobs and layers.
    pub bytes: u64,
    /// Those that no other image and no container needs: what its removal frees.
    pub own_bytes: u64,
    pub in_use: bool,
}

/// All that is stored.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    pub images: Vec<ImageUsage>,
    pub blobs: Usage,
    pub layers: Usage,
    /// Writable layers by container.
    pub containers: Vec<(ContainerId, Usage)>,
    /// What the next sweep removes.
    pub garbage_bytes: u64,
}

/// What was removed to make room.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    pub images: Vec<Arc<ImageRecord>>,
    pub freed_bytes: u64,
    pub failures: Vec<String>,
}

impl ImageService {
    /// What takes room; `used` are the ids of images that containers are made of. Reads every writable layer.
    ///
    /// # Errors
    /// When the daemon is shutting down.
    pub async fn stored(self: &Arc<Self>, used: HashSet<String>) -> Result<Stored, ImageError> {
        let service = Arc::clone(self);
        blocking(move || service.measure(&used)).await
    }

    fn measure(&self, used: &HashSet<String>) -> Stored {
        let blobs: HashMap<Digest, u64> = self.content.list().into_iter().collect();
        let layers: HashMap<Digest, Usage> = self.snapshots.layers().list().into_iter().map(usage).collect();
        let catalogue = self.catalogue.load();
        let records: Vec<_> = catalogue.images.values().chain(catalogue.broken.values()).collect();
        let mut blob_users: HashMap<&Digest, usize> = HashMap::new();
        let mut layer_users: HashMap<Digest, usize> = HashMap::new();
        for image in &records {
            let unique: HashSet<&Digest> = image.blobs().collect();
            unique.into_iter().for_each(|blob| *blob_users.entry(blob).or_default() += 1);
            let unique: HashSet<Digest> = image.diff_ids().into_iter().collect();
            unique.into_iter().for_each(|layer| *layer_users.entry(layer).or_default() += 1);
        }
        let standing = self.snapshots.standing();
        let mut stored = Stored::default();
        for image in records {
            let mut row = ImageUsage {
                image: Arc::clone(image),
                bytes: 0,
                own_bytes: 0,
                in_use: used.contains(image.id.as_str()),
            };
            for blob in image.blobs().collect::<HashSet<_>>() {
                let bytes = blobs.get(blob).copied().unwrap_or_default();
                row.bytes += bytes;
                row.own_bytes += if blob_users.get(blob) == Some(&1) { bytes } else { 0 };
            }
            for layer in image.diff_ids().into_iter().collect::<HashSet<_>>() {
                let bytes = layers.get(&layer).map_or(0, |usage| usage.bytes);
                let is_own = layer_users.get(&layer) == Some(&1) && !standing.contains(&layer);
                row.bytes += bytes;
                row.own_bytes += if is_own { bytes } else { 0 };
            }
            stored.images.push(row);
        }
        for (digest, bytes) in &blobs {
            add(&mut stored.blobs, Usage { bytes: *bytes, inodes: 1 });
            stored.garbage_bytes += if blob_users.contains_key(digest) { 0 } else { *bytes };
        }
        for (digest, one) in &layers {
            add(&mut stored.layers, *one);
            let is_used = layer_users.contains_key(digest) || standing.contains(digest);
            stored.garbage_bytes += if is_used { 0 } else { one.bytes };
        }
        for id in self.snapshots.container_ids() {
            match self.snapshots.usage(&id) {
                Ok(one) => stored.containers.push((id, one)),
                Err(error) => tracing::debug!(container = %id, %error, "writable layer not measured"),
            }
        }
        stored
    }

    /// Removes images that no container is made of: those without a tag, or `all`; then what nobody needs. Pinned ones stay.
    /// With `dry_run` it only says what it would remove.
    ///
    /// # Errors
    /// When the daemon is shutting down.
    pub async fn prune(
        self: &Arc<Self>,
        used: HashSet<String>,
        all: bool,
        dry_run: bool,
    ) -> Result<Pruned, ImageError> {
        let before = self.stored(used).await?;
        let wanted =
            |row: &&ImageUsage| !row.in_use && !row.image.pinned && (all || row.image.repo_tags.is_empty());
        let doomed: Vec<_> = before.images.iter().filter(wanted).collect();
        if dry_run {
            let own: u64 = doomed.iter().map(|row| row.own_bytes).sum();
            let images = doomed.iter().map(|row| Arc::clone(&row.image)).collect();
            return Ok(Pruned { images, freed_bytes: own + before.garbage_bytes, failures: Vec::new() });
        }
        let mut pruned = Pruned::default();
        for row in doomed {
            match self.forget(row.image.id.as_str()).await {
                Ok(_) => pruned.images.push(Arc::clone(&row.image)),
                Err(error) => pruned.failures.push(crate::report::chain(&error)),
            }
        }
        failpoint!("image.prune.forgotten");
        match tokio::time::timeout(PATIENCE, self.sweep()).await {
            Ok(failures) => pruned.failures.extend(failures),
            Err(_) => pruned.failures.push("bytes are still being removed".to_owned()),
        }
        let after = self.stored(HashSet::new()).await?;
        let bytes = |stored: &Stored| stored.blobs.bytes + stored.layers.bytes;
        pruned.freed_bytes = bytes(&before).saturating_sub(bytes(&after));
        Ok(pruned)
    }
}

fn usage((digest, layer): (Digest, crate::snapshot::Layer)) -> (Digest, Usage) {
    (digest, Usage { bytes: layer.bytes, inodes: layer.inodes })
}

fn add(to: &mut Usage, one: Usage) {
    to.bytes += one.bytes;
    to.inodes += one.inodes;
}
