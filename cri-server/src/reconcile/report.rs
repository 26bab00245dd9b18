//! What a sweep found, did and could not do.

use std::collections::BTreeMap;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::ReconcileError;

/// More are counted, not named.
const MOST_FAILURES: usize = 50;

/// Something that a sweep could not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub kind: &'static str,
    /// Which one; none where the kind says all.
    pub name: Option<String>,
    pub error: String,
}

/// One sweep.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Seconds since the epoch.
    pub at: u64,
    pub milliseconds: u64,
    /// What was taken away or finished, by kind.
    pub removed: BTreeMap<&'static str, usize>,
    pub failures: Vec<Failure>,
    /// All failures, by kind.
    #[serde(skip)]
    pub(super) failed: BTreeMap<&'static str, usize>,
    #[serde(skip)]
    since: Instant,
    #[serde(skip)]
    pub(super) network_done: bool,
}

impl Report {
    pub(super) fn begin() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Self {
            at: now.map_or(0, |since| since.as_secs()),
            milliseconds: 0,
            removed: BTreeMap::new(),
            failures: Vec::new(),
            failed: BTreeMap::new(),
            since: Instant::now(),
            network_done: false,
        }
    }

    /// Counts a thing as taken away, or notes why it is not.
    pub(super) fn settle(
        &mut self,
        kind: &'static str,
        name: Option<String>,
        done: Result<(), ReconcileError>,
    ) {
        match done {
            Ok(()) if name.is_some() => *self.removed.entry(kind).or_default() += 1,
            Ok(()) => {}
            Err(error) => self.failed(kind, name, crate::report::chain(&error)),
        }
    }

    pub(super) fn failed(&mut self, kind: &'static str, name: Option<String>, error: String) {
        tracing::warn!(kind, name, error, "the sweep could not take it away; the next one tries again");
        *self.failed.entry(kind).or_default() += 1;
        if self.failures.len() < MOST_FAILURES {
            self.failures.push(Failure { kind, name, error });
        }
    }

    pub(super) fn end(&mut self) {
        self.milliseconds = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        if !self.removed.is_empty() {
            tracing::info!(removed = ?self.removed, failures = self.failures.len(), "swept");
        }
    }
}
