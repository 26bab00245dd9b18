//! GetContainerEvents: a reader of the daemon's events, as a stream.

use std::pin::Pin;
use std::sync::Arc;

use cofferdam_proto::cri;
use futures::{Stream, StreamExt};
use tonic::Status;

use super::code::status;
use super::{Daemon, container, sandbox};
use crate::container::{ContainerState, Containers};
use crate::event::{Painter, Portrait};
use crate::sandbox::Sandboxes;

pub(super) type EventStream = Pin<Box<dyn Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send>>;

/// Paints pods for events, as PodSandboxStatus does. Holds neither registry: both hold the events.
#[must_use]
pub fn painter(sandboxes: &Arc<Sandboxes>, containers: &Arc<Containers>) -> Painter {
    let (sandboxes, containers) = (Arc::downgrade(sandboxes), Arc::downgrade(containers));
    Box::new(move |id| {
        let (Some(sandboxes), Some(containers)) = (sandboxes.upgrade(), containers.upgrade()) else {
            return Portrait::default();
        };
        let known = containers.of_sandbox(id).into_iter().filter(|c| c.state() != ContainerState::Creating);
        Portrait {
            sandbox: sandboxes.find(id.as_str()).ok().map(|found| sandbox::sandbox_status(&found)),
            containers: known.map(|found| container::status_of(&found)).collect(),
        }
    })
}

pub(super) fn get_container_events(daemon: &Daemon) -> EventStream {
    let reader = daemon.ports.events.subscribe();
    let events = futures::stream::unfold(Some(reader), |reader| async {
        let mut reader = reader?;
        match reader.next().await? {
            Ok(event) => Some((Ok(event), Some(reader))),
            Err(lagged) => Some((Err(status(&lagged)), None)),
        }
    });
    events.boxed()
}
