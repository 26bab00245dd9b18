//! The tables of the metrics; see `catalogue` for their columns.

use super::catalogue::{
    Family, Seen, counter, device_usage, devices, disk, faults, gauge, huge_pages, interfaces, labelled, one,
    seconds,
};
use super::network::NetworkSample;

/// Of a container.
pub static CONTAINER: [Family<Seen>; 50] = [
    counter("container_cpu_usage_seconds_total", "Processor time used, in seconds.", &["cpu"], |s| {
        labelled("total", s.cgroup.cpu.usage.map(seconds))
    }),
    counter("container_cpu_user_seconds_total", "Processor time used in user space, in seconds.", &[], |s| {
        one(s.cgroup.cpu.user.map(seconds))
    }),
    counter(
        "container_cpu_system_seconds_total",
        "Processor time used in the kernel, in seconds.",
        &[],
        |s| one(s.cgroup.cpu.system.map(seconds)),
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods of the processor quota that have passed.",
        &[],
        |s| one(s.cgroup.cpu.periods),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the processor quota was used up.",
        &[],
        |s| one(s.cgroup.cpu.throttled_periods),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time spent waiting for the processor quota, in seconds.",
        &[],
        |s| one(s.cgroup.cpu.throttled.map(seconds)),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which no task could go on for want of the processor, in seconds.",
        &[],
        |s| one(s.cgroup.cpu_pressure.map(|p| p.full.total / 1_000_000)),
    ),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some task waited for the processor, in seconds.",
        &[],
        |s| one(s.cgroup.cpu_pressure.map(|p| p.some.total / 1_000_000)),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which no task could go on for want of memory, in seconds.",
        &[],
        |s| one(s.cgroup.memory_pressure.map(|p| p.full.total / 1_000_000)),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some task waited for memory, in seconds.",
        &[],
        |s| one(s.cgroup.memory_pressure.map(|p| p.some.total / 1_000_000)),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which no task could go on for want of block devices, in seconds.",
        &[],
        |s| one(s.cgroup.io_pressure.map(|p| p.full.total / 1_000_000)),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some task waited for block devices, in seconds.",
        &[],
        |s| one(s.cgroup.io_pressure.map(|p| p.some.total / 1_000_000)),
    ),
    gauge("container_memory_cache", "Page cache, in bytes.", &[], |s| one(s.cgroup.memory.cache)),
    gauge("container_memory_rss", "Anonymous memory, in bytes.", &[], |s| one(s.cgroup.memory.rss)),
    gauge("container_memory_kernel_usage", "Memory of the kernel, in bytes.", &[], |s| {
        one(s.cgroup.memory.kernel)
    }),
    gauge("container_memory_mapped_file", "Mapped files, in bytes.", &[], |s| {
        one(s.cgroup.memory.mapped_file)
    }),
    gauge("container_memory_swap", "Swap used, in bytes.", &[], |s| one(s.cgroup.memory.swap)),
    gauge("container_memory_usage_bytes", "Memory used, whatever for, in bytes.", &[], |s| {
        one(s.cgroup.memory.usage)
    }),
    gauge("container_memory_max_usage_bytes", "The most memory ever used, in bytes.", &[], |s| {
        one(s.cgroup.memory.max_usage)
    }),
    gauge(
        "container_memory_working_set_bytes",
        "Memory used without the inactive page cache, in bytes.",
        &[],
        |s| one(s.cgroup.memory.working_set),
    ),
    gauge("container_memory_total_active_file_bytes", "Active page cache, in bytes.", &[], |s| {
        one(s.cgroup.memory.active_file)
    }),
    gauge("container_memory_total_inactive_file_bytes", "Inactive page cache, in bytes.", &[], |s| {
        one(s.cgroup.memory.inactive_file)
    }),
    counter("container_memory_failcnt", "How often the memory limit was hit.", &[], |s| {
        one(s.cgroup.memory.limit_hits)
    }),
    counter(
        "container_memory_failures_total",
        "Page faults, by kind, of the cgroup alone and with those below it.",
        &["failure_type", "scope"],
        |s| faults(&s.cgroup.memory),
    ),
    counter("container_oom_events_total", "Processes killed for want of memory.", &[], |s| {
        one(s.cgroup.memory.oom_kills)
    }),
    gauge("container_hugetlb_usage_bytes", "Huge pages used, in bytes.", &["pagesize"], |s| {
        huge_pages(s, |pages| pages.usage)
    }),
    gauge(
        "container_hugetlb_max_usage_bytes",
        "The most huge pages ever used, in bytes.",
        &["pagesize"],
        |s| huge_pages(s, |pages| pages.max_usage),
    ),
    counter(
        "container_blkio_device_usage_total",
        "Bytes to and from block devices, by operation.",
        &["device", "major", "minor", "operation"],
        |s| device_usage(&s.cgroup.devices),
    ),
    counter("container_fs_reads_bytes_total", "Bytes read.", &["device"], |s| {
        devices(s, |device| &device.bytes, "Read")
    }),
    counter("container_fs_reads_total", "Reads done.", &["device"], |s| {
        devices(s, |device| &device.operations, "Read")
    }),
    counter("container_fs_writes_bytes_total", "Bytes written.", &["device"], |s| {
        devices(s, |device| &device.bytes, "Write")
    }),
    counter("container_fs_writes_total", "Writes done.", &["device"], |s| {
        devices(s, |device| &device.operations, "Write")
    }),
    gauge(
        "container_fs_usage_bytes",
        "What the container has written to its root, in bytes.",
        &["device"],
        |s| disk(s, |disk| disk.used_bytes),
    ),
    gauge(
        "container_fs_limit_bytes",
        "Size of the file system of the container's root, in bytes.",
        &["device"],
        |s| disk(s, |disk| disk.size_bytes),
    ),
    gauge("container_fs_inodes_free", "Free inodes of that file system.", &["device"], |s| {
        disk(s, |disk| disk.inodes_free)
    }),
    gauge("container_fs_inodes_total", "Inodes of that file system.", &["device"], |s| {
        disk(s, |disk| disk.inodes)
    }),
    gauge("container_processes", "Processes.", &[], |s| one(s.processes.map(|p| p.processes))),
    gauge("container_threads", "Threads.", &[], |s| one(s.cgroup.threads)),
    gauge(
        "container_threads_max",
        "The most threads allowed; 0 for as many as there is room for.",
        &[],
        |s| one(s.cgroup.threads_max),
    ),
    gauge("container_file_descriptors", "Open file descriptors of all processes.", &[], |s| {
        one(s.processes.map(|p| p.descriptors))
    }),
    gauge("container_sockets", "Open sockets of all processes.", &[], |s| {
        one(s.processes.map(|p| p.sockets))
    }),
    gauge("container_ulimits_soft", "Soft limits of the first process; 2^64-1 for none.", &["ulimit"], |s| {
        labelled("max_open_files", s.processes.and_then(|p| p.open_files_limit))
    }),
    gauge("container_last_seen", "When the container was last seen, in seconds since 1970.", &[], |s| {
        one(Some(s.seen_at))
    }),
    gauge(
        "container_start_time_seconds",
        "When the container was started, in seconds since 1970.",
        &[],
        |s| one(Some(s.started_at)),
    ),
    gauge("container_spec_cpu_period", "Period of the processor quota, in microseconds.", &[], |s| {
        one(s.cgroup.limits.cpu_period)
    }),
    gauge("container_spec_cpu_quota", "Processor quota for each period, in microseconds.", &[], |s| {
        one(s.cgroup.limits.cpu_quota)
    }),
    gauge("container_spec_cpu_shares", "Weight among other users of the processor.", &[], |s| {
        one(s.cgroup.limits.cpu_shares)
    }),
    gauge("container_spec_memory_limit_bytes", "Memory limit, in bytes; 0 for none.", &[], |s| {
        one(s.cgroup.limits.memory)
    }),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is reclaimed last, in bytes; 0 for none.",
        &[],
        |s| one(s.cgroup.limits.memory_reservation),
    ),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together, in bytes; 0 for none.",
        &[],
        |s| one(s.cgroup.limits.memory_swap),
    ),
];

/// Of a pod with a network of its own.
pub static POD: [Family<NetworkSample>; 8] = [
    counter("container_network_receive_bytes_total", "Bytes received.", &["interface"], |s| {
        interfaces(s, |link| link.rx_bytes)
    }),
    counter("container_network_receive_packets_total", "Packets received.", &["interface"], |s| {
        interfaces(s, |link| link.rx_packets)
    }),
    counter(
        "container_network_receive_packets_dropped_total",
        "Packets dropped instead of being received.",
        &["interface"],
        |s| interfaces(s, |link| link.rx_dropped),
    ),
    counter(
        "container_network_receive_errors_total",
        "Packets not received because of errors.",
        &["interface"],
        |s| interfaces(s, |link| link.rx_errors),
    ),
    counter("container_network_transmit_bytes_total", "Bytes sent.", &["interface"], |s| {
        interfaces(s, |link| link.tx_bytes)
    }),
    counter("container_network_transmit_packets_total", "Packets sent.", &["interface"], |s| {
        interfaces(s, |link| link.tx_packets)
    }),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped instead of being sent.",
        &["interface"],
        |s| interfaces(s, |link| link.tx_dropped),
    ),
    counter(
        "container_network_transmit_errors_total",
        "Packets not sent because of errors.",
        &["interface"],
        |s| interfaces(s, |link| link.tx_errors),
    ),
];
