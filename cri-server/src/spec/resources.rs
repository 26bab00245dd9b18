//! The resources of a container, and the path of its cgroup.
//!
//! Invariant: zero in the CRI means "not given" and writes nothing. Limits of swap and huge pages that the node cannot
//! count are left out with a warning, as a pod that runs with fewer limits serves its user better than one that never
//! starts, and the kubelet names both on every node. What contradicts itself, or names what the node does not have,
//! is refused.

use std::collections::HashMap;

use cofferdam_proto::cri;
use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources, Process, Spec,
};

use super::error::SpecError;
use crate::cgroup::Form;
use crate::node::Features;

fn positive(field: &'static str, value: i64) -> Result<Option<u64>, SpecError> {
    match value {
        0 => Ok(None),
        value => u64::try_from(value).map(Some).map_err(|_| SpecError::Invalid {
            field,
            value: value.to_string(),
            why: "it is negative",
        }),
    }
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn cpu(request: &cri::LinuxContainerResources) -> Result<LinuxCpu, SpecError> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive("cpu_shares", request.cpu_shares)?);
    cpu.set_period(positive("cpu_period", request.cpu_period)?);
    // Negative means "no quota" to the kernel, and the kubelet may say so.
    cpu.set_quota((request.cpu_quota != 0).then_some(request.cpu_quota.max(-1)));
    cpu.set_cpus(text(&request.cpuset_cpus));
    cpu.set_mems(text(&request.cpuset_mems));
    Ok(cpu)
}

fn memory(request: &cri::LinuxContainerResources, features: &Features) -> Result<LinuxMemory, SpecError> {
    let limit = amount("memory_limit_in_bytes", request.memory_limit_in_bytes)?;
    let swap = amount("memory_swap_limit_in_bytes", request.memory_swap_limit_in_bytes)?;
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit);
    if features.swap_accounting {
        // Equal to the limit means: no swap. Without it a limited container would swap at will.
        memory.set_swap(swap.or(limit));
    } else if let Some(swap) = swap {
        tracing::warn!(swap, "the node does not account for swap: the limit is left out");
    }
    Ok(memory)
}

/// A number of bytes; none for zero, -1 for "without a limit".
fn amount(field: &'static str, value: i64) -> Result<Option<i64>, SpecError> {
    if value < -1 {
        let why = "expected a number of bytes, or -1 for no limit";
        return Err(SpecError::Invalid { field, value: value.to_string(), why });
    }
    Ok((value != 0).then_some(value))
}

fn check_swap(memory: &LinuxMemory) -> Result<(), SpecError> {
    let limit = memory.limit().map_or(i64::MAX, |limit| if limit < 0 { i64::MAX } else { limit });
    match memory.swap().filter(|swap| *swap >= 0 && *swap < limit) {
        None => Ok(()),
        Some(swap) => Err(SpecError::Invalid {
            field: "memory_swap_limit_in_bytes",
            value: swap.to_string(),
            why: "it counts memory and swap together and cannot be below the memory limit",
        }),
    }
}

/// Files of a cgroup that move or end processes, or change how the cgroup is built: no limits.
const NOT_LIMITS: [&str; 6] = [
    "cgroup.procs",
    "cgroup.threads",
    "cgroup.kill",
    "cgroup.freeze",
    "cgroup.type",
    "cgroup.subtree_control",
];

fn unified(
    request: &cri::LinuxContainerResources,
    features: &Features,
) -> Result<Option<HashMap<String, String>>, SpecError> {
    let Some(some) = request.unified.keys().next() else { return Ok(None) };
    if !features.layout.is_unified() {
        return Err(SpecError::Unavailable {
            what: "unified resource",
            value: some.clone(),
            why: "it needs cgroup v2, and the node has v1",
        });
    }
    let is_limit = |key: &str| {
        !key.contains(['/', '\0']) && key.contains('.') && !key.starts_with('.') && !NOT_LIMITS.contains(&key)
    };
    if let Some(bad) = request.unified.keys().find(|key| !is_limit(key)) {
        return Err(SpecError::Invalid {
            field: "unified resource",
            value: bad.clone(),
            why: "it is not the name of a limit of cgroup v2",
        });
    }
    Ok(Some(request.unified.clone()))
}

fn hugepages(
    request: &cri::LinuxContainerResources,
    features: &Features,
) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    if request.hugepage_limits.is_empty() {
        return Ok(None);
    }
    if !features.hugetlb {
        // The kubelet names every page size with a limit of zero, also where nobody uses huge pages.
        if request.hugepage_limits.iter().any(|limit| limit.limit > 0) {
            tracing::warn!("the node has no hugetlb controller: limits of huge pages are left out");
        }
        return Ok(None);
    }
    let one = |limit: &cri::HugepageLimit| {
        let bytes = i64::try_from(limit.limit).map_err(|_| SpecError::Invalid {
            field: "hugepage limit",
            value: limit.limit.to_string(),
            why: "it is too large",
        })?;
        let mut out = LinuxHugepageLimit::default();
        out.set_page_size(limit.page_size.clone());
        out.set_limit(bytes);
        Ok(out)
    };
    request.hugepage_limits.iter().map(one).collect::<Result<Vec<_>, _>>().map(Some)
}

/// The resources of a container, without its devices.
///
/// # Errors
/// When a number contradicts itself or another, or the node does not have what is named.
pub fn build(
    request: &cri::LinuxContainerResources,
    pids_limit: Option<i64>,
    features: &Features,
) -> Result<LinuxResources, SpecError> {
    let resources = given(request, pids_limit, features)?;
    resources.memory().as_ref().map_or(Ok(()), check_swap)?;
    Ok(resources)
}

/// What a request gives, each by itself.
fn given(
    request: &cri::LinuxContainerResources,
    pids_limit: Option<i64>,
    features: &Features,
) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu(request)?));
    resources.set_memory(Some(memory(request, features)?));
    resources.set_hugepage_limits(hugepages(request, features)?);
    if let Some(limit) = pids_limit {
        let mut pids = LinuxPids::default();
        pids.set_limit(limit);
        resources.set_pids(Some(pids));
    }
    resources.set_unified(unified(request, features)?);
    Ok(resources)
}

/// The resources after an update: what the request gives takes the place of what was, the rest stays. As at creation, a
/// limit of memory without one of swap means no swap.
///
/// # Errors
/// When a number contradicts itself or another, or the node does not have what is named.
pub fn updated(
    before: &LinuxResources,
    request: &cri::LinuxContainerResources,
    features: &Features,
) -> Result<LinuxResources, SpecError> {
    let asked = given(request, None, features)?;
    let mut after = before.clone();
    let mut cpu = before.cpu().clone().unwrap_or_default();
    if let Some(new) = asked.cpu() {
        cpu.set_shares(new.shares().or(cpu.shares()));
        cpu.set_quota(new.quota().or(cpu.quota()));
        cpu.set_period(new.period().or(cpu.period()));
        cpu.set_cpus(new.cpus().clone().or(cpu.cpus().clone()));
        cpu.set_mems(new.mems().clone().or(cpu.mems().clone()));
    }
    after.set_cpu(Some(cpu));
    let mut memory = before.memory().unwrap_or_default();
    if let Some(new) = asked.memory() {
        memory.set_limit(new.limit().or(memory.limit()));
        memory.set_swap(new.swap().or(memory.swap()));
    }
    check_swap(&memory)?;
    after.set_memory(Some(memory));
    if let Some(limits) = asked.hugepage_limits() {
        let mut all = before.hugepage_limits().clone().unwrap_or_default();
        all.retain(|old| limits.iter().all(|new| new.page_size() != old.page_size()));
        all.extend(limits.iter().cloned());
        after.set_hugepage_limits(Some(all));
    }
    if let Some(new) = asked.unified() {
        let mut unified = before.unified().clone().unwrap_or_default();
        unified.extend(new.clone());
        after.set_unified(Some(unified));
    }
    Ok(after)
}

/// What a spec puts into force, in the words of the CRI: for a container's status.
#[must_use]
pub fn in_effect(spec: &Spec) -> cri::LinuxContainerResources {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
    let cpu = resources.cpu().clone().unwrap_or_default();
    let memory = resources.memory().unwrap_or_default();
    let number = |value: Option<u64>| value.and_then(|n| i64::try_from(n).ok()).unwrap_or(0);
    let huge = |limit: &LinuxHugepageLimit| cri::HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or(u64::MAX),
    };
    cri::LinuxContainerResources {
        cpu_period: number(cpu.period()),
        cpu_quota: cpu.quota().unwrap_or(0),
        cpu_shares: number(cpu.shares()),
        memory_limit_in_bytes: memory.limit().unwrap_or(0),
        oom_score_adj: spec.process().as_ref().and_then(Process::oom_score_adj).unwrap_or(0).into(),
        cpuset_cpus: cpu.cpus().clone().unwrap_or_default(),
        cpuset_mems: cpu.mems().clone().unwrap_or_default(),
        hugepage_limits: resources.hugepage_limits().iter().flatten().map(huge).collect(),
        unified: resources.unified().clone().unwrap_or_default(),
        memory_swap_limit_in_bytes: memory.swap().unwrap_or(0),
    }
}

/// The OOM score adjustment, raised to what this daemon may give.
///
/// # Errors
/// When it is outside -1000 to 1000.
pub fn oom_score_adj(requested: i64, features: &Features) -> Result<i32, SpecError> {
    let score =
        i32::try_from(requested).ok().filter(|score| (-1000..=1000).contains(score)).ok_or_else(|| {
            SpecError::Invalid {
                field: "oom_score_adj",
                value: requested.to_string(),
                why: "expected -1000 to 1000",
            }
        })?;
    if score < features.min_oom_score_adj {
        tracing::debug!(
            score,
            lowest = features.min_oom_score_adj,
            "the OOM score is raised: no CAP_SYS_RESOURCE"
        );
    }
    Ok(score.max(features.min_oom_score_adj))
}

/// The `cgroupsPath` of container `id` of the sandbox `pod`; a pause container bears its sandbox's id.
///
/// # Errors
/// When the parent climbs, or belongs to the other driver.
pub fn cgroups_path(
    features: &Features,
    form: Form,
    parent: &str,
    pod: &str,
    id: &str,
) -> Result<String, SpecError> {
    crate::cgroup::container_path(features.driver, form, parent, pod, id)
        .map_err(|why| SpecError::Invalid { field: "cgroup_parent", value: parent.to_owned(), why })
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
