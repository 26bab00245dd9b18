//! Takes away what belongs to nobody, and ends what was left unfinished: at the daemon's start and on a timer.
//!
//! What lies on the node is compared with the records. A thing belongs to a pod or container by the id in its name; whether
//! the id is this daemon's, its place below our folders or the mark in it tells (see [`crate::owner`]).
//!
//! Invariants: the things are listed before the ids that live are asked for, and an id lives from before the first effect
//! of its maker until after the last of its remover, so nothing of an operation under way is taken; on the timer a thing
//! must have been nobody's for some seconds besides. Another daemon's things are never touched. A failure is
//! reported, keeps nothing else from being tried, and the next sweep tries again.

mod cgroups;
mod counts;
mod files;
mod finish;
mod mounts;
mod processes;
mod report;
mod verify;

use cofferdam_failpoints::failpoint;
use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

pub use counts::Counts;
pub use report::{Failure, Report};
pub use verify::Verification;

use crate::cgroup::CgroupError;
use crate::config::MaintenanceConfig;
use crate::container::Containers;
use crate::network::NetworkError;
use crate::ports::Ports;
use crate::runtime::RuntimeError;
use crate::sandbox::Sandboxes;
use crate::snapshot::SnapshotError;

/// How long a thing must have been nobody's, on the timer.
const PATIENCE: Duration = Duration::from_secs(2);
/// While the store has lost records, images are kept so long that had none.
const KEEP_IMAGES: Duration = Duration::from_secs(24 * 3600);

/// Why something could not be taken away.
#[derive(Debug, thiserror::Error)]
pub enum ReconcileError {
    #[error("{operation} {path}")]
    File { operation: &'static str, path: std::path::PathBuf, source: std::io::Error },
    #[error("process {pid}")]
    Process { pid: i32, source: std::io::Error },
    #[error("{0} is still mounted")]
    Mounted(std::path::PathBuf),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    #[error("a thread of the daemon ended without a result")]
    Thread(#[from] tokio::task::JoinError),
}

/// Something that belongs to nobody. In the order in which such things are taken away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Orphan {
    Shim { pid: i32, started: u64, id: String },
    Cgroup { path: String },
    Mount { point: std::path::PathBuf },
    Pin { id: String },
    Bundle { path: std::path::PathBuf },
    Writable { id: String },
    Socket { path: std::path::PathBuf },
    Streams { path: std::path::PathBuf },
}

impl Orphan {
    fn kind(&self) -> &'static str {
        match self {
            Self::Shim { .. } => "shim",
            Self::Cgroup { .. } => "cgroup",
            Self::Mount { .. } => "mount",
            Self::Pin { .. } => "network namespace",
            Self::Bundle { .. } => "bundle",
            Self::Writable { .. } => "writable layer",
            Self::Socket { .. } => "socket",
            Self::Streams { .. } => "streams",
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Shim { pid, id, .. } => format!("{pid} of {id}"),
            Self::Cgroup { path } => path.clone(),
            Self::Pin { id } | Self::Writable { id } => id.clone(),
            Self::Mount { point } => point.display().to_string(),
            Self::Bundle { path } | Self::Socket { path } | Self::Streams { path } => {
                path.display().to_string()
            }
        }
    }
}

/// The daemon's broom.
pub struct Reconciler {
    ports: Arc<Ports>,
    sandboxes: Arc<Sandboxes>,
    containers: Arc<Containers>,
    config: MaintenanceConfig,
    started: (SystemTime, Instant),
    last: Mutex<Option<Report>>,
    verification: Mutex<Verification>,
    /// Unfinished things that the sweep before has seen, too.
    unfinished: Mutex<HashSet<String>>,
    counts: Counts,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Reconciler {
    /// Sweeps nothing yet; see [`Self::start`].
    #[must_use]
    pub fn new(
        ports: Arc<Ports>,
        sandboxes: Arc<Sandboxes>,
        containers: Arc<Containers>,
        config: MaintenanceConfig,
    ) -> Arc<Self> {
        Arc::new(Self {
            ports,
            sandboxes,
            containers,
            config,
            started: (SystemTime::now(), Instant::now()),
            last: Mutex::default(),
            verification: Mutex::default(),
            unfinished: Mutex::default(),
            counts: Counts::default(),
            one_at_a_time: tokio::sync::Mutex::default(),
        })
    }

    /// Sweeps now, and on the timer until the daemon ends; looks at what is stored when it is time.
    pub fn start(self: &Arc<Self>) {
        let reconciler = Arc::clone(self);
        self.ports.tracker.spawn(async move {
            let stopping = reconciler.ports.stopping.clone();
            let looks = async {
                // What was missing at the start.
                reconciler.ports.images.repair().await;
                reconciler.verify_in_time().await;
            };
            let _ = stopping.run_until_cancelled(looks).await;
        });
        let reconciler = Arc::clone(self);
        self.ports.tracker.spawn(async move {
            let stopping = reconciler.ports.stopping.clone();
            let sweeps = async {
                reconciler.sweep(true).await;
                let Some(interval) = reconciler.config.sweep_interval() else { return };
                loop {
                    tokio::time::sleep(interval).await;
                    reconciler.sweep(false).await;
                }
            };
            // What is not swept now is swept at the next start.
            let _ = stopping.run_until_cancelled(sweeps).await;
        });
    }

    /// What sweeps and looks came to since the daemon's start.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What the last sweep did.
    #[must_use]
    pub fn last(&self) -> Option<Report> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One sweep. `first`: nobody can have left anything but an earlier daemon, so nothing is waited for.
    pub async fn sweep(self: &Arc<Self>, first: bool) -> Report {
        let _alone = self.one_at_a_time.lock().await;
        let mut report = Report::begin();
        self.finish(&mut report).await;
        failpoint!("reconcile.finished", infallible);
        let mut orphans = self.orphans(&mut report).await;
        if !first && !orphans.is_empty() {
            tokio::time::sleep(PATIENCE).await;
            let again = self.orphans(&mut report).await;
            orphans.retain(|orphan| again.contains(orphan));
        }
        let valid = || self.sandboxes.all().iter().map(|s| s.id().clone()).collect::<Vec<_>>();
        for orphan in &orphans {
            if matches!(orphan, Orphan::Pin { .. }) && !report.network_done {
                // Plugins are asked while the namespace is still there.
                report.network_done = true;
                report.settle("network", None, self.ports.network.gc(valid).await.map_err(Into::into));
            }
            let done = self.take_away(orphan.clone()).await;
            report.settle(orphan.kind(), Some(orphan.name()), done);
        }
        if !report.network_done {
            report.settle("network", None, self.ports.network.gc(valid).await.map_err(Into::into));
        }
        if orphans.iter().any(|orphan| matches!(orphan, Orphan::Shim { .. })) {
            // Their sockets have died with them.
            let (ports, started) = (Arc::clone(&self.ports), self.started.0);
            let dead = tokio::task::spawn_blocking(move || files::dead_sockets(&ports, started)).await;
            for orphan in dead.unwrap_or_default() {
                let done = self.take_away(orphan.clone()).await;
                report.settle(orphan.kind(), Some(orphan.name()), done);
            }
        }
        failpoint!("server.networks_swept", infallible);
        if !self.ports.store.is_incomplete() || self.started.1.elapsed() > KEEP_IMAGES {
            for error in self.ports.images.sweep().await {
                report.failed("image", None, error);
            }
        }
        failpoint!("server.swept", infallible);
        report.end();
        self.counts.swept(&report);
        self.last.lock().unwrap_or_else(PoisonError::into_inner).replace(report.clone());
        report
    }

    /// The ids that something may belong to.
    fn live(&self) -> HashSet<String> {
        let sandboxes = self.sandboxes.all().into_iter().map(|s| s.id().to_string());
        let containers = self.containers.all().into_iter().map(|c| c.id().to_string());
        // What only a newer daemon understands is its own.
        let unreadable = self.ports.store.unreadable().into_iter();
        let newer = unreadable.filter(|u| u.is_newer).map(|u| u.key);
        sandboxes.chain(containers).chain(newer).collect()
    }

    /// All that lies on the node and belongs to nobody.
    async fn orphans(self: &Arc<Self>, report: &mut Report) -> BTreeSet<Orphan> {
        let reconciler = Arc::clone(self);
        let looked = tokio::task::spawn_blocking(move || {
            let mut failures = Vec::new();
            let mut found: Vec<(String, Orphan)> = Vec::new();
            found.extend(processes::shims(reconciler.ports.places.state()));
            found.extend(cgroups::all(&reconciler.ports));
            found.extend(mounts::all(&reconciler.ports.places, &mut failures));
            found.extend(files::all(&reconciler.ports, &mut failures));
            // Only now: what has been made since then is in it.
            let live = reconciler.live();
            let mut orphans: BTreeSet<Orphan> =
                found.into_iter().filter(|(id, _)| !live.contains(id)).map(|(_, orphan)| orphan).collect();
            orphans.extend(files::dead_sockets(&reconciler.ports, reconciler.started.0));
            orphans.extend(files::old_streams(&reconciler.ports, reconciler.started.0));
            (orphans, failures)
        });
        match looked.await {
            Ok((orphans, failures)) => {
                failures.iter().for_each(|error| report.failed("look", None, crate::report::chain(error)));
                orphans
            }
            Err(error) => {
                report.failed("look", None, error.to_string());
                BTreeSet::new()
            }
        }
    }

    async fn take_away(&self, orphan: Orphan) -> Result<(), ReconcileError> {
        tracing::warn!(kind = orphan.kind(), name = orphan.name(), "it belongs to nobody");
        if let Orphan::Cgroup { path } = &orphan {
            self.ports.cgroups.remove(path).await?;
            failpoint!("reconcile.cgroup_removed");
            self.ports.cgroups.remove_around(path);
            return Ok(());
        }
        if let Orphan::Streams { path } = &orphan {
            self.end_exec(path).await;
            failpoint!("reconcile.exec_ended");
        }
        let ports = Arc::clone(&self.ports);
        tokio::task::spawn_blocking(move || match orphan {
            Orphan::Shim { pid, started, .. } => processes::kill(pid, started),
            Orphan::Mount { point } => mounts::unmount(&point),
            Orphan::Pin { id } => files::unpin(&ports, &id),
            Orphan::Bundle { path } => files::remove_bundle(&path),
            Orphan::Writable { id } => files::remove_writable(&ports, &id),
            Orphan::Socket { path } => files::remove_socket(&path),
            Orphan::Streams { path } => files::remove_streams(&path),
            Orphan::Cgroup { .. } => Ok(()),
        })
        .await?
    }
}
