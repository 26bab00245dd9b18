//! What connects a container's stdin, stdout and stderr with the outside: FIFOs, bounded capture for ExecSync, and the
//! choice of who writes the container's log ([`ContainerIo`]).

mod capture;
mod container;
mod fifo;
mod log_writer;
mod session;

use std::path::{Path, PathBuf};

pub use capture::{Captured, ExecCapture, LIMIT};
pub use container::{ContainerIo, IoPlan, LogKeeper, Streams};
pub use fifo::FifoFolder;
pub use log_writer::{LogRoute, LogWriter};
pub use session::{SessionFifos, SessionInput, SessionOutput, Wanted, open_input};

/// An operation on a FIFO or a log writer failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation} {}", .path.display())]
pub struct IoError {
    operation: &'static str,
    path: PathBuf,
    source: std::io::Error,
}

impl IoError {
    pub(crate) fn at(operation: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self { operation, path: path.to_owned(), source }
    }
}
