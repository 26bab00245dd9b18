//! Errors as one line for a person: each error's text and those of its sources; and whether the node has run out of something,
//! or its file system is damaged.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use rustix::io::Errno;

/// The kernel's words for: there is no more of it now. EAGAIN is what making a process or a thread is refused with.
const EXHAUSTED: [Errno; 6] =
    [Errno::NOSPC, Errno::DQUOT, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN];

/// The kernel's words for: what lies on the disk cannot be read, or is not what a file system holds.
const DAMAGED: [Errno; 3] = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];

/// Whether an error, or what caused it, is that room, inodes, descriptors, processes or memory have run out.
#[must_use]
pub fn exhausted(error: &(dyn Error + 'static)) -> bool {
    any(error, is_exhausted)
}

/// Whether an error, or what caused it, is that the file system or its disk is damaged.
#[must_use]
pub fn damaged(error: &(dyn Error + 'static)) -> bool {
    any(error, |error| DAMAGED.iter().any(|errno| Some(errno.raw_os_error()) == error.raw_os_error()))
}

fn any(error: &(dyn Error + 'static), wanted: impl Fn(&io::Error) -> bool) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(&wanted) {
            return true;
        }
        next = error.source();
    }
    false
}

fn is_exhausted(error: &io::Error) -> bool {
    let kinds = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::OutOfMemory];
    let code = error.raw_os_error();
    kinds.contains(&error.kind()) || EXHAUSTED.iter().any(|errno| Some(errno.raw_os_error()) == code)
}

/// `error` and its sources, with colons between.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let part = cause.to_string();
        // Some libraries repeat their source's text in their own.
        if !text.ends_with(&part) {
            let _ = write!(text, ": {part}");
        }
        source = cause.source();
    }
    text
}
