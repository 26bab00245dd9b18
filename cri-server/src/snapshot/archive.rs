//! Reads a layer's tar stream entry by entry, in bounded memory.
//!
//! Header blocks are decoded by the crate `tar`; the walk from block to block is ours, because the crate keeps long
//! names and PAX records of any size in memory, and splits PAX records at newlines, which binary values may hold.
//! Invariant: nothing read here is trusted; paths are bytes as they come, only their length is bounded.

use std::io::{self, BufRead, Read};

use tar::{EntryType, Header};

use super::error::SnapshotError;
use super::limits::Limits;

const BLOCK: usize = 512;
/// One header's worth of PAX records: names, a few numbers, some extended attributes.
const MAX_PAX_BYTES: u64 = 1 << 20;
/// Headers that describe headers; a chain of them without an entry is an attack.
const MAX_META_HEADERS: usize = 64;
const XATTR_PREFIX: &str = "SCHILY.xattr.";

/// What an entry creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to [`Entry::link`].
    Symlink,
    /// Another name of [`Entry::link`].
    Hardlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
}

/// One entry of a layer, as the archive tells it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Path as written: may be absolute, hold `..`, or name nothing.
    pub path: Vec<u8>,
    /// Target of a symbolic or hard link.
    pub link: Vec<u8>,
    /// What to create.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Bytes of content that follow.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Extended attributes, as named by the archive.
    pub xattrs: Vec<(String, Vec<u8>)>,
}

/// Records that override fields of the next header.
#[derive(Default)]
struct Overrides {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(String, Vec<u8>)>,
    sparse: bool,
}

/// A tar stream; call [`Archive::next_entry`], then [`Archive::content`] until it is empty, and again.
pub struct Archive<R> {
    input: R,
    content_left: u64,
    padding: u64,
    max_path: usize,
    max_xattr: usize,
}

impl<R: BufRead> Archive<R> {
    /// Reads entries from `input`.
    pub fn new(input: R, limits: &Limits) -> Self {
        Self {
            input,
            content_left: 0,
            padding: 0,
            max_path: limits.max_path_bytes,
            max_xattr: limits.max_xattr_bytes,
        }
    }

    /// The next entry, after skipping what is left of the last one; `None` at the end of the archive.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, SnapshotError> {
        let mut over = Overrides::default();
        for _ in 0..MAX_META_HEADERS {
            self.skip_content()?;
            let Some(block) = self.read_block()? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            verify_checksum(header)?;
            let size = header.entry_size().map_err(|e| damaged(&e))?;
            match header.entry_type() {
                EntryType::XGlobalHeader => self.set_content(size),
                EntryType::XHeader => {
                    let records = self.read_meta(size, MAX_PAX_BYTES, "PAX records")?;
                    over.read_pax(&records, self.max_xattr)?;
                }
                EntryType::GNULongName => over.path = Some(self.read_name(size)?),
                EntryType::GNULongLink => over.link = Some(self.read_name(size)?),
                // A volume label, which GNU tar writes first; it names nothing.
                other if other.as_byte() == b'V' => self.set_content(size),
                _ => return self.entry(header, size, over).map(Some),
            }
        }
        Err(SnapshotError::Limit {
            what: "extension headers before an entry",
            limit: MAX_META_HEADERS as u64,
        })
    }

    /// The next piece of the current entry's content; empty when there is no more. Follow it with [`Self::consume`].
    pub fn content(&mut self) -> Result<&[u8], SnapshotError> {
        if self.content_left == 0 {
            return Ok(&[]);
        }
        let piece = self.input.fill_buf().map_err(SnapshotError::Stream)?;
        if piece.is_empty() {
            return Err(truncated());
        }
        let length = piece.len().min(usize::try_from(self.content_left).unwrap_or(usize::MAX));
        Ok(&piece[..length])
    }

    /// Marks bytes of [`Self::content`] as used.
    pub fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.content_left -= length as u64;
    }

    /// Reads to the end of the stream, whatever follows the archive.
    pub fn drain(mut self) -> Result<(), SnapshotError> {
        loop {
            let length = self.input.fill_buf().map_err(SnapshotError::Stream)?.len();
            if length == 0 {
                return Ok(());
            }
            self.input.consume(length);
        }
    }

    fn set_content(&mut self, size: u64) {
        self.content_left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    fn skip_content(&mut self) -> Result<(), SnapshotError> {
        let left = self.content_left.checked_add(self.padding).ok_or_else(|| damaged("size out of range"))?;
        self.content_left = 0;
        self.padding = 0;
        let skipped =
            io::copy(&mut (&mut self.input).take(left), &mut io::sink()).map_err(SnapshotError::Stream)?;
        if skipped < left { Err(truncated()) } else { Ok(()) }
    }

    /// One block, or `None` at the end: a block of zeros, or the end of the stream between two entries.
    fn read_block(&mut self) -> Result<Option<[u8; BLOCK]>, SnapshotError> {
        let mut block = [0u8; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]).map_err(SnapshotError::Stream)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(truncated()),
                read => filled += read,
            }
        }
        Ok((block != [0u8; BLOCK]).then_some(block))
    }

    fn read_meta(&mut self, size: u64, limit: u64, what: &'static str) -> Result<Vec<u8>, SnapshotError> {
        if size > limit {
            return Err(SnapshotError::Limit { what, limit });
        }
        self.set_content(size);
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        (&mut self.input).take(size).read_to_end(&mut bytes).map_err(SnapshotError::Stream)?;
        if (bytes.len() as u64) < size {
            return Err(truncated());
        }
        self.content_left = 0;
        Ok(bytes)
    }

    fn read_name(&mut self, size: u64) -> Result<Vec<u8>, SnapshotError> {
        let mut name = self.read_meta(size, self.max_path as u64 + 1, "bytes in a path")?;
        if let Some(end) = name.iter().position(|b| *b == 0) {
            name.truncate(end);
        }
        Ok(name)
    }

    fn entry(&mut self, header: &Header, size: u64, over: Overrides) -> Result<Entry, SnapshotError> {
        let path = over.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = over.link.or_else(|| header.link_name_bytes().map(|l| l.into_owned())).unwrap_or_default();
        for name in [&path, &link] {
            if name.len() > self.max_path {
                return Err(SnapshotError::Limit { what: "bytes in a path", limit: self.max_path as u64 });
            }
            if name.contains(&0) {
                return Err(SnapshotError::entry(&path, "a name holds a zero byte"));
            }
        }
        if over.sparse {
            return Err(SnapshotError::entry(&path, "sparse files are not supported"));
        }
        let kind = kind_of(header.entry_type(), &path)?;
        let size = if kind == Kind::File { over.size.unwrap_or(size) } else { 0 };
        self.set_content(size);
        // Writers that leave a field out fill it with nothing; every other reader takes that for zero.
        let field = |raw: &[u8], value: io::Result<u64>| match value {
            Err(_) if raw.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            value => value.map_err(|e| SnapshotError::entry(&path, e.to_string())),
        };
        let old = header.as_old();
        let id =
            |value: u64| u32::try_from(value).map_err(|_| SnapshotError::entry(&path, "owner out of range"));
        let uid = id(over.uid.map_or_else(|| field(&old.uid, header.uid()), Ok)?)?;
        let gid = id(over.gid.map_or_else(|| field(&old.gid, header.gid()), Ok)?)?;
        let mode = header.mode().map_err(|e| SnapshotError::entry(&path, e.to_string()))? & 0o7777;
        let mtime = match over.mtime {
            Some(mtime) => mtime,
            None => (i64::try_from(field(&old.mtime, header.mtime())?).unwrap_or(0), 0),
        };
        let device = match kind {
            Kind::Char | Kind::Block => {
                let number = |value: io::Result<Option<u32>>| {
                    value.map(|n| n.unwrap_or(0)).map_err(|e| SnapshotError::entry(&path, e.to_string()))
                };
                (number(header.device_major())?, number(header.device_minor())?)
            }
            _ => (0, 0),
        };
        Ok(Entry { path, link, kind, mode, uid, gid, mtime, size, device, xattrs: over.xattrs })
    }
}

impl Overrides {
    fn read_pax(&mut self, records: &[u8], max_xattr: usize) -> Result<(), SnapshotError> {
        for record in (PaxRecords { rest: records }) {
            let (key, value) = record?;
            let number = || std::str::from_utf8(value).ok().and_then(|t| t.parse::<u64>().ok());
            let number = || number().ok_or_else(|| damaged(&format!("PAX record {key}")));
            match key {
                "path" => self.path = Some(value.to_vec()),
                "linkpath" => self.link = Some(value.to_vec()),
                "size" => self.size = Some(number()?),
                "uid" => self.uid = Some(number()?),
                "gid" => self.gid = Some(number()?),
                "mtime" => self.mtime = parse_time(value),
                _ if key.starts_with("GNU.sparse.") => self.sparse = true,
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                        if value.len() > max_xattr {
                            let limit = max_xattr as u64;
                            return Err(SnapshotError::Limit {
                                what: "bytes in an extended attribute",
                                limit,
                            });
                        }
                        self.xattrs.push((name.to_owned(), value.to_vec()));
                    }
                }
            }
        }
        Ok(())
    }
}

/// The records `length key=value\n` of a PAX header; values may hold any byte.
struct PaxRecords<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for PaxRecords<'a> {
    type Item = Result<(&'a str, &'a [u8]), SnapshotError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Some writers fill the last block's worth with zeros.
        if self.rest.is_empty() || self.rest[0] == 0 {
            return None;
        }
        let record = split_record(self.rest);
        self.rest = record.map_or(&[], |(_, _, rest)| rest);
        Some(record.map(|(key, value, _)| (key, value)).ok_or_else(|| damaged("malformed PAX record")))
    }
}

fn split_record(data: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let length: usize = std::str::from_utf8(&data[..space]).ok()?.parse().ok()?;
    let record = data.get(space + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((std::str::from_utf8(&record[..equals]).ok()?, &record[equals + 1..], &data[length..]))
}

/// Decimal seconds with a fraction, as PAX writes times.
fn parse_time(value: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    // The nanoseconds of the kernel count forward, also before 1970.
    if whole.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

fn kind_of(kind: EntryType, path: &[u8]) -> Result<Kind, SnapshotError> {
    Ok(match kind {
        // Archives older than 1988 mark directories only by the slash.
        EntryType::Regular if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink,
        EntryType::Link => Kind::Hardlink,
        EntryType::Char => Kind::Char,
        EntryType::Block => Kind::Block,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => return Err(SnapshotError::entry(path, "sparse files are not supported")),
        other => {
            let reason = format!("entry type {:#04x} is not supported", other.as_byte());
            return Err(SnapshotError::entry(path, reason));
        }
    })
}

fn verify_checksum(header: &Header) -> Result<(), SnapshotError> {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    match header.cksum() {
        Ok(stored) if stored == sum => Ok(()),
        _ => Err(damaged("a header's checksum is wrong")),
    }
}

fn truncated() -> SnapshotError {
    damaged("ends in the middle of an entry")
}

fn damaged(why: &(impl ToString + ?Sized)) -> SnapshotError {
    SnapshotError::Archive(why.to_string())
}
