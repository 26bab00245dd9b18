//! The files of cgroup v1. See `admin-guide/cgroup-v1/` of the kernel.

use std::path::Path;

use super::{CpuDetail, Detail, DeviceIo, limit_or_zero, text};
use crate::cgroup::keyed;
use crate::stats::parse;

pub(super) fn cpuacct(folder: &Path, into: &mut CpuDetail) {
    let get = |file: &str| parse::number(&text(folder, file));
    into.usage = get("cpuacct.usage");
    into.user = get("cpuacct.usage_user");
    into.system = get("cpuacct.usage_sys");
}

pub(super) fn cpu(folder: &Path, into: &mut Detail) {
    let stat = text(folder, "cpu.stat");
    into.cpu.periods = keyed(&stat, "nr_periods");
    into.cpu.throttled_periods = keyed(&stat, "nr_throttled");
    into.cpu.throttled = keyed(&stat, "throttled_time");
    let get = |file: &str| parse::number(&text(folder, file));
    into.limits.cpu_period = get("cpu.cfs_period_us");
    // "-1" is no limit, and no number here.
    into.limits.cpu_quota = get("cpu.cfs_quota_us");
    into.limits.cpu_shares = get("cpu.shares");
}

pub(super) fn memory(folder: &Path, into: &mut Detail) {
    let get = |file: &str| parse::number(&text(folder, file));
    let stat = text(folder, "memory.stat");
    let stat = |key: &str| keyed(&stat, key);
    let memory = &mut into.memory;
    memory.usage = get("memory.usage_in_bytes");
    memory.max_usage = get("memory.max_usage_in_bytes");
    memory.kernel = get("memory.kmem.usage_in_bytes");
    memory.limit_hits = get("memory.failcnt");
    memory.oom_kills = keyed(&text(folder, "memory.oom_control"), "oom_kill");
    memory.rss = stat("total_rss");
    memory.cache = stat("total_cache");
    memory.mapped_file = stat("total_mapped_file");
    memory.active_file = stat("total_active_file");
    memory.inactive_file = stat("total_inactive_file");
    memory.swap = stat("total_swap");
    memory.faults = stat("pgfault");
    memory.major_faults = stat("pgmajfault");
    memory.total_faults = stat("total_pgfault");
    memory.total_major_faults = stat("total_pgmajfault");
    memory.working_set = memory.usage.map(|used| used.saturating_sub(memory.inactive_file.unwrap_or(0)));
    into.limits.memory = limit_or_zero(&text(folder, "memory.limit_in_bytes"));
    into.limits.memory_reservation = limit_or_zero(&text(folder, "memory.soft_limit_in_bytes"));
    into.limits.memory_swap = limit_or_zero(&text(folder, "memory.memsw.limit_in_bytes"));
}

pub(super) fn devices(folder: &Path) -> Vec<DeviceIo> {
    let bytes = text(folder, "blkio.throttle.io_service_bytes_recursive");
    let operations = text(folder, "blkio.throttle.io_serviced_recursive");
    devices_of(&bytes, &operations)
}

/// Lines of `8:0 Read 4096`, and one without a device for the sum of all.
pub(super) fn devices_of(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    let mut each = |text: &str, add: fn(&mut DeviceIo, (String, u64))| {
        for line in text.lines() {
            let mut fields = line.split_whitespace();
            let (Some(number), Some(operation), Some(value)) = (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let Ok(value) = value.parse() else { continue };
            let at = devices.iter().position(|device| device.number == number).unwrap_or_else(|| {
                devices.push(DeviceIo { number: number.to_owned(), ..DeviceIo::default() });
                devices.len() - 1
            });
            add(&mut devices[at], (operation.to_owned(), value));
        }
    };
    each(bytes, |device, row| device.bytes.push(row));
    each(operations, |device, row| device.operations.push(row));
    devices
}
