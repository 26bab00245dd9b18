//! Makes discarded output discardable: libcontainer swaps the node's /dev/null for the container's own, but opens that
//! for reading only, and a program that checks its writes would fail.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

const NULL: (u64, u64) = (1, 3);

/// Opens stdout and stderr anew where they are a /dev/null that cannot be written.
pub fn make_writable() {
    let anew = || OpenOptions::new().read(true).write(true).open("/dev/null");
    // A container without /dev/null keeps what it has.
    if cannot_be_written(std::io::stdout())
        && let Ok(null) = anew()
    {
        let _ = nix::unistd::dup2_stdout(&null);
    }
    if cannot_be_written(std::io::stderr())
        && let Ok(null) = anew()
    {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

/// Opens every standard stream anew that is a /dev/null: what lay at its place when they were opened is gone.
pub fn open_anew() {
    let anew = || OpenOptions::new().read(true).write(true).open("/dev/null").ok().filter(is_null);
    let leads_there = |stream: io::Result<OwnedFd>| stream.is_ok_and(|fd| is_null(&File::from(fd)));
    if leads_there(std::io::stdin().as_fd().try_clone_to_owned())
        && let Some(null) = anew()
    {
        let _ = nix::unistd::dup2_stdin(&null);
    }
    if leads_there(std::io::stdout().as_fd().try_clone_to_owned())
        && let Some(null) = anew()
    {
        let _ = nix::unistd::dup2_stdout(&null);
    }
    if leads_there(std::io::stderr().as_fd().try_clone_to_owned())
        && let Some(null) = anew()
    {
        let _ = nix::unistd::dup2_stderr(&null);
    }
}

fn cannot_be_written(stream: impl AsFd) -> bool {
    let Ok(flags) = fcntl(stream.as_fd(), FcntlArg::F_GETFL) else { return false };
    let reads = OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE == OFlag::O_RDONLY;
    reads && stream.as_fd().try_clone_to_owned().is_ok_and(|fd| is_null(&File::from(fd)))
}

fn is_null(file: &File) -> bool {
    file.metadata().is_ok_and(|data| {
        let device = (nix::sys::stat::major(data.rdev()), nix::sys::stat::minor(data.rdev()));
        data.file_type().is_char_device() && device == NULL
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_null_that_is_read_only_is_opened_anew() {
        let null = |write: bool| OpenOptions::new().read(!write).write(write).open("/dev/null").unwrap();
        assert!(cannot_be_written(null(false)));
        assert!(!cannot_be_written(null(true)));
        assert!(!cannot_be_written(File::open("/dev/zero").unwrap()));
    }
}
