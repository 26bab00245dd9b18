//! ListMetricDescriptors and ListPodSandboxMetrics: cAdvisor's metrics of containers and pods, without cAdvisor.
//!
//! Labels are cAdvisor's as the kubelet shows them, so that dashboards and alerts written for it go on working.

use std::sync::Arc;

use cofferdam_proto::cri;
use rustix::fs::{major, minor};
use tonic::Status;

use super::Daemon;
use super::chunk::Chunks;
use super::stream_lists::read_in_pieces;
use super::usage::{Answers, ask_shims, blocking, members, network_of};
use crate::container::{Container, ContainerState};
use crate::ports::now;
use crate::sandbox::Sandbox;
use crate::stats::{CONTAINER, DiskUsage, Family, Kind, POD, Seen, detail, device_name, processes_of};

/// The labels of every metric.
const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];

fn descriptor<S>(family: &Family<S>) -> cri::MetricDescriptor {
    cri::MetricDescriptor {
        name: family.name.to_owned(),
        help: family.help.to_owned(),
        label_keys: LABELS.iter().chain(family.labels).map(|label| (*label).to_owned()).collect(),
    }
}

pub(super) fn list_metric_descriptors() -> cri::ListMetricDescriptorsResponse {
    let descriptors = CONTAINER.iter().map(descriptor).chain(POD.iter().map(descriptor));
    cri::ListMetricDescriptorsResponse { descriptors: descriptors.collect() }
}

pub(super) async fn list_pod_sandbox_metrics(
    daemon: &Daemon,
) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
    let pods = ready(daemon);
    let containers = pods.iter().flat_map(|pod| members(daemon, pod)).collect();
    let answers = ask_shims(daemon, containers).await?;
    let read = move |daemon: &Daemon| pods.iter().map(|pod| of_pod(daemon, pod, &answers)).collect();
    Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: blocking(daemon, read).await? })
}

pub(super) fn stream_pod_sandbox_metrics(daemon: &Daemon) -> Chunks<cri::StreamPodSandboxMetricsResponse> {
    read_in_pieces(daemon, ready(daemon), members, of_pod, |pod_sandbox_metrics| {
        cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics }
    })
}

fn ready(daemon: &Daemon) -> Vec<Arc<Sandbox>> {
    daemon.sandboxes.all().into_iter().filter(|sandbox| sandbox.is_ready()).collect()
}

/// The metrics of `families`, read from `source`.
fn metrics<S>(families: &[Family<S>], source: &S, labels: &[String; 6], timestamp: i64) -> Vec<cri::Metric> {
    let of_family = |family: &Family<S>| {
        let metric_type = match family.kind {
            Kind::Counter => cri::MetricType::Counter,
            Kind::Gauge => cri::MetricType::Gauge,
        };
        let metric = |(own, value): (Vec<String>, u64)| cri::Metric {
            name: family.name.to_owned(),
            timestamp,
            metric_type: metric_type.into(),
            label_values: labels.iter().cloned().chain(own).collect(),
            value: Some(cri::UInt64Value { value }),
        };
        (family.rows)(source).into_iter().map(metric).collect::<Vec<_>>()
    };
    families.iter().flat_map(of_family).collect()
}

fn of_pod(daemon: &Daemon, sandbox: &Arc<Sandbox>, answers: &Answers) -> cri::PodSandboxMetrics {
    let metadata = sandbox.metadata();
    let cgroup = sandbox.cgroups_path(&daemon.ports).unwrap_or_default();
    let name = sandbox.id().to_string();
    let labels = [String::new(), cgroup, String::new(), name.clone(), metadata.namespace, metadata.name];
    let links = network_of(daemon, sandbox).unwrap_or_default();
    let containers = members(daemon, sandbox);
    cri::PodSandboxMetrics {
        pod_sandbox_id: name,
        metrics: metrics(&POD, &links, &labels, now()),
        container_metrics: containers
            .iter()
            .filter_map(|c| of_container(daemon, c, &labels, answers))
            .collect(),
    }
}

fn of_container(
    daemon: &Daemon,
    container: &Arc<Container>,
    [.., namespace, pod]: &[String; 6],
    answers: &Answers,
) -> Option<cri::ContainerMetrics> {
    let ContainerState::Running { pid, started_at } = container.state() else { return None };
    let (made, config) = (container.made(), container.config());
    let (cgroup, processes) = match answers.get(container.id()) {
        Some(told) => (told.detail.clone(), None),
        None => {
            let paths =
                daemon.ports.cgroups.hierarchies().paths(container.cgroups_path()).unwrap_or_default();
            (detail(&paths), Some(processes_of(&paths, Some(pid))))
        }
    };
    let timestamp = now();
    let seen = Seen {
        cgroup,
        processes,
        disk: disk(daemon, container),
        seen_at: seconds(timestamp),
        started_at: seconds(started_at),
    };
    let labels = [
        config.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default(),
        container.cgroups_path().to_owned(),
        image(config),
        made.id.to_string(),
        namespace.clone(),
        pod.clone(),
    ];
    let metrics = metrics(&CONTAINER, &seen, &labels, timestamp);
    Some(cri::ContainerMetrics { container_id: made.id.to_string(), metrics })
}

/// As the pod's author wrote it, where the kubelet says so: it asks by the image's id.
fn image(config: &cri::ContainerConfig) -> String {
    let Some(spec) = &config.image else { return String::new() };
    if spec.user_specified_image.is_empty() { spec.image.clone() } else { spec.user_specified_image.clone() }
}

fn seconds(nanos: i64) -> u64 {
    u64::try_from(nanos / 1_000_000_000).unwrap_or(0)
}

/// The file system that holds the container's writable layer.
fn disk(daemon: &Daemon, container: &Container) -> Option<DiskUsage> {
    let root = daemon.ports.places.root();
    let (file, system) = (rustix::fs::stat(root).ok()?, rustix::fs::statvfs(root).ok()?);
    let used = daemon.ports.snapshots.usage(container.id()).ok()?;
    Some(DiskUsage {
        device: device_name(&format!("{}:{}", major(file.st_dev), minor(file.st_dev))),
        used_bytes: used.bytes,
        size_bytes: system.f_blocks.saturating_mul(system.f_frsize),
        inodes: system.f_files,
        inodes_free: system.f_ffree,
    })
}
