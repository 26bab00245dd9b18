//! The files of cgroup v1, in an order in which no limit ever crosses another.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Change, block, cpusets, hugepages, limit};
use crate::cgroup::CgroupPaths;
use crate::error::ShimError;

/// What the kernel shows and takes as "no limit".
const UNLIMITED: i64 = -1;

pub(super) fn plan(paths: &CgroupPaths, resources: &LinuxResources) -> Result<Vec<Change>, ShimError> {
    let of = |controller: &str| {
        let missing = || ShimError::Invalid(format!("the container has no {controller} cgroup to limit"));
        paths.controller(controller).ok_or_else(missing)
    };
    if resources.unified().as_ref().is_some_and(|files| !files.is_empty()) {
        return Err(ShimError::Invalid("unified resources need cgroup v2; this node has v1".into()));
    }
    let mut changes = Vec::new();
    if let Some(memory) = resources.memory().as_ref().filter(|m| **m != LinuxMemory::default()) {
        changes.extend(self::memory(of("memory")?, memory)?);
    }
    if let Some(cpu) = resources.cpu().as_ref().filter(|c| **c != LinuxCpu::default()) {
        changes.extend(self::cpu(of("cpu")?, cpu));
        if cpu.cpus().is_some() || cpu.mems().is_some() {
            changes.extend(cpusets(of("cpuset")?, cpu));
        }
    }
    if let Some(pids) = resources.pids() {
        changes.push(Change::new(of("pids")?, "pids.max", limit(pids.limit())));
    }
    if let Some(limits) = resources.hugepage_limits().as_deref().filter(|limits| !limits.is_empty()) {
        // On a hybrid node the controller may be in the unified hierarchy, where `place` has put the container.
        changes.extend(match (paths.controller("hugetlb"), &paths.unified) {
            (None, Some(folder)) => hugepages(folder, limits, "max")?,
            _ => hugepages(of("hugetlb")?, limits, "limit_in_bytes")?,
        });
    }
    if let Some(io) = resources.block_io() {
        changes.extend(block::legacy(of("blkio")?, io));
    }
    Ok(changes)
}

fn read(folder: &Path, file: &str) -> Option<i64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    // Larger than any signed number is no limit.
    Some(text.trim().parse().unwrap_or(UNLIMITED))
}

/// Zero is how the specification's authors write "not given".
fn given(value: Option<i64>) -> Option<i64> {
    value.filter(|n| *n != 0)
}

fn memory(folder: &Path, memory: &LinuxMemory) -> Result<Vec<Change>, ShimError> {
    let (both_file, file) = ("memory.memsw.limit_in_bytes", "memory.limit_in_bytes");
    let limit = given(memory.limit());
    // Memory without a limit has no room below one of memory and swap together.
    let both = given(memory.swap()).or(limit.filter(|n| *n < 0));
    // A node that does not count swap cannot be asked to forbid or to allow it.
    let counted = folder.join(both_file).exists();
    let both = both.filter(|both| counted || (*both > 0 && Some(*both) != limit));
    let mut changes: Vec<Change> = limit.map(|n| Change::new(folder, file, n)).into_iter().collect();
    if let Some(both) = both {
        let present = read(folder, both_file).unwrap_or(UNLIMITED);
        let grows = limit.is_some_and(|n| present >= 0 && (n < 0 || n > present));
        let change = Change::new(folder, both_file, both);
        // The limit of memory may never be above that of memory and swap.
        changes.insert(if grows { 0 } else { changes.len() }, change);
    }
    changes.extend(given(memory.reservation()).map(|n| Change::new(folder, "memory.soft_limit_in_bytes", n)));
    changes
        .extend(given(memory.kernel_tcp()).map(|n| Change::new(folder, "memory.kmem.tcp.limit_in_bytes", n)));
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > 100 {
            return Err(ShimError::Invalid(format!("swappiness {swappiness} is not within 0 to 100")));
        }
        changes.push(Change::new(folder, "memory.swappiness", swappiness));
    }
    if memory.disable_oom_killer() == Some(true) {
        let undo = Some("0".to_owned());
        changes.push(Change { undo, ..Change::new(folder, "memory.oom_control", 1) });
    }
    Ok(changes)
}

fn cpu(folder: &Path, cpu: &LinuxCpu) -> Vec<Change> {
    let mut changes = Vec::new();
    changes.extend(cpu.idle().map(|n| Change::new(folder, "cpu.idle", n)));
    // The kernel does not weigh a group that gets only what nobody else wants.
    let shares = cpu.shares().filter(|n| *n != 0 && cpu.idle() != Some(1));
    changes.extend(shares.map(|n| Change::new(folder, "cpu.shares", n)));
    let period = cpu.period().filter(|n| *n != 0);
    let quota = given(cpu.quota());
    let burst = cpu.burst().map(|n| Change::new(folder, "cpu.cfs_burst_us", n));
    let mut bandwidth: Vec<Change> = Vec::new();
    bandwidth.extend(period.map(|n| Change::new(folder, "cpu.cfs_period_us", n)));
    bandwidth.extend(quota.map(|n| Change::new(folder, "cpu.cfs_quota_us", n)));
    if let (Some(period), Some(quota)) = (period, quota) {
        // In between, the share of a processor must not be above the pod's: the lesser of both ways is taken.
        let now = (read(folder, "cpu.cfs_quota_us"), read(folder, "cpu.cfs_period_us"));
        if let (Some(old_quota), Some(old_period)) = now
            && share(quota, old_period) < share(old_quota, i64::try_from(period).unwrap_or(i64::MAX))
        {
            bandwidth.reverse();
        }
    }
    // A burst may not be above the quota: what is smaller than before goes first.
    let smaller = burst.as_ref().is_some_and(|new| {
        let old = read(folder, "cpu.cfs_burst_us").unwrap_or(0);
        new.text.parse::<i64>().is_ok_and(|new| new < old)
    });
    let at = if smaller { 0 } else { bandwidth.len() };
    bandwidth.splice(at..at, burst);
    changes.extend(bandwidth);
    changes.extend(
        cpu.realtime_period().filter(|n| *n != 0).map(|n| Change::new(folder, "cpu.rt_period_us", n)),
    );
    changes.extend(
        cpu.realtime_runtime().filter(|n| *n != 0).map(|n| Change::new(folder, "cpu.rt_runtime_us", n)),
    );
    changes
}

/// Millionths of a processor; a container without a quota is bounded by its pod alone.
fn share(quota: i64, period: i64) -> i64 {
    if quota < 0 { 0 } else { quota.saturating_mul(1_000_000) / period.max(1) }
}
