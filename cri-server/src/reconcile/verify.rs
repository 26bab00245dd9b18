//! When what is stored is looked at again: after the daemon or the node died, and from time to time.

use cofferdam_failpoints::failpoint;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Reconciler;
use crate::image::{Look, Verified};
use crate::store::Table;

const KEY: &str = "verified";

/// The last look that came to its end, over restarts of the daemon.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct LastLook {
    /// Seconds since the epoch.
    at: u64,
}

/// How far the looking is, for a person to read.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Verification {
    pub running: bool,
    /// Seconds since the epoch.
    pub at: Option<u64>,
    pub found: Option<Verified>,
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

impl Reconciler {
    /// What the last look found, and whether one is under way.
    #[must_use]
    pub fn verification(&self) -> Verification {
        self.verification.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks when it is time, until the daemon ends.
    pub(super) async fn verify_in_time(self: &Arc<Self>) {
        let Some(interval) = self.config.verify_interval() else { return };
        if !self.ports.past.unclean {
            tokio::time::sleep(self.until_due(interval)).await;
        }
        loop {
            self.verify().await;
            tokio::time::sleep(interval).await;
        }
    }

    fn until_due(&self, interval: Duration) -> Duration {
        let looks = self.ports.store.load::<serde_json::Value>(Table::Node).unwrap_or_default();
        let last = looks.into_iter().find(|(key, _)| key == KEY);
        let last = last.and_then(|(_, value)| serde_json::from_value::<LastLook>(value).ok());
        let age = last.map_or(Duration::ZERO, |last| Duration::from_secs(now().saturating_sub(last.at)));
        interval.saturating_sub(age)
    }

    async fn verify(self: &Arc<Self>) {
        let known = || self.verification.lock().unwrap_or_else(PoisonError::into_inner);
        known().running = true;
        let look =
            Look { rate: self.config.verify_bytes_per_second, stop: self.ports.stopping.child_token() };
        let looked = self.ports.images.verify(look).await;
        known().running = false;
        match looked {
            Ok(_) if self.ports.stopping.is_cancelled() => {}
            Ok(found) => {
                let at = now();
                tracing::info!(
                    blobs = found.blobs,
                    layers = found.layers,
                    damaged = found.damaged.len(),
                    repaired = found.repaired.len(),
                    "looked at what is stored"
                );
                self.counts.looked(at, &found);
                let verification = Verification { running: false, at: Some(at), found: Some(found) };
                *known() = verification;
                if let Err(error) = self.ports.store.put(Table::Node, KEY, &LastLook { at }).await {
                    tracing::warn!(error = %crate::report::chain(&error), "the look is not recorded");
                }
                failpoint!("reconcile.look_recorded", infallible);
            }
            Err(error) => {
                tracing::warn!(error = %crate::report::chain(&error), "what is stored cannot be looked at");
            }
        }
    }
}
