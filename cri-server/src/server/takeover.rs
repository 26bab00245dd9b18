//! Waits for the daemon before this one: it may be about to end, and holds the state folder and the store until it has.
//!
//! Invariant: one that does not end keeps this one from its folders for good: sweeps of a second daemon would take away what
//! the first one's pods have. So the wait is bounded, and then refused in words; after a moment, where the other one serves.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::supervisor::Supervisor;
use super::{DRAIN, LAST_MOMENT, ServeError};
use crate::notices::Notices;
use crate::owner::Owner;
use crate::places::Places;
use crate::store::Store;

/// What a daemon has to end in, and a little more for what it does at the very end.
const PATIENCE: Duration = Duration::from_secs(DRAIN.as_secs() + LAST_MOMENT.as_secs() + 4);
/// One that takes calls so long after it was met is not about to end.
const SERVES: Duration = Duration::from_secs(3);
const BETWEEN: Duration = Duration::from_millis(50);

/// What only one daemon at a time has.
pub(super) struct Opened {
    pub owner: Owner,
    pub store: Arc<Store>,
    /// Locked. Dropped last.
    _state: File,
}

/// Waits at most as long as a daemon may take to end.
pub(super) async fn open(
    places: &Places,
    socket: &Path,
    supervisor: &Supervisor,
    notices: &Notices,
) -> Result<Opened, ServeError> {
    let folder = File::open(places.state()).map_err(ServeError::Places)?;
    let mut wait = Wait { since: Instant::now(), told: false, socket, supervisor };
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(Errno::WOULDBLOCK) => {}
            Err(error) => return Err(ServeError::Places(error.into())),
        }
        if let Some(waited) = wait.over(places.state()).await {
            return Err(ServeError::StateInUse { path: places.state().to_owned(), waited });
        }
    }
    let owner = Owner::open(places.root(), notices)?;
    let records = places.records();
    loop {
        match Store::open(&records, !owner.is_new()) {
            Ok(store) => return Ok(Opened { owner, store, _state: folder }),
            Err(error) if error.is_in_use() => {}
            Err(error) => return Err(error.into()),
        }
        if let Some(waited) = wait.over(&records).await {
            return Err(ServeError::StoreInUse { path: records, waited });
        }
    }
}

struct Wait<'a> {
    since: Instant,
    told: bool,
    socket: &'a Path,
    supervisor: &'a Supervisor,
}

impl Wait<'_> {
    /// Waits a little for whoever holds `what`; answers how long it was waited for in all when that was enough.
    async fn over(&mut self, what: &Path) -> Option<Duration> {
        if !self.told {
            self.told = true;
            self.supervisor.status("Waiting for the daemon before to end");
            let (what, seconds) = (what.display(), PATIENCE.as_secs());
            tracing::warn!(%what, seconds, "held by another daemon: waiting for its end");
        }
        let waited = self.since.elapsed();
        let serves = waited > SERVES && UnixStream::connect(self.socket).await.is_ok();
        if serves || waited > PATIENCE {
            return Some(waited);
        }
        tokio::time::sleep(BETWEEN).await;
        None
    }
}
