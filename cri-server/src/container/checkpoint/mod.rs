//! CheckpointContainer: an archive of a running container, which runs on.
//!
//! It is held still while criu writes the images of its processes and its changed files are archived, so that the two
//! belong to one moment; the rest is done while it runs. Invariant: whatever fails, it runs on, and neither an archive
//! nor a part of one is left. What a crash of the daemon leaves (a container that stands still, the folder of the
//! images) the next start puts right.

mod archive;
mod unnamed;

use cofferdam_failpoints::failpoint;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Container, ContainerError, Containers, Shared};
use crate::operation::Stage;
use crate::runtime::{RuntimeError, Shim, ShimKind};

/// When the caller does not say.
const DEFAULT: Duration = Duration::from_secs(600);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// What ending criu and letting the container run on may take beyond the limit.
const OVER: Duration = Duration::from_secs(10);
/// The folder of criu's images, here and in the archive.
pub(super) const IMAGES: &str = "checkpoint";
pub(super) const PROGRAM: &str = "criu";

/// A checkpoint under way: where it is made, and until when.
struct Work {
    /// Goes with everything in it.
    folder: Folder,
    location: PathBuf,
    deadline: Instant,
}

/// What is known of the moment in which the container was held, besides what lies in the folder.
struct Taken {
    /// What it removed from its image.
    gone: Vec<String>,
    /// How long its log was: what it says once it runs on, a restored one will say again.
    log: u64,
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "images of a checkpoint stay until the next start");
        }
    }
}

impl Folder {
    /// A new folder that only root can enter, for it will hold the container's memory.
    fn make(path: PathBuf) -> Result<Self, ContainerError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(IMAGES));
        let folder = Self(path);
        made.map_err(failed("make the folder", &folder.0.join(IMAGES)))?;
        Ok(folder)
    }

    fn images(&self) -> PathBuf {
        self.0.join(IMAGES)
    }
}

impl Containers {
    /// Writes a checkpoint of a running container to `location`, or joins the one that is being written there. A caller
    /// that goes away does not end it half-way.
    ///
    /// # Errors
    /// When the container does not run, the node or its runtime handler cannot checkpoint, or `timeout` is over.
    pub async fn checkpoint(
        self: &Arc<Self>,
        container: &Arc<Container>,
        location: PathBuf,
        timeout: Option<Duration>,
    ) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let limit = timeout.unwrap_or(DEFAULT).min(LONGEST);
        let key = (container.id().as_str(), location.display().to_string());
        let begin = |stage: Stage| async move {
            stage.within("writing the images and the archive", limit + OVER);
            containers.write_checkpoint(&target, location, limit).await.map_err(Arc::new)
        };
        let joined = self.checkpoints.join(key, begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    async fn write_checkpoint(
        &self,
        container: &Arc<Container>,
        location: PathBuf,
        limit: Duration,
    ) -> Result<(), ContainerError> {
        let deadline = Instant::now() + limit;
        check_location(&location)?;
        let shim = self.checkpointable(container)?;
        let Ok(_one_at_a_time) = container.checkpoint.try_lock() else {
            return Err(ContainerError::NoCheckpoint("another checkpoint of it is under way".to_owned()));
        };
        let folder = Folder::make(self.ports.places.checkpoints().join(container.id().as_str()))?;
        failpoint!("checkpoint.folder_made");
        let work = Arc::new(Work { folder, location, deadline });
        let still = self.hold_still(container, &shim, &work).await;
        failpoint!("checkpoint.resumed", infallible);
        let done = match still {
            Ok(taken) => {
                let handler = self.handler(container)?.name.clone();
                let bundle = self.ports.places.container(container.id());
                let (work, container) = (Arc::clone(&work), Arc::clone(container));
                tokio::task::spawn_blocking(move || {
                    archive::write(&work, &container, &bundle, &handler, &taken)
                })
                .await?
            }
            Err(error) => Err(error),
        };
        match done {
            Err(_) if Instant::now() >= deadline => Err(ContainerError::CheckpointTime { after: limit }),
            done => done,
        }
    }

    /// The shim of a container that can be checkpointed.
    fn checkpointable(&self, container: &Container) -> Result<Arc<Shim>, ContainerError> {
        let not_running = || ContainerError::NotRunning { state: container.state().name() };
        if !container.is_running() {
            return Err(not_running());
        }
        let shim = container.shim.load_full().ok_or_else(not_running)?;
        if shim.endpoint().kind != ShimKind::Own {
            let name = &self.handler(container)?.name;
            let text = format!("runtime handler {name:?} runs a shim of another kind");
            return Err(ContainerError::NoCheckpoint(text));
        }
        if !in_path(PROGRAM) {
            let text = "the program criu is not in the daemon's PATH: install it".to_owned();
            return Err(ContainerError::NoCheckpoint(text));
        }
        Ok(shim)
    }

    /// Does what the container must not run during.
    async fn hold_still(
        &self,
        container: &Container,
        shim: &Shim,
        work: &Arc<Work>,
    ) -> Result<Taken, ContainerError> {
        shim.pause().await.map_err(|error| refused(container, error))?;
        failpoint!("checkpoint.paused", infallible);
        let taken = self.take(container, shim, work).await;
        match shim.resume().await {
            Ok(()) => taken,
            // It ended meanwhile, was never held, or runs on at the second try: nothing stands still.
            Err(_) if Self::resume_if_paused(container, shim).await || taken.is_err() => taken,
            Err(error) => Err(error.into()),
        }
    }

    async fn take(
        &self,
        container: &Container,
        shim: &Shim,
        work: &Arc<Work>,
    ) -> Result<Taken, ContainerError> {
        let left = work.deadline.saturating_duration_since(Instant::now());
        shim.checkpoint(&work.folder.images(), left).await.map_err(|error| refused(container, error))?;
        failpoint!("checkpoint.dumped");
        let (snapshots, id) = (Arc::clone(&self.ports.snapshots), container.id().clone());
        let (layers, work) = (container.made().layers.clone(), Arc::clone(work));
        let log = container.made().log_path.clone();
        tokio::task::spawn_blocking(move || {
            let path = work.folder.0.join(archive::CHANGES);
            let file = fs::File::create(&path).map_err(failed("create", &path))?;
            let out = archive::Until::new(std::io::BufWriter::with_capacity(256 << 10, file), work.deadline);
            let gone = snapshots.diff(&id, &layers, out)?;
            // By now the shim has written what was on its way.
            let log = log.and_then(|log| fs::metadata(log).ok()).map_or(0, |data| data.len());
            Ok(Taken { gone, log })
        })
        .await?
    }

    /// Lets a container run on that a checkpoint held still when the daemon ended. Answers whether it does not stand still
    /// now, as far as the shim tells.
    pub(super) async fn resume_if_paused(container: &Container, shim: &Shim) -> bool {
        let paused =
            matches!(shim.state("").await, Ok(task) if task.status == crate::runtime::TaskStatus::Paused);
        if paused && let Err(error) = shim.resume().await {
            tracing::warn!(container = %container.id(), error = %crate::report::chain(&error), "it stays paused");
            return false;
        }
        true
    }

    /// The containers that a checkpoint of a daemon that ended may hold still.
    pub(super) fn interrupted_checkpoints(&self) -> std::collections::HashSet<String> {
        let entries = fs::read_dir(self.ports.places.checkpoints()).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// Removes what checkpoints of a daemon that ended left.
    pub(super) fn sweep_checkpoints(&self) {
        let folder = self.ports.places.checkpoints();
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(folder = %folder.display(), %error, "images of a checkpoint stay");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// A shim's refusal in the words of a checkpoint.
fn refused(container: &Container, error: RuntimeError) -> ContainerError {
    match error {
        RuntimeError::Unimplemented { message, .. } | RuntimeError::FailedPrecondition { message, .. } => {
            match container.state() {
                super::ContainerState::Running { .. } => ContainerError::NoCheckpoint(message),
                state => ContainerError::NotRunning { state: state.name() },
            }
        }
        error => error.into(),
    }
}

fn check_location(location: &Path) -> Result<(), ContainerError> {
    let invalid = |text: &str| {
        Err(ContainerError::Invalid(format!(
            "checkpoint location {:?}: {text}",
            location.display().to_string()
        )))
    };
    if !location.is_absolute() || location.file_name().is_none() {
        return invalid("it must be the absolute path of a file");
    }
    if !location.parent().is_some_and(Path::is_dir) {
        return invalid("its folder is not there");
    }
    if location.is_dir() {
        return invalid("it is a folder");
    }
    Ok(())
}

pub(super) fn in_path(program: &str) -> bool {
    let executable = |folder: PathBuf| {
        let path = folder.join(program);
        path.is_file() && rustix::fs::access(&path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    std::env::var_os("PATH").iter().flat_map(std::env::split_paths).any(executable)
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> ContainerError + use<> {
    let path = path.to_owned();
    move |source| ContainerError::File { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_file_in_a_folder_that_is_there() {
        let folder = tempfile::tempdir().unwrap();
        check_location(&folder.path().join("new.tar")).unwrap();
        for wrong in ["", "relative.tar", "/", "/no/such/folder/x.tar", "/tmp", "/tmp/.."] {
            let error = check_location(Path::new(wrong)).unwrap_err();
            assert!(matches!(error, ContainerError::Invalid(_)), "{wrong}: {error}");
        }
    }
}
