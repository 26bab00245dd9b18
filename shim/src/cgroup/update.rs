//! Changes a container's limits while it runs: OCI `LinuxResources` in JSON, written to the cgroup's files.
//!
//! What a file refuses is an error that names it; what is not in the request stays as it is.

use std::fs;
use std::io;
use std::path::Path;

use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};

use super::CgroupPaths;
use crate::error::ShimError;

/// One file to write: controller on v1, file, text.
type Change = (&'static str, String, String);

pub fn apply(paths: &CgroupPaths, json: &[u8]) -> Result<(), ShimError> {
    let resources: LinuxResources =
        serde_json::from_slice(json).map_err(|e| ShimError::Invalid(format!("resources: {e}")))?;
    if let (true, Some(folder)) = (paths.is_v2(), &paths.unified) {
        for (_, file, text) in unified(&resources) {
            write(folder, &file, &text)?;
        }
        return Ok(());
    }
    for (controller, file, text) in legacy(&resources) {
        let folder = paths.controller(controller).ok_or_else(|| {
            ShimError::Invalid(format!("the container has no {controller} cgroup to set {file}"))
        })?;
        // A limit and the one above it must never cross: what does not fit yet is tried again after the other.
        if write(folder, &file, &text).is_err() {
            retry_memory(folder, &resources, &file, &text)?;
        }
    }
    Ok(())
}

fn retry_memory(folder: &Path, resources: &LinuxResources, file: &str, text: &str) -> Result<(), ShimError> {
    let swap = resources.memory().as_ref().and_then(LinuxMemory::swap);
    match swap {
        Some(swap) if file == "memory.limit_in_bytes" => {
            write(folder, "memory.memsw.limit_in_bytes", &swap.to_string())?;
        }
        _ => {}
    }
    write(folder, file, text)
}

fn write(folder: &Path, file: &str, text: &str) -> Result<(), ShimError> {
    let path = folder.join(file);
    fs::write(&path, text).map_err(|source| {
        let source = io::Error::new(source.kind(), format!("{source} (value {text})"));
        ShimError::Path { operation: "write", path, source }
    })
}

fn legacy(resources: &LinuxResources) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    if let Some(memory) = resources.memory() {
        let files = [
            ("memory.limit_in_bytes", memory.limit()),
            ("memory.memsw.limit_in_bytes", memory.swap()),
            ("memory.soft_limit_in_bytes", memory.reservation()),
        ];
        for (file, value) in files {
            changes.extend(value.map(|v| ("memory", file.to_owned(), v.to_string())));
        }
    }
    if let Some(cpu) = resources.cpu() {
        let shares = cpu.shares().filter(|n| *n != 0);
        changes.extend(shares.map(|n| ("cpu", "cpu.shares".to_owned(), n.to_string())));
        let period = cpu.period().filter(|n| *n != 0);
        changes.extend(period.map(|n| ("cpu", "cpu.cfs_period_us".to_owned(), n.to_string())));
        let quota = cpu.quota().filter(|n| *n != 0);
        changes.extend(quota.map(|n| ("cpu", "cpu.cfs_quota_us".to_owned(), n.to_string())));
        changes.extend(cpusets("cpuset", cpu));
    }
    if let Some(pids) = resources.pids() {
        changes.push(("pids", "pids.max".to_owned(), limit(pids.limit())));
    }
    changes
}

fn unified(resources: &LinuxResources) -> Vec<Change> {
    let mut changes: Vec<Change> = Vec::new();
    if let Some(memory) = resources.memory() {
        changes.extend(memory.limit().map(|n| ("", "memory.max".to_owned(), limit(n))));
        changes.extend(memory.reservation().map(|n| ("", "memory.low".to_owned(), limit(n))));
        // v2 counts swap alone, the specification counts it together with memory.
        if let (Some(both), Some(memory)) = (memory.swap(), memory.limit()) {
            let swap = if both < 0 { both } else { (both - memory).max(0) };
            let text = if swap < 0 { "max".to_owned() } else { swap.to_string() };
            changes.push(("", "memory.swap.max".to_owned(), text));
        }
    }
    if let Some(cpu) = resources.cpu() {
        let shares = cpu.shares().filter(|n| *n != 0);
        changes.extend(shares.map(|n| ("", "cpu.weight".to_owned(), weight(n).to_string())));
        if let Some(quota) = cpu.quota().filter(|n| *n != 0) {
            let period = cpu.period().filter(|n| *n != 0).unwrap_or(100_000);
            changes.push(("", "cpu.max".to_owned(), format!("{} {period}", limit(quota))));
        }
        changes.extend(cpusets("", cpu));
    }
    if let Some(pids) = resources.pids() {
        changes.push(("", "pids.max".to_owned(), limit(pids.limit())));
    }
    for (file, value) in resources.unified().iter().flatten().filter(|(file, _)| !file.contains('/')) {
        changes.push(("", file.clone(), value.clone()));
    }
    changes
}

fn cpusets(controller: &'static str, cpu: &LinuxCpu) -> Vec<Change> {
    let files = [("cpuset.cpus", cpu.cpus()), ("cpuset.mems", cpu.mems())];
    let set = files.into_iter().filter_map(|(file, value)| {
        let value = value.clone().filter(|v| !v.is_empty())?;
        Some((controller, file.to_owned(), value))
    });
    set.collect()
}

/// Zero and below mean that there is no limit.
fn limit(n: i64) -> String {
    if n <= 0 { "max".to_owned() } else { n.to_string() }
}

/// Shares of 2..262144 onto weights of 1..10000, the line that the specification's authors agreed on.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(json: &str, of: impl Fn(&LinuxResources) -> Vec<Change>) -> Vec<(String, String)> {
        let resources = serde_json::from_str(json).unwrap();
        of(&resources).into_iter().map(|(_, file, text)| (file, text)).collect()
    }

    fn pair(file: &str, text: &str) -> (String, String) {
        (file.to_owned(), text.to_owned())
    }

    #[test]
    fn only_what_is_asked_for_is_written() {
        let json = r#"{"cpu":{"shares":512,"quota":50000,"period":100000},"pids":{"limit":9}}"#;
        let expected =
            [("cpu.shares", "512"), ("cpu.cfs_period_us", "100000"), ("cpu.cfs_quota_us", "50000")];
        let mut expected: Vec<_> = expected.iter().map(|(f, t)| pair(f, t)).collect();
        expected.push(pair("pids.max", "9"));
        assert_eq!(changes(json, legacy), expected);
        assert_eq!(changes("{}", legacy), []);
    }

    #[test]
    fn v2_has_its_own_files_and_scales() {
        let json = r#"{"memory":{"limit":100,"swap":150},"cpu":{"quota":-1,"shares":1024}}"#;
        let expected = [
            pair("memory.max", "100"),
            pair("memory.swap.max", "50"),
            pair("cpu.weight", "39"),
            pair("cpu.max", "max 100000"),
        ];
        assert_eq!(changes(json, unified), expected);
        assert_eq!((weight(2), weight(262_144)), (1, 10000));
    }
}
