//! The Node Resource Interface (NRI): plugins that see, adjust and change pods and containers.
//!
//! ```text
//! socket, folder ─▶ connect, launch ─▶ plugin ─▶ connection ─▶ wire, mux
//! sandbox, container ─▶ relay ─▶ plugin after plugin ─▶ collect ─▶ validate ─▶ adjust (the spec)
//! ```
//!
//! Invariants: plugins are asked one after the other, in the order of their index and name, one request at a time for
//! the whole node. A plugin that does not answer is let go, and the pod goes on. A plugin that connects knows every
//! container from then on: those that there are by its synchronization, all others by their events. Without plugins an
//! event costs one look at a number.
//!
//! Specification: github.com/containerd/nri, v1alpha1 (see `proto/nri.proto`).

pub mod adjust;
mod collect;
pub mod config;
mod connect;
mod connection;
pub mod convert;
mod error;
pub mod launch;
mod mux;
mod plugin;
mod relay;
mod validate;
mod wire;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use cofferdam_proto::nri;
use tokio::sync::{Mutex, RwLock, RwLockReadGuard};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use collect::overlay;
pub use config::Config;
pub use error::NriError;
use plugin::Plugin;
pub use relay::OfOthers;

/// How long a plugin may take to hear that the daemon ends.
const FAREWELL: Duration = Duration::from_millis(500);
/// How long all of them may take to be gone.
const GONE: Duration = Duration::from_secs(3);

/// What plugins see of the node and may do to it.
#[async_trait]
pub trait Node: Send + Sync {
    /// All pods and containers that a plugin has to know.
    async fn snapshot(&self) -> (Vec<nri::PodSandbox>, Vec<nri::Container>);

    /// Changes a container's resources.
    ///
    /// # Errors
    /// Says why not.
    async fn update(&self, container: &str, resources: &nri::LinuxResources) -> Result<(), String>;

    /// Stops a container.
    ///
    /// # Errors
    /// Says why not.
    async fn evict(&self, container: &str) -> Result<(), String>;
}

/// How far plugins have been told of a pod or a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Live,
    Stopped,
}

/// What changes; whoever holds it asks plugins.
#[derive(Debug, Default)]
struct Order {
    /// By index and name.
    plugins: Vec<Arc<Plugin>>,
    /// By id; empty while there is no plugin.
    stages: HashMap<String, Stage>,
}

/// The plugins of the node.
pub struct Nri {
    config: Config,
    /// Plugins there are, those being synchronized among them, and the built-in validator.
    active: AtomicUsize,
    /// Held for reading from the creation's event until the container is there for all to see, and for writing by
    /// the synchronization of a plugin: so that none falls between the two.
    gate: RwLock<()>,
    /// An operation lock: plugins of others rely on hearing one thing at a time.
    order: Mutex<Order>,
    node: OnceLock<Arc<dyn Node>>,
    tracker: TaskTracker,
    /// Ends every connection.
    ending: CancellationToken,
}

impl Nri {
    /// No plugins yet: see [`Self::serve`].
    #[must_use]
    pub fn new(config: Config) -> Arc<Self> {
        let built_in = usize::from(config.default_validator.enable);
        Arc::new(Self {
            config,
            active: AtomicUsize::new(built_in),
            gate: RwLock::default(),
            order: Mutex::default(),
            node: OnceLock::new(),
            tracker: TaskTracker::new(),
            ending: CancellationToken::new(),
        })
    }

    /// Whether anybody wants to hear of events.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire) > 0
    }

    /// Keeps plugins from being synchronized while something is made that a synchronization would miss.
    pub async fn gate(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().await
    }

    /// Tells the plugins that the daemon ends, and ends their connections and the processes that are ours.
    pub async fn shut_down(&self) {
        let farewell = async {
            let plugins = std::mem::take(&mut self.order.lock().await.plugins);
            futures::future::join_all(plugins.iter().map(|plugin| plugin.shut_down(FAREWELL))).await;
        };
        // An event under way may wait for a plugin for longer.
        let told = tokio::time::timeout(GONE, farewell).await;
        self.ending.cancel();
        self.tracker.close();
        if told.is_err() || tokio::time::timeout(GONE, self.tracker.wait()).await.is_err() {
            tracing::warn!("NRI plugins are cut off");
        }
        if !self.config.socket.is_empty() {
            // The next daemon would take it away as well.
            let _ = std::fs::remove_file(&self.config.socket);
        }
    }
}
