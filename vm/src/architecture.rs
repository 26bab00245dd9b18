//! The processors that guests are made for. A guest's kernel says in its own header for which; the machine, the monitor
//! and the guest's programs have to be for the same.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    X86_64,
    Aarch64,
}

/// Enough of a kernel to tell.
const HEAD: u64 = 1024;
/// Where ELF names the machine, and by which numbers.
const ELF_MACHINE: usize = 18;
const ELF_X86_64: u16 = 62;
const ELF_AARCH64: u16 = 183;
/// See the kernel's x86 boot protocol.
const BZIMAGE: (usize, &[u8]) = (0x202, b"HdrS");
/// See the kernel's arm64 booting document.
const IMAGE: (usize, &[u8]) = (0x38, b"ARM\x64");

impl Architecture {
    /// The node's own. On processors that no guest was ever booted on, it is the first there is.
    pub const NATIVE: Architecture =
        if cfg!(target_arch = "aarch64") { Architecture::Aarch64 } else { Architecture::X86_64 };

    /// The guest's name for its first serial line.
    #[must_use]
    pub fn console(self) -> &'static str {
        match self {
            Architecture::X86_64 => "ttyS0",
            Architecture::Aarch64 => "ttyAMA0",
        }
    }

    /// Of a program or a `vmlinux`.
    #[must_use]
    pub fn of_program(bytes: &[u8]) -> Option<Architecture> {
        if !bytes.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let machine = bytes.get(ELF_MACHINE..ELF_MACHINE + 2)?.try_into().ok()?;
        match u16::from_le_bytes(machine) {
            ELF_X86_64 => Some(Architecture::X86_64),
            ELF_AARCH64 => Some(Architecture::Aarch64),
            _ => None,
        }
    }

    /// Of a kernel in a form that monitors boot.
    #[must_use]
    pub fn of_kernel(bytes: &[u8]) -> Option<Architecture> {
        let has = |(at, magic): (usize, &[u8])| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
        if has(IMAGE) {
            Some(Architecture::Aarch64)
        } else if has(BZIMAGE) {
            Some(Architecture::X86_64)
        } else {
            Self::of_program(bytes)
        }
    }

    /// Of the kernel at `path`; the node's own where it does not tell.
    #[must_use]
    pub fn of_kernel_file(path: &Path) -> Architecture {
        let mut head = Vec::new();
        let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut head));
        read.ok().and_then(|_| Self::of_kernel(&head)).unwrap_or(Self::NATIVE)
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Architecture::X86_64 => "x86_64",
            Architecture::Aarch64 => "arm64",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; 1024];
        bytes[at..at + magic.len()].copy_from_slice(magic);
        bytes
    }

    #[test]
    fn kernels_say_what_they_are_for() {
        assert_eq!(Architecture::of_kernel(&head(56, b"ARMd")), Some(Architecture::Aarch64));
        assert_eq!(Architecture::of_kernel(&head(514, b"HdrS")), Some(Architecture::X86_64));
        assert_eq!(Architecture::of_kernel(b"ARMd"), None);
        assert_eq!(Architecture::of_kernel(&[]), None);
    }

    #[test]
    fn programs_say_what_they_are_for() {
        let program = |machine: u8| {
            let mut bytes = head(0, b"\x7fELF\x02\x01");
            bytes[18] = machine;
            bytes
        };
        assert_eq!(Architecture::of_program(&program(62)), Some(Architecture::X86_64));
        assert_eq!(Architecture::of_kernel(&program(183)), Some(Architecture::Aarch64));
        assert_eq!(Architecture::of_program(&program(243)), None);
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(Architecture::of_program(&own), Some(Architecture::NATIVE));
    }

    #[test]
    fn a_kernel_that_does_not_tell_is_taken_for_the_nodes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        assert_eq!(Architecture::of_kernel_file(&path), Architecture::NATIVE);
        std::fs::write(&path, head(56, b"ARMd")).unwrap();
        assert_eq!(Architecture::of_kernel_file(&path), Architecture::Aarch64);
    }
}
