//! Pulls: resolve, choose the platform, fetch and unpack the layers, record.
//!
//! Invariant: a pull runs in a task of the service. Callers that want the same image with the same login share it, and it goes
//! on when they leave.

use cofferdam_failpoints::failpoint;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::error::ImageError;
use super::fetch::Origin;
use super::manifest::{self, Document, Manifest, RawDescriptor};
use super::record::{ImageRecord, LayerRecord};
use super::{ImageService, MAX_CONFIG, durable, now_nanos, platform};
use crate::registry::{Credentials, Digest, Reference, Resolved};

/// How far one layer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerStage {
    /// Nothing yet.
    Waiting,
    /// Being received, and unpacked at the same time.
    Downloading,
    /// All bytes are here; unpacking is not finished.
    Unpacking,
    /// Unpacked by this pull.
    Done,
    /// It was here before.
    Present,
}

/// One layer of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// The blob.
    pub digest: Digest,
    /// How far it is.
    pub stage: LayerStage,
    /// Compressed bytes received.
    pub received: u64,
    /// Compressed bytes in all.
    pub total: u64,
}

/// Errors are shared by all who wait for the same pull.
pub type PullResult = Result<Arc<ImageRecord>, Arc<ImageError>>;

/// A pull under way; dropping it does not stop the pull.
pub struct Pull {
    /// The layers, once the manifest is known.
    pub progress: watch::Receiver<Vec<LayerProgress>>,
    result: watch::Receiver<Option<PullResult>>,
}

impl Pull {
    /// Waits for the result.
    ///
    /// # Errors
    /// What ended the pull.
    pub async fn finish(mut self) -> PullResult {
        match self.result.wait_for(Option::is_some).await {
            Ok(result) => {
                result.clone().unwrap_or_else(|| Err(Arc::new(ImageError::Interrupted("the pull"))))
            }
            Err(_) => Err(Arc::new(ImageError::Interrupted("the pull"))),
        }
    }
}

/// What identifies a pull under way.
pub(super) struct Flight {
    reference: Reference,
    credentials: Credentials,
    since: Instant,
    progress: watch::Receiver<Vec<LayerProgress>>,
    result: watch::Receiver<Option<PullResult>>,
}

impl Flight {
    /// A finished pull has dropped its end.
    fn is_under_way(&self) -> bool {
        self.result.has_changed().is_ok()
    }
}

/// A pull under way, for a person to look at.
#[derive(Clone, Debug)]
pub struct PullUnderWay {
    pub reference: String,
    /// Empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
    pub age: Duration,
}

/// Where a pull writes down how far it is.
#[derive(Clone)]
pub(super) struct Board(Arc<watch::Sender<Vec<LayerProgress>>>);

impl Board {
    pub fn new() -> (Self, watch::Receiver<Vec<LayerProgress>>) {
        let (sender, receiver) = watch::channel(Vec::new());
        (Self(Arc::new(sender)), receiver)
    }

    pub fn begin(&self, layers: &[LayerRecord]) {
        let waiting = |layer: &LayerRecord| LayerProgress {
            digest: layer.blob.clone(),
            stage: LayerStage::Waiting,
            received: 0,
            total: layer.size,
        };
        self.0.send_replace(layers.iter().map(waiting).collect());
    }

    fn layers(&self) -> Vec<LayerProgress> {
        self.0.borrow().clone()
    }

    pub fn set(&self, index: usize, stage: LayerStage, received: u64) {
        self.0.send_modify(|layers| {
            if let Some(layer) = layers.get_mut(index) {
                (layer.stage, layer.received) = (stage, received);
            }
        });
    }
}

/// The manifest chosen for this node.
pub(super) struct Chosen {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Vec<u8>,
    pub manifest: Manifest,
}

impl ImageService {
    /// Pulls an image and waits for it.
    ///
    /// # Errors
    /// When the reference is none, or the pull fails.
    pub async fn pull(self: &Arc<Self>, reference: &str, credentials: Credentials) -> PullResult {
        self.start_pull(reference, credentials)?.finish().await
    }

    /// Starts a pull, or joins the one that is under way.
    ///
    /// # Errors
    /// When the reference is none.
    pub fn start_pull(
        self: &Arc<Self>,
        reference: &str,
        credentials: Credentials,
    ) -> Result<Pull, Arc<ImageError>> {
        let reference = Reference::parse(reference).map_err(|e| Arc::new(e.into()))?;
        if self.tasks.is_closed() {
            return Err(Arc::new(ImageError::Interrupted("the pull")));
        }
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        flights.retain(Flight::is_under_way);
        let same = |flight: &&Flight| flight.reference == reference && flight.credentials == credentials;
        if let Some(flight) = flights.iter().find(same) {
            return Ok(Pull { progress: flight.progress.clone(), result: flight.result.clone() });
        }
        let (board, progress) = Board::new();
        let (sender, result) = watch::channel(None);
        flights.push(Flight {
            reference: reference.clone(),
            credentials: credentials.clone(),
            since: Instant::now(),
            progress: progress.clone(),
            result: result.clone(),
        });
        drop(flights);
        let service = Arc::clone(self);
        self.tasks.spawn(async move {
            let since = Instant::now();
            let outcome = service.run_pull(&reference, &credentials, &board).await;
            service.pulls.count(outcome.is_ok(), since, &board.layers());
            if let Err(error) = &outcome {
                tracing::warn!(image = %reference, error = %crate::registry::chain(error), "pull failed");
                // What a broken connection left half done makes the next attempt shorter; anything else is garbage.
                if !matches!(error, ImageError::Registry { .. }) {
                    service.want_sweep();
                }
            }
            failpoint!("image.pull.settling", infallible);
            service.sweep_when_idle().await;
            sender.send_replace(Some(outcome.map_err(Arc::new)));
            drop(sender);
            service.forget_finished();
        });
        Ok(Pull { progress, result })
    }

    /// The pulls that run now.
    #[must_use]
    pub fn pulls_under_way(&self) -> Vec<PullUnderWay> {
        let flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |flight: &Flight| PullUnderWay {
            reference: flight.reference.to_string(),
            layers: flight.progress.borrow().clone(),
            age: flight.since.elapsed(),
        };
        flights.iter().filter(|flight| flight.is_under_way()).map(row).collect()
    }

    /// Logins are not kept longer than they are used.
    fn forget_finished(&self) {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner).retain(Flight::is_under_way);
    }

    async fn run_pull(
        self: &Arc<Self>,
        reference: &Reference,
        credentials: &Credentials,
        board: &Board,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let _keeping = self.garbage.read().await;
        let failed = |source| ImageError::Registry { reference: reference.to_string(), source };
        let resolved = self.registry.resolve(reference, credentials).await.map_err(failed)?;
        failpoint!("image.pull.resolved");
        let digests = vec![reference.with_digest(resolved.descriptor.digest.clone()).to_string()];
        // A pull by digest says nothing about tags, even when one is written beside it.
        let tags = match reference.digest() {
            Some(_) => Vec::new(),
            None => vec![reference.to_string()],
        };
        let origin = Origin::Registry { reference: reference.clone(), credentials: credentials.clone() };
        let chosen = self.choose(&origin, resolved).await?;
        failpoint!("image.pull.chosen");
        self.install(&origin, chosen, tags, digests, board).await
    }

    /// Follows an index, and at most one more below it, to this node's manifest.
    pub(super) async fn choose(&self, origin: &Origin, start: Resolved) -> Result<Chosen, ImageError> {
        let name = origin.name();
        let host = platform::host();
        let mut current = start;
        for _ in 0..3 {
            let digest = current.descriptor.digest.clone();
            match manifest::parse(&current.bytes, &digest, &name, self.config.max_layers)? {
                Document::Manifest(manifest) => {
                    let media_type = current.descriptor.media_type.clone();
                    return Ok(Chosen { digest, media_type, bytes: current.bytes.to_vec(), manifest });
                }
                Document::Index(entries) => {
                    let entry = platform::choose(&host, &entries).ok_or_else(|| ImageError::Platform {
                        reference: name.clone(),
                        wanted: host.to_string(),
                        offered: offered(&entries),
                    })?;
                    current = self.fetch_manifest(origin, &entry.descriptor()).await?;
                }
            }
        }
        let digest = current.descriptor.digest.to_string();
        Err(ImageError::Malformed { what: "index", digest, problem: "is nested too deep".to_owned() })
    }

    /// Fetches configuration and layers of a chosen manifest, and records the image.
    pub(super) async fn install(
        self: &Arc<Self>,
        origin: &Origin,
        chosen: Chosen,
        tags: Vec<String>,
        digests: Vec<String>,
        board: &Board,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        if let Some(artifact) = chosen.manifest.artifact.clone() {
            return self.install_artifact(origin, chosen, artifact, (tags, digests), board).await;
        }
        let Chosen { digest, media_type, bytes, manifest } = chosen;
        let config_bytes = self.fetch_small(origin, &manifest.config, MAX_CONFIG).await?;
        failpoint!("image.pull.config_stored");
        let id = manifest.config.digest.clone();
        let config = manifest::parse_config(&config_bytes, &id, manifest.layers.len())?;
        self.check_platform(&origin.name(), &config.platform)?;
        let layers: Vec<LayerRecord> = std::iter::zip(&manifest.layers, &config.diff_ids)
            .map(|(layer, diff_id)| LayerRecord {
                blob: layer.digest.clone(),
                media_type: layer.media_type.clone(),
                size: layer.size,
                diff_id: diff_id.clone(),
            })
            .collect();
        board.begin(&layers);
        self.disown_missing(&layers).await?;
        if self.content.size(&digest).is_none() {
            self.disown_blob(&digest).await?;
        }
        self.fetch_layers(origin, &layers, board).await?;
        failpoint!("image.pull.layers_fetched");
        let (content, snapshots) = (self.content.clone(), self.snapshots.clone());
        let diff_ids = config.diff_ids.clone();
        let (manifest_digest, manifest_size) = (digest.clone(), bytes.len() as u64);
        blocking(move || -> Result<(), ImageError> {
            snapshots.settle(&diff_ids)?;
            failpoint!("image.pull.settled");
            content.put(&manifest_digest, &bytes)?;
            failpoint!("image.pull.manifest_stored");
            durable::sync(&[content.folder(), &snapshots.layers().folder()])
        })
        .await??;
        failpoint!("image.pull.synced");
        let size =
            layers.iter().map(|layer| layer.size).sum::<u64>() + manifest_size + config_bytes.len() as u64;
        self.record(ImageRecord {
            id,
            repo_tags: tags,
            repo_digests: digests,
            manifest: digest,
            manifest_type: media_type,
            size,
            layers,
            platform: config.platform,
            created: config.created,
            config: config.run,
            pulled_at: now_nanos(),
            pinned: false,
            artifact: None,
        })
        .await
    }

    /// A single image may be for another machine as well as an index; its configuration tells.
    fn check_platform(&self, reference: &str, offered: &manifest::Platform) -> Result<(), ImageError> {
        let host = platform::host();
        let unknown = offered.os.is_empty() && offered.architecture.is_empty();
        if unknown || platform::rank(&host, offered).is_some() {
            return Ok(());
        }
        let (wanted, offered) = (host.to_string(), offered.to_string());
        Err(ImageError::Platform { reference: reference.to_owned(), wanted, offered })
    }
}

fn offered(entries: &[RawDescriptor]) -> String {
    let mut names: Vec<String> =
        entries.iter().filter_map(|entry| entry.platform.as_ref()).map(ToString::to_string).collect();
    names.retain(|name| name != "unknown/unknown");
    names.truncate(20);
    if names.is_empty() { "nothing".to_owned() } else { names.join(", ") }
}

/// Runs blocking work outside the async threads; it finishes even when nobody waits for it any more.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ImageError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| ImageError::Interrupted("work on the image"))
}
