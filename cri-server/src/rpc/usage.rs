//! The calls about usage, straight from the cgroups. A shim is asked only for a container whose first process is not in the
//! container's cgroup: what it uses is counted in a machine or a kernel of its own. Invariant: shims are asked all at the
//! same time, and for a bounded time; one that does not answer costs its own containers' numbers and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::cri;
use futures::StreamExt;
use tonic::Status;

use super::code::status;
use super::filter::{id_matches, labels_match};
use super::{Daemon, stats};
use crate::container::Container;
use crate::model::ContainerId;
use crate::ports::now;
use crate::sandbox::Sandbox;
use crate::stats::{NetworkSample, Sample, Told, network_of_pod, sample, told};

/// How long a shim may take to tell usage: a kubelet waits for the answer.
const SHIM: Duration = Duration::from_secs(2);
/// How many shims are asked at the same time.
const AT_ONCE: usize = 64;

/// What shims told, by container.
pub(super) type Answers = HashMap<ContainerId, Told>;

pub(super) async fn container_stats(
    daemon: &Daemon,
    request: cri::ContainerStatsRequest,
) -> Result<cri::ContainerStatsResponse, Status> {
    let container = daemon.containers.find(&request.container_id).map_err(|e| status(&e))?;
    if !container.is_running() {
        let text = format!("container {} is {}", container.id(), container.state().name());
        return Err(Status::failed_precondition(text));
    }
    let answers = ask_shims(daemon, vec![Arc::clone(&container)]).await?;
    let stats = blocking(daemon, move |daemon| of_container(daemon, &container, &answers)).await?;
    Ok(cri::ContainerStatsResponse { stats: Some(stats) })
}

pub(super) async fn list_container_stats(
    daemon: &Daemon,
    request: cri::ListContainerStatsRequest,
) -> Result<cri::ListContainerStatsResponse, Status> {
    let selected = selected_containers(daemon, request.filter);
    let answers = ask_shims(daemon, selected.clone()).await?;
    let read = move |daemon: &Daemon| selected.iter().map(|c| of_container(daemon, c, &answers)).collect();
    let stats = blocking(daemon, read).await?;
    Ok(cri::ListContainerStatsResponse { stats })
}

/// The containers whose stats a list with this filter holds.
pub(super) fn selected_containers(
    daemon: &Daemon,
    filter: Option<cri::ContainerStatsFilter>,
) -> Vec<Arc<Container>> {
    let filter = filter.unwrap_or_default();
    let selected = daemon.containers.all().into_iter().filter(|c| {
        c.is_running()
            && id_matches(&filter.id, c.id().as_str())
            && id_matches(&filter.pod_sandbox_id, c.sandbox().as_str())
            && labels_match(&filter.label_selector, &c.config().labels)
    });
    selected.collect()
}

pub(super) async fn pod_sandbox_stats(
    daemon: &Daemon,
    request: cri::PodSandboxStatsRequest,
) -> Result<cri::PodSandboxStatsResponse, Status> {
    let sandbox = daemon.sandboxes.find(&request.pod_sandbox_id).map_err(|e| status(&e))?;
    if !sandbox.is_ready() {
        let text = format!("pod sandbox {} is {}", sandbox.id(), sandbox.status().state.name());
        return Err(Status::failed_precondition(text));
    }
    let answers = ask_shims(daemon, members(daemon, &sandbox)).await?;
    let stats = blocking(daemon, move |daemon| of_pod(daemon, &sandbox, &answers)).await?;
    Ok(cri::PodSandboxStatsResponse { stats: Some(stats) })
}

pub(super) async fn list_pod_sandbox_stats(
    daemon: &Daemon,
    request: cri::ListPodSandboxStatsRequest,
) -> Result<cri::ListPodSandboxStatsResponse, Status> {
    let selected = selected_pods(daemon, request.filter);
    let containers = selected.iter().flat_map(|sandbox| members(daemon, sandbox)).collect();
    let answers = ask_shims(daemon, containers).await?;
    let read = move |daemon: &Daemon| selected.iter().map(|s| of_pod(daemon, s, &answers)).collect();
    let stats = blocking(daemon, read).await?;
    Ok(cri::ListPodSandboxStatsResponse { stats })
}

/// The pods whose stats a list with this filter holds.
pub(super) fn selected_pods(
    daemon: &Daemon,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Vec<Arc<Sandbox>> {
    let filter = filter.unwrap_or_default();
    let selected = daemon.sandboxes.all().into_iter().filter(|s| {
        s.is_ready()
            && id_matches(&filter.id, s.id().as_str())
            && labels_match(&filter.label_selector, &s.config().labels)
    });
    selected.collect()
}

/// Runs `work` where reading many small files may block.
pub(super) async fn blocking<T: Send + 'static>(
    daemon: &Daemon,
    work: impl FnOnce(&Daemon) -> T + Send + 'static,
) -> Result<T, Status> {
    let daemon = daemon.clone();
    let done = tokio::task::spawn_blocking(move || work(&daemon)).await;
    done.map_err(|e| Status::internal(format!("stats: {e}")))
}

/// The containers of a pod, as [`ask_shims`] wants them.
pub(super) fn members(daemon: &Daemon, sandbox: &Arc<Sandbox>) -> Vec<Arc<Container>> {
    daemon.containers.of_sandbox(sandbox.id())
}

/// What is told of those of the containers that run elsewhere than in their cgroups.
pub(super) async fn ask_shims(daemon: &Daemon, containers: Vec<Arc<Container>>) -> Result<Answers, Status> {
    let elsewhere = move |daemon: &Daemon| {
        let cgroups = &daemon.ports.cgroups;
        let away = |c: &Arc<Container>| c.pid().is_some_and(|pid| !cgroups.hold(c.cgroups_path(), pid));
        containers.into_iter().filter(away).collect::<Vec<_>>()
    };
    let asked = futures::stream::iter(blocking(daemon, elsewhere).await?).map(|container| async move {
        let shim = container.shim().filter(|shim| !shim.is_gone() && !shim.is_silent())?;
        match shim.usage_within(SHIM).await {
            Ok(answer) => Some((container.id().clone(), told(&answer?)?)),
            Err(error) => {
                let error = crate::report::chain(&error);
                tracing::debug!(container = %container.id(), error, "its shim tells no usage");
                None
            }
        }
    });
    Ok(asked.buffer_unordered(AT_ONCE).filter_map(std::future::ready).collect().await)
}

fn sample_of(daemon: &Daemon, cgroups_path: &str) -> Sample {
    let paths = daemon.ports.cgroups.hierarchies().paths(cgroups_path).unwrap_or_default();
    sample(&paths)
}

pub(super) fn of_container(
    daemon: &Daemon,
    container: &Arc<Container>,
    answers: &Answers,
) -> cri::ContainerStats {
    let (made, config) = (container.made(), container.config());
    let told = answers.get(container.id()).map(|told| told.sample);
    let sample = told.unwrap_or_else(|| sample_of(daemon, container.cgroups_path()));
    let nano_cores = daemon.rates.observe(made.id.as_str(), sample.at, sample.cpu.usage_nanos);
    let attributes = cri::ContainerAttributes {
        id: made.id.to_string(),
        metadata: config.metadata.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
    };
    stats::container_stats(attributes, &sample, nano_cores, writable_layer(daemon, container))
}

fn writable_layer(daemon: &Daemon, container: &Container) -> Option<cri::FilesystemUsage> {
    let usage = daemon.ports.snapshots.usage(container.id()).ok()?;
    Some(cri::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(cri::FilesystemIdentifier {
            mountpoint: daemon.ports.places.root().display().to_string(),
        }),
        used_bytes: Some(cri::UInt64Value { value: usage.bytes }),
        inodes_used: Some(cri::UInt64Value { value: usage.inodes }),
    })
}

/// The interfaces of a pod with a network of its own.
pub(super) fn network_of(daemon: &Daemon, sandbox: &Sandbox) -> Option<NetworkSample> {
    let netns = daemon.sandboxes.network_namespace(sandbox)?;
    network_of_pod(sandbox.pid()?, &netns).ok()
}

pub(super) fn of_pod(daemon: &Daemon, sandbox: &Arc<Sandbox>, answers: &Answers) -> cri::PodSandboxStats {
    let containers = members(daemon, sandbox);
    let running = containers.iter().filter(|c| c.is_running());
    let container_stats: Vec<_> = running.clone().map(|c| of_container(daemon, c, answers)).collect();
    let parent = sandbox.config().linux.as_ref().map_or("", |l| l.cgroup_parent.as_str());
    // The pod's own cgroup also counts what the kubelet puts there; without one its containers are added up. Those that
    // run in a machine are in that of the pause process with it, so nothing is counted twice.
    let sample = if parent.is_empty() {
        let mut sum = sample_of(daemon, &sandbox.cgroups_path(&daemon.ports).unwrap_or_default());
        for container in running {
            sum.add(&sample_of(daemon, container.cgroups_path()));
        }
        sum
    } else {
        sample_of(daemon, parent)
    };
    let nano_cores = daemon.rates.observe(sandbox.id().as_str(), sample.at, sample.cpu.usage_nanos);
    let attributes = cri::PodSandboxAttributes {
        id: sandbox.id().to_string(),
        metadata: sandbox.config().metadata.clone(),
        labels: sandbox.config().labels.clone(),
        annotations: sandbox.config().annotations.clone(),
    };
    let network = network_of(daemon, sandbox);
    stats::pod_stats(attributes, &sample, nano_cores, network.as_ref(), container_stats)
}
