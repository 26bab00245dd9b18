//! The task of a created container, made in the background.
//!
//! CreateContainer answers as soon as the container's record, root filesystem and spec are there. Its shim is started
//! and its first process made at once, while the kubelet is still on its way to StartContainer; the start joins
//! this. What fails here is the start's error, as users of containerd know it.

use cofferdam_failpoints::failpoint;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Container, ContainerError, ContainerState, Containers, Shared};
use crate::io::{ContainerIo, IoPlan, LogKeeper};
use crate::operation::Stage;
use crate::runtime::{CreateTask, Handler, Mount, Shim, ShimKind};
use crate::snapshot::Owners;
use crate::spec::UserNamespace;
use crate::spec::userns::IdRange;
use crate::task;

/// How long a shim takes at most to end that has nothing to do.
const ENDING: Duration = Duration::from_secs(5);

impl Containers {
    /// The container's shim with its task made: the one there is, or the one under way, or a new one.
    pub(super) async fn prepared(self: &Arc<Self>, container: &Arc<Container>) -> Shared<Arc<Shim>> {
        if let Some(shim) = container.shim.load_full()
            && !container.is_half_made.load(Ordering::Acquire)
        {
            return Ok(shim);
        }
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let begin = |stage| async move { containers.prepare(&target, &stage).await.map_err(Arc::new) };
        let joined = self.preparations.join(container.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    /// Begins the preparation and does not wait for it.
    pub(super) fn prepare_in_background(self: &Arc<Self>, container: &Arc<Container>) {
        let (containers, container) = (Arc::clone(self), Arc::clone(container));
        self.ports.tracker.spawn(async move {
            if let Err(error) = containers.prepared(&container).await {
                // The start tries again and tells its caller.
                tracing::debug!(container = %container.id(), error = %crate::report::chain(&error), "preparation");
            }
        });
    }

    /// How long a preparation may take.
    pub(super) fn making(&self) -> Duration {
        let deadlines = self.ports.launcher.deadlines();
        deadlines.launch + deadlines.heavy
    }

    async fn prepare(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stage: &Stage,
    ) -> Result<Arc<Shim>, ContainerError> {
        if container.is_half_made.load(Ordering::Acquire) {
            stage.within("finding what an earlier daemon began", self.making());
            self.find_half_made(container).await?;
            container.is_half_made.store(false, Ordering::Release);
        }
        // Another preparation may have ended between the caller's look and this one's begin.
        if let Some(shim) = container.shim.load_full() {
            return Ok(shim);
        }
        let state = container.state();
        if state != ContainerState::Created {
            return Err(ContainerError::NotRunning { state: state.name() });
        }
        let sandbox = self.sandboxes.find(container.sandbox().as_str())?;
        if !sandbox.is_ready() {
            let state = sandbox.status().state.name();
            return Err(ContainerError::SandboxNotReady { id: sandbox.id().to_string(), state });
        }
        let handler = self.handler(container)?;
        let bundle = self.ports.places.container(container.id());
        let config = container.config();
        let owners = sandbox.users()?.map(owners);
        let deadlines = self.ports.launcher.deadlines();
        stage.within("starting the shim", deadlines.launch);
        let shim =
            self.ports.launcher.start(handler, container.id().as_str(), task::NAMESPACE, &bundle).await?;
        let shim = Arc::new(shim);
        stage.within("making the task", deadlines.heavy);
        let made = async {
            failpoint!("container.prepare.shim_started");
            let _unchanged = container.spec.lock().await;
            let rootfs = self.ports.snapshots.mounts(&container.made.layers, container.id(), owners)?;
            let rootfs = self.labelled(container, rootfs.into_iter().map(shim_mount).collect()).await?;
            let io = self.streams(container, handler, &bundle).await?;
            failpoint!("container.prepare.io_made");
            let streams = io.streams();
            let task = CreateTask {
                bundle: bundle.clone(),
                rootfs,
                stdin: streams.stdin,
                stdout: streams.stdout,
                stderr: streams.stderr,
                terminal: config.tty,
                options: handler.options.clone(),
                checkpoint: self.images_of(container),
            };
            if let Err(error) = shim.create(task).await {
                io.abandon()?;
                return Err(error.into());
            }
            // From here on a start finds it, and so does an update.
            container.shim.store(Some(Arc::clone(&shim)));
            failpoint!("container.prepare.task_created", infallible);
            Ok::<_, ContainerError>(())
        };
        if let Err(error) = made.await {
            stage.set("undoing");
            failpoint!("container.prepare.undoing", infallible);
            if let Err(left) = self.end_task_of(container, Some(Arc::clone(&shim))).await {
                tracing::warn!(container = %container.id(), error = %crate::report::chain(&left), "undo");
            }
            // A shim of the whole pod stays, for the others.
            if sandbox.shim().is_none_or(|pods| pods.endpoint().address != shim.endpoint().address) {
                gone(&shim).await;
            }
            return Err(error);
        }
        Ok(shim)
    }

    async fn streams(
        &self,
        container: &Container,
        handler: &Handler,
        bundle: &Path,
    ) -> Result<ContainerIo, ContainerError> {
        let config = container.config();
        let binary = self.ports.pause.check()?;
        let keeper = match handler.kind {
            ShimKind::Own => LogKeeper::Shim,
            ShimKind::Runc | ShimKind::Foreign => LogKeeper::Writer { binary: &binary, max_line: None },
        };
        let log = container.made.log_path.as_deref();
        let plan = IoPlan { terminal: config.tty, stdin: config.stdin, log, keeper };
        Ok(ContainerIo::prepare(bundle, plan).await?)
    }
}

/// Waits until a shim that was told to end has done so: until then it keeps the socket that the next one needs, and the
/// start that tries again would be told of that instead of what is wrong.
async fn gone(shim: &Shim) {
    if shim.endpoint().kind == ShimKind::Own && tokio::time::timeout(ENDING, shim.closed()).await.is_err() {
        tracing::warn!(container = shim.id(), "the shim of a failed preparation does not end");
    }
}

/// The pod's users as the owners of a root filesystem.
pub(super) fn owners(users: UserNamespace) -> Owners {
    let range = |range: IdRange| (range.outside, range.count);
    Owners { uids: range(users.uids), gids: range(users.gids) }
}

fn shim_mount(mount: crate::snapshot::Mount) -> Mount {
    Mount { type_: mount.kind, source: mount.source, options: mount.options, ..Default::default() }
}
