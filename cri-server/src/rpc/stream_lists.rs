//! The Stream* calls of the RuntimeService: the lists of the List* calls with the same filters, in pieces.
//!
//! What is listed is fixed when the call begins. Usage is read piece by piece as the client takes it, so that a node
//! full of pods is never held in memory as one list.

use std::sync::Arc;

use cofferdam_proto::cri;
use futures::StreamExt;
use prost::Message;
use tonic::Status;

use super::chunk::{Chunks, in_chunks};
use super::{Daemon, container, sandbox, usage};
use crate::container::Container;

/// How many cgroups are read between two messages.
const READ_AT_ONCE: usize = 50;

pub(super) fn pod_sandboxes(
    daemon: &Daemon,
    filter: Option<cri::PodSandboxFilter>,
) -> Chunks<cri::StreamPodSandboxesResponse> {
    in_chunks(sandbox::selected(daemon, filter), |pod_sandboxes| cri::StreamPodSandboxesResponse {
        pod_sandboxes,
    })
}

pub(super) fn containers(
    daemon: &Daemon,
    filter: Option<cri::ContainerFilter>,
) -> Chunks<cri::StreamContainersResponse> {
    in_chunks(container::selected(daemon, filter), |containers| cri::StreamContainersResponse { containers })
}

pub(super) fn container_stats(
    daemon: &Daemon,
    filter: Option<cri::ContainerStatsFilter>,
) -> Chunks<cri::StreamContainerStatsResponse> {
    let selected = usage::selected_containers(daemon, filter);
    let itself = |_: &Daemon, container: &Arc<Container>| vec![Arc::clone(container)];
    read_in_pieces(daemon, selected, itself, usage::of_container, |container_stats| {
        cri::StreamContainerStatsResponse { container_stats }
    })
}

pub(super) fn pod_sandbox_stats(
    daemon: &Daemon,
    filter: Option<cri::PodSandboxStatsFilter>,
) -> Chunks<cri::StreamPodSandboxStatsResponse> {
    let selected = usage::selected_pods(daemon, filter);
    read_in_pieces(daemon, selected, usage::members, usage::of_pod, |pod_sandbox_stats| {
        cri::StreamPodSandboxStatsResponse { pod_sandbox_stats }
    })
}

/// Reads some of the selected ones, sends them, and goes on; `containers` are those that belong to one.
pub(super) fn read_in_pieces<S, T, M>(
    daemon: &Daemon,
    selected: Vec<Arc<S>>,
    containers: fn(&Daemon, &Arc<S>) -> Vec<Arc<Container>>,
    read: fn(&Daemon, &Arc<S>, &usage::Answers) -> T,
    message: fn(Vec<T>) -> M,
) -> Chunks<M>
where
    S: Send + Sync + 'static,
    T: Message + 'static,
    M: Send + 'static,
{
    let daemon = daemon.clone();
    let pieces: Vec<Vec<Arc<S>>> = selected.chunks(READ_AT_ONCE).map(<[_]>::to_vec).collect();
    let reading = futures::stream::iter(pieces).then(move |piece| {
        let daemon = daemon.clone();
        async move {
            let all = piece.iter().flat_map(|one| containers(&daemon, one)).collect();
            let answers = usage::ask_shims(&daemon, all).await?;
            let work = move |daemon: &Daemon| {
                piece.iter().map(|one| read(daemon, one, &answers)).collect::<Vec<_>>()
            };
            usage::blocking(&daemon, work).await
        }
    });
    let messages = reading.flat_map(move |piece| match piece {
        Ok(items) => in_chunks(items, message),
        Err(error) => one_error(error),
    });
    messages.boxed()
}

fn one_error<M: Send + 'static>(error: Status) -> Chunks<M> {
    futures::stream::iter([Err(error)]).boxed()
}
