//! The metrics of the CRI, by the names under which cAdvisor made them known, and where each number comes from.
//!
//! Invariant: the table is the only place that knows a metric: what is described is what is told, with the same labels.
//! A number that the kernel does not keep is left out. Values are whole numbers, as the CRI has them: seconds are cut.

use super::detail::{Detail, DeviceIo, HugePages, MemoryDetail, device_name};
use super::network::{InterfaceCounters, NetworkSample};
use super::processes::Processes;

/// Whether a number only grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

/// The values of one family: labels of its own, and the number.
pub type Rows = Vec<(Vec<String>, u64)>;

/// Metrics of one name.
pub struct Family<S: 'static> {
    pub name: &'static str,
    pub help: &'static str,
    pub kind: Kind,
    /// Labels beside those that all metrics have.
    pub labels: &'static [&'static str],
    pub rows: fn(&S) -> Rows,
}

/// The file system of a container's root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    pub device: String,
    pub used_bytes: u64,
    pub size_bytes: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// All that was read of one container.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub cgroup: Detail,
    /// None where they are none of the node's.
    pub processes: Option<Processes>,
    pub disk: Option<DiskUsage>,
    /// Seconds since 1970.
    pub seen_at: u64,
    pub started_at: u64,
}

pub(super) const fn counter<S>(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    rows: fn(&S) -> Rows,
) -> Family<S> {
    Family { name, help, kind: Kind::Counter, labels, rows }
}

pub(super) const fn gauge<S>(
    name: &'static str,
    help: &'static str,
    labels: &'static [&'static str],
    rows: fn(&S) -> Rows,
) -> Family<S> {
    Family { name, help, kind: Kind::Gauge, labels, rows }
}

pub(super) fn seconds(nanos: u64) -> u64 {
    nanos / 1_000_000_000
}

pub(super) fn one(value: Option<u64>) -> Rows {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

pub(super) fn labelled(label: &str, value: Option<u64>) -> Rows {
    value.map(|value| (vec![label.to_owned()], value)).into_iter().collect()
}

pub(super) fn faults(memory: &MemoryDetail) -> Rows {
    let row = |(kind, scope, value): (&str, &str, Option<u64>)| {
        value.map(|value| (vec![kind.to_owned(), scope.to_owned()], value))
    };
    let rows = [
        ("pgfault", "container", memory.faults),
        ("pgmajfault", "container", memory.major_faults),
        ("pgfault", "hierarchy", memory.total_faults),
        ("pgmajfault", "hierarchy", memory.total_major_faults),
    ];
    rows.into_iter().filter_map(row).collect()
}

pub(super) fn huge_pages(seen: &Seen, value: fn(&HugePages) -> Option<u64>) -> Rows {
    let row = |pages: &HugePages| value(pages).map(|value| (vec![pages.size.clone()], value));
    seen.cgroup.huge_pages.iter().filter_map(row).collect()
}

pub(super) fn device_usage(devices: &[DeviceIo]) -> Rows {
    let of_device = |device: &DeviceIo| {
        let (major, minor) = device.number.split_once(':').unwrap_or((device.number.as_str(), ""));
        let labels = vec![device_name(&device.number), major.to_owned(), minor.to_owned()];
        let row =
            |(operation, bytes): &(String, u64)| ([labels.clone(), vec![operation.clone()]].concat(), *bytes);
        device.bytes.iter().map(row).collect::<Rows>()
    };
    devices.iter().flat_map(of_device).collect()
}

pub(super) fn devices(seen: &Seen, list: fn(&DeviceIo) -> &Vec<(String, u64)>, operation: &str) -> Rows {
    let row = |device: &DeviceIo| {
        let found = list(device).iter().find(|(name, _)| name == operation)?;
        Some((vec![device_name(&device.number)], found.1))
    };
    seen.cgroup.devices.iter().filter_map(row).collect()
}

pub(super) fn disk(seen: &Seen, value: fn(&DiskUsage) -> u64) -> Rows {
    seen.disk.iter().map(|disk| (vec![disk.device.clone()], value(disk))).collect()
}

pub(super) fn interfaces(sample: &NetworkSample, value: fn(&InterfaceCounters) -> u64) -> Rows {
    sample.0.iter().map(|link| (vec![link.name.clone()], value(link))).collect()
}

#[cfg(test)]
#[path = "catalogue_tests.rs"]
mod tests;
