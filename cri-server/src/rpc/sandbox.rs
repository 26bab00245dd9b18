//! The calls about pod sandboxes.

use std::collections::HashMap;
use std::sync::Arc;

use cofferdam_proto::cri;
use tonic::Status;

use super::code::status;
use super::filter::{id_matches, labels_match};
use super::{Daemon, container};
use crate::index::LookupError;
use crate::ports::now;
use crate::runtime::Launcher;
use crate::sandbox::{PodResources, Sandbox, SandboxState};

pub(super) async fn run_pod_sandbox(
    daemon: &Daemon,
    request: cri::RunPodSandboxRequest,
) -> Result<cri::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
    let run = daemon.sandboxes.run(config, request.runtime_handler).await;
    let id = run.map_err(|e| status(&*e))?;
    Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
}

/// The sandbox, or none where an absent one is no error.
fn present(daemon: &Daemon, id: &str) -> Result<Option<Arc<Sandbox>>, Status> {
    match daemon.sandboxes.find(id) {
        Ok(sandbox) => Ok(Some(sandbox)),
        Err(LookupError::NotFound { .. }) => Ok(None),
        Err(error @ LookupError::Ambiguous { .. }) => Err(status(&error)),
    }
}

pub(super) async fn stop_pod_sandbox(
    daemon: &Daemon,
    request: cri::StopPodSandboxRequest,
) -> Result<cri::StopPodSandboxResponse, Status> {
    if let Some(sandbox) = present(daemon, &request.pod_sandbox_id)? {
        daemon.pods.stop(&sandbox).await.map_err(|e| status(&*e))?;
    }
    Ok(cri::StopPodSandboxResponse {})
}

pub(super) async fn remove_pod_sandbox(
    daemon: &Daemon,
    request: cri::RemovePodSandboxRequest,
) -> Result<cri::RemovePodSandboxResponse, Status> {
    if let Some(sandbox) = present(daemon, &request.pod_sandbox_id)? {
        daemon.pods.remove(&sandbox).await.map_err(|e| status(&*e))?;
    }
    Ok(cri::RemovePodSandboxResponse {})
}

pub(super) async fn update_pod_sandbox_resources(
    daemon: &Daemon,
    request: cri::UpdatePodSandboxResourcesRequest,
) -> Result<cri::UpdatePodSandboxResourcesResponse, Status> {
    let sandbox = daemon.sandboxes.find(&request.pod_sandbox_id).map_err(|e| status(&e))?;
    let size = PodResources { resources: request.resources, overhead: request.overhead };
    daemon.sandboxes.update(&sandbox, size).await.map_err(|e| status(&*e))?;
    Ok(cri::UpdatePodSandboxResourcesResponse {})
}

pub(super) async fn pod_sandbox_status(
    daemon: &Daemon,
    request: cri::PodSandboxStatusRequest,
) -> Result<cri::PodSandboxStatusResponse, Status> {
    let sandbox = daemon.sandboxes.find(&request.pod_sandbox_id).map_err(|e| status(&e))?;
    let info = if request.verbose { verbose(daemon, &sandbox).await } else { HashMap::new() };
    let containers = daemon.containers.of_sandbox(sandbox.id());
    Ok(cri::PodSandboxStatusResponse {
        status: Some(sandbox_status(&sandbox)),
        info,
        containers_statuses: containers.iter().map(|c| container::status_of(c)).collect(),
        timestamp: now(),
    })
}

pub(super) fn sandbox_status(sandbox: &Sandbox) -> cri::PodSandboxStatus {
    let config = sandbox.config();
    let status = sandbox.status();
    let ips: Vec<String> = status.ips.iter().map(ToString::to_string).collect();
    let (ip, additional) = match ips.split_first() {
        Some((first, rest)) => (first.clone(), rest.iter().map(|ip| cri::PodIp { ip: ip.clone() }).collect()),
        None => (String::new(), Vec::new()),
    };
    let security = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = security.and_then(|s| s.namespace_options.clone()).unwrap_or_default();
    cri::PodSandboxStatus {
        id: sandbox.id().to_string(),
        metadata: config.metadata.clone(),
        state: state(&status.state).into(),
        created_at: sandbox.made().created_at,
        network: Some(cri::PodSandboxNetworkStatus { ip, additional_ips: additional }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(options) }),
        }),
        labels: config.labels.clone(),
        annotations: config.annotations.clone(),
        runtime_handler: sandbox.made().requested_handler.clone(),
    }
}

fn state(state: &SandboxState) -> cri::PodSandboxState {
    match state {
        SandboxState::Ready { .. } => cri::PodSandboxState::SandboxReady,
        SandboxState::Creating | SandboxState::NotReady | SandboxState::Removing => {
            cri::PodSandboxState::SandboxNotready
        }
    }
}

async fn verbose(daemon: &Daemon, sandbox: &Sandbox) -> HashMap<String, String> {
    let bundle = daemon.ports.places.sandbox(sandbox.id());
    let spec = tokio::fs::read(bundle.join("config.json")).await;
    let spec = spec.ok().and_then(|s| serde_json::from_slice::<serde_json::Value>(&s).ok());
    let info = serde_json::json!({
        "pid": sandbox.pid(),
        "state": sandbox.status().state.name(),
        "why": Launcher::why(&bundle),
        "runtimeHandler": sandbox.made().handler,
        "image": "built in",
        "config": sandbox.config(),
        "resources": sandbox.resources().resources,
        "overhead": sandbox.resources().overhead,
        "runtimeSpec": spec,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

pub(super) async fn list_pod_sandbox(
    daemon: &Daemon,
    request: cri::ListPodSandboxRequest,
) -> Result<cri::ListPodSandboxResponse, Status> {
    Ok(cri::ListPodSandboxResponse { items: selected(daemon, request.filter) })
}

/// The sandboxes that a list with this filter holds.
pub(super) fn selected(daemon: &Daemon, filter: Option<cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
    let filter = filter.unwrap_or_default();
    let items = daemon.sandboxes.all().into_iter().filter_map(|sandbox| {
        let status = sandbox.status();
        // What is still being made is nobody's pod yet: its maker gets an id or an error.
        if status.state == SandboxState::Creating {
            return None;
        }
        let config = sandbox.config();
        let selected = id_matches(&filter.id, sandbox.id().as_str())
            && filter.state.is_none_or(|wanted| wanted.state() == state(&status.state))
            && labels_match(&filter.label_selector, &config.labels);
        selected.then(|| cri::PodSandbox {
            id: sandbox.id().to_string(),
            metadata: config.metadata.clone(),
            state: state(&status.state).into(),
            created_at: sandbox.made().created_at,
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            runtime_handler: sandbox.made().requested_handler.clone(),
        })
    });
    items.collect()
}
