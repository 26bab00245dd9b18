//! The edge to the kubelet: decodes requests, calls the domain, encodes answers. One file per resource.

mod admin;
mod chunk;
pub mod code;
mod container;
mod events;
mod filter;
mod image;
mod metrics;
mod node;
mod runtime;
mod sandbox;
mod stats;
mod stream_lists;
mod streaming;
mod usage;

use std::sync::Arc;

pub use admin::AdminRpc;
pub use events::painter;
pub use image::ImageRpc;
pub use runtime::Runtime;
pub use streaming::FINGERPRINT as STREAMING_FINGERPRINT;

use crate::container::Containers;
use crate::pod::Pods;
use crate::ports::Ports;
use crate::sandbox::Sandboxes;
use crate::stats::CpuRates;

/// What the calls work on.
#[derive(Clone)]
pub struct Daemon {
    pub ports: Arc<Ports>,
    pub sandboxes: Arc<Sandboxes>,
    pub containers: Arc<Containers>,
    pub pods: Pods,
    /// Sweeps, and looks at what is stored.
    pub reconciler: Arc<crate::reconcile::Reconciler>,
    /// Keeps the last samples, from which rates are made.
    pub rates: Arc<CpuRates>,
    /// Where clients of exec, attach and port-forward are sent.
    pub streaming: crate::streaming::Streaming,
    /// Where the daemon's own metrics are served.
    pub metrics: crate::metrics::Served,
    /// The configuration in force, for a person to look at.
    pub config: Arc<crate::config::Config>,
}
