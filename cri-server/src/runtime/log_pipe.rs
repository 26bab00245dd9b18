//! The FIFO `log` in a bundle, into which shims write words about themselves; they refuse to start without it.
//! What comes out is logged by the daemon, line by line.
//!
//! Invariant: the daemon's end is open for as long as the connection to the shim, so that a shim never blocks on it.

use std::io;
use std::path::{Path, PathBuf};

use nix::sys::stat::Mode;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;

use super::bootstrap::excerpt;
use super::error::RuntimeError;
use super::shim::Shim;

/// As shims expect it in their bundle.
pub(super) const NAME: &str = "log";
/// Longer lines are logged in pieces.
const LONGEST_LINE: u64 = 4096;

/// The daemon's end.
pub(super) struct LogPipe {
    task: String,
    receiver: pipe::Receiver,
}

impl LogPipe {
    /// Makes the FIFO where it is missing, and opens it.
    pub(super) fn make(bundle: &Path, task: &str) -> Result<Self, RuntimeError> {
        let path: PathBuf = bundle.join(NAME);
        let failed =
            |source: io::Error| RuntimeError::File { operation: "make FIFO", path: path.clone(), source };
        match nix::unistd::mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR) {
            Err(nix::Error::EEXIST) | Ok(()) => {}
            Err(error) => return Err(failed(error.into())),
        }
        // Open for writing too: no end of file while no shim has it open.
        let receiver = pipe::OpenOptions::new().read_write(true).open_receiver(&path).map_err(failed)?;
        Ok(Self { task: task.to_owned(), receiver })
    }

    /// Logs what comes until the connection to `shim` is lost.
    pub(super) fn forward(self, shim: &Shim) {
        let lost = shim.lost();
        // Owned by the connection: it ends with it.
        tokio::spawn(async move {
            let mut reader = BufReader::new(self.receiver);
            let mut line = Vec::new();
            loop {
                line.clear();
                let mut piece = (&mut reader).take(LONGEST_LINE);
                tokio::select! {
                    read = piece.read_until(b'\n', &mut line) => match read {
                        Ok(1..) => tracing::info!(target: "shim", task = %self.task, "{}", excerpt(&line)),
                        _ => break,
                    },
                    () = lost.cancelled() => break,
                }
            }
        });
    }
}
