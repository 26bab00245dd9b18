//! Counts of pulls since the daemon's start.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::pull::{LayerProgress, LayerStage};

/// Seconds: from an image that is here to one of many gigabytes.
const BUCKETS: [f64; 10] = [0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 1200.0];

/// One label and its value.
type Label = [(&'static str, &'static str); 1];

/// Clones count together.
#[derive(Clone, Debug)]
pub struct PullCounts {
    /// By result: "ok" or "failed".
    pub seconds: Family<Label, Histogram, fn() -> Histogram>,
    /// Compressed bytes of layers.
    pub received: Counter,
}

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

impl Default for PullCounts {
    fn default() -> Self {
        Self { seconds: Family::new_with_constructor(histogram), received: Counter::default() }
    }
}

impl PullCounts {
    pub(super) fn count(&self, succeeded: bool, since: Instant, layers: &[LayerProgress]) {
        let result = if succeeded { "ok" } else { "failed" };
        self.seconds.get_or_create_owned(&[("result", result)]).observe(since.elapsed().as_secs_f64());
        // A layer that was here was not received.
        let received = layers.iter().filter(|layer| layer.stage != LayerStage::Present);
        self.received.inc_by(received.map(|layer| layer.received).sum());
    }
}
