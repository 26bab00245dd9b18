//! The cgroups of execs. One goes when its last process is gone, which may be long after the exec itself: processes that were
//! killed take a moment to die, and an exec may leave others in the background.
//!
//! Invariant: what is busy is tried again until it is gone, at the latest with the container, and nobody waits for that.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::time::sleep;

use crate::cgroup::kill;

/// Between attempts: the first, and the longest.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_secs(10);

/// Those that were busy when their exec was over.
#[derive(Default)]
pub struct Busy(Mutex<Vec<PathBuf>>);

impl Busy {
    /// Removes the cgroup, now or as soon as it is empty.
    pub fn remove(self: &Arc<Self>, folder: PathBuf) {
        // What cannot be removed at all goes with the container's own cgroup, whose removal tells why it fails.
        if kill::remove_folder(&folder).unwrap_or(true) {
            return;
        }
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if busy.contains(&folder) {
            return;
        }
        busy.push(folder);
        if busy.len() == 1 {
            tokio::spawn(try_again(Arc::downgrade(self)));
        }
    }

    /// Whether some are left.
    fn retry(&self) -> bool {
        let mut busy = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        busy.retain(|folder| !kill::remove_folder(folder).unwrap_or(true));
        !busy.is_empty()
    }
}

/// Ends when none is left, or with the task that they belong to.
async fn try_again(busy: Weak<Busy>) {
    let mut pause = SOON;
    loop {
        sleep(pause).await;
        match busy.upgrade() {
            Some(busy) if busy.retry() => {}
            Some(_) | None => return,
        }
        pause = LATER.min(pause * 2);
    }
}
