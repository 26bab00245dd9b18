//! What was begun and came to no end: removals that failed, pods whose network could not be taken back, shims of containers
//! that have ended.
//!
//! Invariant: only what a sweep before has seen as well is touched, so that who is just about it is not disturbed; and no
//! more is done than the kubelet's own repetition would do.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;

use super::{Reconciler, Report};
use crate::container::{Container, ContainerState};
use crate::runtime::Launcher;
use crate::sandbox::{Sandbox, SandboxState};

/// How many are finished at the same time.
const AT_ONCE: usize = 8;
/// How long the sweep waits for one; it goes on without the sweep.
const LIMIT: Duration = Duration::from_secs(30);

enum Unfinished {
    Sandbox(Arc<Sandbox>),
    Container(Arc<Container>),
}

impl Unfinished {
    fn id(&self) -> &str {
        match self {
            Self::Sandbox(sandbox) => sandbox.id().as_str(),
            Self::Container(container) => container.id().as_str(),
        }
    }
}

/// How long an exec that nobody serves may take to end, and its shim to answer.
const EXEC: Duration = Duration::from_secs(2);

impl Reconciler {
    /// Ends the exec of an earlier daemon whose streams lie in `folder`, and has its shim forget it. For other streams there is
    /// nothing of that name.
    pub(super) async fn end_exec(&self, folder: &Path) {
        let name = |path: Option<&Path>| path?.file_name()?.to_str().map(str::to_owned);
        let container = name(folder.parent().and_then(Path::parent));
        let (Some(container), Some(exec)) = (container, name(Some(folder))) else { return };
        let all = self.containers.all();
        let shim = all.iter().find(|one| one.id().as_str() == container).and_then(|one| one.shim());
        let Some(shim) = shim else { return };
        let killed = shim.kill_within(&exec, libc::SIGKILL.unsigned_abs(), true, EXEC).await;
        if killed.is_ok() {
            let _ = tokio::time::timeout(EXEC, shim.wait(&exec)).await;
        }
        match shim.delete_within(&exec, EXEC).await {
            Err(error) if !error.is_not_found() && !error.is_shim_lost() => {
                tracing::warn!(container, exec, error = %crate::report::chain(&error), "an exec of an earlier daemon stays");
            }
            Ok(_) | Err(_) => {}
        }
    }

    /// Tries again what an operation left.
    pub(super) async fn finish(&self, report: &mut Report) {
        let all = self.unfinished();
        let seen: HashSet<String> = all.iter().map(|one| one.id().to_owned()).collect();
        let before = {
            let mut unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *unfinished, seen)
        };
        let due = all.into_iter().filter(|one| before.contains(one.id()));
        let done: Vec<_> = futures::stream::iter(due)
            .map(async |one| {
                let id = one.id().to_owned();
                match tokio::time::timeout(LIMIT, self.finish_one(one)).await {
                    Ok(done) => (id, done),
                    Err(_) => (id, Err(format!("it is not done after {LIMIT:?}"))),
                }
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (id, done) in done {
            match done {
                Ok(()) => report.settle("unfinished", Some(id), Ok(())),
                Err(error) => report.failed("unfinished", Some(id), error),
            }
        }
    }

    fn unfinished(&self) -> Vec<Unfinished> {
        let places = &self.ports.places;
        let sandboxes = self.sandboxes.all().into_iter().filter(|sandbox| {
            let status = sandbox.status();
            match status.state {
                SandboxState::Removing => true,
                SandboxState::NotReady => {
                    let left = Launcher::tried(&places.sandbox(sandbox.id()));
                    left || (status.stopped && status.attached)
                }
                SandboxState::Creating | SandboxState::Ready { .. } => false,
            }
        });
        let containers = self.containers.all().into_iter().filter(|container| match container.state() {
            ContainerState::Removing { .. } => true,
            ContainerState::Exited { .. } => Launcher::tried(&places.container(container.id())),
            ContainerState::Creating | ContainerState::Created | ContainerState::Running { .. } => false,
        });
        sandboxes.map(Unfinished::Sandbox).chain(containers.map(Unfinished::Container)).collect()
    }

    async fn finish_one(&self, one: Unfinished) -> Result<(), String> {
        match one {
            Unfinished::Sandbox(sandbox) => {
                let status = sandbox.status();
                let done = match status.state {
                    SandboxState::Removing => self.sandboxes.remove(&sandbox).await,
                    _ if status.stopped => self.sandboxes.stop(&sandbox).await,
                    // The network stays until the kubelet stops the pod.
                    _ => self.sandboxes.end_leftover(&sandbox).await.map_err(Arc::new),
                };
                done.map_err(|error| crate::report::chain(&*error))
            }
            Unfinished::Container(container) => {
                let done = match container.state() {
                    ContainerState::Removing { .. } => self.containers.remove(&container).await,
                    _ => self.containers.end_leftover(&container).await.map_err(Arc::new),
                };
                done.map_err(|error| crate::report::chain(&*error))
            }
        }
    }
}
