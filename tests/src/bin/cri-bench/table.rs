//! The result as tables for people.

use std::fmt::Write as _;

use super::memory::Weight;
use super::report::{Measured, Report};
use super::samples::{Figures, OPERATIONS, Samples};

/// Renders everything. Writing into a String cannot fail, so the results of `write!` are dropped.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    for (number, endpoint) in report.endpoints.iter().enumerate() {
        let role = if number == 0 { "endpoint" } else { "against " };
        let _ = writeln!(text, "{role}  {}  ({})", endpoint.runtime, endpoint.socket);
    }
    let _ = writeln!(text, "\nOne pod at a time, ms");
    let samples: Vec<&Samples> = report.endpoints.iter().map(|endpoint| &endpoint.samples).collect();
    latency(&mut text, &samples);
    let crowds: Vec<_> = report.endpoints.iter().filter_map(|endpoint| endpoint.crowd.as_ref()).collect();
    if crowds.len() == report.endpoints.len() {
        let _ = writeln!(text, "\n{} pods at a time, ms", report.parallel);
        latency(&mut text, &crowds.iter().map(|crowd| &crowd.samples).collect::<Vec<_>>());
        let rates: Vec<f64> = crowds.iter().map(|crowd| crowd.rate()).collect();
        let _ = write!(text, "{:<20}", "pods a second");
        for rate in &rates {
            let _ = write!(text, " {rate:>9.2} {:>20}", "");
        }
        if let [first, second] = rates.as_slice() {
            let _ = write!(text, " {:>8.2}x", first / second);
        }
        text.push('\n');
    }
    memory(&mut text, &report.endpoints);
    if report.endpoints.len() == 2 {
        let _ = writeln!(
            text,
            "\nratio: how much more the second takes (of pods a second: how much less it makes)"
        );
    }
    text
}

fn latency(text: &mut String, samples: &[&Samples]) {
    let _ = write!(text, "{:<20}", "");
    for _ in samples {
        let _ = write!(text, " {:>9} {:>9} {:>9} ", "p50", "p90", "p99");
    }
    let ratio = if samples.len() == 2 { "    ratio" } else { "" };
    let _ = writeln!(text, "{ratio}");
    for operation in OPERATIONS {
        let row: Vec<Option<Figures>> = samples.iter().map(|one| one.figures(operation)).collect();
        if row.iter().all(Option::is_none) {
            continue;
        }
        let _ = write!(text, "{operation:<20}");
        for figures in &row {
            let _ = match figures {
                Some(one) => write!(text, " {:>9.2} {:>9.2} {:>9.2} ", one.p50, one.p90, one.p99),
                None => write!(text, " {:>9} {:>9} {:>9} ", "-", "-", "-"),
            };
        }
        if let [Some(first), Some(second)] = row.as_slice() {
            let _ = write!(text, " {:>7.2}x", second.p50 / first.p50);
        }
        text.push('\n');
    }
}

fn memory(text: &mut String, endpoints: &[Measured]) {
    let weights: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint.memory.as_ref()).collect();
    let Some(first) = weights.first() else { return };
    let _ = writeln!(text, "\nMemory with {} idle pods, KiB", first.pods);
    let _ = write!(text, "{:<20}", "");
    for _ in &weights {
        let _ = write!(text, " {:>9} {:>9} {:>9} ", "PSS", "private", "RSS");
    }
    text.push('\n');
    let mut row = |name: &str, pick: &dyn Fn(usize) -> Option<Weight>| {
        let _ = write!(text, "{name:<20}");
        let mut values = Vec::new();
        for at in 0..weights.len() {
            let _ = match pick(at) {
                Some(weight) => {
                    values.push(weight.private as f64);
                    let kib = |bytes: u64| bytes / 1024;
                    let (pss, private, rss) = (kib(weight.pss), kib(weight.private), kib(weight.rss));
                    write!(text, " {pss:>9} {private:>9} {rss:>9} ")
                }
                None => write!(text, " {:>9} {:>9} {:>9} ", "-", "-", "-"),
            };
        }
        if let [first, second] = values.as_slice()
            && *first > 0.0
        {
            let _ = write!(text, " {:>7.2}x", second / first);
        }
        text.push('\n');
    };
    row("daemon, no pod", &|at| weights[at].daemon_idle);
    row("daemon", &|at| weights[at].daemon);
    row("helpers", &|at| Some(weights[at].helpers));
    row("helpers, a pod", &|at| {
        let (helpers, pods) = (weights[at].helpers, u64::from(weights[at].pods.max(1)));
        Some(Weight {
            processes: helpers.processes,
            pss: helpers.pss / pods,
            private: helpers.private / pods,
            rss: helpers.rss / pods,
        })
    });
    for weight in &weights {
        let _ = writeln!(text, "{} helper processes for {} pods", weight.helpers.processes, weight.pods);
    }
}
