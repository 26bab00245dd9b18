//! What can go wrong with images.
//!
//! Invariant: the variant alone decides the gRPC code, see `rpc::image`.

use std::path::PathBuf;

use crate::content::ContentError;
use crate::registry::{ReferenceError, RegistryError};
use crate::snapshot::{SnapshotError, disk_full};
use crate::store::StoreError;

/// Why an image cannot be had, kept, found or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry does not give it.
    #[error("pull {reference}")]
    Registry {
        /// Which image.
        reference: String,
        /// What the registry said.
        source: RegistryError,
    },
    /// Blobs cannot be stored or read.
    #[error("image content")]
    Content(#[from] ContentError),
    /// A layer cannot be unpacked.
    #[error("layer {layer}")]
    Layer {
        /// Digest of the blob, or the diff id.
        layer: String,
        /// Why.
        source: SnapshotError,
    },
    /// Layers cannot be swept or put together.
    #[error("image layers")]
    Snapshot(#[from] SnapshotError),
    /// The record cannot be kept.
    #[error("image record")]
    Store(#[from] StoreError),
    /// Manifest, index or configuration are not as the specifications say.
    #[error("{what} {digest}: {problem}")]
    Malformed {
        /// Manifest, index or configuration.
        what: &'static str,
        /// Which one.
        digest: String,
        /// What is wrong.
        problem: String,
    },
    /// Nothing for this node's processor and system.
    #[error("{reference} has no image for {wanted}; it has {offered}")]
    Platform {
        /// Which image.
        reference: String,
        /// This node's platform.
        wanted: String,
        /// What there is.
        offered: String,
    },
    /// Data of another kind in an image registry.
    #[error("{reference} is no container image but an artifact of type {kind:?}")]
    Artifact {
        /// Which one.
        reference: String,
        /// Its media type.
        kind: String,
    },
    /// Images of before 2017.
    #[error("{0} is in Docker's schema 1 format, which is not supported; push it again with a newer tool")]
    Schema1(String),
    /// No such image here.
    #[error("image {0:?} is not on this node")]
    NotFound(String),
    /// The beginning of an id fits several images.
    #[error("{0:?} is the beginning of several image ids")]
    Ambiguous(String),
    /// Configured to stay.
    #[error("image {0} is pinned by the configuration and is not removed")]
    Pinned(String),
    /// An archive to import is not one.
    #[error("archive {}: {problem}", path.display())]
    Archive {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The kernel refused.
    #[error("{op} {}", path.display())]
    Io {
        /// What was attempted.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The daemon is shutting down, or a part of it panicked.
    #[error("{0} was interrupted; ask again")]
    Interrupted(&'static str),
}

impl ImageError {
    /// Whether the file system is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        disk_full(self)
    }

    pub(super) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { op, path, source }
    }
}
