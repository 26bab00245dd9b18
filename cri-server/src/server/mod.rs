//! Wires the daemon and runs it: open, recover, serve, drain.
//!
//! The order matters: calls are accepted at once and answered after the records are loaded and the shims of running pods
//! are found again, and what changes something is finished before the daemon ends. Pods run on without it. The supervisor
//! is told of each step.

mod deadline;
mod events;
mod gate;
mod health;
mod measure;
mod overseer;
mod socket;
mod supervisor;
mod takeover;
mod watchdog;

use cofferdam_failpoints::failpoint;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::admin::admin_server::AdminServer;
use cofferdam_proto::cri::image_service_server::ImageServiceServer;
use cofferdam_proto::cri::runtime_service_server::RuntimeServiceServer;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::transport::Server;

use crate::boot::{BootId, Past, Run};
use crate::cgroup::{CgroupError, Cgroups};
use crate::config::Config;
use crate::container::{ContainerError, Containers};
use crate::image::{ImageError, ImageService};
use crate::lsm::apparmor;
use crate::metrics::{Measured, Overdue, RpcSeconds};
use crate::network::Network;
use crate::node::{Features, Severity, UserNamespaces, preflight};
use crate::notices::Notices;
use crate::nri::{self, Nri, NriError};
use crate::owner::OwnerError;
use crate::places::Places;
use crate::pod::Pods;
use crate::ports::Ports;
use crate::reconcile::Reconciler;
use crate::rpc::{AdminRpc, Daemon, ImageRpc, Runtime, painter};
use crate::runtime::events::Sink;
use crate::runtime::{
    ExecRunner, Handler, HandlerError, HandlerTable, Launcher, OWN_TYPE, RuntimeConfig, RuntimeError,
};
use crate::sandbox::{SandboxError, Sandboxes};
use crate::spec::Defaults;
use crate::store::{Store, StoreError, Table};
use crate::streaming::{ListenError, Parts, Streaming};
use supervisor::Supervisor;

/// How long calls and operations under way may take to end, together, when the daemon does.
const DRAIN: Duration = Duration::from_secs(10);
const LAST_MOMENT: Duration = Duration::from_secs(1);
/// The largest request: the kubelet's are far smaller.
const MAX_MESSAGE: usize = 16 << 20;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("folders of the daemon")]
    Places(#[source] std::io::Error),
    #[error("{operation} socket {path}")]
    Socket { operation: &'static str, path: PathBuf, source: std::io::Error },
    #[error("another daemon works in the state folder {path}{}", lasting(.waited))]
    StateInUse { path: PathBuf, waited: Duration },
    #[error("another daemon works with the store {path}{}", lasting(.waited))]
    StoreInUse { path: PathBuf, waited: Duration },
    #[error("another daemon serves at {path}")]
    InUse { path: PathBuf },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("owner of ids")]
    Owner(#[from] OwnerError),
    #[error("the kernel's boot id")]
    Boot(#[source] std::io::Error),
    #[error("runtime handlers: {}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Handlers(Vec<HandlerError>),
    #[error("images")]
    Images(#[from] ImageError),
    #[error("cgroups")]
    Cgroups(#[from] CgroupError),
    #[error("events of shims")]
    Events(#[from] RuntimeError),
    #[error("recovery of sandboxes")]
    Sandboxes(#[from] SandboxError),
    #[error("recovery of containers")]
    Containers(#[from] ContainerError),
    #[error(transparent)]
    Streaming(#[from] ListenError),
    #[error(transparent)]
    Metrics(#[from] crate::metrics::ListenError),
    #[error("NRI plugins")]
    Nri(#[from] NriError),
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
}

fn lasting(waited: &Duration) -> String {
    format!(" and did not end within {} seconds", waited.as_secs())
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// When the daemon cannot begin to serve, or its socket fails.
pub async fn serve(config: Config, own_exe: &Path, stop: CancellationToken) -> Result<(), ServeError> {
    let supervisor = Supervisor::from_environment();
    tell_findings();
    let places = Places::new(&config.root, &config.state);
    places.create().map_err(ServeError::Places)?;
    let notices = Arc::new(Notices::default());
    // First, for it says whether another daemon works in these folders.
    let opening = takeover::open(&places, &config.socket, &supervisor, &notices);
    let Some(opened) = stop.run_until_cancelled(opening).await.transpose()? else { return Ok(()) };
    let store = &opened.store;
    let listener = socket::bind(&config.socket).await?;
    let (health, routes) = health::service().await;
    let (key, gate) = gate::closed();
    let rpc = RpcSeconds::default();
    let serving = Server::builder()
        .trace_fn(|request| tracing::debug_span!("rpc", call = request.uri().path()))
        .layer(measure::MeasureLayer(rpc.clone()))
        .layer(deadline::DeadlineLayer)
        .add_routes(routes.into_axum_router().fallback_service(gate).into())
        .serve_with_incoming_shutdown(listener, stop.cancelled());
    let start = async {
        supervisor.status("Finding the pods that run");
        let started = start(&config, places, (&opened, notices), own_exe, rpc).await?;
        key.open(services(&started.daemon));
        health.serving().await;
        supervisor.ready("Serving");
        tracing::info!(socket = %config.socket.display(), version = env!("CARGO_PKG_VERSION"), "serving");
        Ok::<_, ServeError>(started)
    };
    let mut serving = std::pin::pin!(serving);
    let started = tokio::select! {
        started = start => started?,
        // Told to end before it began: the next start finds all as this one did.
        served = &mut serving => return Ok(served?),
    };
    let ports = &started.daemon.ports;
    let ending = async {
        stop.cancelled().await;
        supervisor.stopping();
        health.ending().await;
        // Their readers would be waited for.
        ports.events.close();
        tokio::time::Instant::now() + DRAIN
    };
    let beating = watchdog::beat(&supervisor, &config.socket, store, &stop);
    let served = async {
        let overdue = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            served = serving => {
                // It ended by itself: so does all else.
                stop.cancel();
                served
            }
            () = overdue => {
                tracing::warn!("calls under way are cut off; what they began goes on");
                Ok(())
            }
        }
    };
    let (served, deadline, ()) = tokio::join!(served, ending, beating);
    served?;
    drain(started, deadline).await;
    Ok(())
}

/// What the node lacks, for a person to read.
fn tell_findings() {
    for finding in preflight() {
        match finding.severity {
            Severity::Blocking => {
                tracing::error!(what = %finding.what, why = %finding.why, fix = %finding.fix, "preflight")
            }
            Severity::Degraded => {
                tracing::warn!(what = %finding.what, why = %finding.why, fix = %finding.fix, "preflight")
            }
            Severity::Info => tracing::info!(what = %finding.what, why = %finding.why, "preflight"),
        }
    }
}

/// A daemon that knows its pods again.
struct Started {
    daemon: Arc<Daemon>,
    sink: Sink,
}

/// Opens what the daemon works with and finds the pods that run.
async fn start(
    config: &Config,
    places: Places,
    (opened, notices): (&takeover::Opened, Arc<Notices>),
    own_exe: &Path,
    rpc: RpcSeconds,
) -> Result<Started, ServeError> {
    let (sink, received) = Sink::bind(&config.state).await?;
    let ports = open(config, places, (opened, notices), own_exe, &sink).await?;
    ports.tracker.spawn(events::drain(received));
    let sandboxes = Sandboxes::new(Arc::clone(&ports));
    let containers = Containers::new(Arc::clone(&ports), Arc::clone(&sandboxes));
    ports.events.paint_with(painter(&sandboxes, &containers));
    sandboxes.recover().await?;
    failpoint!("server.sandboxes_recovered", infallible);
    containers.recover().await?;
    failpoint!("server.containers_recovered", infallible);
    // With records lost it is kept for a day, so that pulls need not transfer all anew.
    if !ports.store.is_incomplete() {
        ports.images.distrust_unrecorded().await;
    }
    leave_word(&ports, false).await;
    let reconciler = Reconciler::new(
        Arc::clone(&ports),
        Arc::clone(&sandboxes),
        Arc::clone(&containers),
        config.maintenance.clone(),
    );
    reconciler.start();
    let parts = Parts { ports: Arc::clone(&ports), containers: Arc::clone(&containers) };
    let overdue = Overdue::default();
    let pods = Pods::new(Arc::clone(&sandboxes), Arc::clone(&containers));
    ports.tracker.spawn(overseer::oversee(pods.clone(), overdue.clone()));
    let measured = Measured {
        ports: Arc::clone(&ports),
        sandboxes: Arc::clone(&sandboxes),
        containers: Arc::clone(&containers),
        pods: pods.clone(),
        rpc,
        overdue,
        reconciler: Arc::clone(&reconciler),
    };
    let daemon = Arc::new(Daemon {
        metrics: crate::metrics::serve(&config.metrics, measured).await?,
        streaming: Streaming::serve(&config.streaming, parts).await?,
        ports: Arc::clone(&ports),
        pods,
        sandboxes,
        containers,
        reconciler,
        rates: Arc::default(),
        config: Arc::new(config.clone()),
    });
    let node: Arc<dyn nri::Node> = Arc::new(daemon.pods.clone());
    ports.nri.serve(node, own_exe).await?;
    Ok(Started { daemon, sink })
}

fn services(daemon: &Arc<Daemon>) -> Routes {
    let runtime =
        RuntimeServiceServer::new(Runtime(Arc::clone(daemon))).max_decoding_message_size(MAX_MESSAGE);
    let image = ImageServiceServer::new(ImageRpc::new(Arc::clone(&daemon.ports.images)));
    let admin = AdminServer::new(AdminRpc::new(Arc::clone(daemon)));
    Routes::new(runtime)
        .add_service(image.max_decoding_message_size(MAX_MESSAGE))
        .add_service(admin)
        .prepare()
}

async fn open(
    config: &Config,
    places: Places,
    (opened, notices): (&takeover::Opened, Arc<Notices>),
    own_exe: &Path,
    sink: &Sink,
) -> Result<Arc<Ports>, ServeError> {
    let (owner, store) = (opened.owner.clone(), Arc::clone(&opened.store));
    let handlers = HandlerTable::from_config(&config.runtimes, &config.default_runtime, own_exe)
        .map_err(ServeError::Handlers)?;
    let own = RuntimeConfig { kind: Some(OWN_TYPE.to_owned()), ..Default::default() };
    let pause = Handler::new("pause", &own, own_exe).map_err(|e| ServeError::Handlers(vec![e]))?;
    let boot = BootId::current().map_err(ServeError::Boot)?;
    let past = past(&store, &boot);
    store.losses().iter().for_each(|loss| notices.add(loss.clone()));
    let images =
        ImageService::open(&config.root, config.image.clone(), Arc::clone(&store), Arc::clone(&notices))?;
    let snapshots = Arc::clone(images.snapshots());
    let user_namespaces = crate::runtime::user_namespaces(&pause, &config.root, &config.state).await;
    if let UserNamespaces::Unavailable(reason) = &user_namespaces {
        tracing::warn!(reason, "pods cannot have user namespaces on this node");
    }
    let features = Features { driver: config.driver(), user_namespaces, ..Features::probe() };
    Ok(Arc::new(Ports {
        pause,
        launcher: Launcher::new(&config.state, own_exe, sink.path()).with_deadlines(config.shim.deadlines()),
        exec: ExecRunner::default(),
        network: Network::open(&config.network, &config.state),
        cgroups: Cgroups::open()?,
        nri: Nri::new(config.nri.clone()),
        places,
        owner,
        boot,
        past,
        notices,
        store,
        handlers,
        images,
        snapshots,
        spec_defaults: defaults(&features, config.selinux).await,
        features,
        cdi: config.cdi.clone(),
        events: Arc::default(),
        tracker: TaskTracker::new(),
        stopping: CancellationToken::new(),
    }))
}

/// What containers get that ask for nothing else, as far as this node can give it.
async fn defaults(features: &Features, selinux: bool) -> Defaults {
    let mut defaults = Defaults { selinux: selinux && features.selinux, ..Defaults::default() };
    if features.apparmor {
        match tokio::task::spawn_blocking(apparmor::load_default).await {
            Ok(Ok(())) => defaults.apparmor_profile = Some(apparmor::DEFAULT_PROFILE.to_owned()),
            Ok(Err(error)) => tracing::warn!(
                error = %crate::report::chain(&error),
                "no default AppArmor profile: containers run without one, and those that ask for RuntimeDefault are refused"
            ),
            Err(error) => tracing::warn!(%error, "the default AppArmor profile was not loaded"),
        }
    }
    defaults
}

/// The key of what a daemon tells the next one.
const LAST_RUN: &str = "run";

/// How this start follows the one before.
fn past(store: &Store, boot: &BootId) -> Past {
    let rows = store.load::<serde_json::Value>(Table::Node).unwrap_or_default();
    let last = rows.into_iter().find(|(key, _)| key == LAST_RUN);
    let last = last.and_then(|(_, value)| serde_json::from_value::<Run>(value).ok());
    let past = Past::of(last.as_ref(), boot);
    if past.rebooted {
        tracing::info!("the node was restarted: what ran has ended");
    }
    past
}

/// Tells the next daemon what this one came to.
async fn leave_word(ports: &Ports, clean: bool) {
    let run = Run { boot: ports.boot.clone(), clean };
    if let Err(error) = ports.store.put(Table::Node, LAST_RUN, &run).await {
        tracing::warn!(error = %crate::report::chain(&error), "the next start does not know of this one");
    }
}

/// Lets what is under way end; watching ends at once.
async fn drain(Started { daemon, sink }: Started, deadline: Instant) {
    let ports = &daemon.ports;
    ports.stopping.cancel();
    sink.shutdown().await;
    ports.tracker.close();
    let under_way = || [daemon.pods.under_way(), ports.images.under_way()].concat();
    let drained = async {
        ports.exec.drained().await;
        ports.tracker.wait().await;
    };
    // What only watches needs a moment even when calls took all the time there was.
    let deadline = deadline.max(Instant::now() + LAST_MOMENT);
    if tokio::time::timeout_at(deadline, drained).await.is_err() {
        tracing::warn!(operations = ?under_way(), "ending although operations are under way; the next start settles them");
    }
    ports.nri.shut_down().await;
    leave_word(ports, true).await;
    failpoint!("server.drained", infallible);
    if daemon.sandboxes.all().is_empty() {
        if let Err(error) = ports.network.teardown_if_unused().await {
            tracing::warn!(error = %crate::report::chain(&error), "the built-in network stays");
        }
        ports.cgroups.remove_default_parent();
    }
}
