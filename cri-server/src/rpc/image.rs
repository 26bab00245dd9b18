//! The CRI ImageService: decode, call, encode.
//!
//! Invariant: [`status`] is the only place that gives an image error its gRPC code. No error here is DEADLINE_EXCEEDED: the
//! caller's own deadline is its own, and the pull goes on behind it.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_proto::cri;
use tonic::{Request, Response, Status};

use super::chunk::{Chunks, in_chunks};
use crate::image::{ImageError, ImageRecord, ImageService, ImageUser};
use crate::registry::{AuthFields, Credentials, RegistryError, chain};
use crate::snapshot::Usage;

/// Serves the CRI's image calls.
#[derive(Clone)]
pub struct ImageRpc {
    images: Arc<ImageService>,
}

impl ImageRpc {
    /// Serves the images of `images`.
    #[must_use]
    pub fn new(images: Arc<ImageService>) -> Self {
        Self { images }
    }
}

/// The gRPC status of an image error, with all its causes in the text.
#[must_use]
pub fn status(error: &ImageError) -> Status {
    let text = chain(error);
    if crate::report::exhausted(error) {
        return Status::resource_exhausted(text);
    }
    match error {
        ImageError::Reference(_) | ImageError::Ambiguous(_) => Status::invalid_argument(text),
        ImageError::Registry { source, .. } => registry_status(source, text),
        ImageError::NotFound(_) | ImageError::Platform { .. } => Status::not_found(text),
        ImageError::Pinned(_) => Status::failed_precondition(text),
        ImageError::Artifact { .. } | ImageError::Schema1(_) | ImageError::Archive { .. } => {
            Status::invalid_argument(text)
        }
        ImageError::Interrupted(_) => Status::unavailable(text),
        ImageError::Content(_)
        | ImageError::Layer { .. }
        | ImageError::Snapshot(_)
        | ImageError::Store(_)
        | ImageError::Malformed { .. }
        | ImageError::Io { .. } => Status::internal(text),
    }
}

fn registry_status(error: &RegistryError, text: String) -> Status {
    match error.decisive() {
        RegistryError::NotFound { .. } | RegistryError::Missing { .. } => Status::not_found(text),
        RegistryError::Unauthorized { .. } => Status::unauthenticated(text),
        RegistryError::Forbidden { .. } => Status::permission_denied(text),
        RegistryError::RateLimited { .. }
        | RegistryError::Unavailable { .. }
        | RegistryError::Unreachable { .. }
        | RegistryError::Broken { .. }
        | RegistryError::Timeout { .. }
        | RegistryError::Tls { .. } => Status::unavailable(text),
        RegistryError::Credentials { .. } => Status::invalid_argument(text),
        RegistryError::NoCapability { .. } | RegistryError::Config { .. } => {
            Status::failed_precondition(text)
        }
        _ => Status::internal(text),
    }
}

fn encode(image: &ImageRecord) -> cri::Image {
    let (uid, username) = match image.user() {
        ImageUser::Unset => (None, String::new()),
        ImageUser::Uid(value) => (Some(cri::Int64Value { value }), String::new()),
        ImageUser::Name(name) => (None, name),
    };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid,
        username,
        pinned: image.pinned,
        ..Default::default()
    }
}

fn named(spec: Option<cri::ImageSpec>) -> Result<String, Status> {
    let name = spec.map(|spec| spec.image).unwrap_or_default();
    if name.is_empty() { Err(Status::invalid_argument("the request names no image")) } else { Ok(name) }
}

fn filesystem(path: &std::path::Path, usage: Usage, timestamp: i64) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp,
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: path.display().to_string() }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    }
}

fn credentials(auth: Option<&cri::AuthConfig>) -> Result<Credentials, Status> {
    let Some(auth) = auth else { return Ok(Credentials::anonymous()) };
    let fields = AuthFields {
        username: &auth.username,
        password: &auth.password,
        auth: &auth.auth,
        server_address: &auth.server_address,
        identity_token: &auth.identity_token,
        registry_token: &auth.registry_token,
    };
    Credentials::from_fields(fields).map_err(|e| Status::invalid_argument(chain(&e)))
}

#[tonic::async_trait]
impl cri::image_service_server::ImageService for ImageRpc {
    type StreamImagesStream = Chunks<cri::StreamImagesResponse>;

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        let images = self.selected(request.into_inner().filter);
        let images = images.iter().map(|image| encode(image)).collect();
        Ok(Response::new(cri::ListImagesResponse { images }))
    }

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.selected(request.into_inner().filter).into_iter().map(|image| encode(&image));
        Ok(Response::new(in_chunks(images, |images| cri::StreamImagesResponse { images })))
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let image = match self.images.find(&name) {
            Ok(image) => image,
            Err(ImageError::NotFound(_)) => return Ok(Response::new(cri::ImageStatusResponse::default())),
            Err(error) => return Err(status(&error)),
        };
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("info".to_owned(), self.verbose(&image).await?);
        }
        Ok(Response::new(cri::ImageStatusResponse { image: Some(encode(&image)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        let request = request.into_inner();
        let name = named(request.image)?;
        let credentials = credentials(request.auth.as_ref())?;
        let image = self.images.pull(&name, credentials).await.map_err(|e| status(&e))?;
        Ok(Response::new(cri::PullImageResponse { image_ref: image.id.to_string() }))
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?;
        self.images.remove(&name).await.map_err(|e| status(&e))?;
        Ok(Response::new(cri::RemoveImageResponse::default()))
    }

    async fn image_fs_info(
        &self,
        _: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        let usage = self.images.disk_usage().await.map_err(|e| status(&e))?;
        let now = crate::image::now_nanos();
        let root = self.images.root();
        Ok(Response::new(cri::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(root, usage.images, now)],
            container_filesystems: vec![filesystem(root, usage.containers, now)],
        }))
    }
}

impl ImageRpc {
    /// The images that a list with this filter holds.
    fn selected(&self, filter: Option<cri::ImageFilter>) -> Vec<Arc<ImageRecord>> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image);
        match wanted.filter(|name| !name.is_empty()) {
            None => self.images.list(),
            // A filter that fits nothing is no error.
            Some(name) => self.images.find(&name).into_iter().collect(),
        }
    }

    /// What crictl shows beyond the CRI's fields: the publisher's configuration and how the image is stored.
    async fn verbose(&self, image: &Arc<ImageRecord>) -> Result<String, Status> {
        let (images, record) = (self.images.clone(), image.clone());
        let spec = tokio::task::spawn_blocking(move || images.oci_config(&record))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| status(&e))?;
        let text = serde_json::json!({
            "imageSpec": spec,
            "manifest": image.manifest,
            "layers": image.layers,
            "artifact": image.artifact,
            "pulledAt": image.pulled_at,
        });
        Ok(text.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::ContentError;
    use crate::snapshot::SnapshotError;

    #[test]
    fn every_failure_has_the_code_that_the_kubelet_expects() {
        let registry = |source| ImageError::Registry { reference: "r".to_owned(), source };
        let host = || "h".to_owned();
        let detail = crate::registry::Detail::default;
        let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
        let layer = |source| ImageError::Layer { layer: "l".to_owned(), source };
        let table = [
            (ImageError::NotFound(host()), tonic::Code::NotFound),
            (ImageError::Pinned(host()), tonic::Code::FailedPrecondition),
            (ImageError::Schema1(host()), tonic::Code::InvalidArgument),
            (registry(RegistryError::Missing { host: host(), detail: detail() }), tonic::Code::NotFound),
            (
                registry(RegistryError::Unauthorized { host: host(), detail: detail() }),
                tonic::Code::Unauthenticated,
            ),
            (
                registry(RegistryError::Forbidden { host: host(), detail: detail() }),
                tonic::Code::PermissionDenied,
            ),
            (
                registry(RegistryError::Unreachable { host: host(), source: "x".into() }),
                tonic::Code::Unavailable,
            ),
            (
                layer(SnapshotError::EntryIo { op: "write", entry: host(), source: full() }),
                tonic::Code::ResourceExhausted,
            ),
            (
                ContentError::Io { op: "write", path: "/p".into(), source: full() }.into(),
                tonic::Code::ResourceExhausted,
            ),
            (layer(SnapshotError::Archive(host())), tonic::Code::Internal),
        ];
        for (error, expected) in table {
            assert_eq!(status(&error).code(), expected, "{error:?}");
        }
    }
}
