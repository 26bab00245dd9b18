//! The real binary driven through ttrpc and its commands, with containers of busybox. They need root.

mod common;
mod daemon;
mod hang;
mod io;
mod more;
mod task;
mod trouble;
