//! Resources that a plugin sets, into those that are collected.

use cofferdam_proto::nri::{Field, LinuxCpu, LinuxMemory, LinuxResources};

use super::Owners;
use crate::nri::error::NriError;

/// On whose behalf, for which container.
pub struct Claim<'a> {
    pub owners: &'a mut Owners,
    pub container: &'a str,
    pub plugin: &'a str,
}

impl Claim<'_> {
    pub fn field(&mut self, field: Field, key: &str) -> Result<(), NriError> {
        self.owners.claim(self.container, field, key, self.plugin)
    }

    fn set<T: Clone>(&mut self, field: Field, from: &Option<T>, into: &mut Option<T>) -> Result<(), NriError> {
        if from.is_some() {
            self.field(field, "")?;
            into.clone_from(from);
        }
        Ok(())
    }

    fn text(&mut self, field: Field, from: &str, into: &mut String) -> Result<(), NriError> {
        if !from.is_empty() {
            self.field(field, "")?;
            from.clone_into(into);
        }
        Ok(())
    }
}

/// Sets in `into` what `from` sets.
///
/// # Errors
/// When another plugin has set one of them.
pub fn merge(claim: &mut Claim<'_>, from: &LinuxResources, into: &mut LinuxResources) -> Result<(), NriError> {
    if let Some(memory) = &from.memory {
        merge_memory(claim, memory, into.memory.get_or_insert_default())?;
    }
    if let Some(cpu) = &from.cpu {
        merge_cpu(claim, cpu, into.cpu.get_or_insert_default())?;
    }
    for limit in &from.hugepage_limits {
        claim.field(Field::HugepageLimits, &limit.page_size)?;
        into.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        into.hugepage_limits.push(limit.clone());
    }
    for (key, value) in &from.unified {
        claim.field(Field::CgroupsUnified, key)?;
        into.unified.insert(key.clone(), value.clone());
    }
    into.devices.extend(from.devices.iter().cloned());
    claim.set(Field::BlockioClass, &from.blockio_class, &mut into.blockio_class)?;
    claim.set(Field::RdtClass, &from.rdt_class, &mut into.rdt_class)?;
    claim.set(Field::PidsLimit, &from.pids, &mut into.pids)
}

/// Sets in `into` what `from` sets, whoever owns it.
pub fn overlay(from: &LinuxResources, into: &mut LinuxResources) {
    let mut nobody = Owners::default();
    let mut claim = Claim { owners: &mut nobody, container: "", plugin: "" };
    // Among nobody's fields there is no conflict.
    let _ = merge(&mut claim, from, into);
}

fn merge_memory(claim: &mut Claim<'_>, from: &LinuxMemory, into: &mut LinuxMemory) -> Result<(), NriError> {
    claim.set(Field::MemLimit, &from.limit, &mut into.limit)?;
    claim.set(Field::MemReservation, &from.reservation, &mut into.reservation)?;
    claim.set(Field::MemSwapLimit, &from.swap, &mut into.swap)?;
    claim.set(Field::MemKernelLimit, &from.kernel, &mut into.kernel)?;
    claim.set(Field::MemTcpLimit, &from.kernel_tcp, &mut into.kernel_tcp)?;
    claim.set(Field::MemSwappiness, &from.swappiness, &mut into.swappiness)?;
    claim.set(Field::MemDisableOomKiller, &from.disable_oom_killer, &mut into.disable_oom_killer)?;
    claim.set(Field::MemUseHierarchy, &from.use_hierarchy, &mut into.use_hierarchy)
}

fn merge_cpu(claim: &mut Claim<'_>, from: &LinuxCpu, into: &mut LinuxCpu) -> Result<(), NriError> {
    claim.set(Field::CpuShares, &from.shares, &mut into.shares)?;
    claim.set(Field::CpuQuota, &from.quota, &mut into.quota)?;
    claim.set(Field::CpuPeriod, &from.period, &mut into.period)?;
    claim.set(Field::CpuRealtimeRuntime, &from.realtime_runtime, &mut into.realtime_runtime)?;
    claim.set(Field::CpuRealtimePeriod, &from.realtime_period, &mut into.realtime_period)?;
    claim.text(Field::CpuSetCpUs, &from.cpus, &mut into.cpus)?;
    claim.text(Field::CpuSetMems, &from.mems, &mut into.mems)
}
