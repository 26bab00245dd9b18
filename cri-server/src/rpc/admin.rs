//! What the operator's commands ask beyond the CRI: pulls with progress, import, export.
//!
//! Invariant: paths are absolute, because the daemon's working directory is nobody's business; a slow
//! caller misses steps of progress but never the result.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::admin;
use futures::Stream;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use super::image::status;
use crate::image::{ImageRecord, ImageService, LayerProgress, LayerStage, Pull, PullResult};
use crate::registry::Credentials;

/// People see no more than this.
const INTERVAL: Duration = Duration::from_millis(100);

/// Serves the operator's calls about images.
#[derive(Clone)]
pub struct AdminRpc {
    images: Arc<ImageService>,
}

impl AdminRpc {
    /// Serves the images of `images`.
    #[must_use]
    pub fn new(images: Arc<ImageService>) -> Self {
        Self { images }
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
}
