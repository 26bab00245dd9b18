//! Usage as a shim tells it, in containerd's messages: for containers whose processes are in no cgroup of the node, as
//! they run in a machine or a kernel of their own.
//!
//! Invariant: what cannot be on this node is not told for it: devices have other numbers there. A limit that means none is
//! none.

use std::time::Instant;

use containerd_shim_protos::{cgroups::metrics as v1, cgroups_v2::metrics as v2};
use protobuf::Message;
use protobuf::well_known_types::any::Any;

use super::detail::{CpuDetail, Detail, MemoryDetail};
use super::sample::{self, Sample};

const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";
/// Beyond it lies v1's and v2's way to say that there is no limit.
const NO_LIMIT: u64 = 1 << 62;

/// A shim's answer, in both forms that a cgroup is read in.
#[derive(Clone, Debug)]
pub struct Told {
    pub sample: Sample,
    pub detail: Detail,
}

/// Reads an answer; nothing where it is none that is known.
#[must_use]
pub fn told(answer: &Any) -> Option<Told> {
    let detail = match answer.type_url.rsplit('/').next()? {
        V1 => legacy(&v1::Metrics::parse_from_bytes(&answer.value).ok()?),
        V2 => unified(&v2::Metrics::parse_from_bytes(&answer.value).ok()?),
        _ => return None,
    };
    Some(Told { sample: sample_of(&detail), detail })
}

impl Told {
    /// Whether a process was killed for want of memory.
    #[must_use]
    pub fn oom_killed(&self) -> bool {
        self.detail.memory.oom_kills.unwrap_or(0) > 0
    }
}

fn limit(value: u64) -> Option<u64> {
    (value > 0 && value < NO_LIMIT).then_some(value)
}

fn unified(metrics: &v2::Metrics) -> Detail {
    let mut read = Detail::default();
    if let Some(cpu) = metrics.cpu.as_ref() {
        let nanos = |micros: u64| micros.checked_mul(1000);
        read.cpu = CpuDetail {
            usage: nanos(cpu.usage_usec),
            user: nanos(cpu.user_usec),
            system: nanos(cpu.system_usec),
            periods: Some(cpu.nr_periods),
            throttled_periods: Some(cpu.nr_throttled),
            throttled: nanos(cpu.throttled_usec),
        };
    }
    if let Some(memory) = metrics.memory.as_ref() {
        read.memory = MemoryDetail {
            usage: Some(memory.usage),
            // Kernels before 5.19 do not keep it.
            max_usage: Some(memory.max_usage).filter(|most| *most > 0),
            working_set: Some(memory.usage.saturating_sub(memory.inactive_file)),
            rss: Some(memory.anon),
            cache: Some(memory.file),
            mapped_file: Some(memory.file_mapped),
            active_file: Some(memory.active_file),
            inactive_file: Some(memory.inactive_file),
            kernel: Some(memory.kernel_stack.saturating_add(memory.slab)),
            swap: Some(memory.swap_usage),
            limit_hits: None,
            oom_kills: None,
            faults: Some(memory.pgfault),
            major_faults: Some(memory.pgmajfault),
            total_faults: Some(memory.pgfault),
            total_major_faults: Some(memory.pgmajfault),
        };
        read.limits.memory = Some(limit(memory.usage_limit).unwrap_or(0));
    }
    if let Some(events) = metrics.memory_events.as_ref() {
        (read.memory.limit_hits, read.memory.oom_kills) = (Some(events.max), Some(events.oom_kill));
    }
    if let Some(pids) = metrics.pids.as_ref() {
        (read.threads, read.threads_max) = (Some(pids.current), Some(limit(pids.limit).unwrap_or(0)));
    }
    read
}

fn legacy(metrics: &v1::Metrics) -> Detail {
    let mut read = Detail::default();
    if let Some(cpu) = metrics.cpu.as_ref() {
        if let Some(usage) = cpu.usage.as_ref() {
            read.cpu.usage = Some(usage.total);
            (read.cpu.user, read.cpu.system) = (Some(usage.user), Some(usage.kernel));
        }
        if let Some(throttling) = cpu.throttling.as_ref() {
            read.cpu.periods = Some(throttling.periods);
            read.cpu.throttled_periods = Some(throttling.throttled_periods);
            read.cpu.throttled = Some(throttling.throttled_time);
        }
    }
    if let Some(memory) = metrics.memory.as_ref() {
        let entry = memory.usage.as_ref();
        let usage = entry.map(|entry| entry.usage);
        read.memory = MemoryDetail {
            usage,
            max_usage: entry.map(|entry| entry.max),
            working_set: usage.map(|used| used.saturating_sub(memory.total_inactive_file)),
            rss: Some(memory.total_rss),
            cache: Some(memory.total_cache),
            mapped_file: Some(memory.total_mapped_file),
            active_file: Some(memory.total_active_file),
            inactive_file: Some(memory.total_inactive_file),
            kernel: memory.kernel.as_ref().map(|entry| entry.usage),
            // v1 counts memory and swap together.
            swap: memory.swap.as_ref().zip(usage).map(|(both, used)| both.usage.saturating_sub(used)),
            limit_hits: entry.map(|entry| entry.failcnt),
            oom_kills: None,
            faults: Some(memory.pg_fault),
            major_faults: Some(memory.pg_maj_fault),
            total_faults: Some(memory.total_pg_fault),
            total_major_faults: Some(memory.total_pg_maj_fault),
        };
        read.limits.memory = entry.map(|entry| limit(entry.limit).unwrap_or(0));
    }
    read.memory.oom_kills = metrics.memory_oom_control.as_ref().map(|control| control.oom_kill);
    if let Some(pids) = metrics.pids.as_ref() {
        (read.threads, read.threads_max) = (Some(pids.current), Some(limit(pids.limit).unwrap_or(0)));
    }
    read
}

fn sample_of(detail: &Detail) -> Sample {
    let (memory, limit) = (detail.memory, detail.limits.memory.filter(|bytes| *bytes > 0));
    Sample {
        timestamp: sample::timestamp(),
        at: Instant::now(),
        cpu: sample::Cpu { usage_nanos: detail.cpu.usage, pressure: None },
        memory: sample::Memory {
            usage: memory.usage,
            working_set: memory.working_set,
            limit,
            available: limit.zip(memory.working_set).map(|(limit, used)| limit.saturating_sub(used)),
            rss: memory.rss,
            page_faults: memory.total_faults,
            major_page_faults: memory.total_major_faults,
            pressure: None,
        },
        swap: sample::Swap { usage: memory.swap, available: None },
        io: sample::Io::default(),
        pids: detail.threads,
    }
}

#[cfg(test)]
mod tests {
    use protobuf::MessageField;

    use super::*;

    fn any(name: &str, message: &impl Message) -> Any {
        Any { type_url: name.to_owned(), value: message.write_to_bytes().unwrap(), ..Default::default() }
    }

    #[test]
    fn both_kinds_of_metrics_are_read() {
        let mut metrics = v2::Metrics::new();
        metrics.cpu = MessageField::some(v2::CPUStat { usage_usec: 7, ..Default::default() });
        metrics.memory = MessageField::some(v2::MemoryStat {
            usage: 100,
            inactive_file: 30,
            usage_limit: u64::MAX,
            ..Default::default()
        });
        metrics.memory_events = MessageField::some(v2::MemoryEvents { oom_kill: 1, ..Default::default() });
        for prefix in ["", "types.containerd.io/"] {
            let read = told(&any(&format!("{prefix}{V2}"), &metrics)).unwrap();
            assert_eq!((read.sample.cpu.usage_nanos, read.sample.memory.working_set), (Some(7000), Some(70)));
            assert_eq!((read.sample.memory.limit, read.sample.memory.available), (None, None));
            assert_eq!((read.detail.limits.memory, read.detail.memory.max_usage), (Some(0), None));
            assert!(read.oom_killed());
        }
        let mut metrics = v1::Metrics::new();
        let entry =
            |usage, limit| MessageField::some(v1::MemoryEntry { usage, limit, max: 9, ..Default::default() });
        metrics.memory = MessageField::some(v1::MemoryStat {
            usage: entry(100, 400),
            swap: entry(120, 400),
            total_inactive_file: 200,
            ..Default::default()
        });
        let read = told(&any(V1, &metrics)).unwrap();
        assert_eq!((read.sample.memory.working_set, read.sample.memory.available), (Some(0), Some(400)));
        assert_eq!((read.sample.swap.usage, read.sample.cpu.usage_nanos), (Some(20), None));
        assert!(!read.oom_killed());
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        assert!(told(&Any::new()).is_none());
        assert!(told(&any("io.containerd.cgroups.v3.Metrics", &v2::Metrics::new())).is_none());
        let broken = Any { type_url: V2.to_owned(), value: vec![0xff], ..Default::default() };
        assert!(told(&broken).is_none());
        assert_eq!(told(&any(V2, &v2::Metrics::new())).unwrap().detail, Detail::default());
    }
}
