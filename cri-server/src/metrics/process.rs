//! The daemon's process, under the names that Prometheus' own libraries use.

use std::fmt::Error;
use std::fs;

use nix::unistd::{SysconfVar, sysconf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Reads /proc/self at each scrape.
#[derive(Debug)]
pub(super) struct Process;

/// The fields of `/proc/self/stat` that count here. proc_pid_stat(5)
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    rss_pages: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name may hold anything, parentheses too.
        let (_, rest) = text.rsplit_once(") ")?;
        // The first field here is the third of the manual.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let get = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self { cpu_ticks: get(14)? + get(15)?, threads: get(20)?, rss_pages: get(24)? })
    }
}

#[expect(clippy::cast_precision_loss, reason = "a float is what Prometheus takes")]
fn float(value: u64) -> f64 {
    value as f64
}

fn system(variable: SysconfVar) -> Option<u64> {
    sysconf(variable).ok().flatten().and_then(|value| u64::try_from(value).ok())
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut put = |name: &str, help: &str, value: Option<u64>| {
            let Some(value) = value else { return Ok(()) };
            let gauge = ConstGauge::new(float(value));
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let stat = fs::read_to_string("/proc/self/stat").ok().and_then(|text| Stat::parse(&text));
        let page = system(SysconfVar::PAGE_SIZE);
        let rss = stat.as_ref().zip(page).map(|(stat, page)| stat.rss_pages * page);
        put("process_resident_memory_bytes", "Resident memory of the daemon", rss)?;
        put("process_threads", "Threads of the daemon", stat.as_ref().map(|stat| stat.threads))?;
        let open = fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count());
        let open = open.and_then(|open| u64::try_from(open).ok());
        // Reading the folder takes one, too.
        put("process_open_fds", "Open descriptors of the daemon", open.map(|open| open.saturating_sub(1)))?;
        put("process_max_fds", "The most descriptors the daemon may have", system(SysconfVar::OPEN_MAX))?;
        let ticks = system(SysconfVar::CLK_TCK).filter(|ticks| *ticks > 0);
        if let Some((stat, ticks)) = stat.zip(ticks) {
            let seconds = ConstCounter::new(float(stat.cpu_ticks) / float(ticks));
            let help = "Processor time of the daemon, in seconds";
            let metric =
                encoder.encode_descriptor("process_cpu_seconds", help, None, seconds.metric_type())?;
            seconds.encode(metric)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let text = "7 (a) b (c) S 1 7 7 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 5 0 99 1000 250 18446744073709551615 1 1";
        assert_eq!(Stat::parse(text), Some(Stat { cpu_ticks: 42, threads: 5, rss_pages: 250 }));
        assert_eq!(Stat::parse("7 (a) S 1"), None);
    }
}
