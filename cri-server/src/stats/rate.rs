//! Processor use as a rate: the difference of two readings, kept per container or pod.
//!
//! Invariant: a rate is taken over at least [`SHORTEST`], whoever asks however often; nothing is ever read here.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Shorter spans measure the scheduler's tick instead of the container.
const SHORTEST: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
struct Known {
    at: Instant,
    usage_nanos: u64,
    rate: Option<u64>,
}

/// The last readings.
#[derive(Debug, Default)]
pub struct CpuRates(Mutex<HashMap<String, Known>>);

impl CpuRates {
    /// Takes a reading and answers the rate in nanoseconds per second since the reading before; `None` for the first.
    pub fn observe(&self, id: &str, at: Instant, usage_nanos: Option<u64>) -> Option<u64> {
        let usage_nanos = usage_nanos?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Known { at, usage_nanos, rate: None };
        let Some(before) = known.get_mut(id) else {
            known.insert(id.to_owned(), fresh);
            return None;
        };
        let span = at.saturating_duration_since(before.at);
        if span < SHORTEST {
            return before.rate;
        }
        // A counter that went back belongs to a new cgroup of the same name.
        let rate = usage_nanos
            .checked_sub(before.usage_nanos)
            .and_then(|used| u64::try_from(u128::from(used) * 1_000_000_000 / span.as_nanos()).ok());
        *before = Known { rate, ..fresh };
        rate
    }

    /// Forgets what is gone.
    pub fn forget(&self, id: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_needs_two_readings_far_enough_apart() {
        let rates = CpuRates::default();
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        assert_eq!(rates.observe("c", at(0), Some(0)), None);
        assert_eq!(rates.observe("c", at(50), Some(1)), None, "too soon");
        assert_eq!(rates.observe("c", at(200), Some(100_000_000)), Some(500_000_000), "half a core");
        assert_eq!(rates.observe("c", at(250), Some(900_000_000)), Some(500_000_000), "the last one stands");
        assert_eq!(rates.observe("c", at(1200), Some(100_000_000)), Some(0));
        assert_eq!(rates.observe("c", at(2200), Some(5)), None, "the counter went back");
        assert_eq!(rates.observe("c", at(3200), None), None);
        rates.forget("c");
        assert_eq!(rates.observe("c", at(4200), Some(0)), None);
    }
}
