//! How often stages of operations took longer than they should.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

type Labels = [(&'static str, &'static str); 2];

/// Counts by operation and stage. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Overdue(Family<Labels, Counter>);

impl Overdue {
    /// One more.
    pub fn count(&self, operation: &'static str, stage: &'static str) {
        self.0.get_or_create_owned(&[("operation", operation), ("stage", stage)]).inc();
    }

    pub(super) fn family(&self) -> Family<Labels, Counter> {
        self.0.clone()
    }
}
