//! Finds out how a stream is compressed by its first bytes, and decompresses it.
//!
//! Invariant: the media type is not trusted: registries are full of gzip layers labelled as plain tar and the reverse.

use std::io::{self, BufRead, Read};

/// How a stream is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// gzip, one or many members.
    Gzip,
    /// Zstandard, one or many frames.
    Zstd,
    /// Known but not used by any image format.
    Unsupported(&'static str),
}

/// Bytes needed by [`Compression::detect`].
pub const MAGIC_BYTES: usize = 6;

impl Compression {
    /// Decides by the first bytes; fewer than [`MAGIC_BYTES`] only when the stream is that short.
    #[must_use]
    pub fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Self::Unsupported("xz"),
            [b'B', b'Z', b'h', b'0'..=b'9', 0x31, 0x41] => Self::Unsupported("bzip2"),
            _ => Self::Plain,
        }
    }
}

/// A reader of the decompressed bytes of `input`.
///
/// # Errors
/// When the stream cannot be read or its compression is not supported.
pub fn decompress<'a>(mut input: impl BufRead + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut start = Vec::with_capacity(MAGIC_BYTES);
    (&mut input).take(MAGIC_BYTES as u64).read_to_end(&mut start)?;
    let kind = Compression::detect(&start);
    let whole = io::Cursor::new(start).chain(input);
    Ok(match kind {
        Compression::Plain => Box::new(whole),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(whole)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(whole)?),
        Compression::Unsupported(name) => {
            let text = format!("the layer is compressed with {name}; gzip, zstd and none are supported");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
    })
}
