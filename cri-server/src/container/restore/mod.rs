//! CreateContainer from a checkpoint: an image that was made of one, or the path of an archive on the node.
//!
//! ```text
//! CreateContainer  the parts are taken into a folder of the container's own, the image it was made of is found or pulled,
//!                  its changes go into the writable layer, and what it had printed into the log
//! in between       the container is prepared like any other: its first process waits
//! StartContainer   the shim restores the processes in its place; the folder goes
//! ```
//!
//! Invariant: what a checkpoint says is only believed of the processes, and the shim compares these with what the
//! request asks for. A folder belongs to a container that does not run yet, or goes at the next start.

mod base;

use cofferdam_failpoints::failpoint;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cofferdam_proto::cri;
use serde::Deserialize;

use super::checkpoint::{IMAGES, PROGRAM, in_path};
use super::{Container, ContainerError, ContainerState, Containers};
use crate::image::ImageRecord;
use crate::model::ContainerId;
use crate::operation::Stage;
use crate::registry::Digest;
use crate::runtime::ShimKind;
use crate::sandbox::Sandbox;
use crate::snapshot::{Snapshots, checkpoint_of_archive};

/// How images say that they hold a checkpoint: for every runtime, and as CRI-O said it at first.
const MARKS: [&str; 2] =
    ["org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name"];
/// How long criu may take to restore.
pub(super) const LIMIT: Duration = Duration::from_secs(600);
/// More is not read of a part that is text.
const MAX_TEXT: u64 = 64 << 20;
const CHANGES: &str = "rootfs-diff.tar";
const LOG: &str = "container.log";

/// What a container is made from.
pub(super) enum Origin {
    Image(Arc<ImageRecord>),
    Checkpoint(Arc<ImageRecord>, Restore),
}

/// A checkpoint whose parts are here. Goes with its folder, unless the container keeps it.
pub(super) struct Restore {
    folder: Folder,
    /// What the container was running.
    args: Vec<String>,
}

struct Folder(Option<PathBuf>);

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            discard(path);
        }
    }
}

/// What is read of `spec.dump`.
#[derive(Default, Deserialize)]
struct Dumped {
    #[serde(default)]
    process: Option<DumpedProcess>,
}

#[derive(Default, Deserialize)]
struct DumpedProcess {
    #[serde(default)]
    args: Option<Vec<String>>,
}

/// Where a checkpoint comes from.
enum Source {
    Archive(File),
    Image(Vec<Digest>),
}

impl Containers {
    /// What the request's image is; a checkpoint's parts are taken into the folder of the container `id`.
    pub(super) async fn origin(
        self: &Arc<Self>,
        sandbox: &Sandbox,
        config: &cri::ContainerConfig,
        id: &ContainerId,
        stage: &Stage,
    ) -> Result<Origin, ContainerError> {
        let named = config.image.as_ref().map(|i| i.image.as_str()).unwrap_or_default();
        let source = if named.starts_with('/') {
            Source::Archive(open_archive(Path::new(named))?)
        } else {
            let image = self.image_of(config)?;
            let noted = self.ports.images.annotations(&image);
            // An image whose manifest cannot be read is run as it always was.
            if !noted.is_ok_and(|noted| MARKS.iter().any(|mark| noted.contains_key(*mark))) {
                return Ok(Origin::Image(image));
            }
            Source::Image(image.diff_ids())
        };
        self.restorable(sandbox, config)?;
        stage.set("taking the checkpoint's parts");
        let (snapshots, folder, name) =
            (Arc::clone(&self.ports.snapshots), self.ports.places.restore(id), named.to_owned());
        let (restore, base) =
            tokio::task::spawn_blocking(move || take(&source, &snapshots, folder, &name)).await??;
        failpoint!("restore.parts_taken");
        stage.set("looking for the image it was made of");
        let image = self.base_image(&base).await?;
        failpoint!("restore.base_found");
        Ok(Origin::Checkpoint(image, restore))
    }

    /// Says what is in the way of a restore before anything is done.
    fn restorable(&self, sandbox: &Sandbox, config: &cri::ContainerConfig) -> Result<(), ContainerError> {
        let refused = |text: String| Err(ContainerError::NoRestore(text));
        let handler = self.ports.handlers.handler(&sandbox.made().handler)?;
        if handler.kind != ShimKind::Own {
            return refused(format!("runtime handler {:?} runs a shim of another kind", handler.name));
        }
        if sandbox.users()?.is_some() {
            return refused("its pod has users of its own".to_owned());
        }
        if config.tty {
            return refused("it is to have a terminal".to_owned());
        }
        if !in_path(PROGRAM) {
            return refused("the program criu is not in the daemon's PATH: install it".to_owned());
        }
        Ok(())
    }

    /// The images that a prepared task is to be restored from.
    pub(super) fn images_of(&self, container: &Container) -> Option<PathBuf> {
        container.made().restored.then(|| self.ports.places.restore(container.id()).join(IMAGES))
    }

    /// Lets go of what the container was restored from.
    pub(super) async fn forget_restore(&self, container: &Container) {
        if container.made().restored {
            let folder = self.ports.places.restore(container.id());
            if let Err(error) = tokio::task::spawn_blocking(move || discard(&folder)).await {
                tracing::warn!(container = %container.id(), %error, "restored");
            }
            failpoint!("restore.forgotten", infallible);
        }
    }

    /// Removes what containers that run, or are gone, were restored from.
    pub(super) fn sweep_restores(&self) {
        let waiting = |name: &str| {
            self.find(name).is_ok_and(|container| {
                container.id().as_str() == name && container.state() == ContainerState::Created
            })
        };
        for entry in fs::read_dir(self.ports.places.restores()).into_iter().flatten().flatten() {
            if !waiting(&entry.file_name().to_string_lossy()) {
                discard(&entry.path());
                failpoint!("restore.left_discarded", infallible);
            }
        }
    }
}

impl Restore {
    /// What the container runs, where the request does not say.
    pub(super) fn complete(&self, config: &mut cri::ContainerConfig) {
        if config.command.is_empty() && config.args.is_empty() {
            config.command.clone_from(&self.args);
        }
    }

    /// From here on the folder is the container's.
    pub(super) fn keep(&mut self) -> Option<PathBuf> {
        self.folder.0.take()
    }

    fn path(&self) -> &Path {
        self.folder.0.as_deref().unwrap_or_else(|| Path::new(""))
    }

    /// Brings back what the container had written. Blocks.
    pub(super) fn bring_back(
        &self,
        snapshots: &Snapshots,
        container: &Container,
    ) -> Result<(), ContainerError> {
        let made = container.made();
        let gone: Option<Vec<String>> = read_json(self.path(), "deleted.files")?.unwrap_or_default();
        let changes = open_part(self.path(), CHANGES)?;
        let applied =
            snapshots.apply(container.id(), &made.layers, changes.as_ref(), &gone.unwrap_or_default());
        applied.map_err(ContainerError::Parts)?;
        failpoint!("restore.changes_applied");
        if let (Some(mut old), Some(log)) = (open_part(self.path(), LOG)?, made.log_path.as_deref()) {
            let new = File::options().write(true).create_new(true).mode(0o640).open(log);
            match new.and_then(|mut new| io::copy(&mut old, &mut new)) {
                Ok(_) => {}
                // The log of this very container goes on.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(ContainerError::File { operation: "write", path: log.to_owned(), source });
                }
            }
        }
        failpoint!("restore.log_brought");
        for part in [CHANGES, LOG] {
            // What is left of it goes with the folder.
            drop(fs::remove_file(self.path().join(part)));
        }
        failpoint!("restore.parts_dropped");
        Ok(())
    }
}

fn open_archive(path: &Path) -> Result<File, ContainerError> {
    let refused = |source| ContainerError::NoArchive { path: path.to_owned(), source };
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(refused)?;
    if !file.metadata().map_err(refused)?.is_file() {
        let problem = "it is no regular file".to_owned();
        return Err(ContainerError::BadCheckpoint { name: path.display().to_string(), problem });
    }
    Ok(file)
}

/// Takes a checkpoint's parts into the new `folder`, and reads which image it is of. Blocks.
fn take(
    source: &Source,
    snapshots: &Snapshots,
    folder: PathBuf,
    name: &str,
) -> Result<(Restore, base::Base), ContainerError> {
    // Only root can enter: it holds a container's memory.
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    let path = folder.clone();
    let folder = Folder(Some(folder));
    made.map_err(|source| ContainerError::File { operation: "make", path: path.clone(), source })?;
    failpoint!("restore.folder_made");
    match source {
        Source::Archive(file) => checkpoint_of_archive(file, &path),
        Source::Image(layers) => snapshots.checkpoint_of_image(layers, &path),
    }
    .map_err(ContainerError::Parts)?;
    let bad =
        |problem: &str| ContainerError::BadCheckpoint { name: name.to_owned(), problem: problem.to_owned() };
    let base = read_json(&path, "config.dump")?.ok_or_else(|| bad("it has no config.dump"))?;
    let dumped: Dumped = read_json(&path, "spec.dump")?.ok_or_else(|| bad("it has no spec.dump"))?;
    if !path.join(IMAGES).join("inventory.img").is_file() {
        return Err(bad("it has no images of criu"));
    }
    let args = dumped.process.and_then(|process| process.args).unwrap_or_default();
    Ok((Restore { folder, args }, base))
}

/// A part that was taken: a plain file in a folder of ours.
fn open_part(folder: &Path, name: &str) -> Result<Option<File>, ContainerError> {
    let path = folder.join(name);
    match File::open(&path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ContainerError::File { operation: "open", path, source }),
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(folder: &Path, name: &str) -> Result<Option<T>, ContainerError> {
    let Some(file) = open_part(folder, name)? else { return Ok(None) };
    let bad = |problem: String| ContainerError::BadCheckpoint { name: name.to_owned(), problem };
    if file.metadata().map_or(0, |data| data.len()) > MAX_TEXT {
        return Err(bad("it is too long".to_owned()));
    }
    serde_json::from_reader(io::BufReader::new(file)).map(Some).map_err(|error| bad(error.to_string()))
}

fn discard(folder: &Path) {
    if let Err(error) = fs::remove_dir_all(folder)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(folder = %folder.display(), %error, "what was restored from stays until the next start");
    }
}
