//! How much one layer may ask of the node.
//!
//! Invariant: everything that a hostile layer could make grow has a bound here.

use std::num::NonZeroU32;

/// Bounds of one layer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Unpacked bytes.
    pub max_bytes: u64,
    /// Entries of the archive.
    pub max_entries: u64,
    /// Bytes of one path or link target.
    pub max_path_bytes: usize,
    /// Components of one path.
    pub max_path_depth: usize,
    /// Bytes of one extended attribute's value.
    pub max_xattr_bytes: usize,
    /// Unpacked bytes for each compressed one, counted after the first [`Limits::RATIO_FREE_BYTES`].
    pub max_ratio: NonZeroU32,
}

impl Limits {
    /// Small layers of zeros are common and harmless; the ratio matters only beyond this size.
    pub const RATIO_FREE_BYTES: u64 = 64 << 20;

    /// The bounds with these sizes and defaults for the rest.
    #[must_use]
    pub fn new(max_bytes: u64, max_entries: u64) -> Self {
        Self {
            max_bytes,
            max_entries,
            max_path_bytes: 4095,
            max_path_depth: 512,
            max_xattr_bytes: 64 << 10,
            max_ratio: NonZeroU32::new(400).unwrap_or(NonZeroU32::MIN),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::new(64 << 30, 4_000_000)
    }
}
