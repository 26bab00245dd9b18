//! Usage as CRI messages: pure conversions of what `stats` has read.

use cofferdam_proto::cri;

use crate::stats::{InterfaceCounters, NetworkSample, Pressure, PressureLine, Sample};

fn value(value: Option<u64>) -> Option<cri::UInt64Value> {
    value.map(|value| cri::UInt64Value { value })
}

fn psi(pressure: Option<Pressure>) -> Option<cri::PsiStats> {
    let line = |line: PressureLine| cri::PsiData {
        total: line.total,
        avg10: line.avg10,
        avg60: line.avg60,
        avg300: line.avg300,
    };
    pressure
        .map(|pressure| cri::PsiStats { full: Some(line(pressure.full)), some: Some(line(pressure.some)) })
}

fn cpu(sample: &Sample, nano_cores: Option<u64>) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: sample.timestamp,
        usage_core_nano_seconds: value(sample.cpu.usage_nanos),
        usage_nano_cores: value(nano_cores),
        psi: psi(sample.cpu.pressure),
    }
}

fn memory(sample: &Sample) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: sample.timestamp,
        working_set_bytes: value(sample.memory.working_set),
        available_bytes: value(sample.memory.available),
        usage_bytes: value(sample.memory.usage),
        rss_bytes: value(sample.memory.rss),
        page_faults: value(sample.memory.page_faults),
        major_page_faults: value(sample.memory.major_page_faults),
        psi: psi(sample.memory.pressure),
    }
}

fn io(sample: &Sample) -> cri::IoUsage {
    cri::IoUsage { timestamp: sample.timestamp, psi: psi(sample.io.pressure) }
}

/// A container's usage; `nano_cores` is its rate, `writable_layer` what it has written to its root.
#[must_use]
pub fn container_stats(
    attributes: cri::ContainerAttributes,
    sample: &Sample,
    nano_cores: Option<u64>,
    writable_layer: Option<cri::FilesystemUsage>,
) -> cri::ContainerStats {
    cri::ContainerStats {
        attributes: Some(attributes),
        cpu: Some(cpu(sample, nano_cores)),
        memory: Some(memory(sample)),
        writable_layer,
        swap: Some(cri::SwapUsage {
            timestamp: sample.timestamp,
            swap_available_bytes: value(sample.swap.available),
            swap_usage_bytes: value(sample.swap.usage),
        }),
        io: Some(io(sample)),
    }
}

fn interface(counters: &InterfaceCounters) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: counters.name.clone(),
        rx_bytes: value(Some(counters.rx_bytes)),
        rx_errors: value(Some(counters.rx_errors)),
        tx_bytes: value(Some(counters.tx_bytes)),
        tx_errors: value(Some(counters.tx_errors)),
    }
}

fn network(sample: &NetworkSample, timestamp: i64) -> cri::NetworkUsage {
    let default = sample.default_interface();
    // The default one is not repeated among the others.
    let others =
        sample.0.iter().filter(|counters| default.is_none_or(|default| default.name != counters.name));
    cri::NetworkUsage {
        timestamp,
        default_interface: default.map(interface),
        interfaces: others.map(interface).collect(),
    }
}

/// A pod's usage; `sample` is that of the pod's own cgroup, or of its containers added up.
#[must_use]
pub fn pod_stats(
    attributes: cri::PodSandboxAttributes,
    sample: &Sample,
    nano_cores: Option<u64>,
    interfaces: Option<&NetworkSample>,
    containers: Vec<cri::ContainerStats>,
) -> cri::PodSandboxStats {
    let linux = cri::LinuxPodSandboxStats {
        cpu: Some(cpu(sample, nano_cores)),
        memory: Some(memory(sample)),
        network: interfaces.map(|interfaces| network(interfaces, sample.timestamp)),
        process: Some(cri::ProcessUsage { timestamp: sample.timestamp, process_count: value(sample.pids) }),
        containers,
        io: Some(io(sample)),
    };
    cri::PodSandboxStats { attributes: Some(attributes), linux: Some(linux), windows: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::CgroupPaths;

    #[test]
    fn numbers_reach_their_fields_and_missing_ones_stay_missing() {
        let mut sample = crate::stats::sample(&CgroupPaths::default());
        sample.timestamp = 42;
        sample.cpu.usage_nanos = Some(1);
        sample.memory.working_set = Some(2);
        sample.memory.rss = Some(3);
        sample.swap.usage = Some(4);
        let line = PressureLine { avg10: 1.5, total: 6, ..PressureLine::default() };
        sample.io.pressure = Some(Pressure { some: line, full: PressureLine::default() });
        let attributes = cri::ContainerAttributes { id: "c".to_owned(), ..Default::default() };
        let stats = container_stats(attributes, &sample, Some(9), None);
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.timestamp, cpu.usage_core_nano_seconds.unwrap().value), (42, 1));
        assert_eq!((cpu.usage_nano_cores.unwrap().value, cpu.psi), (9, None));
        let memory = stats.memory.unwrap();
        assert_eq!((memory.working_set_bytes.unwrap().value, memory.rss_bytes.unwrap().value), (2, 3));
        assert_eq!(memory.available_bytes, None);
        assert_eq!(stats.swap.unwrap().swap_usage_bytes.unwrap().value, 4);
        assert_eq!(stats.io.unwrap().psi.unwrap().some.unwrap().total, 6);
    }

    #[test]
    fn a_pods_default_interface_stands_apart() {
        let named =
            |name: &str| InterfaceCounters { name: name.to_owned(), rx_bytes: 5, ..Default::default() };
        let interfaces = NetworkSample(vec![named("net1"), named("eth0")]);
        let mut sample = crate::stats::sample(&CgroupPaths::default());
        sample.pids = Some(3);
        let attributes = cri::PodSandboxAttributes::default();
        let stats = pod_stats(attributes, &sample, None, Some(&interfaces), Vec::new()).linux.unwrap();
        let network = stats.network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        assert_eq!(network.interfaces.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["net1"]);
        assert_eq!(stats.process.unwrap().process_count.unwrap().value, 3);
    }
}
