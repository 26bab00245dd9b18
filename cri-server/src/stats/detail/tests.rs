//! Readings of written-out cgroups of both kinds.

use std::collections::BTreeMap;

use super::*;

fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        fs::write(folder.join(name), text).unwrap();
    }
}

#[test]
fn v1_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    write(
        folder.path(),
        &[
            ("cpuacct.usage", "7000000000\n"),
            ("cpuacct.usage_user", "5000000000\n"),
            ("cpuacct.usage_sys", "2000000000\n"),
            ("cpu.stat", "nr_periods 10\nnr_throttled 3\nthrottled_time 4000000000\n"),
            ("cpu.cfs_period_us", "100000\n"),
            ("cpu.cfs_quota_us", "-1\n"),
            ("cpu.shares", "1024\n"),
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.max_usage_in_bytes", "1500\n"),
            ("memory.kmem.usage_in_bytes", "64\n"),
            ("memory.failcnt", "9\n"),
            ("memory.limit_in_bytes", "2000\n"),
            ("memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory.memsw.limit_in_bytes", "2500\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
            (
                "memory.stat",
                "pgfault 1\npgmajfault 2\ntotal_cache 300\ntotal_rss 400\ntotal_mapped_file 30\ntotal_swap 50\n\
                 total_pgfault 11\ntotal_pgmajfault 12\ntotal_inactive_file 100\ntotal_active_file 200\n",
            ),
            (
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            ),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n9:1 Read 7\nTotal 3\n"),
            ("hugetlb.2MB.usage_in_bytes", "4096\n"),
            ("hugetlb.2MB.max_usage_in_bytes", "8192\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
        ],
    );
    let names = ["cpuacct", "cpu", "memory", "blkio", "pids", "hugetlb"];
    let controllers: BTreeMap<_, _> =
        names.into_iter().map(|name| (name.to_owned(), folder.path().to_path_buf())).collect();
    let read = detail(&CgroupPaths { controllers, unified: None });
    assert_eq!(
        (read.cpu.usage, read.cpu.user, read.cpu.system),
        (Some(7 * 1_000_000_000), Some(5 * 1_000_000_000), Some(2 * 1_000_000_000))
    );
    assert_eq!((read.cpu.periods, read.cpu.throttled_periods), (Some(10), Some(3)));
    assert_eq!(read.cpu.throttled, Some(4_000_000_000));
    let limits = Limits {
        cpu_period: Some(100_000),
        cpu_quota: None,
        cpu_shares: Some(1024),
        memory: Some(2000),
        memory_reservation: Some(0),
        memory_swap: Some(2500),
    };
    assert_eq!(read.limits, limits);
    let memory = MemoryDetail {
        usage: Some(1000),
        max_usage: Some(1500),
        working_set: Some(900),
        rss: Some(400),
        cache: Some(300),
        mapped_file: Some(30),
        active_file: Some(200),
        inactive_file: Some(100),
        kernel: Some(64),
        swap: Some(50),
        limit_hits: Some(9),
        oom_kills: Some(2),
        faults: Some(1),
        major_faults: Some(2),
        total_faults: Some(11),
        total_major_faults: Some(12),
    };
    assert_eq!(read.memory, memory);
    assert_eq!((read.devices.len(), read.devices[0].bytes.len()), (2, 3), "the sum of all is no device");
    assert_eq!(read.devices[1].operations, [("Read".to_owned(), 7)]);
    let pages = HugePages { size: "2MB".to_owned(), usage: Some(4096), max_usage: Some(8192) };
    assert_eq!(read.huge_pages, [pages]);
    assert_eq!((read.threads, read.threads_max), (Some(3), Some(0)));
    assert_eq!(read.memory_pressure, None);
}

#[test]
fn v2_is_read_whole() {
    let folder = tempfile::tempdir().unwrap();
    let pressure =
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4\n";
    write(
        folder.path(),
        &[
            (
                "cpu.stat",
                "usage_usec 7000000\nuser_usec 5000000\nsystem_usec 2000000\nnr_periods 10\nnr_throttled 3\n\
                 throttled_usec 4000000\n",
            ),
            ("cpu.max", "20000 100000\n"),
            ("cpu.weight", "39\n"),
            ("cpu.pressure", pressure),
            ("memory.current", "1000\n"),
            ("memory.peak", "1500\n"),
            ("memory.max", "2000\n"),
            ("memory.low", "0\n"),
            ("memory.swap.max", "500\n"),
            ("memory.swap.current", "50\n"),
            ("memory.events", "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n"),
            ("memory.pressure", pressure),
            (
                "memory.stat",
                "anon 400\nfile 300\nkernel_stack 16\nslab 48\nfile_mapped 30\ninactive_file 100\nactive_file 200\n\
                 pgfault 11\npgmajfault 12\n",
            ),
            ("io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n"),
            ("io.pressure", pressure),
            ("hugetlb.2MB.current", "4096\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
            ("pids.current", "3\n"),
            ("pids.max", "100\n"),
        ],
    );
    let read = detail(&CgroupPaths { unified: Some(folder.path().to_path_buf()), ..CgroupPaths::default() });
    assert_eq!((read.cpu.usage, read.cpu.throttled), (Some(7_000_000_000), Some(4_000_000_000)));
    assert_eq!((read.limits.cpu_quota, read.limits.cpu_period), (Some(20_000), Some(100_000)));
    assert_eq!((read.limits.cpu_shares, read.limits.memory), (Some(998), Some(2000)));
    assert_eq!((read.limits.memory_reservation, read.limits.memory_swap), (Some(0), Some(2500)));
    assert_eq!((read.memory.kernel, read.memory.max_usage), (Some(64), Some(1500)));
    assert_eq!((read.memory.limit_hits, read.memory.oom_kills), (Some(9), Some(2)));
    assert_eq!((read.memory.total_faults, read.memory.total_major_faults), (Some(11), Some(12)));
    let device = DeviceIo {
        number: "254:0".to_owned(),
        bytes: vec![("Read".to_owned(), 10), ("Write".to_owned(), 20), ("Discard".to_owned(), 0)],
        operations: vec![("Read".to_owned(), 1), ("Write".to_owned(), 2), ("Discard".to_owned(), 0)],
    };
    assert_eq!(read.devices, [device]);
    assert_eq!(read.huge_pages[0].usage, Some(4096));
    assert_eq!((read.huge_pages.len(), read.huge_pages[0].max_usage), (1, None));
    for pressure in [read.cpu_pressure, read.memory_pressure, read.io_pressure] {
        let pressure = pressure.unwrap();
        assert_eq!((pressure.some.total, pressure.full.total), (9, 4));
    }
    assert_eq!((read.threads, read.threads_max), (Some(3), Some(100)));
}

#[test]
fn limits_of_v2_in_the_words_of_v1() {
    assert_eq!(v2::quota_and_period("max 100000\n"), (None, Some(100_000)));
    assert_eq!(v2::quota_and_period(""), (None, None));
    assert_eq!((v2::shares(1), v2::shares(10_000)), (2, 262_144));
    let table = [
        (Some(2000), "500\n", Some(2500)),
        (Some(2000), "max\n", Some(0)),
        (Some(0), "500\n", Some(0)),
        (Some(2000), "", None),
        (None, "500\n", None),
    ];
    for (memory, swap, expected) in table {
        assert_eq!(v2::with_swap(memory, swap), expected, "{memory:?} {swap:?}");
    }
}

#[test]
fn a_cgroup_that_is_gone_tells_nothing() {
    let gone = CgroupPaths { unified: Some("/nonexistent".into()), ..CgroupPaths::default() };
    assert_eq!(detail(&gone), Detail::default());
}
