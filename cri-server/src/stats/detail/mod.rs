//! One thorough reading of a container's cgroup: all that the CRI's metrics tell, each file read once.
//!
//! Invariant: a number that the kernel does not keep is `None`, and never a made-up zero; on hybrid nodes each controller
//! is read where it lies. `v1` and `v2` hold the formats as pure functions of the files' texts.

mod device;
mod v1;
mod v2;

use std::fs;
use std::path::Path;

use super::parse::{self, Pressure};
use crate::cgroup::CgroupPaths;

pub use device::name as device_name;

/// Processor time in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuDetail {
    pub usage: Option<u64>,
    pub user: Option<u64>,
    pub system: Option<u64>,
    /// Of the quota: periods that passed, those in which it was used up, and the time spent waiting then.
    pub periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub throttled: Option<u64>,
}

/// Memory in bytes; faults and failures are counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryDetail {
    pub usage: Option<u64>,
    pub max_usage: Option<u64>,
    pub working_set: Option<u64>,
    pub rss: Option<u64>,
    pub cache: Option<u64>,
    pub mapped_file: Option<u64>,
    pub active_file: Option<u64>,
    pub inactive_file: Option<u64>,
    pub kernel: Option<u64>,
    pub swap: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Of the container's cgroup alone, and with those below it.
    pub faults: Option<u64>,
    pub major_faults: Option<u64>,
    pub total_faults: Option<u64>,
    pub total_major_faults: Option<u64>,
}

/// What one device did, by operation, as the kernel names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// `major:minor`.
    pub number: String,
    pub bytes: Vec<(String, u64)>,
    pub operations: Vec<(String, u64)>,
}

/// Huge pages of one size, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub size: String,
    pub usage: Option<u64>,
    pub max_usage: Option<u64>,
}

/// The limits in force, in the units of v1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub cpu_period: Option<u64>,
    /// None without a limit.
    pub cpu_quota: Option<u64>,
    pub cpu_shares: Option<u64>,
    /// 0 without a limit, as cAdvisor tells it.
    pub memory: Option<u64>,
    pub memory_reservation: Option<u64>,
    /// Memory and swap together.
    pub memory_swap: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detail {
    pub cpu: CpuDetail,
    pub memory: MemoryDetail,
    pub devices: Vec<DeviceIo>,
    pub huge_pages: Vec<HugePages>,
    pub limits: Limits,
    pub threads: Option<u64>,
    /// 0 without a limit.
    pub threads_max: Option<u64>,
    pub cpu_pressure: Option<Pressure>,
    pub memory_pressure: Option<Pressure>,
    pub io_pressure: Option<Pressure>,
}

fn text(folder: &Path, file: &str) -> String {
    fs::read_to_string(folder.join(file)).unwrap_or_default()
}

/// A limit as cAdvisor tells it: 0 for none.
fn limit_or_zero(text: &str) -> Option<u64> {
    (!text.trim().is_empty()).then(|| parse::limit(text).unwrap_or(0))
}

/// Reads the cgroup; of one that is gone, nothing is known.
#[must_use]
pub fn detail(paths: &CgroupPaths) -> Detail {
    let mut read = Detail::default();
    let legacy = |controller: &str| paths.controllers.get(controller).map(AsRef::as_ref);
    let unified = paths.unified.as_deref();
    match (legacy("cpuacct"), unified) {
        (Some(folder), _) => v1::cpuacct(folder, &mut read.cpu),
        (None, Some(folder)) => {
            read.cpu = v2::cpu_time(&text(folder, "cpu.stat"));
            read.cpu_pressure = parse::pressure(&text(folder, "cpu.pressure"));
        }
        (None, None) => {}
    }
    match (legacy("cpu"), unified) {
        (Some(folder), _) => v1::cpu(folder, &mut read),
        (None, Some(folder)) => v2::cpu_limits(folder, &mut read),
        (None, None) => {}
    }
    match (legacy("memory"), unified) {
        (Some(folder), _) => v1::memory(folder, &mut read),
        (None, Some(folder)) => v2::memory(folder, &mut read),
        (None, None) => {}
    }
    match (legacy("blkio"), unified) {
        (Some(folder), _) => read.devices = v1::devices(folder),
        (None, Some(folder)) => {
            read.devices = v2::devices(&text(folder, "io.stat"));
            read.io_pressure = parse::pressure(&text(folder, "io.pressure"));
        }
        (None, None) => {}
    }
    if let Some(folder) = paths.of("hugetlb") {
        let (usage, peak) = match legacy("hugetlb") {
            Some(_) => (".usage_in_bytes", Some(".max_usage_in_bytes")),
            None => (".current", None),
        };
        read.huge_pages = huge_pages(folder, usage, peak);
    }
    if let Some(folder) = paths.of("pids") {
        read.threads = parse::number(&text(folder, "pids.current"));
        read.threads_max = limit_or_zero(&text(folder, "pids.max"));
    }
    read
}

/// `hugetlb.SIZE` with these endings; the sizes are those that the kernel has.
fn huge_pages(folder: &Path, usage: &str, peak: Option<&str>) -> Vec<HugePages> {
    let names = fs::read_dir(folder).into_iter().flatten().flatten();
    let sizes = names.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let size = name.strip_prefix("hugetlb.")?.strip_suffix(usage)?;
        // `rsvd` files count reservations.
        (!size.contains('.')).then(|| size.to_owned())
    });
    let mut pages: Vec<_> = sizes
        .map(|size| {
            let get = |ending: &str| parse::number(&text(folder, &format!("hugetlb.{size}{ending}")));
            HugePages { usage: get(usage), max_usage: peak.and_then(get), size }
        })
        .collect();
    pages.sort_by(|a, b| a.size.cmp(&b.size));
    pages
}

#[cfg(test)]
mod tests;
