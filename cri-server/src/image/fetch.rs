//! Brings manifests, configurations and layers to this node: from a registry, or from blobs that an import stored.
//!
//! Invariant: a layer is fetched and unpacked at the same time, by one task, whoever else wants it; when one layer of
//! an image fails, the others stop and have cleaned up before the failure is reported. That a blob holds the layer that
//! an image says it holds is taken from nobody: where it has not been seen before, the blob is read.

use std::collections::HashSet;
use std::io::Read;
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::ImageService;
use super::error::ImageError;
use super::pull::{Board, LayerStage, blocking};
use super::record::LayerRecord;
use crate::content::{Content, ContentError};
use crate::registry::{Credentials, Descriptor, Digest, Reference, RegistryError, Resolved};
use crate::snapshot::{Layers, Limits, SnapshotError, Source};

/// Pieces between the network and the first thread of the pipeline.
const QUEUE: usize = 32;
/// Size of a piece read from a stored blob.
const PIECE: usize = 256 << 10;

/// Where an image comes from.
#[derive(Clone)]
pub(super) enum Origin {
    Registry {
        reference: Reference,
        credentials: Credentials,
    },
    /// Blobs stored by an import; the text names the archive.
    Stored(String),
}

impl Origin {
    pub fn name(&self) -> String {
        match self {
            Self::Registry { reference, .. } => reference.to_string(),
            Self::Stored(archive) => archive.clone(),
        }
    }
}

type Pieces = mpsc::Receiver<Result<Bytes, RegistryError>>;

impl ImageService {
    pub(super) async fn fetch_manifest(
        &self,
        origin: &Origin,
        wanted: &Descriptor,
    ) -> Result<Resolved, ImageError> {
        match origin {
            Origin::Registry { reference, credentials } => {
                let resolved = self.registry.manifest(reference, wanted, credentials).await;
                resolved.map_err(|source| ImageError::Registry { reference: reference.to_string(), source })
            }
            Origin::Stored(_) => {
                let bytes = self.fetch_small(origin, wanted, super::MAX_MANIFEST).await?;
                Ok(Resolved { descriptor: wanted.clone(), bytes: bytes.into(), host: String::new() })
            }
        }
    }

    /// A blob that is held in memory; stored as well.
    pub(super) async fn fetch_small(
        &self,
        origin: &Origin,
        wanted: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ImageError> {
        let content = self.content.clone();
        let digest = wanted.digest.clone();
        if content.size(&digest).is_some() {
            match blocking(move || content.read(&digest, limit)).await? {
                Ok(bytes) => return Ok(bytes),
                // Damaged on disk: fetched again.
                Err(ContentError::Digest { .. }) => self.content.remove(&wanted.digest)?,
                Err(error) => return Err(error.into()),
            }
        }
        self.disown_blob(&wanted.digest).await?;
        let Origin::Registry { reference, credentials } = origin else {
            return Err(missing(origin, wanted));
        };
        if wanted.size > limit {
            return Err(
                ContentError::TooLarge { digest: wanted.digest.clone(), actual: wanted.size, limit }.into()
            );
        }
        let mut blob = self.registry.blob(reference, wanted, 0, credentials);
        let failed = |source| ImageError::Registry { reference: reference.to_string(), source };
        let mut bytes = Vec::new();
        while let Some(piece) = blob.chunk().await.map_err(failed)? {
            bytes.extend_from_slice(&piece);
        }
        let (content, digest) = (self.content.clone(), wanted.digest.clone());
        blocking(move || content.put(&digest, &bytes).map(|()| bytes)).await?.map_err(ImageError::from)
    }

    /// All layers, as many at a time as the configuration allows.
    pub(super) async fn fetch_layers(
        &self,
        origin: &Origin,
        layers: &[LayerRecord],
        board: &Board,
    ) -> Result<(), ImageError> {
        let cancel = CancellationToken::new();
        let mut running: FuturesUnordered<_> = layers
            .iter()
            .enumerate()
            .map(|(n, layer)| self.fetch_layer(origin, layer, n, board, &cancel))
            .collect();
        let mut first_error = None;
        while let Some(result) = running.next().await {
            if let Err(error) = result {
                cancel.cancel();
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    async fn fetch_layer(
        &self,
        origin: &Origin,
        layer: &LayerRecord,
        index: usize,
        board: &Board,
        cancel: &CancellationToken,
    ) -> Result<(), ImageError> {
        let lock = self.layer_lock(&layer.diff_id);
        let result = self.fetch_layer_locked(&lock, origin, layer, index, board, cancel).await;
        self.forget_lock(&lock, &layer.diff_id);
        result
    }

    /// Held by who makes what this digest names.
    pub(super) fn layer_lock(&self, digest: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(digest.clone()).or_default().clone()
    }

    pub(super) fn forget_lock(&self, lock: &Arc<tokio::sync::Mutex<()>>, digest: &Digest) {
        let mut locks = self.layer_locks.lock().unwrap_or_else(PoisonError::into_inner);
        // Ours and the map's: nobody else waits for it.
        if Arc::strong_count(lock) == 2 {
            locks.remove(digest);
        }
    }

    async fn fetch_layer_locked(
        &self,
        lock: &tokio::sync::Mutex<()>,
        origin: &Origin,
        layer: &LayerRecord,
        index: usize,
        board: &Board,
        cancel: &CancellationToken,
    ) -> Result<(), ImageError> {
        let _alone = lock.lock().await;
        let unpacked = self.snapshots.layers().get(&layer.diff_id).is_some();
        let stored = self.content.size(&layer.blob).is_some();
        if unpacked && stored && self.pairs().contains(&layer.pair()) {
            board.set(index, LayerStage::Present, layer.size);
            return Ok(());
        }
        let interrupted = || ImageError::Interrupted("the pull");
        let _slot = self.slots.acquire().await.map_err(|_| interrupted())?;
        if cancel.is_cancelled() {
            return Err(interrupted());
        }
        if stored {
            board.set(index, LayerStage::Unpacking, layer.size);
            match self.unpack_stored(layer, unpacked).await {
                Ok(()) => {
                    self.pairs().insert(layer.pair());
                    board.set(index, LayerStage::Done, layer.size);
                    return Ok(());
                }
                Err(error) if error.is_disk_full() || matches!(origin, Origin::Stored(_)) => {
                    return Err(error);
                }
                // Perhaps the blob was damaged on disk: once more, from the registry.
                Err(_) => {
                    self.content.remove(&layer.blob)?;
                    self.disown_blob(&layer.blob).await?;
                }
            }
        }
        self.download(origin, layer, index, board, cancel, purpose(unpacked)).await?;
        self.pairs().insert(layer.pair());
        board.set(index, LayerStage::Done, layer.size);
        Ok(())
    }

    /// The pairs of blob and layer that are known to be true.
    pub(super) fn pairs(&self) -> MutexGuard<'_, HashSet<(Digest, Digest)>> {
        self.pairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unpacks a blob that is here; or only looks whether it is the layer, when that is there.
    async fn unpack_stored(&self, layer: &LayerRecord, unpacked: bool) -> Result<(), ImageError> {
        let (content, snapshots, limits) =
            (self.content.clone(), self.snapshots.clone(), self.config.limits());
        let layer = layer.clone();
        blocking(move || {
            let mut file = content.open_blob(&layer.blob)?;
            let mut source = || {
                let mut piece = Vec::with_capacity(PIECE);
                (&mut file).take(PIECE as u64).read_to_end(&mut piece)?;
                Ok((!piece.is_empty()).then(|| Bytes::from(piece)))
            };
            take_in(snapshots.layers(), &layer.diff_id, &mut source, &limits, purpose(unpacked))
                .map_err(|e| unpack_error(&layer, "", e))
        })
        .await?
    }

    pub(super) async fn download(
        &self,
        origin: &Origin,
        layer: &LayerRecord,
        index: usize,
        board: &Board,
        cancel: &CancellationToken,
        purpose: Purpose,
    ) -> Result<(), ImageError> {
        let wanted =
            Descriptor { media_type: layer.media_type.clone(), digest: layer.blob.clone(), size: layer.size };
        let Origin::Registry { reference, credentials } = origin else {
            return Err(missing(origin, &wanted));
        };
        let mut blob = self.registry.blob(reference, &wanted, 0, credentials);
        let (pieces_in, pieces_out) = mpsc::channel(QUEUE);
        let receive = async {
            board.set(index, LayerStage::Downloading, 0);
            loop {
                let piece = tokio::select! {
                    () = cancel.cancelled() => break,
                    piece = blob.chunk() => piece.transpose(),
                };
                let Some(piece) = piece else { break };
                let failed = piece.is_err();
                if pieces_in.send(piece).await.is_err() || failed {
                    break;
                }
                board.set(index, LayerStage::Downloading, blob.position());
            }
            board.set(index, LayerStage::Unpacking, blob.position());
            // Its end tells the pipeline that no more comes; whether that was all, size and digest decide.
            drop(pieces_in);
        };
        let name = reference.to_string();
        tokio::join!(receive, self.store_and_unpack(layer, name, pieces_out, purpose)).1
    }

    /// Stores the blob, and meanwhile does with its bytes what they are for.
    async fn store_and_unpack(
        &self,
        layer: &LayerRecord,
        reference: String,
        pieces: Pieces,
        purpose: Purpose,
    ) -> Result<(), ImageError> {
        let (content, snapshots, limits) =
            (self.content.clone(), self.snapshots.clone(), self.config.limits());
        let layer = layer.clone();
        blocking(move || {
            let mut source = storing(&content, &layer, pieces)?;
            take_in(snapshots.layers(), &layer.diff_id, &mut source, &limits, purpose)
                .map_err(|error| unpack_error(&layer, &reference, error))
        })
        .await?
    }
}

type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A source that stores what it hands out, and at the end checks and keeps it.
fn storing<'a>(
    content: &'a Content,
    layer: &LayerRecord,
    mut pieces: Pieces,
) -> Result<impl FnMut() -> Result<Option<Bytes>, SourceError> + Send + use<'a>, ContentError> {
    let mut ingest = Some(content.ingest(&layer.blob, Some(layer.size))?);
    Ok(move || match pieces.blocking_recv() {
        Some(Ok(piece)) => {
            if let Some(ingest) = &mut ingest {
                ingest.write(&piece)?;
            }
            Ok(Some(piece))
        }
        Some(Err(error)) => Err(error.into()),
        None => {
            if let Some(ingest) = ingest.take() {
                content.commit(ingest)?;
            }
            Ok(None)
        }
    })
}

/// What the bytes of a blob are for, besides being stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// They become a layer.
    Unpack,
    /// The layer is there: they are looked through for being it.
    Check,
    /// They are a file of an artifact, whatever they hold.
    Keep,
}

fn purpose(unpacked: bool) -> Purpose {
    if unpacked { Purpose::Check } else { Purpose::Unpack }
}

fn take_in(
    layers: &Layers,
    diff_id: &Digest,
    source: &mut Source<'_>,
    limits: &Limits,
    purpose: Purpose,
) -> Result<(), SnapshotError> {
    match purpose {
        Purpose::Unpack => layers.unpack(diff_id, source, limits).map(drop),
        Purpose::Check => layers.check(diff_id, source, limits),
        Purpose::Keep => {
            while source().map_err(SnapshotError::Source)?.is_some() {}
            Ok(())
        }
    }
}

/// The registry's and the disk's own errors decide the answer to the caller, so they are not wrapped.
fn unpack_error(layer: &LayerRecord, reference: &str, error: SnapshotError) -> ImageError {
    let layer = layer.blob.to_string();
    let SnapshotError::Source(cause) = error else { return ImageError::Layer { layer, source: error } };
    let cause = match cause.downcast::<RegistryError>() {
        Ok(source) => return ImageError::Registry { reference: reference.to_owned(), source: *source },
        Err(cause) => cause,
    };
    match cause.downcast::<ContentError>() {
        Ok(error) => ImageError::Content(*error),
        Err(cause) => ImageError::Layer { layer, source: SnapshotError::Source(cause) },
    }
}

fn missing(origin: &Origin, wanted: &Descriptor) -> ImageError {
    let problem = format!("is not in {}", origin.name());
    ImageError::Malformed { what: "blob", digest: wanted.digest.to_string(), problem }
}
