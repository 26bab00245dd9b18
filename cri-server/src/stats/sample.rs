//! One reading of a cgroup's files, the same numbers from both worlds.

use std::fs;
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::parse::{self, Pressure};
use crate::cgroup::{CgroupPaths, keyed};

/// Processor time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cpu {
    /// All cores together, since the cgroup was made.
    pub usage_nanos: Option<u64>,
    pub pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    pub usage: Option<u64>,
    /// What cannot be taken away without trouble: usage without the inactive page cache.
    pub working_set: Option<u64>,
    /// The limit, where there is one.
    pub limit: Option<u64>,
    /// Limit less working set.
    pub available: Option<u64>,
    pub rss: Option<u64>,
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    pub pressure: Option<Pressure>,
}

/// Swap, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    pub usage: Option<u64>,
    pub available: Option<u64>,
}

/// Bytes to and from block devices.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Io {
    pub read_bytes: Option<u64>,
    pub write_bytes: Option<u64>,
    pub pressure: Option<Pressure>,
}

/// One reading.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Nanoseconds since 1970, for the wire.
    pub timestamp: i64,
    /// For rates, which a clock that is set must not upset.
    pub at: Instant,
    pub cpu: Cpu,
    pub memory: Memory,
    pub swap: Swap,
    pub io: Io,
    /// Processes and threads, as the pids controller counts them.
    pub pids: Option<u64>,
}

fn text(folder: Option<&Path>, file: &str) -> Option<String> {
    fs::read_to_string(folder?.join(file)).ok()
}

fn memory_of(usage: Option<u64>, limit: Option<u64>, stat: &str, keys: [&str; 4]) -> Memory {
    let [inactive_file, rss, faults, major_faults] = keys;
    let working_set = usage.map(|usage| usage.saturating_sub(keyed(stat, inactive_file).unwrap_or(0)));
    Memory {
        usage,
        working_set,
        limit,
        available: limit.zip(working_set).map(|(limit, used)| limit.saturating_sub(used)),
        rss: keyed(stat, rss),
        page_faults: keyed(stat, faults),
        major_page_faults: keyed(stat, major_faults),
        pressure: None,
    }
}

fn memory_v1(folder: &Path) -> (Memory, Swap) {
    let get = |file: &str| text(Some(folder), file);
    let stat = get("memory.stat").unwrap_or_default();
    let usage = get("memory.usage_in_bytes").and_then(|text| parse::number(&text));
    let limit = get("memory.limit_in_bytes").and_then(|text| parse::limit(&text));
    let keys = ["total_inactive_file", "total_rss", "total_pgfault", "total_pgmajfault"];
    let both = get("memory.memsw.limit_in_bytes").and_then(|text| parse::limit(&text));
    let swapped = keyed(&stat, "total_swap");
    // The limit counts memory and swap together.
    let available = both.zip(limit).zip(swapped);
    let available = available.map(|((both, limit), used)| both.saturating_sub(limit).saturating_sub(used));
    (memory_of(usage, limit, &stat, keys), Swap { usage: swapped, available })
}

fn memory_v2(folder: &Path) -> (Memory, Swap) {
    let get = |file: &str| text(Some(folder), file);
    let stat = get("memory.stat").unwrap_or_default();
    let usage = get("memory.current").and_then(|text| parse::number(&text));
    let limit = get("memory.max").and_then(|text| parse::limit(&text));
    let mut memory = memory_of(usage, limit, &stat, ["inactive_file", "anon", "pgfault", "pgmajfault"]);
    memory.pressure = get("memory.pressure").and_then(|text| parse::pressure(&text));
    let swapped = get("memory.swap.current").and_then(|text| parse::number(&text));
    let limit = get("memory.swap.max").and_then(|text| parse::limit(&text));
    let available = limit.zip(swapped).map(|(limit, used)| limit.saturating_sub(used));
    (memory, Swap { usage: swapped, available })
}

fn cpu(paths: &CgroupPaths) -> Cpu {
    let v1 = paths.controllers.get("cpuacct").map(AsRef::as_ref);
    let v2 = paths.unified.as_deref();
    let usage_nanos = match v1 {
        Some(folder) => text(Some(folder), "cpuacct.usage").and_then(|text| parse::number(&text)),
        None => text(v2, "cpu.stat").and_then(|text| keyed(&text, "usage_usec")?.checked_mul(1000)),
    };
    let pressure = v1.is_none().then(|| text(v2, "cpu.pressure")).flatten();
    Cpu { usage_nanos, pressure: pressure.and_then(|text| parse::pressure(&text)) }
}

fn io(paths: &CgroupPaths) -> Io {
    let v1 = paths.controllers.get("blkio").map(AsRef::as_ref);
    let v2 = paths.unified.as_deref();
    let bytes = match v1 {
        Some(folder) => {
            text(Some(folder), "blkio.throttle.io_service_bytes_recursive").map(|text| parse::io_v1(&text))
        }
        None => text(v2, "io.stat").map(|text| parse::io_v2(&text)),
    };
    let pressure = v1.is_none().then(|| text(v2, "io.pressure")).flatten();
    Io {
        read_bytes: bytes.map(|bytes| bytes.0),
        write_bytes: bytes.map(|bytes| bytes.1),
        pressure: pressure.and_then(|text| parse::pressure(&text)),
    }
}

/// Now, as the wire wants it.
pub(super) fn timestamp() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Reads the cgroup; of one that is gone, every number is `None`.
#[must_use]
pub fn sample(paths: &CgroupPaths) -> Sample {
    let (memory, swap) = match (paths.controllers.get("memory"), &paths.unified) {
        (Some(folder), _) => memory_v1(folder),
        (None, Some(folder)) => memory_v2(folder),
        (None, None) => (Memory::default(), Swap::default()),
    };
    Sample {
        timestamp: timestamp(),
        at: Instant::now(),
        cpu: cpu(paths),
        memory,
        swap,
        io: io(paths),
        pids: text(paths.of("pids"), "pids.current").and_then(|text| parse::number(&text)),
    }
}

fn add(into: &mut Option<u64>, more: Option<u64>) {
    *into = match (*into, more) {
        (Some(a), Some(b)) => Some(a.saturating_add(b)),
        (known, None) => known,
        (None, more) => more,
    };
}

impl Sample {
    /// Adds another cgroup's usage: for pods that have no cgroup of their own. Limits and pressure do not add up and
    /// are dropped.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.cpu.usage_nanos, other.cpu.usage_nanos);
        add(&mut self.memory.usage, other.memory.usage);
        add(&mut self.memory.working_set, other.memory.working_set);
        add(&mut self.memory.rss, other.memory.rss);
        add(&mut self.memory.page_faults, other.memory.page_faults);
        add(&mut self.memory.major_page_faults, other.memory.major_page_faults);
        add(&mut self.swap.usage, other.swap.usage);
        add(&mut self.io.read_bytes, other.io.read_bytes);
        add(&mut self.io.write_bytes, other.io.write_bytes);
        add(&mut self.pids, other.pids);
        (self.memory.limit, self.memory.available, self.swap.available) = (None, None, None);
        (self.cpu.pressure, self.memory.pressure, self.io.pressure) = (None, None, None);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn v1_is_read_from_its_controllers() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            &[
                ("cpuacct.usage", "5000000000\n"),
                ("memory.usage_in_bytes", "1000\n"),
                ("memory.limit_in_bytes", "2000\n"),
                ("memory.memsw.limit_in_bytes", "2500\n"),
                (
                    "memory.stat",
                    "inactive_file 1\nrss 1\ntotal_inactive_file 300\ntotal_rss 400\ntotal_swap 50\ntotal_pgfault 7\n",
                ),
                ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 10\n8:0 Write 20\nTotal 30\n"),
                ("pids.current", "3\n"),
            ],
        );
        let names = ["cpuacct", "memory", "blkio", "pids"];
        let controllers: BTreeMap<_, _> =
            names.into_iter().map(|name| (name.to_owned(), folder.path().to_path_buf())).collect();
        let read = sample(&CgroupPaths { controllers, unified: None });
        assert_eq!(read.cpu.usage_nanos, Some(5_000_000_000));
        assert_eq!((read.memory.working_set, read.memory.available), (Some(700), Some(1300)));
        assert_eq!((read.memory.rss, read.memory.page_faults), (Some(400), Some(7)));
        assert_eq!(read.memory.major_page_faults, None, "absent in the file");
        assert_eq!(read.swap, Swap { usage: Some(50), available: Some(450) });
        assert_eq!((read.io.read_bytes, read.io.write_bytes, read.pids), (Some(10), Some(20), Some(3)));
    }

    #[test]
    fn v2_is_read_from_one_folder() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            &[
                ("cpu.stat", "usage_usec 42\nuser_usec 40\n"),
                ("memory.current", "1000\n"),
                ("memory.max", "max\n"),
                ("memory.stat", "anon 400\ninactive_file 2000\npgfault 7\npgmajfault 1\n"),
                ("memory.swap.current", "5\n"),
                ("memory.swap.max", "max\n"),
                ("io.stat", "8:0 rbytes=1 wbytes=2\n"),
                ("memory.pressure", "some avg10=1.00 avg60=0.00 avg300=0.00 total=9\n"),
                ("pids.current", "3\n"),
            ],
        );
        let read =
            sample(&CgroupPaths { unified: Some(folder.path().to_path_buf()), ..CgroupPaths::default() });
        assert_eq!(read.cpu.usage_nanos, Some(42_000));
        assert_eq!((read.memory.working_set, read.memory.available), (Some(0), None), "never below zero");
        assert_eq!((read.swap.usage, read.swap.available), (Some(5), None));
        assert_eq!(read.memory.pressure.unwrap().some.total, 9);
        assert_eq!((read.cpu.pressure, read.pids, read.io.write_bytes), (None, Some(3), Some(2)));
    }

    #[test]
    fn a_cgroup_that_is_gone_has_no_numbers() {
        let gone = CgroupPaths { unified: Some("/nonexistent".into()), ..CgroupPaths::default() };
        let mut read = sample(&gone);
        assert_eq!((read.cpu, read.memory, read.swap), (Cpu::default(), Memory::default(), Swap::default()));
        let mut other = read;
        other.memory.usage = Some(5);
        other.memory.limit = Some(9);
        read.add(&other);
        read.add(&other);
        assert_eq!((read.memory.usage, read.memory.limit, read.pids), (Some(10), None, None));
    }
}
