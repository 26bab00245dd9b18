//! Power cuts, simulated: a disk that records every write and every flush, and the states that a cut at any moment may leave.
//!
//! The disk is a file system in a file, served by a file system of our own in user space (`fuse`), so that the kernel tells us what
//! it writes and when it wants it to be safe. A cut keeps all that was written before the last flush, and of what came
//! after any part: whole writes, some of their sectors, or nothing, in any order.

mod disk;
mod fuse;
mod journal;

pub use disk::{Disk, mount, unmount};
pub use journal::{Journal, Tape};
