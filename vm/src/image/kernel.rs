//! The kernel as it boots fastest: on x86_64 `vmlinux`, whose entry the monitor jumps to, taken out of a `bzImage`; on
//! arm64 `Image`, taken out of what compresses it.
//!
//! Of a `bzImage` only LZ4, as Debian compresses, is taken out here; with any other compression the file stays as it is
//! and unpacks itself in the guest. An arm64 kernel does not unpack itself without firmware. See the kernel's x86 boot
//! protocol, its arm64 booting document, `zboot-header.S`, and LZ4's block format.

use std::fs;
use std::path::Path;

use super::{ImageError, compressed};
use crate::architecture::Architecture;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A legacy block holds so much at most.
const LONGEST_BLOCK: usize = 8 << 20;
/// No kernel of ours is larger.
const LONGEST_KERNEL: usize = 512 << 20;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// A kernel that is compressed inside an EFI program: its mark, and where its payload's place is told.
const ZBOOT: (usize, &[u8]) = (4, b"zimg");
const ZBOOT_OFFSET: usize = 8;
const ZBOOT_LENGTH: usize = 12;

/// What is booted in place of the file at `path`, and on which machine.
pub fn unpack(path: &Path) -> Result<(Vec<u8>, Architecture), ImageError> {
    let bytes = fs::read(path).map_err(ImageError::file("read the kernel", path))?;
    let wrong = |what| ImageError::Kernel { path: path.to_owned(), what };
    let expanded = |bytes: Vec<u8>| compressed::expand(bytes).map_err(|_| wrong("is damaged"));
    let bytes = match zboot(&bytes) {
        Some(payload) => expanded(payload.ok_or_else(|| wrong("is torn"))?.to_vec())?,
        None => expanded(bytes)?,
    };
    let architecture =
        Architecture::of_kernel(&bytes).ok_or_else(|| wrong("is neither vmlinux nor bzImage nor Image"))?;
    let Some(payload) = payload(&bytes).filter(|payload| payload.starts_with(&LZ4_LEGACY)) else {
        return Ok((bytes, architecture));
    };
    let kernel = lz4(&payload[LZ4_LEGACY.len()..]).ok_or_else(|| wrong("is damaged"))?;
    match Architecture::of_program(&kernel) {
        Some(architecture) => Ok((kernel, architecture)),
        None => Err(wrong("does not hold a vmlinux")),
    }
}

/// The payload of a kernel of that form; nothing for others.
fn zboot(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let (at, mark) = ZBOOT;
    if !bytes.starts_with(b"MZ") || bytes.get(at..at + mark.len()) != Some(mark) {
        return None;
    }
    let start = word(bytes, ZBOOT_OFFSET);
    let end = start.zip(word(bytes, ZBOOT_LENGTH)).and_then(|(start, length)| start.checked_add(length));
    Some(start.zip(end).and_then(|(start, end)| bytes.get(start..end)))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    let number = u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?);
    usize::try_from(number).ok()
}

fn payload(bytes: &[u8]) -> Option<&[u8]> {
    if bytes.get(MAGIC..MAGIC + 4)? != b"HdrS" {
        return None;
    }
    let sectors = match bytes[SETUP_SECTORS] {
        0 => 4,
        sectors => usize::from(sectors),
    };
    let start = (sectors + 1) * 512 + word(bytes, PAYLOAD_OFFSET)?;
    bytes.get(start..start.checked_add(word(bytes, PAYLOAD_LENGTH)?)?)
}

/// Blocks, each behind its length. The payload's last word is the kernel's size and no block.
fn lz4(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut kernel = Vec::new();
    while bytes.len() > 4 {
        let length = word(bytes, 0)?;
        let block = bytes.get(4..4 + length)?;
        block_into(block, &mut kernel)?;
        if kernel.len() > LONGEST_KERNEL {
            return None;
        }
        bytes = &bytes[4 + length..];
    }
    Some(kernel)
}

/// One block: literals and copies of what came before in the same block.
fn block_into(block: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    let mut at = 0;
    let next = |at: &mut usize| {
        let byte = block.get(*at).copied();
        *at += 1;
        byte
    };
    let long = |at: &mut usize, short: u8| -> Option<usize> {
        let mut length = usize::from(short);
        if short == 15 {
            loop {
                let more = next(at)?;
                length += usize::from(more);
                if more != 255 {
                    break;
                }
            }
        }
        Some(length)
    };
    while at < block.len() {
        let token = next(&mut at)?;
        let literals = long(&mut at, token >> 4)?;
        out.extend_from_slice(block.get(at..at.checked_add(literals)?)?);
        at += literals;
        if at == block.len() {
            break;
        }
        let distance = usize::from(next(&mut at)?) | usize::from(next(&mut at)?) << 8;
        let length = long(&mut at, token & 15)? + 4;
        let from = out.len().checked_sub(distance).filter(|from| distance > 0 && *from >= begin)?;
        if out.len() - begin + length > LONGEST_BLOCK {
            return None;
        }
        for position in from..from + length {
            out.push(out[position]);
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_overlapping_copies_are_expanded() {
        // "ab", then 6 bytes from 2 back, then "c".
        let block = [0x22, b'a', b'b', 2, 0, 0x10, b'c'];
        let mut out = b"before".to_vec();
        block_into(&block, &mut out).unwrap();
        assert_eq!(out, b"beforeababababc");
    }

    #[test]
    fn blocks_that_reach_too_far_are_refused() {
        for block in
            [&[0x10, b'a', 2, 0][..], &[0x10, b'a', 0, 0], &[0xf0, 255, 255], &[0x50, b'a'], &[0x01, 1]]
        {
            assert!(block_into(block, &mut b"before".to_vec()).is_none(), "{block:?}");
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        for content in [&b"hello"[..], b"\x1f\x8b\x08torn", b"MZ\0\0zimg\xff\xff\xff\xff\xff\xff\xff\xff"] {
            fs::write(&path, content).unwrap();
            assert!(matches!(unpack(&path), Err(ImageError::Kernel { .. })), "{content:?}");
        }
    }

    #[test]
    fn an_image_is_taken_out_of_what_compresses_it() {
        use std::io::Write;
        let mut image = vec![7; 4096];
        image[0x38..0x3c].copy_from_slice(b"ARM\x64");
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&image).unwrap();
        let gzip = gzip.finish().unwrap();
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend_from_slice(&64_u32.to_le_bytes());
        zboot.extend_from_slice(&u32::try_from(gzip.len()).unwrap().to_le_bytes());
        zboot.resize(64, 0);
        zboot.extend_from_slice(&gzip);
        zboot.extend_from_slice(b"what follows");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("k");
        for content in [&image, &gzip, &zboot] {
            fs::write(&path, content).unwrap();
            assert!(unpack(&path).unwrap() == (image.clone(), Architecture::Aarch64));
        }
    }
}
