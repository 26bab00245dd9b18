//! The files of cgroup v2.

use std::fs;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::{Change, block, cpusets, hugepages, limit, number};
use crate::error::ShimError;

pub(super) fn plan(folder: &Path, resources: &LinuxResources) -> Result<Vec<Change>, ShimError> {
    let mut changes = Vec::new();
    if let Some(memory) = resources.memory() {
        changes.extend(self::memory(folder, memory)?);
    }
    if let Some(cpu) = resources.cpu() {
        changes.extend(self::cpu(folder, cpu)?);
        changes.extend(cpusets(folder, cpu));
    }
    if let Some(pids) = resources.pids() {
        changes.push(Change::new(folder, "pids.max", limit(pids.limit())));
    }
    if let Some(limits) = resources.hugepage_limits() {
        changes.extend(hugepages(folder, limits, "max")?);
    }
    if let Some(io) = resources.block_io() {
        changes.extend(block::unified(folder, io));
    }
    // Last, so that they have the last word on a file that another field names too.
    for (file, value) in resources.unified().iter().flatten() {
        if file.is_empty() || file.contains('/') {
            return Err(ShimError::Invalid(format!("{file:?} is not the name of a file of a cgroup")));
        }
        if file == "memory.max" {
            make_room(folder, value.trim().parse().unwrap_or(-1))?;
        }
        changes.retain(|change| !change.is(file));
        changes.push(Change::new(folder, file, value));
    }
    Ok(changes)
}

fn memory(folder: &Path, memory: &LinuxMemory) -> Result<Vec<Change>, ShimError> {
    if memory.swappiness().is_some() {
        return Err(ShimError::Invalid("swappiness is a setting of cgroup v1; this node has v2".into()));
    }
    let wanted = memory.limit().filter(|n| *n != 0);
    if let Some(bytes) = wanted {
        make_room(folder, bytes)?;
    }
    let mut changes = Vec::new();
    let swap = swap(folder, memory.swap().unwrap_or(0), wanted)?;
    // Where nothing counts swap there is nothing to forbid or to allow.
    let counted = folder.join("memory.swap.max").exists();
    let swap = swap.filter(|text| counted || !matches!(text.as_str(), "0" | "max"));
    changes.extend(swap.map(|text| Change::new(folder, "memory.swap.max", text)));
    changes.extend(wanted.map(|n| Change::new(folder, "memory.max", limit(n))));
    let reservation = memory.reservation().filter(|n| *n != 0);
    changes.extend(reservation.map(|n| Change::new(folder, "memory.low", limit(n))));
    Ok(changes)
}

/// v2 counts swap alone, the specification counts it together with memory.
fn swap(folder: &Path, both: i64, memory: Option<i64>) -> Result<Option<String>, ShimError> {
    // Not asked for by this request: the limit that is in force, if there is one.
    let memory = memory.or_else(|| i64::try_from(number(&folder.join("memory.max"))?).ok());
    match (both, memory) {
        (0, Some(memory)) if memory < 0 => Ok(Some("max".to_owned())),
        (0, _) => Ok(None),
        (both, _) if both < 0 => Ok(Some("max".to_owned())),
        (both, Some(memory)) if memory > both => Err(ShimError::Invalid(format!(
            "memory and swap together ({both}) cannot have less than memory alone ({memory})"
        ))),
        (both, Some(memory)) if memory >= 0 => Ok(Some((both - memory).to_string())),
        (both, _) => Ok(Some(both.to_string())),
    }
}

/// The kernel takes any limit and kills what does not fit in it. So a limit below the use is only given when the kernel
/// can take the difference back without killing anybody.
fn make_room(folder: &Path, bytes: i64) -> Result<(), ShimError> {
    let Ok(bytes) = u64::try_from(bytes) else { return Ok(()) };
    let used = || number(&folder.join("memory.current")).unwrap_or(0);
    let over = used().saturating_sub(bytes);
    if over == 0 {
        return Ok(());
    }
    // A kernel before 5.19 has no such file; one that could not take back all of it says so by an error.
    drop(fs::write(folder.join("memory.reclaim"), over.to_string()));
    let used = used();
    if used > bytes {
        let path = folder.join("memory.max");
        let words =
            format!("{} cannot become {bytes}: the container uses more ({used} bytes)", path.display());
        return Err(ShimError::Limit(words));
    }
    Ok(())
}

fn cpu(folder: &Path, cpu: &LinuxCpu) -> Result<Vec<Change>, ShimError> {
    if cpu.realtime_runtime().unwrap_or(0) != 0 || cpu.realtime_period().unwrap_or(0) != 0 {
        return Err(ShimError::Invalid(
            "limits of real-time processes need cgroup v1; this node has v2".into(),
        ));
    }
    let mut changes = Vec::new();
    changes.extend(cpu.idle().map(|n| Change::new(folder, "cpu.idle", n)));
    // The kernel does not weigh a group that gets only what nobody else wants.
    let shares = cpu.shares().filter(|n| *n != 0 && cpu.idle() != Some(1));
    changes.extend(shares.map(|n| Change::new(folder, "cpu.weight", weight(n))));
    let (quota, period) = (cpu.quota().filter(|n| *n != 0), cpu.period().filter(|n| *n != 0));
    let burst = cpu.burst().map(|n| Change::new(folder, "cpu.max.burst", n));
    if quota.is_some() || period.is_some() {
        let text = fs::read_to_string(folder.join("cpu.max")).unwrap_or_default();
        let mut now = text.split_whitespace().map(str::to_owned);
        let (old_quota, old_period) = (now.next(), now.next());
        let quota = quota.map(limit).or(old_quota).unwrap_or_else(|| "max".to_owned());
        let period = period.map(|n| n.to_string()).or(old_period).unwrap_or_else(|| "100000".to_owned());
        changes.push(Change::new(folder, "cpu.max", format!("{quota} {period}")));
    }
    // A burst may not be above the quota: what is smaller than before goes first.
    let old = number(&folder.join("cpu.max.burst")).unwrap_or(0);
    let smaller = cpu.burst().is_some_and(|new| new < old);
    let at = if smaller { 0 } else { changes.len() };
    changes.splice(at..at, burst);
    Ok(changes)
}

/// Shares of 2 to 262144 onto weights of 1 to 10000. A curve in their logarithms that meets both ends and turns the
/// default of one scale, 1024, into that of the other, 100; OCI runtimes have agreed on it in 2025.
fn weight(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    #[expect(clippy::cast_precision_loss, reason = "shares are below 2^18")]
    let doublings = (shares as f64).log2();
    let power = (doublings * doublings + 125.0 * doublings) / 612.0 - 7.0 / 34.0;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the curve lies between 1 and 10000"
    )]
    let weight = 10f64.powf(power).ceil() as u64;
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_and_the_default_of_both_scales_meet() {
        let table = [(0, 1), (2, 1), (3, 2), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)];
        for (shares, expected) in table {
            assert_eq!(weight(shares), expected, "{shares}");
        }
    }

    #[test]
    fn swap_is_what_is_left_of_both() {
        let folder = tempfile::tempdir().unwrap();
        let of = |both, memory| swap(folder.path(), both, memory).map_err(|_| ());
        let text = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(of(150, Some(100)), text("50"));
        assert_eq!(of(100, Some(100)), text("0"));
        assert_eq!(of(-1, Some(100)), text("max"));
        assert_eq!(of(0, Some(100)), Ok(None));
        assert_eq!(of(0, Some(-1)), text("max"));
        assert_eq!(of(70, None), text("70"));
        assert_eq!(of(70, Some(100)), Err(()));
        fs::write(folder.path().join("memory.max"), "60\n").unwrap();
        assert_eq!(of(70, None), text("10"));
    }
}
