//! Reads a container's resource usage into the messages that containerd's clients know, v1 or v2.
//!
//! A file that is not there leaves its numbers at zero: which controllers exist differs from node to node.

use std::fs;
use std::path::Path;

use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};

use super::{CgroupPaths, keyed};
use crate::error::ShimError;

pub fn read(paths: &CgroupPaths) -> Result<Any, ShimError> {
    let encoded = if let (true, Some(folder)) = (paths.is_v2(), &paths.unified) {
        unified(folder).write_to_bytes().map(|bytes| ("io.containerd.cgroups.v2.Metrics", bytes))
    } else {
        legacy(paths).write_to_bytes().map(|bytes| ("io.containerd.cgroups.v1.Metrics", bytes))
    };
    let (type_url, value) = encoded.map_err(|e| ShimError::io("encode the metrics")(e.into()))?;
    Ok(Any { type_url: type_url.to_owned(), value, ..Any::default() })
}

fn text(folder: Option<&Path>, file: &str) -> String {
    folder.and_then(|f| fs::read_to_string(f.join(file)).ok()).unwrap_or_default()
}

fn number(folder: Option<&Path>, file: &str) -> u64 {
    parse_limit(text(folder, file).trim())
}

/// `max` means that there is no limit.
fn parse_limit(word: &str) -> u64 {
    if word == "max" { u64::MAX } else { word.parse().unwrap_or_default() }
}

fn legacy(paths: &CgroupPaths) -> v1::Metrics {
    let mut metrics = v1::Metrics::new();
    let pids = paths.controller("pids");
    metrics.pids = MessageField::some(v1::PidsStat {
        current: number(pids, "pids.current"),
        limit: Some(number(pids, "pids.max")).filter(|n| *n != u64::MAX).unwrap_or_default(),
        ..Default::default()
    });
    metrics.cpu = MessageField::some(legacy_cpu(paths));
    metrics.memory = MessageField::some(legacy_memory(paths.controller("memory")));
    let control = text(paths.controller("memory"), "memory.oom_control");
    metrics.memory_oom_control = MessageField::some(v1::MemoryOomControl {
        oom_kill_disable: keyed(&control, "oom_kill_disable").unwrap_or_default(),
        under_oom: keyed(&control, "under_oom").unwrap_or_default(),
        oom_kill: keyed(&control, "oom_kill").unwrap_or_default(),
        ..Default::default()
    });
    let blkio = paths.controller("blkio");
    let mut stat = v1::BlkIOStat::new();
    stat.io_service_bytes_recursive =
        block_entries(&text(blkio, "blkio.throttle.io_service_bytes_recursive"));
    stat.io_serviced_recursive = block_entries(&text(blkio, "blkio.throttle.io_serviced_recursive"));
    metrics.blkio = MessageField::some(stat);
    metrics
}

fn legacy_cpu(paths: &CgroupPaths) -> v1::CPUStat {
    let (cpuacct, cpu) = (paths.controller("cpuacct"), paths.controller("cpu"));
    let usage = v1::CPUUsage {
        total: number(cpuacct, "cpuacct.usage"),
        kernel: number(cpuacct, "cpuacct.usage_sys"),
        user: number(cpuacct, "cpuacct.usage_user"),
        per_cpu: text(cpuacct, "cpuacct.usage_percpu").split_whitespace().map(parse_limit).collect(),
        ..Default::default()
    };
    let stat = text(cpu, "cpu.stat");
    let throttle = v1::Throttle {
        periods: keyed(&stat, "nr_periods").unwrap_or_default(),
        throttled_periods: keyed(&stat, "nr_throttled").unwrap_or_default(),
        throttled_time: keyed(&stat, "throttled_time").unwrap_or_default(),
        ..Default::default()
    };
    v1::CPUStat {
        usage: MessageField::some(usage),
        throttling: MessageField::some(throttle),
        ..Default::default()
    }
}

fn legacy_memory(folder: Option<&Path>) -> v1::MemoryStat {
    let stat = text(folder, "memory.stat");
    let get = |key| keyed(&stat, key).unwrap_or_default();
    let entry = |prefix: &str| {
        MessageField::some(v1::MemoryEntry {
            limit: number(folder, &format!("{prefix}.limit_in_bytes")),
            usage: number(folder, &format!("{prefix}.usage_in_bytes")),
            max: number(folder, &format!("{prefix}.max_usage_in_bytes")),
            failcnt: number(folder, &format!("{prefix}.failcnt")),
            ..Default::default()
        })
    };
    v1::MemoryStat {
        cache: get("cache"),
        rss: get("rss"),
        rss_huge: get("rss_huge"),
        mapped_file: get("mapped_file"),
        dirty: get("dirty"),
        writeback: get("writeback"),
        pg_pg_in: get("pgpgin"),
        pg_pg_out: get("pgpgout"),
        pg_fault: get("pgfault"),
        pg_maj_fault: get("pgmajfault"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        hierarchical_memory_limit: get("hierarchical_memory_limit"),
        hierarchical_swap_limit: get("hierarchical_memsw_limit"),
        total_cache: get("total_cache"),
        total_rss: get("total_rss"),
        total_rss_huge: get("total_rss_huge"),
        total_mapped_file: get("total_mapped_file"),
        total_dirty: get("total_dirty"),
        total_writeback: get("total_writeback"),
        total_pg_pg_in: get("total_pgpgin"),
        total_pg_pg_out: get("total_pgpgout"),
        total_pg_fault: get("total_pgfault"),
        total_pg_maj_fault: get("total_pgmajfault"),
        total_inactive_anon: get("total_inactive_anon"),
        total_active_anon: get("total_active_anon"),
        total_inactive_file: get("total_inactive_file"),
        total_active_file: get("total_active_file"),
        total_unevictable: get("total_unevictable"),
        usage: entry("memory"),
        swap: entry("memory.memsw"),
        kernel: entry("memory.kmem"),
        kernel_tcp: entry("memory.kmem.tcp"),
        ..Default::default()
    }
}

/// Lines of `major:minor Operation value`; the total at the end has no device.
fn block_entries(text: &str) -> Vec<v1::BlkIOEntry> {
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let (major, minor) = words.next()?.split_once(':')?;
        Some(v1::BlkIOEntry {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            op: words.next()?.to_owned(),
            value: words.next()?.parse().ok()?,
            ..Default::default()
        })
    };
    text.lines().filter_map(entry).collect()
}

fn unified(folder: &Path) -> v2::Metrics {
    let folder = Some(folder);
    let mut metrics = v2::Metrics::new();
    metrics.pids = MessageField::some(v2::PidsStat {
        current: number(folder, "pids.current"),
        limit: number(folder, "pids.max"),
        ..Default::default()
    });
    let cpu = text(folder, "cpu.stat");
    let get = |key| keyed(&cpu, key).unwrap_or_default();
    metrics.cpu = MessageField::some(v2::CPUStat {
        usage_usec: get("usage_usec"),
        user_usec: get("user_usec"),
        system_usec: get("system_usec"),
        nr_periods: get("nr_periods"),
        nr_throttled: get("nr_throttled"),
        throttled_usec: get("throttled_usec"),
        ..Default::default()
    });
    metrics.memory = MessageField::some(unified_memory(folder));
    let events = text(folder, "memory.events");
    let get = |key| keyed(&events, key).unwrap_or_default();
    metrics.memory_events = MessageField::some(v2::MemoryEvents {
        low: get("low"),
        high: get("high"),
        max: get("max"),
        oom: get("oom"),
        oom_kill: get("oom_kill"),
        oom_group_kill: get("oom_group_kill"),
        ..Default::default()
    });
    let mut io = v2::IOStat::new();
    io.usage = text(folder, "io.stat").lines().filter_map(io_entry).collect();
    metrics.io = MessageField::some(io);
    metrics
}

fn unified_memory(folder: Option<&Path>) -> v2::MemoryStat {
    let stat = text(folder, "memory.stat");
    let get = |key| keyed(&stat, key).unwrap_or_default();
    v2::MemoryStat {
        anon: get("anon"),
        file: get("file"),
        kernel_stack: get("kernel_stack"),
        slab: get("slab"),
        sock: get("sock"),
        shmem: get("shmem"),
        file_mapped: get("file_mapped"),
        file_dirty: get("file_dirty"),
        file_writeback: get("file_writeback"),
        anon_thp: get("anon_thp"),
        inactive_anon: get("inactive_anon"),
        active_anon: get("active_anon"),
        inactive_file: get("inactive_file"),
        active_file: get("active_file"),
        unevictable: get("unevictable"),
        slab_reclaimable: get("slab_reclaimable"),
        slab_unreclaimable: get("slab_unreclaimable"),
        pgfault: get("pgfault"),
        pgmajfault: get("pgmajfault"),
        usage: number(folder, "memory.current"),
        usage_limit: number(folder, "memory.max"),
        swap_usage: number(folder, "memory.swap.current"),
        swap_limit: number(folder, "memory.swap.max"),
        max_usage: number(folder, "memory.peak"),
        ..Default::default()
    }
}

fn io_entry(line: &str) -> Option<v2::IOEntry> {
    let mut words = line.split_whitespace();
    let (major, minor) = words.next()?.split_once(':')?;
    let mut entry =
        v2::IOEntry { major: major.parse().ok()?, minor: minor.parse().ok()?, ..Default::default() };
    for (key, value) in words.filter_map(|word| word.split_once('=')) {
        let value = value.parse().unwrap_or_default();
        match key {
            "rbytes" => entry.rbytes = value,
            "wbytes" => entry.wbytes = value,
            "rios" => entry.rios = value,
            "wios" => entry.wios = value,
            _ => {}
        }
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lines_of_both_worlds_are_read() {
        let entries = block_entries("8:0 Read 4096\n8:0 Write 1\nTotal 4097\n");
        assert_eq!((entries.len(), entries[0].op.as_str(), entries[0].value), (2, "Read", 4096));
        let entry = io_entry("8:16 rbytes=5 wbytes=6 rios=7 wios=8 dbytes=0").unwrap();
        assert_eq!((entry.major, entry.minor, entry.rbytes, entry.wios), (8, 16, 5, 8));
    }
}
