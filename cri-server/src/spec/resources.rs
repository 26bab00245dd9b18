//! The resources of a container, and the path of its cgroup.
//!
//! Invariant: zero in the CRI means "not given" and writes nothing. What the node cannot enforce is left out with a
//! warning, as a pod that runs with fewer limits serves its user better than one that never starts; what contradicts
//! itself is refused.

use std::path::PathBuf;

use cofferdam_proto::cri;
use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxResources};

use super::error::SpecError;
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
    cpu.set_quota((request.cpu_quota != 0).then_some(request.cpu_quota));
    cpu.set_cpus(text(&request.cpuset_cpus));
    cpu.set_mems(text(&request.cpuset_mems));
    Ok(cpu)
}

fn memory(request: &cri::LinuxContainerResources, features: &Features) -> Result<LinuxMemory, SpecError> {
    let limit = request.memory_limit_in_bytes;
    let swap = request.memory_swap_limit_in_bytes;
    positive("memory_limit_in_bytes", limit)?;
    let mut memory = LinuxMemory::default();
    memory.set_limit((limit != 0).then_some(limit));
    if swap > 0 && (limit == 0 || swap < limit) {
        return Err(SpecError::Invalid {
            field: "memory_swap_limit_in_bytes",
            value: swap.to_string(),
            why: "it counts memory and swap together and cannot be below the memory limit",
        });
    }
    if features.swap_accounting {
        // Equal to the limit means: no swap. Without it a limited container would swap at will.
        memory.set_swap(if swap != 0 { Some(swap) } else { (limit != 0).then_some(limit) });
    } else if swap != 0 {
        tracing::warn!(swap, "the node does not account for swap: the limit is left out");
    }
    Ok(memory)
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
/// When a number contradicts itself or another.
pub fn build(
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
    if features.layout.is_unified() && !request.unified.is_empty() {
        if let Some(bad) = request.unified.keys().find(|key| key.is_empty() || key.contains(['/', '\0'])) {
            return Err(SpecError::Invalid {
                field: "unified resource",
                value: bad.clone(),
                why: "it is not the name of a file of a cgroup",
            });
        }
        resources.set_unified(Some(request.unified.clone()));
    } else if !request.unified.is_empty() {
        tracing::warn!("unified resources need cgroup v2: they are left out");
    }
    Ok(resources)
}

/// The resources after an update: what the request gives takes the place of what was, the rest stays.
///
/// # Errors
/// When a number contradicts itself or another.
pub fn updated(
    before: &LinuxResources,
    request: &cri::LinuxContainerResources,
    features: &Features,
) -> Result<LinuxResources, SpecError> {
    let asked = build(request, None, features)?;
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
    after.set_memory(Some(memory));
    if let Some(limits) = asked.hugepage_limits() {
        after.set_hugepage_limits(Some(limits.clone()));
    }
    if let Some(new) = asked.unified() {
        let mut unified = before.unified().clone().unwrap_or_default();
        unified.extend(new.clone());
        after.set_unified(Some(unified));
    }
    Ok(after)
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

/// The `cgroupsPath` of a container or sandbox below the pod's cgroup.
///
/// # Errors
/// When the parent climbs, or is no slice while systemd keeps the cgroups.
pub fn cgroups_path(features: &Features, parent: &str, id: &str) -> Result<PathBuf, SpecError> {
    crate::cgroup::cgroups_path(features.driver, parent, id)
        .map(PathBuf::from)
        .map_err(|why| SpecError::Invalid { field: "cgroup_parent", value: parent.to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::Layout;

    fn request() -> cri::LinuxContainerResources {
        cri::LinuxContainerResources::default()
    }

    #[test]
    fn zero_writes_nothing() {
        let built = build(&request(), None, &Features::default()).unwrap();
        assert_eq!(built.cpu(), &Some(LinuxCpu::default()));
        assert_eq!(built.memory(), &Some(LinuxMemory::default()));
        assert_eq!((built.pids(), built.hugepage_limits(), built.unified()), (&None, &None, &None));
    }

    #[test]
    fn cpu_goes_through() {
        let request = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: -1,
            cpu_period: 100_000,
            cpuset_cpus: "0-1".to_owned(),
            cpuset_mems: "0".to_owned(),
            ..request()
        };
        let built = build(&request, Some(77), &Features::default()).unwrap();
        let cpu = built.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.period()), (Some(512), Some(-1), Some(100_000)));
        assert_eq!((cpu.cpus().as_deref(), cpu.mems().as_deref()), (Some("0-1"), Some("0")));
        assert_eq!(built.pids().unwrap().limit(), 77);
        assert!(
            build(&cri::LinuxContainerResources { cpu_shares: -5, ..request }, None, &Features::default())
                .is_err()
        );
    }

    #[test]
    fn a_memory_limit_forbids_swap_unless_swap_is_given() {
        let table = [
            (100, 0, true, Ok((Some(100), Some(100)))),
            (100, 300, true, Ok((Some(100), Some(300)))),
            (100, -1, true, Ok((Some(100), Some(-1)))),
            (100, 0, false, Ok((Some(100), None))),
            (100, 300, false, Ok((Some(100), None))),
            (0, 0, true, Ok((None, None))),
            (100, 50, true, Err(())),
            (0, 50, true, Err(())),
            (-1, 0, true, Err(())),
        ];
        for (limit, swap, swap_accounting, expected) in table {
            let request = cri::LinuxContainerResources {
                memory_limit_in_bytes: limit,
                memory_swap_limit_in_bytes: swap,
                ..request()
            };
            let features = Features { swap_accounting, ..Features::default() };
            let built = build(&request, None, &features).map_err(|_| ());
            let memory = built.map(|built| (built.memory().unwrap().limit(), built.memory().unwrap().swap()));
            assert_eq!(memory, expected, "limit {limit}, swap {swap}");
        }
    }

    #[test]
    fn an_update_changes_only_what_it_names() {
        let features = Features { swap_accounting: true, ..Features::default() };
        let first = cri::LinuxContainerResources {
            cpu_shares: 512,
            cpu_quota: 1000,
            memory_limit_in_bytes: 100,
            cpuset_cpus: "0".to_owned(),
            ..request()
        };
        let before = build(&first, Some(7), &features).unwrap();
        let second = cri::LinuxContainerResources { cpu_quota: -1, memory_limit_in_bytes: 200, ..request() };
        let after = updated(&before, &second, &features).unwrap();
        let cpu = after.cpu().as_ref().unwrap();
        assert_eq!((cpu.shares(), cpu.quota(), cpu.cpus().as_deref()), (Some(512), Some(-1), Some("0")));
        let memory = after.memory().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(200), Some(200)));
        assert_eq!(after.pids().unwrap().limit(), 7);
        assert_eq!(updated(&before, &request(), &features).unwrap(), before);
    }

    #[test]
    fn huge_pages_and_unified_depend_on_the_node() {
        let mut request = request();
        request.hugepage_limits = vec![cri::HugepageLimit { page_size: "2MB".to_owned(), limit: 4 << 20 }];
        request.unified.insert("memory.high".to_owned(), "1000".to_owned());
        let bare = Features { hugetlb: false, layout: Layout::Legacy, ..Features::default() };
        let built = build(&request, None, &bare).unwrap();
        assert_eq!((built.hugepage_limits(), built.unified()), (&None, &None));
        let rich = Features { hugetlb: true, layout: Layout::Unified, ..Features::default() };
        let built = build(&request, None, &rich).unwrap();
        assert_eq!(built.hugepage_limits().as_ref().unwrap()[0].page_size(), "2MB");
        assert_eq!(built.unified().as_ref().unwrap()["memory.high"], "1000");
        request.unified.insert("../x".to_owned(), "1".to_owned());
        assert!(build(&request, None, &rich).is_err());
    }

    #[test]
    fn the_oom_score_is_raised_to_what_the_node_allows() {
        let weak = Features { min_oom_score_adj: 0, ..Features::default() };
        let strong = Features { min_oom_score_adj: -1000, ..Features::default() };
        assert_eq!(oom_score_adj(-998, &weak).unwrap(), 0);
        assert_eq!(oom_score_adj(-998, &strong).unwrap(), -998);
        assert_eq!(oom_score_adj(500, &weak).unwrap(), 500);
        assert!(oom_score_adj(1001, &weak).is_err() && oom_score_adj(-1001, &weak).is_err());
    }
}
