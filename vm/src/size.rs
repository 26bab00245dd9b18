//! How large a pod's machine is, and what its processes may take of the node. Pure.
//!
//! ```text
//!  the pod's limit + guest_memory, or memory ──▶ the machine's memory ── + monitor_memory ──▶ the limit on the node
//!                   └ the guest's own system                             └ QEMU, virtiofsd
//! ```
//! Invariant: what a pod was promised is there for it: the guest's own system and the machine's processes come on top. Both
//! together are the overhead that a RuntimeClass names.

use crate::config::VmConfig;
use crate::vmm::Accelerator;

const MIB: u64 = 1 << 20;
/// More processors no monitor of ours gives.
const MOST_CPUS: u64 = 255;
/// The most that QEMU keeps of instructions that it has translated, in MiB.
const TRANSLATED: u64 = 1024;

/// What the pod is to have, as the CRI's caller says; 0 for what it does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ask {
    /// In bytes.
    pub memory: u64,
    /// Microseconds in each period.
    pub cpu_quota: i64,
    pub cpu_period: u64,
    /// The overhead of the pod's RuntimeClass, in bytes.
    pub overhead: u64,
}

/// What the node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// In MiB.
    pub memory: u64,
    pub cpus: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Of the machine, in MiB.
    pub memory: u32,
    pub cpus: u32,
    /// What the machine's processes may take of the node, the guest's memory among it, in bytes.
    pub limit: u64,
}

impl Node {
    /// This one.
    #[must_use]
    pub fn here() -> Self {
        let info = rustix::system::sysinfo();
        let bytes = u64::try_from(info.totalram).unwrap_or(u64::MAX).saturating_mul(info.mem_unit.into());
        let cpus = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        Node { memory: bytes / MIB, cpus }
    }
}

impl Size {
    #[must_use]
    pub fn of(config: &VmConfig, ask: &Ask, node: Node, accelerator: Accelerator) -> Self {
        let guest = u64::from(config.guest_memory);
        let memory = match ask.memory {
            0 => u64::from(config.memory),
            limit => limit.div_ceil(MIB).saturating_add(guest),
        };
        let least = u64::from(config.min_memory);
        let memory = memory.clamp(least, node.memory.max(least));
        let cpus = match (u64::try_from(ask.cpu_quota), ask.cpu_period) {
            (Ok(quota @ 1..), period @ 1..) => quota.div_ceil(period),
            _ => u64::from(config.cpus),
        };
        let cpus = cpus.clamp(1, node.cpus.clamp(1, MOST_CPUS));
        let emulated = if accelerator == Accelerator::Tcg { TRANSLATED } else { 0 };
        let beside = u64::from(config.monitor_memory).saturating_add(emulated);
        // One that is told and smaller than what is needed would end the machine: the kubelet's own limit counts then.
        let beside = beside.max((ask.overhead / MIB).saturating_sub(guest));
        Size {
            memory: u32::try_from(memory).unwrap_or(u32::MAX),
            cpus: u32::try_from(cpus).unwrap_or(1),
            limit: memory.saturating_add(beside).saturating_mul(MIB),
        }
    }

    /// The machine's memory in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        u64::from(self.memory) * MIB
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: Node = Node { memory: 4096, cpus: 4 };

    fn config() -> VmConfig {
        VmConfig {
            memory: 256,
            min_memory: 128,
            guest_memory: 64,
            monitor_memory: 100,
            cpus: 1,
            ..VmConfig::default()
        }
    }

    fn size(ask: Ask) -> Size {
        Size::of(&config(), &ask, NODE, Accelerator::Kvm)
    }

    #[test]
    fn a_pod_without_limits_gets_what_is_configured() {
        assert_eq!(size(Ask::default()), Size { memory: 256, cpus: 1, limit: 356 * MIB });
        let emulated = Size::of(&config(), &Ask::default(), NODE, Accelerator::Tcg);
        assert_eq!(emulated.limit, (356 + TRANSLATED) * MIB);
    }

    #[test]
    fn the_guests_own_system_comes_on_top_of_the_pods_limit() {
        let got = size(Ask { memory: 500 * MIB + 1, cpu_quota: 150_000, cpu_period: 100_000, overhead: 0 });
        assert_eq!(got, Size { memory: 501 + 64, cpus: 2, limit: (565 + 100) * MIB });
        let got = size(Ask { memory: 500 * MIB, overhead: 320 * MIB, ..Ask::default() });
        assert_eq!(got.limit, (500 + 320) * MIB, "the pod's limit and the overhead");
        let got = size(Ask { memory: 500 * MIB, overhead: MIB, ..Ask::default() });
        assert_eq!(got.limit, (564 + 100) * MIB, "less would end the machine");
    }

    #[test]
    fn a_machine_is_neither_too_small_nor_larger_than_the_node() {
        assert_eq!(size(Ask { memory: MIB, ..Ask::default() }).memory, 128);
        let got = size(Ask { memory: u64::MAX, cpu_quota: i64::MAX, cpu_period: 1, overhead: u64::MAX });
        assert_eq!((got.memory, got.cpus), (4096, 4));
        assert_eq!(size(Ask { cpu_quota: -1, cpu_period: 100, ..Ask::default() }).cpus, 1);
        assert!(Node::here().memory > 0 && Node::here().cpus > 0);
    }
}
