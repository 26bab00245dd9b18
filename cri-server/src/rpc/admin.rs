//! What the operator's commands ask beyond the CRI: pulls with progress, import, export, what takes room.
//!
//! Invariant: paths are absolute, because the daemon's working directory is nobody's business; a slow
//! caller misses steps of progress but never the result.

use std::collections::{HashSet, VecDeque};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::admin;
use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::Daemon;
use super::image::status;
use crate::container::Container;
use crate::image::{ImageRecord, ImageService, LayerProgress, LayerStage, Pull, PullResult};
use crate::registry::Credentials;

/// People see no more than this.
const INTERVAL: Duration = Duration::from_millis(100);

/// Serves the operator's calls about images.
#[derive(Clone)]
pub struct AdminRpc {
    images: Arc<ImageService>,
    daemon: Arc<Daemon>,
}

impl AdminRpc {
    /// Serves what the daemon has.
    #[must_use]
    pub fn new(daemon: Arc<Daemon>) -> Self {
        Self { images: Arc::clone(&daemon.ports.images), daemon }
    }

    /// The images that containers are made of or mount.
    fn used_images(&self) -> HashSet<String> {
        let used = |one: Arc<Container>| {
            let volumes = one.made().volumes.iter().map(|(_, image)| image.clone());
            volumes.chain([one.made().image_id.clone()]).collect::<Vec<_>>()
        };
        self.daemon.containers.all().into_iter().flat_map(used).collect()
    }
}

type Event = Result<admin::PullEvent, Status>;

fn absolute(path: &str) -> Result<PathBuf, Status> {
    let path = PathBuf::from(path);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(Status::invalid_argument(format!("{path:?} is no absolute path")))
    }
}

fn layer_event(layer: &LayerProgress) -> admin::PullEvent {
    let stage = match layer.stage {
        LayerStage::Waiting => admin::LayerStage::LayerWaiting,
        LayerStage::Downloading => admin::LayerStage::LayerDownloading,
        LayerStage::Unpacking => admin::LayerStage::LayerUnpacking,
        LayerStage::Done => admin::LayerStage::LayerDone,
        LayerStage::Present => admin::LayerStage::LayerPresent,
    };
    let layer = admin::LayerProgress {
        digest: layer.digest.to_string(),
        stage: stage.into(),
        received_bytes: layer.received,
        total_bytes: layer.total,
    };
    admin::PullEvent { event: Some(admin::pull_event::Event::Layer(layer)) }
}

fn done_event(image: &ImageRecord) -> admin::PullEvent {
    let done = admin::PullDone {
        image_id: image.id.to_string(),
        repo_digests: image.repo_digests.clone(),
        size_bytes: image.size,
    };
    admin::PullEvent { event: Some(admin::pull_event::Event::Done(done)) }
}

/// Turns a pull into events, as fast as the caller takes them. Dropped with the caller; the pull goes on.
struct Report {
    result: Pin<Box<dyn Future<Output = PullResult> + Send>>,
    progress: watch::Receiver<Vec<LayerProgress>>,
    shown: Vec<LayerProgress>,
    ready: VecDeque<Event>,
    over: bool,
}

impl Report {
    fn new(pull: Pull) -> Self {
        let progress = pull.progress.clone();
        let result = Box::pin(pull.finish());
        Self { result, progress, shown: Vec::new(), ready: VecDeque::new(), over: false }
    }

    async fn next(mut self) -> Option<(Event, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((event, self));
            }
            if self.over {
                return None;
            }
            let result = tokio::select! {
                result = &mut self.result => Some(result),
                () = tokio::time::sleep(INTERVAL) => None,
            };
            let now = self.progress.borrow_and_update().clone();
            let changed = now.iter().enumerate().filter(|(n, layer)| self.shown.get(*n) != Some(layer));
            self.ready.extend(changed.map(|(_, layer)| Ok(layer_event(layer))));
            self.shown = now;
            if let Some(result) = result {
                self.ready.push_back(result.map(|image| done_event(&image)).map_err(|error| status(&error)));
                self.over = true;
            }
        }
    }
}

#[tonic::async_trait]
impl admin::admin_server::Admin for AdminRpc {
    type PullImageStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

    async fn pull_image(
        &self,
        request: Request<admin::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let credentials = if request.username.is_empty() {
            Credentials::anonymous()
        } else {
            Credentials::password(request.username, request.password)
        };
        let pull = self.images.start_pull(&request.image, credentials).map_err(|e| status(&e))?;
        Ok(Response::new(Box::pin(futures::stream::unfold(Report::new(pull), Report::next))))
    }

    async fn import_images(
        &self,
        request: Request<admin::ImportImagesRequest>,
    ) -> Result<Response<admin::ImportImagesResponse>, Status> {
        let path = absolute(&request.into_inner().path)?;
        let images = self.images.import(&path).await.map_err(|e| status(&e))?;
        let images = images.iter().map(|image| admin::ImportedImage {
            image_id: image.id.to_string(),
            repo_tags: image.repo_tags.clone(),
        });
        Ok(Response::new(admin::ImportImagesResponse { images: images.collect() }))
    }

    async fn export_images(
        &self,
        request: Request<admin::ExportImagesRequest>,
    ) -> Result<Response<admin::ExportImagesResponse>, Status> {
        let request = request.into_inner();
        let path = absolute(&request.path)?;
        if request.images.is_empty() {
            return Err(Status::invalid_argument("the request names no image"));
        }
        let size_bytes = self.images.export(&path, &request.images).await.map_err(|e| status(&e))?;
        Ok(Response::new(admin::ExportImagesResponse { size_bytes }))
    }

    async fn disk_usage(
        &self,
        _: Request<admin::DiskUsageRequest>,
    ) -> Result<Response<admin::DiskUsageResponse>, Status> {
        let stored = self.images.stored(self.used_images()).await.map_err(|e| status(&e))?;
        let images = stored.images.iter().map(|row| admin::ImageUsage {
            id: row.image.id.to_string(),
            name: name(&row.image),
            bytes: row.bytes,
            own_bytes: row.own_bytes,
            in_use: row.in_use,
            pinned: row.image.pinned,
        });
        let containers = stored.containers.iter().map(|(id, usage)| {
            let known = self.daemon.containers.find(id.as_str()).ok();
            let metadata = known.as_ref().and_then(|one| one.config().metadata.clone());
            admin::ContainerUsage {
                id: id.to_string(),
                name: metadata.map(|m| m.name).unwrap_or_default(),
                running: known.is_some_and(|one| one.is_running()),
                bytes: usage.bytes,
            }
        });
        let records = std::fs::metadata(self.daemon.ports.places.records());
        Ok(Response::new(admin::DiskUsageResponse {
            images: images.collect(),
            containers: containers.collect(),
            blob_bytes: stored.blobs.bytes,
            layer_bytes: stored.layers.bytes,
            garbage_bytes: stored.garbage_bytes,
            record_bytes: records.map_or(0, |file| file.len()),
        }))
    }

    async fn prune(
        &self,
        request: Request<admin::PruneRequest>,
    ) -> Result<Response<admin::PruneResponse>, Status> {
        let request = request.into_inner();
        let pruned = self.images.prune(self.used_images(), request.all, request.dry_run).await;
        let pruned = pruned.map_err(|e| status(&e))?;
        let mut answer = admin::PruneResponse {
            images: pruned.images.iter().map(|image| name(image)).collect(),
            freed_bytes: pruned.freed_bytes,
            swept: Vec::new(),
            failures: pruned.failures,
        };
        if !request.dry_run {
            let report = self.daemon.reconciler.sweep(false).await;
            answer.swept = report.removed.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
            answer.failures.extend(report.failures.iter().map(|failure| {
                let what = failure.name.as_deref().map_or(String::new(), |name| format!(" {name}"));
                format!("{}{what}: {}", failure.kind, failure.error)
            }));
        }
        Ok(Response::new(answer))
    }
}

/// What people call an image; empty where it has no name left.
fn name(image: &ImageRecord) -> String {
    image.repo_tags.first().or(image.repo_digests.first()).cloned().unwrap_or_default()
}
