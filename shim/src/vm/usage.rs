//! What a container in a machine uses, and whether the guest's kernel killed it for want of memory.
//!
//! Invariant: the numbers are the guest's words. None is larger than the machine could have made it, counters never go
//! back, and what names something of the guest's, as a device, is left out. The last ones stand once the container has
//! ended, so that they can be asked for until it is deleted.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use tokio::time::timeout;

use super::task::VmTask;
use crate::cgroup::{oom, stats};
use crate::error::ShimError;

const METRICS: &str = "io.containerd.cgroups.v2.Metrics";
/// More processes and threads no kernel has.
const MOST_PIDS: u64 = 1 << 22;
/// Where limits that mean none begin.
const NO_LIMIT: u64 = 1 << 62;
/// How long a guest may take to tell the last numbers of a container that has ended.
const LAST_NUMBERS: Duration = Duration::from_secs(3);
const KILLED_ON_THE_NODE: &str =
    "the pod's virtual machine has ended: the node's kernel killed it for want of memory in the pod's cgroup";
/// A guest's clock may be so much ahead.
const AHEAD: Duration = Duration::from_secs(1);

/// What the machine could have used.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// In bytes.
    pub memory: u64,
    pub cpus: u32,
    /// How long it has run.
    pub age: Duration,
}

/// What is known of one container.
#[derive(Debug, Default)]
pub struct Usage {
    last: v2::Metrics,
    /// Kills that the daemon was told of.
    told: u64,
}

impl Usage {
    /// Takes the guest's answer.
    fn take(&mut self, answer: &Any, bounds: Bounds) -> Result<(), ShimError> {
        let nonsense = |what: &str| ShimError::Invalid(format!("the guest answers nonsense: {what}"));
        if answer.type_url.rsplit('/').next() != Some(METRICS) {
            return Err(nonsense("statistics of an unknown kind"));
        }
        let told = v2::Metrics::parse_from_bytes(&answer.value).map_err(|_| nonsense("broken statistics"))?;
        let (cpu, memory) = (cpu(&told.cpu, &self.last.cpu, bounds), memory(&told.memory, bounds));
        let count = |now: u64, before: u64| now.min(u32::MAX.into()).max(before);
        let events = v2::MemoryEvents {
            max: count(told.memory_events.max, self.last.memory_events.max),
            oom: count(told.memory_events.oom, self.last.memory_events.oom),
            oom_kill: count(told.memory_events.oom_kill, self.last.memory_events.oom_kill),
            ..Default::default()
        };
        let pids = v2::PidsStat {
            current: told.pids.current.min(MOST_PIDS),
            limit: limit(told.pids.limit),
            ..Default::default()
        };
        let mut checked = v2::Metrics::new();
        checked.cpu = MessageField::some(cpu);
        checked.memory = MessageField::some(memory);
        checked.memory_events = MessageField::some(events);
        checked.pids = MessageField::some(pids);
        self.last = checked;
        Ok(())
    }

    /// The node's kernel killed the machine, and the container with it.
    fn killed_with_the_machine(&mut self) {
        let events = self.last.memory_events.mut_or_insert_default();
        events.oom_kill = events.oom_kill.max(1);
    }

    /// Whether there are kills that the daemon was not told of.
    fn has_news(&mut self) -> bool {
        let kills = self.last.memory_events.oom_kill;
        let news = kills > self.told;
        self.told = kills;
        news
    }

    fn to_any(&self) -> Result<Any, ShimError> {
        let value = self.last.write_to_bytes().map_err(|e| ShimError::io("encode the metrics")(e.into()))?;
        Ok(Any { type_url: METRICS.to_owned(), value, ..Any::default() })
    }
}

fn limit(value: u64) -> u64 {
    if value < NO_LIMIT { value } else { u64::MAX }
}

fn cpu(now: &v2::CPUStat, before: &v2::CPUStat, bounds: Bounds) -> v2::CPUStat {
    let most = (bounds.age + AHEAD).as_micros().saturating_mul(bounds.cpus.into());
    let most = u64::try_from(most).unwrap_or(u64::MAX);
    let grown = |now: u64, before: u64| now.min(most).max(before);
    v2::CPUStat {
        usage_usec: grown(now.usage_usec, before.usage_usec),
        user_usec: grown(now.user_usec, before.user_usec),
        system_usec: grown(now.system_usec, before.system_usec),
        // Each period is a millisecond at least.
        nr_periods: grown(now.nr_periods, before.nr_periods),
        nr_throttled: grown(now.nr_throttled, before.nr_throttled),
        throttled_usec: grown(now.throttled_usec, before.throttled_usec),
        ..Default::default()
    }
}

fn memory(now: &v2::MemoryStat, bounds: Bounds) -> v2::MemoryStat {
    let bytes = |value: u64| value.min(bounds.memory);
    let faults = |value: u64| value.min(i64::MAX.unsigned_abs());
    v2::MemoryStat {
        anon: bytes(now.anon),
        file: bytes(now.file),
        kernel_stack: bytes(now.kernel_stack),
        slab: bytes(now.slab),
        shmem: bytes(now.shmem),
        file_mapped: bytes(now.file_mapped),
        inactive_anon: bytes(now.inactive_anon),
        active_anon: bytes(now.active_anon),
        inactive_file: bytes(now.inactive_file),
        active_file: bytes(now.active_file),
        pgfault: faults(now.pgfault),
        pgmajfault: faults(now.pgmajfault),
        usage: bytes(now.usage),
        usage_limit: limit(now.usage_limit),
        max_usage: bytes(now.max_usage),
        // The guest has no swap.
        ..Default::default()
    }
}

impl VmTask {
    /// Its usage: of the pod itself that of the machine, as the node counts it.
    pub async fn stats(&self) -> Result<Any, ShimError> {
        if self.id == self.pod().id {
            return stats::read(self.pod().cgroups());
        }
        if self.init.state().exit().is_none() {
            self.count().await?;
        }
        self.usage().to_any()
    }

    /// What is to be known before an exit is told: whether it was for want of memory.
    pub async fn count_at_end(&self) {
        if self.id == self.pod().id {
            return;
        }
        if self.pod().machine.has_ended() {
            if oom::kills(self.pod().cgroups()).is_some_and(|kills| kills > 0) {
                self.bundle.warn(KILLED_ON_THE_NODE);
                self.bundle.tell_why(KILLED_ON_THE_NODE);
                self.usage().killed_with_the_machine();
                self.tell_oom();
            }
            return;
        }
        match timeout(LAST_NUMBERS, self.count()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => self.bundle.warn(&format!("the container's last numbers: {error}")),
            Err(_) => self.bundle.warn("the guest does not tell the container's last numbers"),
        }
    }

    async fn count(&self) -> Result<(), ShimError> {
        let pod = self.pod();
        let answer = pod.guest.stats(&self.id).await?;
        let bounds = Bounds {
            memory: pod.size.bytes(),
            cpus: pod.size.cpus,
            age: Instant::now().saturating_duration_since(pod.since),
        };
        self.usage().take(&answer, bounds)?;
        self.tell_oom();
        Ok(())
    }

    fn usage(&self) -> std::sync::MutexGuard<'_, Usage> {
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell_oom(&self) {
        if self.usage().has_news() {
            let mut event = events::TaskOOM::new();
            event.container_id.clone_from(&self.id);
            self.publisher.send(topics::TASK_OOM_EVENT_TOPIC, &event);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { memory: 1000, cpus: 2, age: Duration::from_secs(9) };

    fn answer(metrics: &v2::Metrics) -> Any {
        Any { type_url: METRICS.into(), value: metrics.write_to_bytes().unwrap(), ..Any::default() }
    }

    fn metrics(number: u64) -> v2::Metrics {
        let mut all = v2::Metrics::new();
        all.cpu = MessageField::some(v2::CPUStat { usage_usec: number, ..Default::default() });
        all.memory = MessageField::some(v2::MemoryStat {
            usage: number,
            usage_limit: number,
            swap_usage: number,
            pgfault: number,
            ..Default::default()
        });
        all.memory_events = MessageField::some(v2::MemoryEvents { oom_kill: number, ..Default::default() });
        all.pids = MessageField::some(v2::PidsStat { current: number, ..Default::default() });
        let entry = v2::IOEntry { major: 8, rbytes: number, ..Default::default() };
        all.io = MessageField::some(v2::IOStat { usage: vec![entry; 1000], ..Default::default() });
        all
    }

    #[test]
    fn no_number_is_larger_than_the_machine() {
        let mut usage = Usage::default();
        usage.take(&answer(&metrics(u64::MAX)), BOUNDS).unwrap();
        let last = &usage.last;
        assert_eq!((last.memory.usage, last.memory.swap_usage), (1000, 0));
        assert_eq!(last.cpu.usage_usec, 20_000_000, "ten seconds of two processors");
        assert_eq!((last.memory.usage_limit, last.pids.current), (u64::MAX, MOST_PIDS));
        assert!(last.io.is_none() && last.memory.pgfault <= i64::MAX.unsigned_abs());
    }

    #[test]
    fn counters_do_not_go_back_and_kills_are_told_once() {
        let mut usage = Usage::default();
        usage.take(&answer(&metrics(3)), BOUNDS).unwrap();
        assert!(usage.has_news() && !usage.has_news());
        usage.take(&answer(&metrics(1)), BOUNDS).unwrap();
        assert_eq!((usage.last.cpu.usage_usec, usage.last.memory_events.oom_kill), (3, 3));
        assert_eq!(usage.last.memory.usage, 1, "that one is no counter");
        assert!(!usage.has_news());
        let mut usage = Usage::default();
        usage.killed_with_the_machine();
        assert!(usage.has_news());
    }

    #[test]
    fn garbage_is_refused_and_changes_nothing() {
        let mut usage = Usage::default();
        usage.take(&answer(&metrics(3)), BOUNDS).unwrap();
        let broken = Any { type_url: METRICS.into(), value: vec![0xff; 99], ..Any::default() };
        for bad in [Any::default(), broken] {
            let error = usage.take(&bad, BOUNDS).unwrap_err().to_string();
            assert!(error.contains("nonsense"), "{error}");
        }
        assert_eq!(usage.last.memory.usage, 3);
        usage.take(&answer(&v2::Metrics::new()), BOUNDS).unwrap();
        assert_eq!(usage.last.memory.usage, 0);
    }
}
