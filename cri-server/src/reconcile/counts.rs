//! Counts of sweeps and of looks at what is stored, since the daemon's start.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::Report;
use crate::image::Verified;

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    pub sweeps: Counter,
    /// Things taken away or finished, by kind.
    pub removed: Family<Label, Counter>,
    /// What could not be taken away, by kind; counted at each sweep.
    pub failures: Family<Label, Counter>,
    /// Seconds since the epoch; 0 before the first.
    pub last_sweep: Gauge<i64, AtomicI64>,
    pub sweep_seconds: Gauge<f64, AtomicU64>,
    pub looks: Counter,
    /// Seconds since the epoch; 0 before the first.
    pub last_look: Gauge<i64, AtomicI64>,
    /// Blobs and layers looked at.
    pub looked_at: Family<Label, Counter>,
    pub looked_bytes: Counter,
    /// Blobs and layers found damaged.
    pub damaged: Family<Label, Counter>,
    /// Images that were made whole again.
    pub repaired: Counter,
    /// What could not be looked at.
    pub look_failures: Counter,
}

fn seconds(at: u64) -> i64 {
    i64::try_from(at).unwrap_or(i64::MAX)
}

fn number(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

impl Counts {
    pub(super) fn swept(&self, report: &Report) {
        self.sweeps.inc();
        self.last_sweep.set(seconds(report.at));
        self.sweep_seconds.set(std::time::Duration::from_millis(report.milliseconds).as_secs_f64());
        for (kind, removed) in &report.removed {
            self.removed.get_or_create_owned(&[("kind", *kind)]).inc_by(number(*removed));
        }
        for (kind, failed) in &report.failed {
            self.failures.get_or_create_owned(&[("kind", *kind)]).inc_by(number(*failed));
        }
    }

    pub(super) fn looked(&self, at: u64, found: &Verified) {
        self.looks.inc();
        self.last_look.set(seconds(at));
        self.looked_bytes.inc_by(found.bytes);
        self.repaired.inc_by(number(found.repaired.len()));
        self.look_failures.inc_by(number(found.failures.len()));
        for (kind, looked) in [("blob", found.blobs), ("layer", found.layers)] {
            self.looked_at.get_or_create_owned(&[("kind", kind)]).inc_by(number(looked));
            let damaged = found.damaged.iter().filter(|damage| damage.what.starts_with(kind)).count();
            self.damaged.get_or_create_owned(&[("kind", kind)]).inc_by(number(damaged));
        }
    }
}
