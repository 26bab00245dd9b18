//! What the domain works with: everything below sandboxes and containers, wired once.

use std::borrow::Cow;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::boot::{BootId, Past};
use crate::cdi;
use crate::cgroup::Cgroups;
use crate::event::Events;
use crate::image::ImageService;
use crate::network::Network;
use crate::node::Features;
use crate::notices::Notices;
use crate::nri::Nri;
use crate::owner::Owner;
use crate::places::Places;
use crate::runtime::{ExecRunner, Handler, HandlerTable, Launcher};
use crate::snapshot::Snapshots;
use crate::spec::Defaults;
use crate::store::Store;

/// The parts that sandboxes and containers are made with.
pub struct Ports {
    pub places: Places,
    /// Who gives the ids of this daemon's sandboxes and containers.
    pub owner: Owner,
    /// The kernel's present start.
    pub boot: BootId,
    /// What lies between the daemon before and this one.
    pub past: Past,
    /// What was found lost or damaged.
    pub notices: Arc<Notices>,
    pub store: Arc<Store>,
    pub handlers: HandlerTable,
    pub launcher: Launcher,
    /// Whose shim's executable is also the pause program: our own.
    pub pause: Handler,
    pub exec: ExecRunner,
    pub network: Network,
    pub images: Arc<ImageService>,
    pub snapshots: Arc<Snapshots>,
    pub cgroups: Cgroups,
    /// Who else has a say in pods and containers.
    pub nri: Arc<Nri>,
    /// What the node allows a spec to ask for.
    pub features: Features,
    pub spec_defaults: Defaults,
    /// Where the files of CDI devices lie.
    pub cdi: cdi::Config,
    /// Where lifecycles say how far they are.
    pub events: Arc<Events>,
    /// Owns every task of the domain; the daemon waits for them when it ends.
    pub tracker: TaskTracker,
    /// Cancelled when the daemon ends: what only watches ends then, what changes something is waited for.
    pub stopping: CancellationToken,
}

impl Ports {
    /// What the node allows a spec for this handler to ask for.
    #[must_use]
    pub fn features_of(&self, handler: &Handler) -> Cow<'_, Features> {
        if handler.built_in_runtime {
            Cow::Borrowed(&self.features)
        } else {
            Cow::Owned(self.features.of_other_runtimes())
        }
    }
}

/// Nanoseconds since the epoch, the CRI's time.
#[must_use]
pub fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_nanos()).unwrap_or(i64::MAX))
}
