//! Adjustments and updates of a container's resources.
//!
//! Unlike the kubelet's limits, which are left out with a warning where the node cannot enforce them, a plugin's are
//! refused: a plugin asks for what it knows to be there.

use cofferdam_proto::{cri, nri};
use oci_spec::runtime::{Linux, LinuxCpu, LinuxHugepageLimit, LinuxIntelRdt, LinuxMemory, LinuxPids};

use super::devices;
use crate::node::Features;
use crate::spec::SpecError;

fn unavailable(what: &'static str, value: impl ToString, why: &'static str) -> SpecError {
    SpecError::Unavailable { what, value: value.to_string(), why }
}

/// Changes the resources of a spec.
pub fn apply(linux: &mut Linux, wanted: &nri::LinuxResources, features: &Features) -> Result<(), SpecError> {
    check(wanted, features)?;
    let resources = linux.resources_mut().get_or_insert_default();
    if let Some(wanted) = &wanted.memory {
        let mut known = resources.memory().unwrap_or_default();
        memory(&mut known, wanted, features);
        resources.set_memory(Some(known));
    }
    if let Some(wanted) = &wanted.cpu {
        let mut known = resources.cpu().clone().unwrap_or_default();
        cpu(&mut known, wanted);
        resources.set_cpu(Some(known));
    }
    if !wanted.hugepage_limits.is_empty() {
        let mut known = resources.hugepage_limits().clone().unwrap_or_default();
        for limit in &wanted.hugepage_limits {
            known.retain(|other| other.page_size() != &limit.page_size);
            known.push(hugepages(limit)?);
        }
        resources.set_hugepage_limits(Some(known));
    }
    if !wanted.unified.is_empty() {
        let mut known = resources.unified().clone().unwrap_or_default();
        known.extend(wanted.unified.clone());
        resources.set_unified(Some(known));
    }
    if let Some(wanted) = &wanted.pids {
        let mut pids = LinuxPids::default();
        // Zero and less mean no limit, to plugins and to runtimes.
        pids.set_limit(if wanted.limit > 0 { wanted.limit } else { -1 });
        resources.set_pids(Some(pids));
    }
    devices::permit(linux, &wanted.devices)?;
    rdt_class(linux, wanted.rdt_class.as_ref());
    Ok(())
}

/// Refuses what this node cannot do.
fn check(wanted: &nri::LinuxResources, features: &Features) -> Result<(), SpecError> {
    let unified = features.layout.is_unified();
    if let Some(class) = wanted.blockio_class.as_ref().filter(|class| !class.value.is_empty()) {
        return Err(unavailable("block I/O class", &class.value, "no such classes are configured"));
    }
    if let Some(memory) = &wanted.memory {
        check_memory(memory, unified, features)?;
    }
    if let Some(cpu) = &wanted.cpu
        && unified
        && (cpu.realtime_runtime.is_some() || cpu.realtime_period.is_some())
    {
        return Err(unavailable("realtime CPU limit", "", "cgroup v2 has none"));
    }
    if !features.hugetlb && wanted.hugepage_limits.iter().any(|limit| limit.limit > 0) {
        return Err(unavailable("limit of huge pages", "", "the node has no hugetlb controller"));
    }
    if let Some(key) = wanted.unified.keys().next().filter(|_| !unified) {
        return Err(unavailable("unified resource", key, "it needs cgroup v2"));
    }
    if let Some(bad) = wanted.unified.keys().find(|key| key.is_empty() || key.contains(['/', '\0'])) {
        let why = "it is not the name of a file of a cgroup";
        return Err(SpecError::Invalid { field: "unified resource", value: bad.clone(), why });
    }
    Ok(())
}

fn check_memory(memory: &nri::LinuxMemory, unified: bool, features: &Features) -> Result<(), SpecError> {
    if memory.use_hierarchy.is_some() {
        return Err(SpecError::Unsupported("changes of memory.use_hierarchy, which kernels always have on,"));
    }
    let only_v1 = memory.kernel.is_some()
        || memory.kernel_tcp.is_some()
        || memory.swappiness.is_some()
        || memory.disable_oom_killer.is_some();
    if unified && only_v1 {
        let what = "limit of kernel memory, swappiness or OOM killer switch";
        return Err(unavailable(what, "", "cgroup v2 has none"));
    }
    if memory.swap.is_some() && !features.swap_accounting {
        return Err(unavailable("swap limit", "", "the node does not account for swap"));
    }
    Ok(())
}

fn memory(known: &mut LinuxMemory, wanted: &nri::LinuxMemory, features: &Features) {
    let number = |number: &Option<nri::OptionalInt64>| number.as_ref().map(|number| number.value);
    if let Some(limit) = number(&wanted.limit).filter(|limit| *limit != 0) {
        known.set_limit(Some(limit));
        // Equal to the limit means: no swap, as for the kubelet's limits.
        if features.swap_accounting {
            known.set_swap(Some(limit));
        }
    }
    known.set_swap(number(&wanted.swap).or(known.swap()));
    known.set_reservation(number(&wanted.reservation).or(known.reservation()));
    #[allow(deprecated, reason = "the interface still has them, and cgroup v1 too")]
    {
        known.set_kernel(number(&wanted.kernel).or(known.kernel()));
        known.set_kernel_tcp(number(&wanted.kernel_tcp).or(known.kernel_tcp()));
    }
    known.set_swappiness(wanted.swappiness.as_ref().map(|n| n.value).or(known.swappiness()));
    known.set_disable_oom_killer(
        wanted.disable_oom_killer.as_ref().map(|switch| switch.value).or(known.disable_oom_killer()),
    );
}

fn cpu(known: &mut LinuxCpu, wanted: &nri::LinuxCpu) {
    known.set_shares(wanted.shares.as_ref().map(|n| n.value).or(known.shares()));
    known.set_quota(wanted.quota.as_ref().map(|n| n.value).or(known.quota()));
    known.set_period(wanted.period.as_ref().map(|n| n.value).or(known.period()));
    known.set_realtime_runtime(wanted.realtime_runtime.as_ref().map(|n| n.value).or(known.realtime_runtime()));
    known.set_realtime_period(wanted.realtime_period.as_ref().map(|n| n.value).or(known.realtime_period()));
    if !wanted.cpus.is_empty() {
        known.set_cpus(Some(wanted.cpus.clone()));
    }
    if !wanted.mems.is_empty() {
        known.set_mems(Some(wanted.mems.clone()));
    }
}

fn hugepages(wanted: &nri::HugepageLimit) -> Result<LinuxHugepageLimit, SpecError> {
    let bytes = i64::try_from(wanted.limit).map_err(|_| SpecError::Invalid {
        field: "hugepage limit",
        value: wanted.limit.to_string(),
        why: "it is too large",
    })?;
    let mut limit = LinuxHugepageLimit::default();
    limit.set_page_size(wanted.page_size.clone());
    limit.set_limit(bytes);
    Ok(limit)
}

/// A class is the name of a control group of resctrl; an empty one takes it away.
fn rdt_class(linux: &mut Linux, wanted: Option<&nri::OptionalString>) {
    let Some(class) = wanted else { return };
    if class.value.is_empty() {
        linux.set_intel_rdt(None);
        return;
    }
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(Some(class.value.clone()));
    linux.set_intel_rdt(Some(rdt));
}

/// An update of a container that exists, checked: only what a running container can be given.
///
/// # Errors
/// When it asks for what the node cannot do, or what cannot be changed any more.
pub fn checked_update(wanted: &nri::LinuxResources, features: &Features) -> Result<(), SpecError> {
    check(wanted, features)?;
    let memory = wanted.memory.unwrap_or_default();
    let late = memory.kernel.is_some()
        || memory.kernel_tcp.is_some()
        || memory.swappiness.is_some()
        || memory.disable_oom_killer.is_some()
        || memory.reservation.is_some()
        || !wanted.devices.is_empty()
        || wanted.rdt_class.is_some();
    let realtime = |cpu: &nri::LinuxCpu| cpu.realtime_runtime.is_some() || cpu.realtime_period.is_some();
    if late || wanted.cpu.as_ref().is_some_and(realtime) || wanted.pids.is_some() {
        return Err(SpecError::Unsupported(
            "updates of other resources than CPU, memory limit, swap, huge pages and unified ones",
        ));
    }
    Ok(())
}

/// The update in the CRI's words.
#[must_use]
pub fn to_cri(wanted: &nri::LinuxResources) -> cri::LinuxContainerResources {
    let memory = wanted.memory.unwrap_or_default();
    let cpu = wanted.cpu.clone().unwrap_or_default();
    let number = |number: Option<nri::OptionalInt64>| number.map_or(0, |number| number.value);
    let positive = |number: Option<nri::OptionalUInt64>| {
        number.map_or(0, |number| i64::try_from(number.value).unwrap_or(i64::MAX))
    };
    cri::LinuxContainerResources {
        cpu_period: positive(cpu.period),
        cpu_quota: number(cpu.quota),
        cpu_shares: positive(cpu.shares),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit_in_bytes: number(memory.limit),
        memory_swap_limit_in_bytes: number(memory.swap),
        hugepage_limits: wanted
            .hugepage_limits
            .iter()
            .map(|limit| cri::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit })
            .collect(),
        unified: wanted.unified.clone(),
        ..Default::default()
    }
}
