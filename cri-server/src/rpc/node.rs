//! The calls about the node itself: version, conditions, configuration.

use std::collections::HashMap;

use cofferdam_proto::cri;
use tonic::Status;

use super::Daemon;
use super::code::status;
use crate::cgroup::Driver;
use crate::image::{LayerStage, PullUnderWay};
use crate::node::{Severity, UserNamespaces, preflight};
use crate::report::chain;
use crate::runtime::{Handler, means, said};

/// The version of the CRI that is served.
const CRI_VERSION: &str = "v1";
/// What the kubelet calls the two conditions.
const RUNTIME_READY: &str = "RuntimeReady";
const NETWORK_READY: &str = "NetworkReady";

pub(super) async fn version(_: &Daemon, _: cri::VersionRequest) -> Result<cri::VersionResponse, Status> {
    Ok(cri::VersionResponse {
        // The version of this message, which no client looks at; all runtimes say the same.
        version: "0.1.0".to_owned(),
        runtime_name: "cofferdam".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: CRI_VERSION.to_owned(),
    })
}

pub(super) async fn status_call(
    daemon: &Daemon,
    request: cri::StatusRequest,
) -> Result<cri::StatusResponse, Status> {
    let network = match daemon.ports.network.status().await {
        Ok(ready) => condition(NETWORK_READY, true, "", &ready.warning.unwrap_or_default()),
        Err(why) => condition(NETWORK_READY, false, "NetworkPluginNotReady", &why.reason),
    };
    let conditions = vec![runtime_condition(daemon), network];
    let info = if request.verbose { verbose(daemon).await } else { HashMap::new() };
    let default = daemon.ports.handlers.handler("").ok().map(|handler| (String::new(), handler));
    let named = daemon.ports.handlers.iter().map(|handler| (handler.name.clone(), handler));
    let runtime_handlers = default
        .into_iter()
        .chain(named)
        .map(|(name, handler)| cri::RuntimeHandler { name, features: Some(features(daemon, handler)) });
    Ok(cri::StatusResponse {
        status: Some(cri::RuntimeStatus { conditions }),
        info,
        runtime_handlers: runtime_handlers.collect(),
        features: Some(cri::RuntimeFeatures {
            supplemental_groups_policy: true,
            user_namespaces_host_network: false,
        }),
    })
}

fn features(daemon: &Daemon, handler: &Handler) -> cri::RuntimeHandlerFeatures {
    let node = &daemon.ports.features;
    cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: node.recursive_readonly,
        user_namespaces: handler.maps_owners() && node.user_namespaces == UserNamespaces::Available,
    }
}

fn condition(kind: &str, status: bool, reason: &str, message: &str) -> cri::RuntimeCondition {
    cri::RuntimeCondition {
        r#type: kind.to_owned(),
        status,
        reason: reason.to_owned(),
        message: message.to_owned(),
    }
}

/// The runtime is ready when the default handler's shim is there and the node lacks nothing that every pod needs.
fn runtime_condition(daemon: &Daemon) -> cri::RuntimeCondition {
    let ports = &daemon.ports;
    let handler = ports.handlers.handler("").map_err(|e| e.to_string());
    let shim = handler.and_then(|h| h.check().map_err(|e| chain(&e)));
    if let Err(reason) = shim {
        return condition(RUNTIME_READY, false, "ShimMissing", &reason);
    }
    let missing: Vec<String> = preflight()
        .into_iter()
        .filter(|f| f.severity == Severity::Blocking)
        .map(|f| format!("{}: {} ({})", f.what, f.why, f.fix))
        .collect();
    if missing.is_empty() {
        condition(RUNTIME_READY, true, "", "")
    } else {
        condition(RUNTIME_READY, false, "NodeLacks", &missing.join("; "))
    }
}

async fn verbose(daemon: &Daemon) -> HashMap<String, String> {
    let ports = &daemon.ports;
    let under_way = [daemon.pods.under_way(), ports.images.under_way()].concat();
    let findings = preflight();
    let handlers = futures::future::join_all(ports.handlers.iter().map(|h| handler(daemon, h))).await;
    let network = ports.network.status().await;
    let network = match &network {
        Ok(ready) => serde_json::json!({"name": ready.network, "configuration": ready.source}),
        Err(why) => serde_json::json!({"error": why.reason}),
    };
    let info = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "config": &*daemon.config,
        "cgroupDriver": driver(daemon).as_str_name(),
        "cgroupLayout": format!("{:?}", ports.features.layout),
        "preflight": findings,
        "handlers": handlers,
        "network": network,
        "operations": under_way,
        "pulls": daemon.ports.images.pulls_under_way().iter().map(pull).collect::<Vec<_>>(),
        "metrics": daemon.metrics,
        "notices": ports.notices.all(),
        "sweep": daemon.reconciler.last(),
        "verification": daemon.reconciler.verification(),
        "pods": daemon.sandboxes.all().len(),
        "containers": daemon.containers.all().len(),
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// A handler, and whether pods can run with it. A trial of its own is what the shim keeps the outcome of.
async fn handler(daemon: &Daemon, handler: &Handler) -> serde_json::Value {
    let mut told = serde_json::json!({"name": handler.name, "isolation": handler.isolation});
    match handler.check() {
        Ok(path) => told["shim"] = serde_json::json!(path),
        Err(error) => {
            told["error"] = chain(&error).into();
            return told;
        }
    }
    match means(handler, daemon.ports.places.state()).await {
        None => {}
        Some(Ok(found)) => {
            told["said"] = said(daemon.ports.places.state(), handler).into();
            told["kvm"] = found.kvm.into();
            told["overheadMiB"] = found.overhead_mib.into();
            if let Some(obstacle) = found.obstacle {
                told["obstacle"] = obstacle.into();
            }
        }
        Some(Err(why)) => told["error"] = why.into(),
    }
    told
}

/// A pull with its progress; layers that were here already do not count.
fn pull(pull: &PullUnderWay) -> serde_json::Value {
    let wanted = || pull.layers.iter().filter(|layer| layer.stage != LayerStage::Present);
    serde_json::json!({
        "image": pull.reference,
        "age": pull.age,
        "layers": wanted().count(),
        "layersDone": wanted().filter(|layer| layer.stage == LayerStage::Done).count(),
        "receivedBytes": wanted().map(|layer| layer.received).sum::<u64>(),
        "totalBytes": wanted().map(|layer| layer.total).sum::<u64>(),
    })
}

fn driver(daemon: &Daemon) -> cri::CgroupDriver {
    match daemon.ports.features.driver {
        Driver::Systemd => cri::CgroupDriver::Systemd,
        Driver::Cgroupfs => cri::CgroupDriver::Cgroupfs,
    }
}

pub(super) async fn runtime_config(
    daemon: &Daemon,
    _: cri::RuntimeConfigRequest,
) -> Result<cri::RuntimeConfigResponse, Status> {
    Ok(cri::RuntimeConfigResponse {
        linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver(daemon).into() }),
    })
}

pub(super) async fn update_runtime_config(
    daemon: &Daemon,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|c| c.network_config);
    if let Some(network) = network.filter(|n| !n.pod_cidr.is_empty()) {
        daemon.ports.network.update_pod_cidr(&network.pod_cidr).map_err(|e| status(&e))?;
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}
