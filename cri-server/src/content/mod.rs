//! Content-addressed blobs: manifests, configurations and compressed layers.
//!
//! ```text
//! <root>/content/blobs/<algorithm>/<hex>   whole, verified, on disk
//! <root>/content/ingest/<number>           being written, or being removed; what a crash left goes after a start
//! ```
//!
//! Invariant: a file under `blobs` holds exactly the bytes its name promises; it appears there by one rename, after
//! its digest and size were checked. After a power cut that is sure only of blobs that were there at the last
//! [`Content::folder`] synced: whoever records a blob syncs first, and what has no record is removed at start.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::notices::Notices;
use crate::registry::{Algorithm, Digest};

/// Why a blob cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The kernel refused.
    #[error("{op} {path}")]
    Io {
        /// What was attempted.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Other bytes than promised.
    #[error("content has digest {actual}, expected {expected}")]
    Digest {
        /// What was promised.
        expected: Digest,
        /// What the bytes have.
        actual: Digest,
    },
    /// More or fewer bytes than promised.
    #[error("{blob} has {actual} bytes, expected {expected}")]
    Size {
        /// Which blob.
        blob: String,
        /// What was promised.
        expected: u64,
        /// What came, counted until it was too much.
        actual: u64,
    },
    /// Larger than the reader wants to hold in memory.
    #[error("{digest} has {actual} bytes, more than the {limit} allowed here")]
    TooLarge {
        /// Which blob.
        digest: Digest,
        /// Its size.
        actual: u64,
        /// The reader's bound.
        limit: u64,
    },
}

fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ContentError {
    let path = path.to_owned();
    move |source| ContentError::Io { op, path, source }
}

/// Computes digests of either algorithm piece by piece.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(sha2::Sha256),
    /// SHA-512.
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// A hasher of the algorithm.
    #[must_use]
    pub fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Digest::new()),
            Algorithm::Sha512 => Self::Sha512(sha2::Digest::new()),
        }
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => sha2::Digest::update(hasher, bytes),
            Self::Sha512(hasher) => sha2::Digest::update(hasher, bytes),
        }
    }

    /// The digest of all bytes added.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::from_sha256(sha2::Digest::finalize(hasher).into()),
            Self::Sha512(hasher) => Digest::from_sha512(sha2::Digest::finalize(hasher).into()),
        }
    }
}

/// The blobs of this node.
pub struct Content {
    blobs: PathBuf,
    ingest: PathBuf,
    next: AtomicU64,
    /// Sizes of the blobs, so that asking how much is stored reads no directory.
    sizes: Mutex<HashMap<Digest, u64>>,
    /// What was never finished.
    doomed: Mutex<Vec<PathBuf>>,
}

impl Content {
    /// Opens the store under `root`. What was never finished is left to [`Content::take_doomed`]; what a damaged file system
    /// keeps back is noticed, and absent.
    ///
    /// # Errors
    /// When the directories cannot be made or read.
    pub fn open(root: &Path, notices: &Notices) -> Result<Self, ContentError> {
        let content = root.join("content");
        let (blobs, ingest) = (content.join("blobs"), content.join("ingest"));
        let mut sizes = HashMap::new();
        for directory in [blobs.join("sha256"), blobs.join("sha512"), ingest.clone()] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory);
            let made = notices.pass_over(|| format!("no blobs in {}", directory.display()), made);
            made.map_err(failed("make directory", &directory))?;
        }
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = blobs.join(algorithm.as_str());
            for name in notices.names_in(&directory).map_err(failed("list", &directory))? {
                let path = directory.join(&name);
                let looked = notices.pass_over(
                    || format!("the blob {} is lost", path.display()),
                    fs::symlink_metadata(&path),
                );
                let looked = looked.map_err(failed("stat", &path))?;
                let digest = Digest::parse(&format!("{algorithm}:{}", name.to_string_lossy()));
                if let (Ok(digest), Some(metadata)) = (digest, looked) {
                    sizes.insert(digest, metadata.len());
                }
            }
        }
        let doomed = notices.names_in(&ingest).map_err(failed("list", &ingest))?;
        let doomed: Vec<_> = doomed.into_iter().map(|name| ingest.join(name)).collect();
        // New names must not meet old ones.
        let number = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u64>().ok();
        let last = doomed.iter().filter_map(number).max();
        let next = AtomicU64::new(last.map_or(0, |last| last.saturating_add(1)));
        Ok(Self { blobs, ingest, next, sizes: Mutex::new(sizes), doomed: Mutex::new(doomed) })
    }

    /// The folder whose file system holds all blobs.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.blobs
    }

    /// Where the blob is, if it is here.
    #[must_use]
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.blobs.join(digest.algorithm().as_str()).join(digest.hex())
    }

    /// The blob's size, if it is here.
    #[must_use]
    pub fn size(&self, digest: &Digest) -> Option<u64> {
        self.sizes().get(digest).copied()
    }

    /// All blobs with their sizes.
    #[must_use]
    pub fn list(&self) -> Vec<(Digest, u64)> {
        self.sizes().iter().map(|(digest, size)| (digest.clone(), *size)).collect()
    }

    fn sizes(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, u64>> {
        self.sizes.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Begins to write a blob; nothing is kept unless [`Content::commit`] succeeds.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn ingest(&self, digest: &Digest, size: Option<u64>) -> Result<Ingest, ContentError> {
        self.begin(Some(digest.clone()), size)
    }

    /// Begins to write a blob that gets its name, a SHA-256 digest, from what is written.
    ///
    /// # Errors
    /// When no file can be made.
    pub fn ingest_unnamed(&self) -> Result<Ingest, ContentError> {
        self.begin(None, None)
    }

    fn begin(&self, expected: Option<Digest>, size: Option<u64>) -> Result<Ingest, ContentError> {
        let path = self.ingest.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let file =
            File::options().write(true).create_new(true).open(&path).map_err(failed("create", &path))?;
        failpoint!("content.file_made", infallible);
        let hasher = Hasher::new(expected.as_ref().map_or(Algorithm::Sha256, Digest::algorithm));
        Ok(Ingest { file, path, hasher, expected, size, written: 0, committed: false })
    }

    /// Stores bytes that are at hand.
    ///
    /// # Errors
    /// When they are not what `digest` says, or cannot be written.
    pub fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ContentError> {
        if self.size(digest).is_some() {
            return Ok(());
        }
        let mut ingest = self.ingest(digest, Some(bytes.len() as u64))?;
        ingest.write(bytes)?;
        self.commit(ingest).map(drop)
    }

    /// Makes a finished blob visible.
    ///
    /// # Errors
    /// When digest or size are wrong, or the kernel refuses; then nothing is kept.
    pub fn commit(&self, mut ingest: Ingest) -> Result<Digest, ContentError> {
        let digest = ingest.verify()?;
        failpoint!("content.verified");
        let target = self.path(&digest);
        fs::rename(&ingest.path, &target).map_err(failed("rename to", &target))?;
        failpoint!("content.renamed", infallible);
        ingest.committed = true;
        self.sizes().insert(digest.clone(), ingest.written);
        Ok(digest)
    }

    /// What crashes left, for who has the time to remove it.
    #[must_use]
    pub fn take_doomed(&self) -> Vec<Doomed> {
        let mut doomed = self.doomed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        std::mem::take(&mut *doomed).into_iter().map(Doomed).collect()
    }

    /// Whether a blob still holds what its name promises; none where it is not here. Blocks. `pace` is called with the bytes
    /// that are about to be read, and may end it.
    ///
    /// # Errors
    /// When it cannot be read now, or `pace` ends it.
    pub fn verify(
        &self,
        digest: &Digest,
        pace: &mut dyn FnMut(u64) -> io::Result<()>,
    ) -> io::Result<Option<bool>> {
        let mut file = match File::open(self.path(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // It is known, but its file is gone.
                return Ok(self.size(digest).map(|_| false));
            }
            Err(error) if crate::report::damaged(&error) => return Ok(Some(false)),
            file => file?,
        };
        // What is read once should not push out what is used; an older kernel does not know the advice.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::NoReuse);
        let mut hasher = Hasher::new(digest.algorithm());
        let mut piece = vec![0; 256 << 10];
        loop {
            pace(piece.len() as u64)?;
            match file.read(&mut piece) {
                Ok(0) => break,
                Ok(length) => hasher.update(&piece[..length]),
                Err(error) if crate::report::damaged(&error) => return Ok(Some(false)),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(hasher.finish() == *digest))
    }

    /// Opens a blob for reading.
    ///
    /// # Errors
    /// When it is not here or cannot be read.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, ContentError> {
        let path = self.path(digest);
        File::open(&path).map_err(failed("open", &path))
    }

    /// A small blob, verified again: these are few bytes and everything else hangs on them.
    ///
    /// # Errors
    /// When it is missing, larger than `limit`, or damaged.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ContentError> {
        let file = self.open_blob(digest)?;
        let path = self.path(digest);
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes).map_err(failed("read", &path))?;
        let actual = bytes.len() as u64;
        if actual > limit {
            return Err(ContentError::TooLarge { digest: digest.clone(), actual, limit });
        }
        let found = Digest::of(digest.algorithm(), &bytes);
        if found != *digest {
            return Err(ContentError::Digest { expected: digest.clone(), actual: found });
        }
        Ok(bytes)
    }

    /// Takes a blob's name away, which is quick however large it is; absent means done.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn detach(&self, digest: &Digest) -> Result<Option<Doomed>, ContentError> {
        let path = self.path(digest);
        let doomed = self.ingest.join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        self.sizes().remove(digest);
        match fs::rename(&path, &doomed) {
            Ok(()) => Ok(Some(Doomed(doomed))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("rename", &path)(error)),
        }
    }

    /// Removes a blob; absent means done.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, digest: &Digest) -> Result<(), ContentError> {
        let path = self.path(digest);
        self.sizes().remove(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
            _ => Ok(()),
        }
    }
}

/// A blob that has no name any more; what a crash leaves of it goes after the next start.
#[derive(Debug)]
#[must_use]
pub struct Doomed(PathBuf);

impl Doomed {
    /// Removes the bytes. Blocks.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(self) -> Result<(), ContentError> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &self.0)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// A blob being written; dropped uncommitted, its file goes away.
pub struct Ingest {
    file: File,
    path: PathBuf,
    hasher: Hasher,
    expected: Option<Digest>,
    size: Option<u64>,
    written: u64,
    committed: bool,
}

impl Ingest {
    /// Adds bytes; stops early when there are more than promised.
    ///
    /// # Errors
    /// When there are too many bytes or they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        self.written += bytes.len() as u64;
        if self.size.is_some_and(|size| self.written > size) {
            return Err(self.wrong_size());
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    fn verify(&self) -> Result<Digest, ContentError> {
        if self.size.is_some_and(|size| self.written != size) {
            return Err(self.wrong_size());
        }
        let actual = self.hasher.clone().finish();
        match &self.expected {
            Some(expected) if *expected != actual => {
                Err(ContentError::Digest { expected: expected.clone(), actual })
            }
            _ => Ok(actual),
        }
    }

    fn wrong_size(&self) -> ContentError {
        let blob = self.expected.as_ref().map_or_else(|| "the blob".to_owned(), Digest::to_string);
        ContentError::Size { blob, expected: self.size.unwrap_or_default(), actual: self.written }
    }
}

impl Drop for Ingest {
    fn drop(&mut self) {
        if !self.committed
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished blob stays until after the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_blob_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let content = Content::open(root.path(), &Notices::default()).unwrap();
        let digest = Digest::sha256(b"right");
        assert!(matches!(content.put(&digest, b"wrong"), Err(ContentError::Digest { .. })));
        let mut ingest = content.ingest(&digest, Some(5)).unwrap();
        assert!(matches!(ingest.write(b"too long"), Err(ContentError::Size { .. })));
        drop(ingest);
        assert_eq!(fs::read_dir(root.path().join("content/ingest")).unwrap().count(), 0);
        assert!(content.list().is_empty());
    }

    #[test]
    fn blobs_survive_and_unfinished_ones_do_not() {
        let root = tempfile::tempdir().unwrap();
        let digest = Digest::sha256(b"kept");
        let content = Content::open(root.path(), &Notices::default()).unwrap();
        content.put(&digest, b"kept").unwrap();
        let unfinished = content.ingest(&Digest::sha256(b"x"), None).unwrap();
        std::mem::forget(unfinished);
        drop(content);
        let content = Content::open(root.path(), &Notices::default()).unwrap();
        assert_eq!(content.read(&digest, 100).unwrap(), b"kept");
        assert!(matches!(content.read(&digest, 3), Err(ContentError::TooLarge { .. })));
        assert_eq!(content.list(), vec![(digest.clone(), 4)]);
        content.take_doomed().into_iter().for_each(|doomed| doomed.remove().unwrap());
        assert_eq!(fs::read_dir(root.path().join("content/ingest")).unwrap().count(), 0);
        content.remove(&digest).unwrap();
        content.remove(&digest).unwrap();
        assert_eq!(content.size(&digest), None);
    }

    #[test]
    fn a_damaged_blob_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let content = Content::open(root.path(), &Notices::default()).unwrap();
        let digest = Digest::sha256(b"kept");
        content.put(&digest, b"kept").unwrap();
        fs::write(content.path(&digest), b"lost").unwrap();
        assert!(matches!(content.read(&digest, 100), Err(ContentError::Digest { .. })));
        assert_eq!(content.verify(&digest, &mut |_| Ok(())).unwrap(), Some(false));
        fs::write(content.path(&digest), b"kept").unwrap();
        assert_eq!(content.verify(&digest, &mut |_| Ok(())).unwrap(), Some(true));
        assert!(content.verify(&digest, &mut |_| Err(io::ErrorKind::Other.into())).is_err());
        fs::remove_file(content.path(&digest)).unwrap();
        assert_eq!(content.verify(&digest, &mut |_| Ok(())).unwrap(), Some(false));
        assert_eq!(content.verify(&Digest::sha256(b"never"), &mut |_| Ok(())).unwrap(), None);
    }
}
