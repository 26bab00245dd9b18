//! Buries what containers leave behind. The container code buries its own; what it leaves, because it died, comes here.

use std::io;

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

use crate::runtime;

/// Ends when the container code has: without it the pod is lost.
pub async fn run() -> io::Result<()> {
    let mut deaths = signal(SignalKind::child())?;
    loop {
        while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
        if !runtime::is_alive() {
            return Err(io::Error::other("the container code has ended"));
        }
        deaths.recv().await;
    }
}
