//! What the operator's commands ask beyond the CRI: pulls with progress, import, export.
//!
//! Invariant: paths are absolute, because the daemon's working directory is nobody's business; the queue to the caller is bounded,
//! and a slow caller misses steps of progress but never the result.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::admin;
use futures::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::image::status;
use crate::image::{ImageRecord, ImageService, LayerProgress, LayerStage, Pull};
use crate::registry::Credentials;

/// People see no more than this.
const INTERVAL: Duration = Duration::from_millis(100);
const QUEUE: usize = 64;

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

/// Sends what changed until the pull is over, then its result. Ends early when the caller has gone.
async fn report(pull: Pull, events: mpsc::Sender<Event>) {
    let mut progress = pull.progress.clone();
    let mut finished = std::pin::pin!(pull.finish());
    let mut shown: Vec<LayerProgress> = Vec::new();
    let result = loop {
        let result = tokio::select! {
            result = &mut finished => Some(result),
            () = tokio::time::sleep(INTERVAL) => None,
        };
        let now = progress.borrow_and_update().clone();
        for (n, layer) in now.iter().enumerate() {
            if shown.get(n) != Some(layer) && events.send(Ok(layer_event(layer))).await.is_err() {
                return;
            }
        }
        shown = now;
        if let Some(result) = result {
            break result;
        }
        if events.is_closed() {
            return;
        }
    };
    let last = result.map(|image| done_event(&image)).map_err(|error| status(&error));
    // The caller may have hung up; the image is there all the same.
    let _ = events.send(last).await;
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
        let (sender, receiver) = mpsc::channel(QUEUE);
        // It ends with the pull, which the service owns, or when the caller hangs up.
        tokio::spawn(report(pull, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
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
