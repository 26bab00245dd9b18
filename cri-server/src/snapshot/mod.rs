//! Layers unpacked once, and the overlay mounts that containers get of them.
//!
//! ```text
//! <root>/layers, <root>/l                    see [`layer`]
//! <root>/containers/<id>/{upper,work}        a container's writable layer
//! <root>/containers/<id>/layers.json         what it stands on
//! <root>/containers/<id>/volumes.json        layers of its image volumes
//! <root>/containers/<id>/volume-<digest>/    what such a volume shows over its layers, see [`implied`]
//! <root>/empty                               stands below containers of images without layers
//! ```
//!
//! Invariant: a layer that a container's `layers.json` or `volumes.json` names is not removed; mounting root file systems is
//! the shim's work.

pub(crate) mod archive;
mod changes;
mod decompress;
mod diff;
mod error;
mod extract;
mod implied;
mod layer;
mod limits;
mod manifest;
mod parts;
mod pipeline;
#[cfg(test)]
mod tests;
mod tree;
mod usage;
mod view;
mod volume;

use cofferdam_failpoints::failpoint;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use decompress::decompress;
pub use error::{SnapshotError, disk_full};
pub use layer::{Layer, Layers};
pub use limits::Limits;
pub use manifest::{Pace, Verdict};
pub use pipeline::Source;
pub use usage::Usage;
pub use view::{open_folder_in_root, read_in_root};

use crate::model::ContainerId;
use crate::notices::Notices;
use crate::registry::Digest;
use implied::{Corrections, Seen};

/// What the kernel takes as mount options, less its own bookkeeping.
const MAX_OPTIONS: usize = 4095;
/// A measured writable layer is not measured again for so long.
const USAGE_AGE: Duration = Duration::from_secs(10);

/// One mount that makes up a container's root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// File system type.
    pub kind: String,
    /// Device or name.
    pub source: String,
    /// Mount options.
    pub options: Vec<String>,
}

/// Which layers a container stands on.
#[derive(Debug, Default)]
struct Standing {
    rootfs: Vec<Digest>,
    volumes: Vec<Digest>,
}

/// The first id on the node, and how many there are, of a container's users and groups. Inside they begin with 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owners {
    pub uids: (u32, u32),
    pub gids: (u32, u32),
}

impl Owners {
    /// As mount options, in the form that containerd's shims know.
    fn options(self) -> [String; 2] {
        let (uids, gids) = (self.uids, self.gids);
        [format!("uidmap=0:{}:{}", uids.0, uids.1), format!("gidmap=0:{}:{}", gids.0, gids.1)]
    }

    /// Who owns on the node what these own inside.
    fn on_the_node(self, (uid, gid): (u32, u32)) -> (u32, u32) {
        (on_the_node(self.uids, uid), on_the_node(self.gids, gid))
    }
}

/// Who owns on the node what `id` owns inside; root, for one that the range does not hold.
fn on_the_node((first, count): (u32, u32), id: u32) -> u32 {
    if id < count { first + id } else { first }
}

/// Layers and writable layers of the node.
pub struct Snapshots {
    root: PathBuf,
    layers: Layers,
    /// Which layers each container stands on. Held while a container is prepared and while layers are swept, so
    /// that a layer cannot vanish between the two.
    containers: Mutex<HashMap<ContainerId, Standing>>,
    measured: Mutex<HashMap<ContainerId, (Instant, Usage)>>,
    /// By the layers of an image, bottom first; looked up once, for layers do not change.
    corrections: Mutex<HashMap<Vec<Digest>, Arc<Corrections>>>,
    /// Containers that stand on a layer which was found damaged.
    spoiled: Mutex<HashSet<ContainerId>>,
}

impl Snapshots {
    /// Opens the store under `root`, and removes what was never finished; what a damaged file system keeps back is noticed.
    ///
    /// # Errors
    /// When directories cannot be made or read.
    pub fn open(root: &Path, notices: &Notices) -> Result<Arc<Self>, SnapshotError> {
        let layers = Layers::open(root, notices)?;
        let empty = root.join("empty");
        let made = notices.pass_over(|| "images without layers".to_owned(), fs::create_dir_all(&empty));
        made.map_err(SnapshotError::io("make directory", &empty))?;
        let directory = root.join("containers");
        notices.pass_over(|| "writable layers".to_owned(), layer::private_folder(&directory))?;
        let mut containers = HashMap::new();
        for name in notices.names_in(&directory).map_err(SnapshotError::io("list", &directory))? {
            let Ok(id) = ContainerId::parse(&name.to_string_lossy()) else { continue };
            let home = directory.join(&name);
            let read = |name: &str| -> Vec<Digest> {
                let text = fs::read(home.join(name)).ok();
                text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
            };
            // Without them the container was never prepared; its record's clean-up removes the rest.
            containers.insert(id, Standing { rootfs: read("layers.json"), volumes: read("volumes.json") });
        }
        let spoiled = spoiled(&layers, &directory, &containers);
        Ok(Arc::new(Self {
            root: root.to_owned(),
            layers,
            containers: Mutex::new(containers),
            measured: Mutex::new(HashMap::new()),
            corrections: Mutex::default(),
            spoiled: Mutex::new(spoiled),
        }))
    }

    /// The layers.
    #[must_use]
    pub fn layers(&self) -> &Layers {
        &self.layers
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<ContainerId, Standing>> {
        self.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Containers that have a writable layer here.
    #[must_use]
    pub fn container_ids(&self) -> Vec<ContainerId> {
        self.containers().keys().cloned().collect()
    }

    /// Prepares a container's writable layer on the image's `layers` (bottom first) and says how to mount both.
    /// Asked again for the same container, it answers the same. With `owners`, the layers are to be shown as theirs, and
    /// the writable one is theirs. Blocks.
    ///
    /// # Errors
    /// When a layer is missing, there are too many, or directories cannot be made; then nothing is left.
    pub fn mounts(
        &self,
        layers: &[Digest],
        id: &ContainerId,
        owners: Option<Owners>,
    ) -> Result<Vec<Mount>, SnapshotError> {
        // Before the lock: this may read many directories.
        let corrections = self.corrections(layers)?;
        let mut containers = self.containers();
        let lower = self.lower(layers)?;
        let home = self.container(id);
        let mut options = overlay_options(&lower, &home)?;
        options.extend(owners.into_iter().flat_map(Owners::options));
        if containers.get(id).map(|standing| standing.rootfs.as_slice()) != Some(layers) {
            let top = lower.first().map(PathBuf::as_path);
            if let Err(error) = prepare(&home, layers, top, (&corrections, owners)) {
                if let Err(error) = layer::discard(&home) {
                    tracing::warn!(container = %id, %error, "a half-made writable layer stays");
                }
                return Err(error);
            }
            containers.entry(id.clone()).or_default().rootfs = layers.to_vec();
        }
        Ok(vec![Mount { kind: "overlay".to_owned(), source: "overlay".to_owned(), options }])
    }

    /// Directories to stack, top first; layers that an opaque one hides are left out.
    fn lower(&self, layers: &[Digest]) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lower = Vec::with_capacity(layers.len());
        let mut seen = HashSet::new();
        for digest in layers.iter().rev() {
            let layer =
                self.layers.get(digest).ok_or_else(|| SnapshotError::MissingLayer(digest.to_string()))?;
            // The kernel refuses a directory twice; the lower one adds nothing that the upper one does not.
            if seen.insert(digest) {
                lower.push(self.root.join("l").join(&layer.short));
            }
            if layer.opaque_root {
                break;
            }
        }
        if lower.is_empty() {
            lower.push(self.empty());
        }
        Ok(lower)
    }

    /// A folder with nothing in it, to stand below a single layer.
    #[must_use]
    pub fn empty(&self) -> PathBuf {
        self.root.join("empty")
    }

    fn container(&self, id: &ContainerId) -> PathBuf {
        self.root.join("containers").join(id.as_str())
    }

    /// Removes a container's writable layer, which must not be mounted any more; absent means done. Blocks.
    ///
    /// # Errors
    /// When something cannot be removed; the container then still counts as standing on its layers.
    pub fn remove(&self, id: &ContainerId) -> Result<(), SnapshotError> {
        layer::discard(&self.container(id))?;
        failpoint!("snapshot.remove.discarded");
        self.containers().remove(id);
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.measured.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    /// The layers that containers stand on.
    #[must_use]
    pub fn standing(&self) -> HashSet<Digest> {
        let containers = self.containers();
        containers.values().flat_map(|one| one.rootfs.iter().chain(&one.volumes)).cloned().collect()
    }

    /// Says on which layers a container stands whose own note of it may be lost: they are kept.
    pub fn stand(&self, id: &ContainerId, layers: &[Digest]) {
        if let Some(standing) = self.containers().get_mut(id)
            && standing.rootfs.is_empty()
        {
            standing.rootfs = layers.to_vec();
        }
    }

    /// Takes a damaged layer out of use; answers the containers that stand on it, which must not be started.
    ///
    /// # Errors
    /// When it cannot be renamed; it is out of use all the same.
    pub fn set_aside(&self, digest: &Digest) -> Result<Vec<ContainerId>, SnapshotError> {
        let containers = self.containers();
        let stands = |one: &Standing| one.rootfs.iter().chain(&one.volumes).any(|layer| layer == digest);
        let on_it: Vec<_> =
            containers.iter().filter(|(_, one)| stands(one)).map(|(id, _)| id.clone()).collect();
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).extend(on_it.iter().cloned());
        self.layers.set_aside(digest)?;
        let mut corrections = self.corrections.lock().unwrap_or_else(PoisonError::into_inner);
        corrections.retain(|layers, _| !layers.contains(digest));
        Ok(on_it)
    }

    /// Whether a layer below the container was found damaged.
    #[must_use]
    pub fn is_spoiled(&self, id: &ContainerId) -> bool {
        self.spoiled.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// What a container's writable layer holds; not older than ten seconds. Blocks.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn usage(&self, id: &ContainerId) -> Result<Usage, SnapshotError> {
        let measured = || self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, usage)) = measured().get(id)
            && when.elapsed() < USAGE_AGE
        {
            return Ok(*usage);
        }
        let usage = usage::of_tree(&self.container(id).join("upper"))?;
        if self.containers().contains_key(id) {
            measured().insert(id.clone(), (Instant::now(), usage));
        }
        Ok(usage)
    }

    /// Archives what the container changed on the image's `layers` into `out`; answers the paths that it removed. The
    /// container should stand still. Blocks.
    ///
    /// # Errors
    /// When something cannot be read, is too much, or `out` refuses.
    pub fn diff(
        &self,
        id: &ContainerId,
        layers: &[Digest],
        out: impl std::io::Write,
    ) -> Result<Vec<String>, SnapshotError> {
        diff::write(&self.container(id).join("upper"), &self.view(layers)?, out)
    }

    /// Brings the changes of a checkpoint, and what is `gone` by them, into the writable layer of a container on the image's
    /// `layers` that has not run yet. Blocks.
    ///
    /// # Errors
    /// When the archive is damaged or asks for too much, or something cannot be written.
    pub fn apply(
        &self,
        id: &ContainerId,
        layers: &[Digest],
        changes: Option<&fs::File>,
        gone: &[String],
    ) -> Result<(), SnapshotError> {
        let upper = self.container(id).join("upper");
        changes::apply(&upper, &self.view(layers)?, changes, gone, &Limits::default())
    }

    /// Takes the parts of a checkpoint out of an image of it into the empty `folder`. Blocks.
    ///
    /// # Errors
    /// When a layer is missing, or what is to be taken is too much.
    pub fn checkpoint_of_image(&self, layers: &[Digest], folder: &Path) -> Result<(), SnapshotError> {
        parts::of_image(&self.view(layers)?, folder, &Limits::default())
    }

    /// The image's root file system, read-only and without a path. Blocks.
    ///
    /// # Errors
    /// When a layer is missing or the kernel refuses.
    pub fn view(&self, layers: &[Digest]) -> Result<OwnedFd, SnapshotError> {
        view::stack(&self.lower(layers)?, &self.root.join("view"))
    }

    /// Looks how the layers, bottom first, fit each other, so that their first container need not. Blocks.
    ///
    /// # Errors
    /// When a layer is missing or cannot be read, or the layers ask for too much.
    pub fn settle(&self, layers: &[Digest]) -> Result<(), SnapshotError> {
        self.corrections(layers).map(drop)
    }

    fn corrections(&self, layers: &[Digest]) -> Result<Arc<Corrections>, SnapshotError> {
        let known = || self.corrections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(corrections) = known().get(layers) {
            return Ok(Arc::clone(corrections));
        }
        let seen = |digest: &Digest| {
            let layer =
                self.layers.get(digest).ok_or_else(|| SnapshotError::MissingLayer(digest.to_string()))?;
            Ok(Seen { fs: self.layers.directory(digest).join("fs"), layer })
        };
        let seen = layers.iter().rev().map(seen).collect::<Result<Vec<_>, SnapshotError>>()?;
        let corrections = Arc::new(Corrections::of(&seen)?);
        known().insert(layers.to_vec(), Arc::clone(&corrections));
        Ok(corrections)
    }

    /// Takes every layer out of use that neither `keep` nor a container wants; goes on after failures. Quick: the
    /// bytes go when the answer is [`Garbage::remove`]d, which needs no lock.
    #[must_use]
    pub fn sweep(&self, keep: &HashSet<Digest>) -> Garbage {
        let containers = self.containers();
        let standing: HashSet<&Digest> =
            containers.values().flat_map(|one| one.rootfs.iter().chain(&one.volumes)).collect();
        let used: HashSet<&Digest> = standing.iter().copied().chain(keep).collect();
        let mut garbage = Garbage::default();
        for (digest, _) in self.layers.list() {
            if !used.contains(&digest) {
                match self.layers.detach(&digest) {
                    Ok(path) => garbage.paths.extend(path),
                    Err(error) => garbage.failures.push(error),
                }
            }
        }
        garbage.paths.extend(self.layers.take_doomed());
        // A damaged one goes with the last container that runs on it.
        let is_needed = |hex: &str| standing.iter().any(|digest| digest.hex() == hex);
        let aside = self.layers.all_aside().into_iter().filter(|(hex, _)| !is_needed(hex));
        garbage.paths.extend(aside.map(|(_, path)| path));
        let mut corrections = self.corrections.lock().unwrap_or_else(PoisonError::into_inner);
        corrections.retain(|layers, _| layers.iter().all(|digest| used.contains(digest)));
        garbage
    }
}

/// The containers that were prepared before a layer below them was set aside.
fn spoiled(
    layers: &Layers,
    directory: &Path,
    containers: &HashMap<ContainerId, Standing>,
) -> HashSet<ContainerId> {
    use std::os::unix::fs::MetadataExt;
    let mut spoiled = HashSet::new();
    for (hex, path) in layers.all_aside() {
        let Ok(aside) = fs::symlink_metadata(&path) else { continue };
        let on_it = |one: &Standing| one.rootfs.iter().chain(&one.volumes).any(|layer| layer.hex() == hex);
        for (id, _) in containers.iter().filter(|(_, one)| on_it(one)) {
            let prepared = fs::metadata(directory.join(id.as_str()).join("layers.json"));
            if prepared.is_ok_and(|file| file.mtime() <= aside.ctime()) {
                spoiled.insert(id.clone());
            }
        }
    }
    spoiled
}

/// Takes the parts of a checkpoint out of an archive into the empty `folder`. Blocks.
///
/// # Errors
/// When the archive is damaged or holds too much.
pub fn checkpoint_of_archive(archive: &fs::File, folder: &Path) -> Result<(), SnapshotError> {
    parts::of_archive(archive, folder, &Limits::default())
}

/// Layers that nobody can reach any more; what a crash leaves of them goes at the next start.
#[derive(Debug, Default)]
pub struct Garbage {
    paths: Vec<PathBuf>,
    failures: Vec<SnapshotError>,
}

impl Garbage {
    /// Removes the bytes and answers all that failed. Blocks, for large layers long.
    pub fn remove(self) -> Vec<SnapshotError> {
        let Self { paths, mut failures } = self;
        failures.extend(paths.iter().filter_map(|path| layer::discard(path).err()));
        failures
    }
}

fn overlay_options(lower: &[PathBuf], home: &Path) -> Result<Vec<String>, SnapshotError> {
    let names: Vec<_> = lower.iter().map(|path| path.display().to_string()).collect();
    let options = vec![
        "index=off".to_owned(),
        format!("lowerdir={}", names.join(":")),
        format!("upperdir={}", home.join("upper").display()),
        format!("workdir={}", home.join("work").display()),
    ];
    let bytes = options.iter().map(|option| option.len() + 1).sum();
    if bytes > MAX_OPTIONS {
        return Err(SnapshotError::TooManyLayers { count: lower.len(), bytes, limit: MAX_OPTIONS });
    }
    Ok(options)
}

/// Removes a folder with everything in it, whatever its depth, and never through a mount; absent is done. Blocks.
///
/// # Errors
/// When something cannot be removed, such as a place where something is mounted.
pub fn remove_folder(path: &Path) -> Result<(), SnapshotError> {
    layer::discard(path)
}

/// The root directory that a container sees is the upper one, so it takes the attributes of the image's.
fn prepare(
    home: &Path,
    layers: &[Digest],
    top: Option<&Path>,
    (corrections, owners): (&Corrections, Option<Owners>),
) -> Result<(), SnapshotError> {
    use std::os::unix::fs::DirBuilderExt;
    for (name, mode) in [("upper", 0o755), ("work", 0o700)] {
        let path = home.join(name);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(&path)
            .map_err(SnapshotError::io("make directory", &path))?;
    }
    if let Some(top) = top {
        failpoint!("snapshot.prepare.folders_made");
        look_like(&home.join("upper"), top, owners)?;
    }
    corrections.make(&home.join("upper"), owners)?;
    failpoint!("snapshot.prepare.corrected");
    let path = home.join("layers.json");
    let text = serde_json::to_vec(layers).map_err(|e| SnapshotError::io("describe", &path)(e.into()))?;
    fs::write(&path, text).map_err(SnapshotError::io("write", &path))
}

/// Gives a directory the owner and the mode of another.
fn look_like(directory: &Path, other: &Path, owners: Option<Owners>) -> Result<(), SnapshotError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
    let like = fs::metadata(other).map_err(SnapshotError::io("stat", other))?;
    let own = (like.uid(), like.gid());
    let (uid, gid) = owners.map_or(own, |owners| owners.on_the_node(own));
    chown(directory, Some(uid), Some(gid)).map_err(SnapshotError::io("set the owner of", directory))?;
    fs::set_permissions(directory, fs::Permissions::from_mode(like.mode() & 0o7777))
        .map_err(SnapshotError::io("set the mode of", directory))
}
