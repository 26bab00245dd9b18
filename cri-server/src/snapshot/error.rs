//! What can go wrong with layers and the overlay mounts made of them.
//!
//! Invariant: every variant says what was attempted and where; only [`SnapshotError::is_disk_full`] interprets.

use std::io;

/// Why a layer could not be unpacked, stored or mounted.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The kernel refused something about a path of the node.
    #[error("{op} {path}")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// Where.
        path: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused something about an entry of a layer.
    #[error("{op} {entry:?} of the layer")]
    EntryIo {
        /// What was attempted.
        op: &'static str,
        /// The entry's path inside the layer.
        entry: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An entry that no honest image holds, or that is not supported.
    #[error("layer entry {entry:?}: {reason}")]
    Entry {
        /// The entry's path inside the layer.
        entry: String,
        /// Why it is refused.
        reason: String,
    },
    /// The archive itself is damaged.
    #[error("layer archive: {0}")]
    Archive(String),
    /// The layer's stream could not be read or decompressed.
    #[error("reading the layer's stream")]
    Stream(#[source] io::Error),
    /// A bound of the configuration.
    #[error("layer exceeds the limit of {limit} {what}")]
    Limit {
        /// What is counted.
        what: &'static str,
        /// How many are allowed.
        limit: u64,
    },
    /// The unpacked content is not what the image's configuration promises.
    #[error("layer content has diff id {actual}, the image's configuration says {expected}")]
    DiffId {
        /// From the image's configuration.
        expected: String,
        /// Of the bytes.
        actual: String,
    },
    /// The source of a layer's bytes failed.
    #[error("fetching the layer")]
    Source(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A thread of the pipeline panicked.
    #[error("the thread that should {0} the layer panicked")]
    Panicked(&'static str),
    /// A layer that is not unpacked here.
    #[error("layer {0} is not unpacked on this node")]
    MissingLayer(String),
    /// More layers than overlay mount options can name.
    #[error("{count} layers need {bytes} bytes of mount options, the kernel takes {limit}")]
    TooManyLayers {
        /// Layers of the image.
        count: usize,
        /// Bytes of options.
        bytes: usize,
        /// What fits.
        limit: usize,
    },
    /// A file asked for by path is not a regular file of acceptable size.
    #[error("{path:?} in the image: {reason}")]
    Unreadable {
        /// Path inside the root.
        path: String,
        /// Why it cannot be read.
        reason: String,
    },
}

impl SnapshotError {
    /// For `map_err` on a path of the node.
    pub(crate) fn io(op: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { op, path, source }
    }

    /// For `map_err` on a system call about a layer's entry.
    pub(crate) fn entry_io(op: &'static str, entry: &[u8]) -> impl FnOnce(rustix::io::Errno) -> Self {
        let entry = lossy(entry);
        move |errno| Self::EntryIo { op, entry, source: errno.into() }
    }

    pub(crate) fn entry(entry: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { entry: lossy(entry), reason: reason.into() }
    }

    /// Whether what was given is at fault, and not the node.
    #[must_use]
    pub fn is_about_the_input(&self) -> bool {
        match self {
            Self::Entry { .. } | Self::Archive(_) | Self::Stream(_) | Self::Limit { .. } => true,
            Self::Io { .. }
            | Self::EntryIo { .. }
            | Self::DiffId { .. }
            | Self::Source(_)
            | Self::Panicked(_)
            | Self::MissingLayer(_)
            | Self::TooManyLayers { .. }
            | Self::Unreadable { .. } => false,
        }
    }

    /// Whether the file system or its quota is full.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        disk_full(self)
    }
}

/// Whether an error, or what caused it, is a full file system.
#[must_use]
pub fn disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(io) = error.downcast_ref::<io::Error>()
            && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        {
            return true;
        }
        next = error.source();
    }
    false
}

/// Names from archives are bytes; people read text of bounded length.
pub(crate) fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(&bytes[..bytes.len().min(256)]).into_owned()
}
