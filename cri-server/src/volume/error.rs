//! Why an image volume cannot be had.

use std::path::PathBuf;

use crate::image::ImageError;
use crate::snapshot::SnapshotError;

/// Why an image volume cannot be had. `place` is where the container wants it.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("image volume at {place:?}: {why}")]
    Invalid { place: String, why: &'static str },
    // The kubelet knows this word.
    #[error("ImageVolumeMountFailed: image {image:?} for {place:?} is not on this node: pull it first")]
    NoImage { place: String, image: String },
    #[error("ImageVolumeMountFailed: {place:?}")]
    Image { place: String, source: ImageError },
    #[error("ImageVolumeMountFailed: the image for {place:?} has no folder {sub_path:?}")]
    NoFolder { place: String, sub_path: String },
    #[error("ImageVolumeMountFailed: {place:?}")]
    Layers { place: String, source: SnapshotError },
    #[error("ImageVolumeMountFailed: {place:?}: {operation} {path:?}")]
    File { place: String, operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("ImageVolumeMountFailed: {place:?}: its owners cannot be mapped: {why}")]
    Mapping { place: String, why: String },
}
