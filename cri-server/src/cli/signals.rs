//! SIGINT, SIGTERM, SIGHUP and SIGQUIT while something of ours needs a clean-up, as a pod or a raw terminal: they ask the
//! command to end, and never end us before.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::error::CliError;

const BY_SIGNAL: u8 = 128;
const SIGINT: u8 = 2;
const SIGTERM: u8 = 15;
const SIGHUP: u8 = 1;
const SIGQUIT: u8 = 3;

/// The signals that came.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    first: Option<u8>,
}

impl Signals {
    /// From now on signals are kept for [`Signals::next`].
    pub(super) fn watch() -> Result<Self, CliError> {
        let watch = |kind| signal(kind).map_err(CliError::Setup);
        Ok(Self {
            interrupt: watch(SignalKind::interrupt())?,
            terminate: watch(SignalKind::terminate())?,
            hang_up: watch(SignalKind::hangup())?,
            quit: watch(SignalKind::quit())?,
            first: None,
        })
    }

    /// Waits for a signal; answers the exit code that a shell knows for it.
    pub(super) async fn next(&mut self) -> u8 {
        let number = tokio::select! {
            _ = self.interrupt.recv() => SIGINT,
            _ = self.terminate.recv() => SIGTERM,
            _ = self.hang_up.recv() => SIGHUP,
            _ = self.quit.recv() => SIGQUIT,
        };
        let code = BY_SIGNAL + number;
        *self.first.get_or_insert(code)
    }

    /// The exit code of the first signal that came.
    pub(super) async fn received(&mut self) -> Option<u8> {
        let at_once = std::time::Duration::ZERO;
        if self.first.is_none() {
            // Nothing came, then.
            let _ = tokio::time::timeout(at_once, self.next()).await;
        }
        self.first
    }
}
