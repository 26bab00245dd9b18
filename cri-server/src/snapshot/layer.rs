//! The store of unpacked layers.
//!
//! ```text
//! <root>/layers/<diff id hex>/fs           what overlayfs stacks
//! <root>/layers/<diff id hex>/layer.json   size, and what the archive left open; its digest in a second line
//! <root>/layers/<diff id hex>/manifest     what it holds, see [`super::manifest`]
//! <root>/layers/tmp-<number>/              being unpacked; removed after a start
//! <root>/layers/bad-<hex>-<number>/        found damaged, and set aside as long as a container stands on it
//! <root>/l/<short>                         symbolic link to ../layers/<hex>/fs, because mount options are limited
//! ```
//!
//! Invariant: a directory named by a diff id holds exactly that layer; it appears by one rename. After a power cut that
//! is sure only of what was there when [`Layers::folder`] was last synced: whoever records a layer syncs first, and what
//! has no record is removed at start.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::error::SnapshotError;
use super::limits::Limits;
use super::manifest::{self, Pace, Verdict};
use super::pipeline::{self, Source};
use super::tree;
use crate::notices::Notices;
use crate::registry::Digest;

/// How the names of layers begin that were found damaged.
const BAD: &str = "bad-";

/// Shortest alias of a layer, in hexadecimal digits.
const SHORT: usize = 8;

/// A layer with more content is written to the disk while others are still on their way; the sync of the whole image then
/// finds less to do.
const LARGE: u64 = 64 << 20;

/// What is known about an unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// Bytes of file content.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
    /// Directories whose attributes the archive does not tell: see [`super::implied`]. Names that are not UTF-8 are missing
    /// here; such directories keep the attributes they were made with.
    implied: Vec<String>,
    /// Nothing below this layer is visible.
    pub(super) opaque_root: bool,
    /// The alias under `l/`.
    pub(super) short: String,
    /// The digest of its manifest; none for a layer that an older version unpacked.
    #[serde(default)]
    manifest: Option<String>,
}

impl Layer {
    /// Directories that the archive uses without describing them; the empty path is the root.
    pub(super) fn implied(&self) -> impl Iterator<Item = &str> {
        self.implied.iter().map(String::as_str)
    }
}

/// All layers of the node.
pub struct Layers {
    root: PathBuf,
    next: AtomicU64,
    known: Mutex<HashMap<Digest, Layer>>,
    /// What nobody can reach: removed when there is time.
    doomed: Mutex<Vec<PathBuf>>,
}

/// A folder that only root may enter: images hold setuid programs, which are no business of the host's users. The
/// overlay looks its layers up with root's rights, so containers do not need more.
pub(super) fn private_folder(path: &Path) -> Result<(), SnapshotError> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path).map_err(SnapshotError::io("make directory", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
        .map_err(SnapshotError::io("set the mode of", path))
}

impl Layers {
    /// Opens the store; removes what was never finished.
    pub(super) fn open(root: &Path, notices: &Notices) -> Result<Self, SnapshotError> {
        for name in ["layers", "l"] {
            notices.pass_over(|| "all layers".to_owned(), private_folder(&root.join(name)))?;
        }
        let layers = Self {
            root: root.to_owned(),
            next: AtomicU64::new(0),
            known: Mutex::default(),
            doomed: Mutex::default(),
        };
        layers.load(notices)?;
        Ok(layers)
    }

    fn load(&self, notices: &Notices) -> Result<(), SnapshotError> {
        let directory = self.root.join("layers");
        let (mut known, mut doomed) = (HashMap::new(), Vec::new());
        for name in notices.names_in(&directory).map_err(SnapshotError::io("list", &directory))? {
            let name = name.to_string_lossy().into_owned();
            let digest = Digest::parse(&if name.len() == 128 {
                format!("sha512:{name}")
            } else {
                format!("sha256:{name}")
            });
            match digest.ok().map(|digest| self.read(&digest).map(|layer| (digest, layer))) {
                Some(Ok((digest, layer))) => drop(known.insert(digest, layer)),
                None if name.starts_with(BAD) => {}
                // Left half-way.
                None => doomed.push(directory.join(name)),
                // Nothing is known of it now, as for want of descriptors.
                Some(Err(error)) if crate::report::exhausted(&error) => {
                    return Err(SnapshotError::io("read", &directory.join(&name))(error));
                }
                // Its description is lost: it is pulled again when it is needed.
                Some(Err(error)) => {
                    notices.add(format!("layer {name} has no sound description ({error}): it is set aside"));
                    let aside = self.aside(&name);
                    let renamed = fs::rename(directory.join(&name), &aside);
                    let renamed = notices.pass_over(|| format!("layer {name} stays in the way"), renamed);
                    renamed.map_err(SnapshotError::io("set aside", &aside))?;
                    failpoint!("layer.load.set_aside", infallible);
                }
            }
        }
        self.drop_stale_aliases(&known, notices)?;
        for (digest, mut layer) in std::mem::take(&mut known) {
            let alias = notices.pass_over(|| format!("layer {digest} is out of use"), self.alias(&digest))?;
            if let Some(alias) = alias {
                layer.short = alias;
                known.insert(digest, layer);
            }
        }
        // New names must not meet old ones.
        let number = |path: &PathBuf| path.file_name()?.to_str()?.rsplit('-').next()?.parse::<u64>().ok();
        let last = doomed.iter().filter_map(number).max();
        self.next.fetch_max(last.map_or(0, |last| last.saturating_add(1)), Ordering::Relaxed);
        *self.known() = known;
        *self.doomed() = doomed;
        Ok(())
    }

    fn doomed(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What crashes and failures left, for who has the time to [`discard`] it.
    pub(super) fn take_doomed(&self) -> Vec<PathBuf> {
        std::mem::take(&mut *self.doomed())
    }

    /// A name for a layer that is set aside.
    fn aside(&self, hex: &str) -> PathBuf {
        let folder = self.folder();
        let mut number = 0;
        loop {
            let path = folder.join(format!("{BAD}{hex}-{number}"));
            if !path.exists() {
                return path;
            }
            number += 1;
        }
    }

    /// Compares a layer with what was unpacked; none where it is not here, or cannot be compared. Blocks.
    ///
    /// # Errors
    /// When it cannot be read now, or `pace` ends it.
    pub fn verify(&self, digest: &Digest, pace: &mut Pace<'_>) -> io::Result<Option<Verdict>> {
        let Some(expected) = self.get(digest).and_then(|layer| layer.manifest) else { return Ok(None) };
        let directory = self.directory(digest);
        let looked = manifest::compare(&directory.join("fs"), &directory.join("manifest"), &expected, pace);
        // It may have been removed meanwhile.
        if self.get(digest).is_none() {
            return Ok(None);
        }
        match looked {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Ok(Some(Verdict::Damaged(format!("something of it is gone: {error}"))))
            }
            Err(error) if crate::report::damaged(&error) => {
                Ok(Some(Verdict::Damaged(format!("the file system is damaged there: {error}"))))
            }
            looked => looked.map(Some),
        }
    }

    /// Takes a damaged layer out of use; what runs on it keeps it.
    pub(super) fn set_aside(&self, digest: &Digest) -> Result<(), SnapshotError> {
        if let Some(layer) = self.known().remove(digest) {
            let alias = self.root.join("l").join(&layer.short);
            match fs::remove_file(&alias) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SnapshotError::io("remove", &alias)(error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        failpoint!("layer.aside.alias_removed");
        let aside = self.aside(digest.hex());
        match fs::rename(self.directory(digest), &aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(SnapshotError::io("set aside", &aside)(error));
            }
            Ok(()) | Err(_) => {}
        }
        failpoint!("layer.aside.renamed");
        Ok(())
    }

    /// What was set aside, with the diff id's digits.
    pub(super) fn all_aside(&self) -> Vec<(String, PathBuf)> {
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let hex = |name: &str| Some(name.strip_prefix(BAD)?.split('-').next()?.to_owned());
        entries.filter_map(|entry| Some((hex(entry.file_name().to_str()?)?, entry.path()))).collect()
    }

    fn drop_stale_aliases(
        &self,
        known: &HashMap<Digest, Layer>,
        notices: &Notices,
    ) -> Result<(), SnapshotError> {
        let directory = self.root.join("l");
        for name in notices.names_in(&directory).map_err(SnapshotError::io("list", &directory))? {
            let path = directory.join(name);
            let target = fs::read_link(&path).unwrap_or_default();
            if !known.keys().any(|digest| target == alias_target(digest)) {
                let what = || format!("the layer's alias {} stays", path.display());
                let removed = notices.pass_over(what, fs::remove_file(&path));
                removed.map_err(SnapshotError::io("remove", &path))?;
            }
        }
        Ok(())
    }

    fn read(&self, digest: &Digest) -> io::Result<Layer> {
        let directory = self.directory(digest);
        let layer = read_description(&directory.join("layer.json"))?;
        if !directory.join("fs").is_dir() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(layer)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<Digest, Layer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn directory(&self, digest: &Digest) -> PathBuf {
        self.root.join("layers").join(digest.hex())
    }

    /// The layer's description, if it is unpacked here.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Layer> {
        self.known().get(digest).cloned()
    }

    /// Every unpacked layer.
    #[must_use]
    pub fn list(&self) -> Vec<(Digest, Layer)> {
        self.known().iter().map(|(digest, layer)| (digest.clone(), layer.clone())).collect()
    }

    /// Unpacks a layer that is not there yet; blocks. Afterwards it is there, whole.
    ///
    /// # Errors
    /// When the stream, its content or the node are not as they should be; then nothing is left.
    pub fn unpack(
        &self,
        diff_id: &Digest,
        source: &mut Source<'_>,
        limits: &Limits,
    ) -> Result<Layer, SnapshotError> {
        let scratch =
            self.root.join("layers").join(format!("tmp-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let result = self.unpack_into(&scratch, diff_id, source, limits);
        if result.is_err()
            && let Err(error) = self.discard(&scratch)
        {
            tracing::warn!(path = %scratch.display(), %error, "an unfinished layer stays until the next sweep");
            self.doomed().push(scratch);
        }
        result
    }

    /// Reads a layer that is unpacked already, and looks whether it is the one that `diff_id` names; blocks.
    ///
    /// # Errors
    /// When it is another one, or cannot be read.
    pub fn check(
        &self,
        diff_id: &Digest,
        source: &mut Source<'_>,
        limits: &Limits,
    ) -> Result<(), SnapshotError> {
        is_diff_id(diff_id, &pipeline::diff_id(source, diff_id.algorithm(), limits)?)
    }

    fn unpack_into(
        &self,
        scratch: &Path,
        diff_id: &Digest,
        source: &mut Source<'_>,
        limits: &Limits,
    ) -> Result<Layer, SnapshotError> {
        let target = scratch.join("fs");
        fs::create_dir_all(&target).map_err(SnapshotError::io("make directory", &target))?;
        rustix::fs::chmodat(CWD, &target, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|e| SnapshotError::io("set the mode of", &target)(e.into()))?;
        let (made, actual) = pipeline::run(source, &target, diff_id.algorithm(), limits)?;
        failpoint!("layer.extracted");
        is_diff_id(diff_id, &actual)?;
        let mut layer = Layer {
            bytes: made.bytes,
            inodes: made.inodes,
            implied: made.implied.into_iter().filter_map(|path| String::from_utf8(path).ok()).collect(),
            opaque_root: made.opaque_root,
            short: String::new(),
            manifest: Some(manifest::write(&target, &scratch.join("manifest"), &made.contents)?),
        };
        self.publish(scratch, diff_id, &layer)?;
        failpoint!("layer.renamed", infallible);
        layer.short = self.alias(diff_id)?;
        failpoint!("layer.aliased", infallible);
        self.known().insert(diff_id.clone(), layer.clone());
        Ok(layer)
    }

    fn publish(&self, scratch: &Path, diff_id: &Digest, layer: &Layer) -> Result<(), SnapshotError> {
        let description = scratch.join("layer.json");
        let mut text =
            serde_json::to_string(layer).map_err(|e| SnapshotError::io("describe", scratch)(e.into()))?;
        text.push_str(&format!("\n{}\n", Digest::sha256(text.as_bytes())));
        fs::write(&description, text).map_err(SnapshotError::io("write", &description))?;
        failpoint!("layer.described");
        if layer.bytes > LARGE {
            let handle = fs::File::open(scratch).map_err(SnapshotError::io("open", scratch))?;
            rustix::fs::syncfs(&handle).map_err(|e| SnapshotError::io("sync", scratch)(e.into()))?;
        }
        let target = self.directory(diff_id);
        if target.exists() {
            // Known layers are not unpacked again, so this is one that lost its description.
            let discarded = self.discard(&target);
            if discarded.as_ref().is_err_and(|error| crate::report::damaged(error)) {
                let aside = self.aside(diff_id.hex());
                fs::rename(&target, &aside).map_err(SnapshotError::io("set aside", &aside))?;
            } else {
                discarded?;
            }
        }
        fs::rename(scratch, &target).map_err(SnapshotError::io("rename to", &target))
    }

    /// The folder whose file system holds all layers.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// The shortest alias not taken by another layer.
    fn alias(&self, digest: &Digest) -> Result<String, SnapshotError> {
        let target = alias_target(digest);
        for length in SHORT..=digest.hex().len() {
            let name = &digest.hex()[..length];
            let path = self.root.join("l").join(name);
            match symlink(&target, &path) {
                Ok(()) => return Ok(name.to_owned()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if fs::read_link(&path).is_ok_and(|known| known == target) {
                        return Ok(name.to_owned());
                    }
                }
                // This one name may be all that is damaged.
                Err(error) if crate::report::damaged(&error) && length < digest.hex().len() => {}
                Err(error) => return Err(SnapshotError::io("link", &path)(error)),
            }
        }
        Err(SnapshotError::MissingLayer(digest.to_string()))
    }

    /// Takes a layer's name away, which is quick; answers what is left to [`discard`]. Absent means done.
    pub(super) fn detach(&self, digest: &Digest) -> Result<Option<PathBuf>, SnapshotError> {
        let layer = self.known().remove(digest);
        if let Some(layer) = layer {
            let path = self.root.join("l").join(&layer.short);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(SnapshotError::io("remove", &path)(error));
                }
                _ => {}
            }
        }
        failpoint!("layer.detach.alias_removed", infallible);
        // Half a layer must never carry a layer's name.
        let doomed =
            self.root.join("layers").join(format!("tmp-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        let path = self.directory(digest);
        match fs::rename(&path, &doomed) {
            Ok(()) => Ok(Some(doomed)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(SnapshotError::io("rename", &path)(error)),
        }
    }

    fn discard(&self, path: &Path) -> Result<(), SnapshotError> {
        discard(path)
    }
}

/// The description, if it is as it was written. Those of older versions have no digest.
fn read_description(path: &Path) -> io::Result<Layer> {
    let text = fs::read_to_string(path)?;
    let mut lines = text.lines();
    let (description, digest) = (lines.next().unwrap_or_default(), lines.next());
    if digest.is_some_and(|digest| digest != Digest::sha256(description.as_bytes()).as_str()) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its description was changed"));
    }
    Ok(serde_json::from_str(description)?)
}

fn is_diff_id(expected: &Digest, actual: &Digest) -> Result<(), SnapshotError> {
    if actual == expected {
        return Ok(());
    }
    Err(SnapshotError::DiffId { expected: expected.to_string(), actual: actual.to_string() })
}

fn alias_target(digest: &Digest) -> PathBuf {
    Path::new("../layers").join(digest.hex()).join("fs")
}

/// Removes a file or a directory of any depth.
pub(super) fn discard(path: &Path) -> Result<(), SnapshotError> {
    let failed = |e: rustix::io::Errno| SnapshotError::io("remove", path)(e.into());
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(()) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(CWD, parent, flags, Mode::empty()).map_err(failed)?;
    match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {
            tree::remove_tree(parent.as_fd(), name.as_bytes()).map_err(failed)
        }
        Err(errno) => Err(failed(errno)),
    }
}
