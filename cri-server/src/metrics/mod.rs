//! The daemon's own metrics for Prometheus: what it did, and what it has now.
//!
//! Counters and histograms belong to who counts (`store`, `image`, [`RpcSeconds`] of the server) and are only named here;
//! what there is now is looked up at each scrape (`collect`), from memory. `http` serves it all as OpenMetrics text.
//!
//! Invariant: no label takes values that a caller chooses, but for the names of images being pulled, which go with the
//! pull.

mod collect;
mod http;
mod overdue;
mod process;
mod rpc;

use std::net::SocketAddr;
use std::sync::Arc;

use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};
use tokio::net::TcpListener;

pub use overdue::Overdue;
pub use rpc::{RpcSeconds, Timer};

use crate::config::MetricsConfig;
use crate::container::Containers;
use crate::pod::Pods;
use crate::ports::Ports;
use crate::reconcile::{Counts, Reconciler};
use crate::sandbox::Sandboxes;
use collect::Now;

/// The server cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("listen for Prometheus at {address} (metrics.address; \"\" turns it off)")]
pub struct ListenError {
    pub address: String,
    pub source: std::io::Error,
}

/// What is measured.
pub struct Measured {
    pub ports: Arc<Ports>,
    pub sandboxes: Arc<Sandboxes>,
    pub containers: Arc<Containers>,
    pub pods: Pods,
    pub rpc: RpcSeconds,
    pub overdue: Overdue,
    pub reconciler: Arc<Reconciler>,
}

/// Where metrics are served, for a person to know.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Served {
    Off,
    At(SocketAddr),
    /// Somebody else has the port. The node works without.
    Not(String),
}

/// Serves the metrics until the daemon ends. That another program has the port is a warning, for it would be a bad
/// reason to run no pods.
///
/// # Errors
/// When the address is not one of this node's, or may not be used.
pub async fn serve(config: &MetricsConfig, measured: Measured) -> Result<Served, ListenError> {
    let address = config.address.clone();
    if address.is_empty() {
        return Ok(Served::Off);
    }
    let listener = match TcpListener::bind(&address).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
            tracing::warn!(
                address,
                "another program has the port of metrics.address: metrics are not served"
            );
            return Ok(Served::Not(format!("another program has {address}")));
        }
        Err(source) => return Err(ListenError { address, source }),
    };
    let bound = listener.local_addr().map_err(|source| ListenError { address, source })?;
    let ports = Arc::clone(&measured.ports);
    let server = http::Server::new(registry(measured), ports.stopping.clone(), ports.tracker.clone());
    ports.tracker.spawn(server.listen(listener));
    tracing::info!(%bound, "metrics");
    Ok(Served::At(bound))
}

/// Everything by its name.
fn registry(measured: Measured) -> Registry {
    let mut all = Registry::default();
    let own = all.sub_registry_with_prefix("cofferdam");
    own.register("build", "The version that runs", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
    own.register_with_unit(
        "rpc",
        "Time until a call was answered, by method and gRPC code; of streams, until they began",
        Unit::Seconds,
        measured.rpc.family(),
    );
    own.register(
        "operation_stages_overdue",
        "Stages of operations that took longer than they should, by operation and stage",
        measured.overdue.family(),
    );
    let commits = measured.ports.store.commits();
    own.register_with_unit(
        "store_commit",
        "Time that a durable commit of records took",
        Unit::Seconds,
        commits.seconds.clone(),
    );
    own.register("store_records", "Records written or deleted", commits.records.clone());
    own.register("store_commit_failures", "Commits that failed", commits.failures.clone());
    let pulls = measured.ports.images.pulls();
    own.register_with_unit(
        "image_pull",
        "Time that pulls of images took, by result",
        Unit::Seconds,
        pulls.seconds.clone(),
    );
    own.register("image_pull_received_bytes", "Compressed bytes of layers received", pulls.received.clone());
    upkeep(own, measured.reconciler.counts());
    all.register_collector(Box::new(Now(measured)));
    all.register_collector(Box::new(process::Process));
    all
}

/// Sweeps, and looks at what is stored.
fn upkeep(own: &mut Registry, counts: &Counts) {
    own.register("sweeps", "Sweeps for what belongs to nobody", counts.sweeps.clone());
    let help = "When the last sweep began, in seconds since the epoch; 0 before the first";
    own.register("sweep_last_timestamp_seconds", help, counts.last_sweep.clone());
    own.register(
        "sweep_last_duration_seconds",
        "Time that the last sweep took",
        counts.sweep_seconds.clone(),
    );
    let help = "Things that belonged to nobody and were taken away, or were finished, by kind";
    own.register("sweep_removed", help, counts.removed.clone());
    let help = "Things that a sweep could not take away or look for, by kind; again at each sweep";
    own.register("sweep_failures", help, counts.failures.clone());
    own.register(
        "verifications",
        "Looks at all blobs and layers that came to their end",
        counts.looks.clone(),
    );
    let help = "When the last such look ended, in seconds since the epoch; 0 before the first";
    own.register("verification_last_timestamp_seconds", help, counts.last_look.clone());
    own.register("verified", "Blobs and layers looked at, by kind", counts.looked_at.clone());
    own.register("verified_bytes", "Bytes read to look at them", counts.looked_bytes.clone());
    own.register("verification_damaged", "Blobs and layers found damaged, by kind", counts.damaged.clone());
    own.register(
        "verification_repaired",
        "Images made whole again from what is stored",
        counts.repaired.clone(),
    );
    let help = "Blobs and layers that could not be looked at";
    own.register("verification_failures", help, counts.look_failures.clone());
}
