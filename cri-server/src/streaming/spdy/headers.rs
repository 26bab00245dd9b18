//! Header blocks: name and value pairs, compressed by one zlib stream per direction (SPDY/3, section 2.6.10).
//!
//! Invariant: a block is bounded before, while and after it is inflated; every block that arrives is inflated, because
//! the ones after it refer to it.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{CHECKSUM, dictionary};

/// Inflated size of one block.
pub const LONGEST_BLOCK: usize = 32 * 1024;
pub const MOST_HEADERS: usize = 64;
/// Room given to the inflater at a time.
const STEP: usize = 4 * 1024;
/// The largest stored block of deflate.
const STORED: usize = 0xffff;

#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    #[error("the header block cannot be inflated")]
    Corrupt,
    #[error("the header block needs an unknown dictionary")]
    Dictionary,
    #[error("the header block is larger than {LONGEST_BLOCK} bytes")]
    TooLarge,
    #[error("the header block has {0} headers, more than {MOST_HEADERS}")]
    TooMany(u32),
    #[error("the header block ends within a header or after the last one")]
    Length,
    #[error("a header is not text")]
    Text,
    #[error("a header has no name or comes twice")]
    Name,
}

/// The headers of a stream. Names are compared without case: peers write them in either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The (first) value of a header.
    pub fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(own, _)| own.eq_ignore_ascii_case(name))?;
        value.split('\0').next()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Reads an inflated block.
    pub fn parse(block: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = block;
        let count = word(&mut rest)?;
        if count as usize > MOST_HEADERS {
            return Err(HeaderError::TooMany(count));
        }
        let mut headers = Self::default();
        for _ in 0..count {
            let (name, value) = (text(&mut rest)?, text(&mut rest)?);
            if name.is_empty() || headers.get(&name).is_some() {
                return Err(HeaderError::Name);
            }
            headers.0.push((name, value));
        }
        if rest.is_empty() { Ok(headers) } else { Err(HeaderError::Length) }
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn word(rest: &mut &[u8]) -> Result<u32, HeaderError> {
    let (head, tail) = rest.split_first_chunk::<4>().ok_or(HeaderError::Length)?;
    *rest = tail;
    Ok(u32::from_be_bytes(*head))
}

fn text(rest: &mut &[u8]) -> Result<String, HeaderError> {
    let length = word(rest)? as usize;
    let (head, tail) = rest.split_at_checked(length).ok_or(HeaderError::Length)?;
    *rest = tail;
    String::from_utf8(head.to_vec()).map_err(|_| HeaderError::Text)
}

/// Inflates the header blocks of one direction, in the order of their arrival.
#[derive(Debug)]
pub struct Inflater {
    zlib: Decompress,
}

impl Default for Inflater {
    fn default() -> Self {
        Self { zlib: Decompress::new(true) }
    }
}

impl Inflater {
    pub fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, HeaderError> {
        let mut output = Vec::new();
        let mut rest = block;
        loop {
            if output.len() > LONGEST_BLOCK {
                return Err(HeaderError::TooLarge);
            }
            output.reserve(STEP);
            let (before, length) = (self.zlib.total_in(), output.len());
            let result = self.zlib.decompress_vec(rest, &mut output, FlushDecompress::Sync);
            let consumed =
                usize::try_from(self.zlib.total_in() - before).map_err(|_| HeaderError::Corrupt)?;
            rest = rest.get(consumed..).ok_or(HeaderError::Corrupt)?;
            match result {
                Err(error) => self.prime(error.needs_dictionary())?,
                Ok(Status::StreamEnd) => return Err(HeaderError::Corrupt),
                Ok(Status::Ok | Status::BufError) => {
                    let room = output.capacity() > output.len();
                    if rest.is_empty() && room {
                        return if output.len() > LONGEST_BLOCK {
                            Err(HeaderError::TooLarge)
                        } else {
                            Ok(output)
                        };
                    }
                    if consumed == 0 && output.len() == length {
                        return Err(HeaderError::Corrupt);
                    }
                }
            }
        }
    }

    fn prime(&mut self, wanted: Option<u32>) -> Result<(), HeaderError> {
        match wanted {
            Some(CHECKSUM) => {
                self.zlib.set_dictionary(&dictionary()).map(|_| ()).map_err(|_| HeaderError::Dictionary)
            }
            Some(_) => Err(HeaderError::Dictionary),
            None => Err(HeaderError::Corrupt),
        }
    }
}

/// Writes header blocks as stored blocks of deflate: ours are a few bytes long, and a compressor would cost each
/// connection a quarter of a megabyte.
#[derive(Debug, Default)]
pub struct BlockWriter {
    begun: bool,
}

impl BlockWriter {
    pub fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut block = Vec::new();
        if !self.begun {
            self.begun = true;
            // Deflate with a 32 KiB window, a dictionary, and the check bits that make it a multiple of 31.
            block.extend_from_slice(&[0x78, 0xbb]);
            block.extend_from_slice(&CHECKSUM.to_be_bytes());
        }
        for piece in plain(headers).chunks(STORED) {
            stored(piece, &mut block);
        }
        // An empty stored block is what a sync flush ends with; Go's reader hands out nothing before it.
        stored(&[], &mut block);
        block
    }
}

fn stored(piece: &[u8], block: &mut Vec<u8>) {
    // chunks() keeps the piece within 16 bits.
    let length = piece.len() as u16;
    block.push(0);
    block.extend_from_slice(&length.to_le_bytes());
    block.extend_from_slice(&(!length).to_le_bytes());
    block.extend_from_slice(piece);
}

/// A block before compression.
pub fn plain(headers: &Headers) -> Vec<u8> {
    let mut block = (headers.0.len() as u32).to_be_bytes().to_vec();
    for (name, value) in &headers.0 {
        for text in [name, value] {
            block.extend_from_slice(&(text.len() as u32).to_be_bytes());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn sample() -> Headers {
        [("streamtype", "data"), ("port", "8080"), ("requestid", "0")].into_iter().collect()
    }

    #[test]
    fn the_dictionary_is_the_known_one() {
        let mut zlib = Compress::new(Compression::best(), true);
        assert_eq!(zlib.set_dictionary(&dictionary()).unwrap(), CHECKSUM);
        assert_eq!(dictionary().len(), 1423);
    }

    #[test]
    fn blocks_of_our_writer_can_be_inflated_in_a_row() {
        let (mut writer, mut inflater) = (BlockWriter::default(), Inflater::default());
        for _ in 0..3 {
            let block = writer.write(&sample());
            assert_eq!(Headers::parse(&inflater.inflate(&block).unwrap()).unwrap(), sample());
            let block = writer.write(&Headers::default());
            assert!(Headers::parse(&inflater.inflate(&block).unwrap()).unwrap().is_empty());
        }
    }

    #[test]
    fn lookups_ignore_case_and_take_the_first_value() {
        let headers: Headers = [("StreamType", "data\0error")].into_iter().collect();
        assert_eq!(headers.get("streamtype"), Some("data"));
        assert_eq!(headers.get("port"), None);
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let twice: Headers = [("a", "1"), ("A", "2")].into_iter().collect();
        let mut cut = plain(&sample());
        cut.pop();
        let mut long = plain(&sample());
        long.push(0);
        let table = [
            (vec![], HeaderError::Length),
            (vec![0, 0, 0, 1], HeaderError::Length),
            (vec![0xff; 4], HeaderError::TooMany(u32::MAX)),
            (vec![0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff], HeaderError::Length),
            (vec![0, 0, 0, 1, 0, 0, 0, 1, 0xff, 0, 0, 0, 0], HeaderError::Text),
            (vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], HeaderError::Name),
            (plain(&twice), HeaderError::Name),
            (cut, HeaderError::Length),
            (long, HeaderError::Length),
        ];
        for (block, error) in table {
            assert_eq!(Headers::parse(&block).unwrap_err(), error, "{block:?}");
        }
    }

    fn deflate(zlib: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut block = Vec::with_capacity(plain.len() + 1024);
        zlib.compress_vec(plain, &mut block, FlushCompress::Sync).unwrap();
        block
    }

    #[test]
    fn a_bomb_is_refused_before_it_is_large() {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(&dictionary()).unwrap();
        let bomb = deflate(&mut zlib, &vec![0; 16 << 20]);
        assert!(bomb.len() < 32 * 1024);
        assert_eq!(Inflater::default().inflate(&bomb).unwrap_err(), HeaderError::TooLarge);
    }

    #[test]
    fn foreign_dictionaries_and_garbage_are_refused() {
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.set_dictionary(b"something else").unwrap();
        let block = deflate(&mut zlib, &plain(&sample()));
        assert_eq!(Inflater::default().inflate(&block).unwrap_err(), HeaderError::Dictionary);
        assert_eq!(Inflater::default().inflate(&[0xff; 64]).unwrap_err(), HeaderError::Corrupt);
        let mut ended = Vec::with_capacity(1024);
        let mut zlib = Compress::new(Compression::best(), true);
        zlib.compress_vec(&plain(&sample()), &mut ended, FlushCompress::Finish).unwrap();
        assert_eq!(Inflater::default().inflate(&ended).unwrap_err(), HeaderError::Corrupt);
    }
}
