//! What distributions compress of a kernel: the forms are told by their first bytes.

use std::io::{self, Read};

/// Larger than any module or kernel of ours.
const LONGEST: u64 = 512 << 20;

const GZIP: &[u8] = b"\x1f\x8b\x08";
const XZ: &[u8] = b"\xfd7zXZ\0";
const ZSTD: &[u8] = b"\x28\xb5\x2f\xfd";

/// The content itself, whether it was compressed or not.
///
/// # Errors
/// When it is damaged, or no end of it is in sight.
pub fn expand(bytes: Vec<u8>) -> io::Result<Vec<u8>> {
    if bytes.starts_with(GZIP) {
        // Whatever follows the first member is no part of it.
        bounded(flate2::read::GzDecoder::new(bytes.as_slice()))
    } else if bytes.starts_with(XZ) {
        xz(&bytes)
    } else if bytes.starts_with(ZSTD) {
        zstd(&bytes)
    } else {
        Ok(bytes)
    }
}

fn bounded(reader: impl Read) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    reader.take(LONGEST + 1).read_to_end(&mut content)?;
    within_bounds(content)
}

/// The decoder counts the checksum, and leaves it to its caller to compare.
fn zstd(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(io::Error::other)?;
    let content = bounded(&mut decoder)?;
    let frame = decoder.into_frame_decoder();
    match frame.get_checksum_from_data() {
        Some(told) if frame.get_calculated_checksum() != Some(told) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its content does not have the checksum that it tells",
        )),
        Some(_) | None => Ok(content),
    }
}

fn xz(mut bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    lzma_rs::xz_decompress(&mut bytes, &mut content).map_err(|error| match error {
        lzma_rs::error::Error::IoError(error) => error,
        lzma_rs::error::Error::HeaderTooShort(error) => error,
        lzma_rs::error::Error::LzmaError(words) | lzma_rs::error::Error::XzError(words) => {
            io::Error::new(io::ErrorKind::InvalidData, words)
        }
    })?;
    within_bounds(content)
}

fn within_bounds(content: Vec<u8>) -> io::Result<Vec<u8>> {
    if content.len() as u64 > LONGEST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {LONGEST} bytes")));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn forms(content: &[u8]) -> [Vec<u8>; 4] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(content).unwrap();
        let mut xz = Vec::new();
        lzma_rs::xz_compress(&mut &content[..], &mut xz).unwrap();
        let zstd = ruzstd::encoding::compress_to_vec(content, ruzstd::encoding::CompressionLevel::Fastest);
        [content.to_vec(), gzip.finish().unwrap(), xz, zstd]
    }

    #[test]
    fn every_form_gives_the_same() {
        let content: Vec<u8> = (0..200_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        for form in forms(&content) {
            assert!(expand(form).unwrap() == content);
        }
    }

    #[test]
    fn torn_and_damaged_files_are_refused() {
        let content: Vec<u8> = (0..50_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
        let [_, gzip, xz, zstd] = forms(&content);
        for form in [&gzip, &xz, &zstd] {
            assert!(expand(form[..form.len() / 2].to_vec()).is_err());
        }
        // The encoder of these tests gives xz no checksum; modules of distributions have one.
        for form in [gzip, zstd] {
            let mut damaged = form;
            let middle = damaged.len() / 2;
            damaged[middle] ^= 0x55;
            assert!(expand(damaged).is_err());
        }
    }
}
