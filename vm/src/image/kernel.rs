//! The kernel as it boots fastest: `vmlinux`, whose entry the monitor jumps to, taken out of a `bzImage`.
//!
//! Only LZ4, as Debian compresses, is taken out here; with any other compression the file stays as it is and unpacks
//! itself in the guest. See the kernel's x86 boot protocol and LZ4's block format.

use std::fs;
use std::path::Path;

use super::ImageError;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// A legacy block holds so much at most.
const LONGEST_BLOCK: usize = 8 << 20;
/// No kernel of ours is larger.
const LONGEST_KERNEL: usize = 512 << 20;
const SETUP_SECTORS: usize = 0x1f1;
const MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

/// What is booted in place of the file at `path`.
pub fn unpack(path: &Path) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::file("read the kernel", path))?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    let wrong = |what| ImageError::Kernel { path: path.to_owned(), what };
    let payload = payload(&bytes).ok_or_else(|| wrong("is neither vmlinux nor bzImage"))?;
    if !payload.starts_with(&LZ4_LEGACY) {
        return Ok(bytes);
    }
    let kernel = lz4(&payload[LZ4_LEGACY.len()..]).ok_or_else(|| wrong("is damaged"))?;
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err(wrong("does not hold a vmlinux")) }
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
        fs::write(&path, b"hello").unwrap();
        assert!(matches!(unpack(&path), Err(ImageError::Kernel { .. })));
    }
}
