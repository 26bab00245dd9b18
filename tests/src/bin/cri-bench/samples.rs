//! Measured times, and the figures that are made of them.

use std::collections::BTreeMap;
use std::time::Duration;

/// The operations, in the order in which they are printed.
pub const OPERATIONS: [&str; 17] = [
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "pod ready",
    "ExecSync",
    "ContainerStatus",
    "ContainerStats",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "pod gone",
    "ListPodSandbox",
    "ListContainers",
    "ListContainerStats",
    "ListPodSandboxStats",
    "PullImage",
];

/// Times by operation.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    times: BTreeMap<&'static str, Vec<f64>>,
}

/// The figures of one operation, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Figures {
    pub samples: usize,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub min: f64,
    pub max: f64,
}

impl Samples {
    pub fn add(&mut self, operation: &'static str, time: Duration) {
        self.times.entry(operation).or_default().push(time.as_secs_f64() * 1e3);
    }

    pub fn join(&mut self, other: Self) {
        for (operation, times) in other.times {
            self.times.entry(operation).or_default().extend(times);
        }
    }

    pub fn figures(&self, operation: &str) -> Option<Figures> {
        let mut times = self.times.get(operation)?.clone();
        times.sort_by(f64::total_cmp);
        let (min, max) = (*times.first()?, *times.last()?);
        let at = |part: f64| percentile(&times, part);
        Some(Figures { samples: times.len(), p50: at(0.5), p90: at(0.9), p99: at(0.99), min, max })
    }

    /// All operations that were measured, in the order of [`OPERATIONS`].
    pub fn all(&self) -> Vec<(&'static str, Figures)> {
        OPERATIONS.iter().filter_map(|name| self.figures(name).map(|figures| (*name, figures))).collect()
    }
}

/// The nearest-rank percentile of sorted times; it is always one that was measured.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let times: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&times, 0.5), 50.0);
        assert_eq!(percentile(&times, 0.9), 90.0);
        assert_eq!(percentile(&times, 0.99), 99.0);
        assert_eq!(percentile(&[7.0], 0.5), 7.0);
        assert_eq!(percentile(&[7.0, 9.0], 0.99), 9.0);
    }

    #[test]
    fn what_was_not_measured_has_no_figures() {
        let mut samples = Samples::default();
        samples.add("ExecSync", Duration::from_millis(2));
        assert!(samples.figures("PullImage").is_none());
        assert_eq!(samples.all().len(), 1);
        assert_eq!(samples.figures("ExecSync").unwrap().p50, 2.0);
    }
}
