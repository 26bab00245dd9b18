//! The files of cgroup v2. See `admin-guide/cgroup-v2.rst` of the kernel.

use std::path::Path;

use super::{CpuDetail, Detail, DeviceIo, limit_or_zero, text};
use crate::cgroup::keyed;
use crate::stats::parse;

/// `cpu.stat`, whose times are microseconds.
pub(super) fn cpu_time(stat: &str) -> CpuDetail {
    let nanos = |key: &str| keyed(stat, key)?.checked_mul(1000);
    CpuDetail {
        usage: nanos("usage_usec"),
        user: nanos("user_usec"),
        system: nanos("system_usec"),
        periods: keyed(stat, "nr_periods"),
        throttled_periods: keyed(stat, "nr_throttled"),
        throttled: nanos("throttled_usec"),
    }
}

pub(super) fn cpu_limits(folder: &Path, into: &mut Detail) {
    (into.limits.cpu_quota, into.limits.cpu_period) = quota_and_period(&text(folder, "cpu.max"));
    into.limits.cpu_shares = parse::number(&text(folder, "cpu.weight")).map(shares);
}

/// `20000 100000`, or `max 100000` without a limit.
pub(super) fn quota_and_period(text: &str) -> (Option<u64>, Option<u64>) {
    let mut fields = text.split_whitespace().map(|field| field.parse().ok());
    (fields.next().flatten(), fields.next().flatten())
}

/// The shares of v1 that OCI runtimes turn into this weight.
pub(super) fn shares(weight: u64) -> u64 {
    2 + weight.saturating_sub(1).saturating_mul(262_142) / 9999
}

pub(super) fn memory(folder: &Path, into: &mut Detail) {
    let stat = text(folder, "memory.stat");
    let stat = |key: &str| keyed(&stat, key);
    let events = text(folder, "memory.events");
    let memory = &mut into.memory;
    memory.usage = parse::number(&text(folder, "memory.current"));
    memory.max_usage = parse::number(&text(folder, "memory.peak"));
    memory.swap = parse::number(&text(folder, "memory.swap.current"));
    memory.limit_hits = keyed(&events, "max");
    memory.oom_kills = keyed(&events, "oom_kill");
    memory.rss = stat("anon");
    memory.cache = stat("file");
    memory.mapped_file = stat("file_mapped");
    memory.active_file = stat("active_file");
    memory.inactive_file = stat("inactive_file");
    // Kernels before 5.18 do not add it up.
    memory.kernel = stat("kernel").or_else(|| Some(stat("kernel_stack")? + stat("slab")?));
    // v2 counts what is below as well, and nothing else.
    (memory.faults, memory.major_faults) = (stat("pgfault"), stat("pgmajfault"));
    (memory.total_faults, memory.total_major_faults) = (memory.faults, memory.major_faults);
    memory.working_set = memory.usage.map(|used| used.saturating_sub(memory.inactive_file.unwrap_or(0)));
    let limits = &mut into.limits;
    limits.memory = limit_or_zero(&text(folder, "memory.max"));
    limits.memory_reservation = limit_or_zero(&text(folder, "memory.low"));
    limits.memory_swap = with_swap(limits.memory, &text(folder, "memory.swap.max"));
    into.memory_pressure = parse::pressure(&text(folder, "memory.pressure"));
}

/// v1's limit is that of both together: none, told as 0, where either has none.
pub(super) fn with_swap(memory: Option<u64>, swap: &str) -> Option<u64> {
    let memory = memory.filter(|_| !swap.trim().is_empty())?;
    Some(parse::limit(swap).filter(|_| memory > 0).map_or(0, |swap| memory.saturating_add(swap)))
}

/// `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`, a line for each device.
pub(super) fn devices(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let (number, rest) = line.split_once(' ')?;
        let mut device = DeviceIo { number: number.to_owned(), ..DeviceIo::default() };
        for field in rest.split_whitespace() {
            let Some((key, value)) = field.split_once('=') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (list, operation) = match key {
                "rbytes" => (&mut device.bytes, "Read"),
                "wbytes" => (&mut device.bytes, "Write"),
                "dbytes" => (&mut device.bytes, "Discard"),
                "rios" => (&mut device.operations, "Read"),
                "wios" => (&mut device.operations, "Write"),
                "dios" => (&mut device.operations, "Discard"),
                _ => continue,
            };
            list.push((operation.to_owned(), value));
        }
        (!device.bytes.is_empty()).then_some(device)
    };
    text.lines().filter_map(device).collect()
}
