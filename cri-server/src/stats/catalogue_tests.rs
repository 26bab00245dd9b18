//! The table against what it is read from.

use std::collections::BTreeSet;

use super::*;
use crate::stats::families::{CONTAINER, POD};

fn everything() -> Seen {
    let full = |n| Some(n);
    let pressure = crate::stats::parse::pressure("some avg10=0 avg60=0 avg300=0 total=3000000\n");
    let pair = |name: &str, n| (name.to_owned(), n);
    let mut seen = Seen { seen_at: 5, started_at: 4, ..Seen::default() };
    seen.disk = Some(DiskUsage { device: "/dev/x".to_owned(), used_bytes: 1, ..DiskUsage::default() });
    seen.processes = Some(Processes { open_files_limit: full(1024), ..Processes::default() });
    let cgroup = &mut seen.cgroup;
    cgroup.cpu.usage = full(2_500_000_000);
    (cgroup.cpu.user, cgroup.cpu.system, cgroup.cpu.periods) = (full(0), full(0), full(0));
    (cgroup.cpu.throttled_periods, cgroup.cpu.throttled) = (full(0), full(0));
    cgroup.memory = MemoryDetail {
        usage: full(1),
        max_usage: full(1),
        working_set: full(1),
        rss: full(1),
        cache: full(1),
        mapped_file: full(1),
        active_file: full(1),
        inactive_file: full(1),
        kernel: full(1),
        swap: full(1),
        limit_hits: full(1),
        oom_kills: full(1),
        faults: full(1),
        major_faults: full(1),
        total_faults: full(1),
        total_major_faults: full(1),
    };
    cgroup.devices = vec![DeviceIo {
        number: "0:4095".to_owned(),
        bytes: vec![pair("Read", 10), pair("Write", 20)],
        operations: vec![pair("Read", 1), pair("Write", 2)],
    }];
    cgroup.huge_pages = vec![HugePages { size: "2MB".to_owned(), usage: full(1), max_usage: full(1) }];
    let limits = &mut cgroup.limits;
    (limits.cpu_period, limits.cpu_quota, limits.cpu_shares) = (full(1), full(1), full(1));
    (limits.memory, limits.memory_reservation, limits.memory_swap) = (full(1), full(1), full(1));
    (cgroup.threads, cgroup.threads_max) = (full(1), full(0));
    (cgroup.cpu_pressure, cgroup.memory_pressure, cgroup.io_pressure) = (pressure, pressure, pressure);
    seen
}

#[test]
fn every_family_tells_what_it_describes() {
    let seen = everything();
    let mut names = BTreeSet::new();
    for family in &CONTAINER {
        let rows = (family.rows)(&seen);
        assert!(!rows.is_empty(), "{} tells nothing", family.name);
        for (labels, _) in &rows {
            assert_eq!(labels.len(), family.labels.len(), "{}", family.name);
        }
        let distinct: BTreeSet<_> = rows.iter().map(|(labels, _)| labels).collect();
        assert_eq!(distinct.len(), rows.len(), "{} has the same labels twice", family.name);
        assert!(names.insert(family.name) && family.help.ends_with('.'), "{}", family.name);
        let counts = family.name != "container_fs_inodes_total"
            && (family.name.ends_with("_total") || family.name.ends_with("failcnt"));
        assert_eq!(family.kind == Kind::Counter, counts, "{}", family.name);
    }
    let links = NetworkSample(vec![InterfaceCounters {
        name: "eth0".to_owned(),
        rx_dropped: 7,
        ..Default::default()
    }]);
    for family in &POD {
        assert_eq!((family.rows)(&links).len(), 1, "{}", family.name);
        assert_eq!(family.labels, ["interface"]);
    }
}

#[test]
fn numbers_come_from_where_they_should() {
    let seen = everything();
    let rows = |name: &str| (CONTAINER.iter().find(|family| family.name == name).unwrap().rows)(&seen);
    assert_eq!(rows("container_cpu_usage_seconds_total"), [(vec!["total".to_owned()], 2)]);
    assert_eq!(rows("container_pressure_io_waiting_seconds_total"), [(Vec::new(), 3)]);
    assert_eq!(rows("container_fs_writes_bytes_total"), [(vec!["0:4095".to_owned()], 20)]);
    assert_eq!(rows("container_fs_reads_total"), [(vec!["0:4095".to_owned()], 1)]);
    let usage = rows("container_blkio_device_usage_total");
    assert_eq!(usage[1], (["0:4095", "0", "4095", "Write"].map(str::to_owned).to_vec(), 20));
    assert_eq!(rows("container_start_time_seconds"), [(Vec::new(), 4)]);
}

#[test]
fn what_is_not_known_is_not_told() {
    let nothing = Seen::default();
    let told: Vec<_> =
        CONTAINER.iter().filter(|family| !(family.rows)(&nothing).is_empty()).map(|f| f.name).collect();
    assert_eq!(told, ["container_last_seen", "container_start_time_seconds"]);
}
