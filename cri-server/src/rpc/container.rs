//! The calls about containers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::cri;
use tonic::Status;

use super::Daemon;
use super::code::status;
use super::filter::{id_matches, labels_match};
use crate::container::{Container, ContainerState};
use crate::index::LookupError;
use crate::spec::signal;

pub(super) async fn create_container(
    daemon: &Daemon,
    request: cri::CreateContainerRequest,
) -> Result<cri::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
    let sandbox = daemon.sandboxes.find(&request.pod_sandbox_id).map_err(|e| status(&e))?;
    let created = daemon.containers.create(&sandbox, config).await;
    let id = created.map_err(|e| status(&*e))?;
    Ok(cri::CreateContainerResponse { container_id: id.to_string() })
}

fn find(daemon: &Daemon, id: &str) -> Result<Arc<Container>, Status> {
    daemon.containers.find(id).map_err(|e| status(&e))
}

/// The container, or none where an absent one is no error.
fn present(daemon: &Daemon, id: &str) -> Result<Option<Arc<Container>>, Status> {
    match daemon.containers.find(id) {
        Ok(container) => Ok(Some(container)),
        Err(LookupError::NotFound { .. }) => Ok(None),
        Err(error @ LookupError::Ambiguous { .. }) => Err(status(&error)),
    }
}

pub(super) async fn start_container(
    daemon: &Daemon,
    request: cri::StartContainerRequest,
) -> Result<cri::StartContainerResponse, Status> {
    let container = find(daemon, &request.container_id)?;
    daemon.containers.start(&container).await.map_err(|e| status(&*e))?;
    Ok(cri::StartContainerResponse {})
}

pub(super) async fn stop_container(
    daemon: &Daemon,
    request: cri::StopContainerRequest,
) -> Result<cri::StopContainerResponse, Status> {
    if let Some(container) = present(daemon, &request.container_id)? {
        let grace = Duration::from_secs(u64::try_from(request.timeout).unwrap_or(0));
        daemon.containers.stop(&container, grace).await.map_err(|e| status(&*e))?;
    }
    Ok(cri::StopContainerResponse {})
}

pub(super) async fn remove_container(
    daemon: &Daemon,
    request: cri::RemoveContainerRequest,
) -> Result<cri::RemoveContainerResponse, Status> {
    if let Some(container) = present(daemon, &request.container_id)? {
        daemon.containers.remove(&container).await.map_err(|e| status(&*e))?;
    }
    Ok(cri::RemoveContainerResponse {})
}

pub(super) async fn update_container_resources(
    daemon: &Daemon,
    request: cri::UpdateContainerResourcesRequest,
) -> Result<cri::UpdateContainerResourcesResponse, Status> {
    if request.windows.is_some() {
        return Err(Status::invalid_argument("windows resources are not for a Linux node"));
    }
    let linux = request.linux.ok_or_else(|| Status::invalid_argument("linux resources are missing"))?;
    let container = find(daemon, &request.container_id)?;
    let updated = daemon.containers.update(&container, linux, request.annotations).await;
    updated.map_err(|e| status(&*e))?;
    Ok(cri::UpdateContainerResourcesResponse {})
}

pub(super) async fn reopen_container_log(
    daemon: &Daemon,
    request: cri::ReopenContainerLogRequest,
) -> Result<cri::ReopenContainerLogResponse, Status> {
    let container = find(daemon, &request.container_id)?;
    daemon.containers.reopen_log(&container).await.map_err(|e| status(&*e))?;
    Ok(cri::ReopenContainerLogResponse {})
}

pub(super) async fn checkpoint_container(
    daemon: &Daemon,
    request: cri::CheckpointContainerRequest,
) -> Result<cri::CheckpointContainerResponse, Status> {
    let seconds =
        u64::try_from(request.timeout).map_err(|_| Status::invalid_argument("timeout is negative"))?;
    let container = find(daemon, &request.container_id)?;
    let timeout = (seconds > 0).then(|| Duration::from_secs(seconds));
    let made = daemon.containers.checkpoint(&container, request.location.into(), timeout).await;
    made.map_err(|e| status(&*e))?;
    Ok(cri::CheckpointContainerResponse {})
}

pub(super) async fn exec_sync(
    daemon: &Daemon,
    request: cri::ExecSyncRequest,
) -> Result<cri::ExecSyncResponse, Status> {
    if request.cmd.is_empty() {
        return Err(Status::invalid_argument("cmd is empty"));
    }
    let container = find(daemon, &request.container_id)?;
    let limit = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
    let output = daemon.containers.exec_sync(&container, request.cmd, limit).await;
    let output = output.map_err(|e| status(&e))?;
    Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
}

pub(super) async fn container_status(
    daemon: &Daemon,
    request: cri::ContainerStatusRequest,
) -> Result<cri::ContainerStatusResponse, Status> {
    let container = find(daemon, &request.container_id)?;
    if container.state() == ContainerState::Creating {
        // What is still being made is nobody's container yet: see list_containers.
        return Err(status(&LookupError::NotFound { kind: "container", id: request.container_id }));
    }
    let info = if request.verbose { verbose(daemon, &container).await } else { HashMap::new() };
    Ok(cri::ContainerStatusResponse { status: Some(status_of(&container)), info })
}

/// A container's status, from memory alone.
pub(super) fn status_of(container: &Container) -> cri::ContainerStatus {
    let made = container.made();
    let config = container.config();
    let state = container.state();
    let mut answer = cri::ContainerStatus {
        id: made.id.to_string(),
        metadata: config.metadata.clone(),
        state: cri_state(&state).into(),
        created_at: made.created_at,
        image: image_spec(container),
        image_ref: made.image_ref.clone(),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        mounts: mounts(container),
        log_path: made.log_path.as_ref().map(|p| p.display().to_string()).unwrap_or_default(),
        resources: container
            .resources()
            .map(|linux| cri::ContainerResources { linux: Some(linux), windows: None }),
        image_id: made.image_id.clone(),
        user: made.user.clone().map(|linux| cri::ContainerUser { linux: Some(linux) }),
        stop_signal: signal::to_cri(made.stop_signal).into(),
        ..Default::default()
    };
    match state.told() {
        ContainerState::Creating | ContainerState::Created | ContainerState::Removing { .. } => {}
        ContainerState::Running { started_at, .. } => answer.started_at = *started_at,
        ContainerState::Exited { started_at, exit } => {
            answer.started_at = *started_at;
            answer.finished_at = exit.finished_at;
            answer.exit_code = exit.code;
            answer.reason = exit.cause.reason().to_owned();
            answer.message = exit.message.clone();
        }
    }
    answer
}

/// The mounts as they were asked for, and which image an image volume shows.
fn mounts(container: &Container) -> Vec<cri::Mount> {
    let mut mounts = container.config().mounts.clone();
    for (index, id) in &container.made().volumes {
        if let Some(image) = mounts.get_mut(*index).and_then(|mount| mount.image.as_mut()) {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

/// The image as it was asked for, under the name that people know.
fn image_spec(container: &Container) -> Option<cri::ImageSpec> {
    let mut image = container.config().image.clone()?;
    let name = &container.made().image_name;
    if !name.is_empty() {
        image.image.clone_from(name);
    }
    Some(image)
}

fn cri_state(state: &ContainerState) -> cri::ContainerState {
    match state.told() {
        ContainerState::Creating | ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => cri::ContainerState::ContainerExited,
        ContainerState::Removing { .. } => cri::ContainerState::ContainerUnknown,
    }
}

async fn verbose(daemon: &Daemon, container: &Container) -> HashMap<String, String> {
    let spec = tokio::fs::read(daemon.ports.places.container(container.id()).join("config.json")).await;
    let spec = spec.ok().and_then(|s| serde_json::from_slice::<serde_json::Value>(&s).ok());
    let info = serde_json::json!({
        "sandboxID": container.sandbox(),
        "pid": container.pid().unwrap_or(0),
        "state": container.state().name(),
        "cgroupsPath": container.cgroups_path(),
        "config": container.config(),
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

pub(super) async fn list_containers(
    daemon: &Daemon,
    request: cri::ListContainersRequest,
) -> Result<cri::ListContainersResponse, Status> {
    Ok(cri::ListContainersResponse { containers: selected(daemon, request.filter) })
}

/// The containers that a list with this filter holds.
pub(super) fn selected(daemon: &Daemon, filter: Option<cri::ContainerFilter>) -> Vec<cri::Container> {
    let filter = filter.unwrap_or_default();
    let containers = daemon.containers.all().into_iter().filter_map(|container| {
        let state = container.state();
        // What is still being made is nobody's container yet: its maker gets an id or an error.
        if *state.told() == ContainerState::Creating {
            return None;
        }
        let (made, config) = (container.made(), container.config());
        let selected = id_matches(&filter.id, made.id.as_str())
            && id_matches(&filter.pod_sandbox_id, made.sandbox.as_str())
            && filter.state.is_none_or(|wanted| wanted.state() == cri_state(&state))
            && labels_match(&filter.label_selector, &config.labels);
        selected.then(|| cri::Container {
            id: made.id.to_string(),
            pod_sandbox_id: made.sandbox.to_string(),
            metadata: config.metadata.clone(),
            image: image_spec(&container),
            image_ref: made.image_ref.clone(),
            state: cri_state(&state).into(),
            created_at: made.created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            image_id: made.image_id.clone(),
        })
    });
    containers.collect()
}
