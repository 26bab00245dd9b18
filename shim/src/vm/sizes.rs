//! What a pod's specification says of its size, and what follows for the machine's cgroup. Pure.
//!
//! The sizes are annotations that the CRI's servers write for the shims of machines; the overhead is what bounds the pod's
//! pause.

use std::collections::HashMap;

use cofferdam_vm::size::{Ask, Size};
use oci_spec::runtime::{LinuxCpuBuilder, LinuxMemoryBuilder, LinuxResources};

const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";

/// What the pod is to have.
pub fn ask(annotations: Option<&HashMap<String, String>>, overhead: Option<&LinuxResources>) -> Ask {
    let number = |key: &str| annotations.and_then(|all| all.get(key)?.parse::<i64>().ok()).unwrap_or(0);
    let positive = |value: i64| u64::try_from(value).unwrap_or(0);
    let told = overhead.and_then(|limits| limits.memory().as_ref()?.limit());
    Ask {
        memory: positive(number(MEMORY)),
        cpu_quota: number(CPU_QUOTA),
        cpu_period: positive(number(CPU_PERIOD)),
        overhead: positive(told.unwrap_or(0)),
    }
}

/// The limits of the machine's cgroup: memory as its size says, processor time as the pod and its overhead have together.
pub fn limits(ask: &Ask, size: &Size, overhead: Option<&LinuxResources>) -> LinuxResources {
    let mut limits = LinuxResources::default();
    let memory = LinuxMemoryBuilder::default().limit(i64::try_from(size.limit).unwrap_or(i64::MAX));
    limits.set_memory(memory.build().ok());
    limits.set_cpu(
        time(ask, overhead)
            .and_then(|(quota, period)| LinuxCpuBuilder::default().quota(quota).period(period).build().ok()),
    );
    limits
}

/// Quota and period; none for a pod without a limit, which shares what is there.
fn time(ask: &Ask, overhead: Option<&LinuxResources>) -> Option<(i64, u64)> {
    if ask.cpu_quota <= 0 || ask.cpu_period == 0 {
        return None;
    }
    let of = |limits: &LinuxResources| {
        let cpu = limits.cpu().as_ref()?;
        Some((cpu.quota().filter(|quota| *quota > 0)?, cpu.period().unwrap_or(ask.cpu_period).max(1)))
    };
    let more = overhead.and_then(of).map_or(0, |(quota, period)| {
        let scaled = i128::from(quota) * i128::from(ask.cpu_period) / i128::from(period);
        i64::try_from(scaled).unwrap_or(0)
    });
    Some((ask.cpu_quota.saturating_add(more), ask.cpu_period))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn overhead(text: &str) -> LinuxResources {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_none() {
        let overhead = overhead(r#"{"memory":{"limit":1000}}"#);
        let all = annotations(&[(MEMORY, "5000"), (CPU_QUOTA, "150000"), (CPU_PERIOD, "100000")]);
        let got = ask(Some(&all), Some(&overhead));
        assert_eq!(got, Ask { memory: 5000, cpu_quota: 150_000, cpu_period: 100_000, overhead: 1000 });
        let wrong = annotations(&[(MEMORY, "-5"), (CPU_QUOTA, "x"), (CPU_PERIOD, "99999999999999999999")]);
        assert_eq!(ask(Some(&wrong), None), Ask::default());
        assert_eq!(ask(None, None), Ask::default());
    }

    #[test]
    fn processor_time_is_the_pods_and_its_overheads() {
        let size = Size { memory: 1, cpus: 1, limit: 7 << 20 };
        let ask = Ask { cpu_quota: 50_000, cpu_period: 100_000, ..Ask::default() };
        let more = overhead(r#"{"cpu":{"quota":5000,"period":50000}}"#);
        let got = limits(&ask, &size, Some(&more));
        let cpu = got.cpu().clone().unwrap();
        assert_eq!((cpu.quota(), cpu.period()), (Some(60_000), Some(100_000)));
        assert_eq!(got.memory().unwrap().limit(), Some(7 << 20));
        assert!(limits(&Ask::default(), &size, Some(&more)).cpu().is_none());
        let shares = overhead(r#"{"cpu":{"shares":2}}"#);
        assert_eq!(time(&ask, Some(&shares)), Some((50_000, 100_000)));
    }
}
