//! Programs for the guest: static ones, without what only debuggers read.

use std::fs;
use std::path::Path;

use super::ImageError;
use crate::architecture::Architecture;

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const INTERPRETER: u32 = 3;

/// The program's bytes, when it is one for `wanted`.
pub fn load(path: &Path, wanted: Architecture) -> Result<Vec<u8>, ImageError> {
    let bytes = fs::read(path).map_err(ImageError::file("read", path))?;
    let bytes = slim(bytes).map_err(|what| ImageError::Program { path: path.to_owned(), what })?;
    match Architecture::of_program(&bytes) {
        Some(is) if is != wanted => Err(ImageError::Foreign { path: path.to_owned(), is, wanted }),
        _ => Ok(bytes),
    }
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let mut wide = [0; 8];
    wide[..N].copy_from_slice(bytes.get(at..at.checked_add(N)?)?);
    Some(u64::from_le_bytes(wide))
}

/// What the kernel maps, and nothing behind it: the tables of sections and symbols go.
fn slim(mut bytes: Vec<u8>) -> Result<Vec<u8>, &'static str> {
    const TORN: &str = "the program is torn";
    if !bytes.starts_with(b"\x7fELF\x02\x01") {
        return Err("it is no program for a 64-bit little-endian machine");
    }
    let table = number::<8>(&bytes, 32).ok_or(TORN)?;
    let count = number::<2>(&bytes, 56).ok_or(TORN)?;
    let mut end = HEADER;
    for index in 0..count {
        let at = usize::try_from(table)
            .ok()
            .and_then(|table| table.checked_add(usize::try_from(index).ok()? * PROGRAM_HEADER));
        let at = at.ok_or(TORN)?;
        if number::<4>(&bytes, at).ok_or(TORN)? == u64::from(INTERPRETER) {
            return Err("it is not static: build it with -C target-feature=+crt-static");
        }
        let offset = number::<8>(&bytes, at + 8).ok_or(TORN)?;
        let size = number::<8>(&bytes, at + 32).ok_or(TORN)?;
        let last = offset.checked_add(size).and_then(|last| usize::try_from(last).ok()).ok_or(TORN)?;
        end = end.max(last).max(at + PROGRAM_HEADER);
    }
    if end > bytes.len() {
        return Err(TORN);
    }
    bytes.truncate(end);
    bytes[40..48].fill(0);
    bytes[60..64].fill(0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(kind: u32) -> Vec<u8> {
        let mut bytes = vec![0; 200];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32..40].copy_from_slice(&64_u64.to_le_bytes());
        bytes[56..58].copy_from_slice(&1_u16.to_le_bytes());
        bytes[64..68].copy_from_slice(&kind.to_le_bytes());
        bytes[64 + 32..64 + 40].copy_from_slice(&130_u64.to_le_bytes());
        bytes
    }

    #[test]
    fn only_what_is_mapped_stays() {
        assert_eq!(slim(program(1)).unwrap().len(), 130);
    }

    #[test]
    fn a_program_for_another_processor_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent");
        let mut bytes = program(1);
        bytes[18] = 183;
        fs::write(&path, bytes).unwrap();
        assert!(load(&path, Architecture::Aarch64).is_ok());
        let error = load(&path, Architecture::X86_64).unwrap_err().to_string();
        assert!(error.contains("arm64") && error.contains("x86_64"), "{error}");
    }

    #[test]
    fn dynamic_and_torn_programs_are_refused() {
        assert!(slim(program(INTERPRETER)).unwrap_err().contains("not static"));
        assert!(slim(program(1)[..90].to_vec()).is_err());
        let mut far = program(1);
        far[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(slim(far).is_err());
        assert!(slim(b"#!/bin/sh".to_vec()).is_err());
    }
}
