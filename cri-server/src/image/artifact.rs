//! OCI artifacts: manifests of files instead of layers, which containers mount as volumes.
//!
//! Invariant: an artifact's files are unpacked like a layer, into a folder with a digest for a name: that of an archive which
//! is made of them on the way and never stored. So they are bounded, synced, kept and swept as layers are.

use cofferdam_failpoints::failpoint;
use std::collections::{HashSet, VecDeque};
use std::fs::File;
use std::io::Read;
use std::path::{Component, Path};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::durable;
use super::error::ImageError;
use super::fetch::{Origin, Purpose};
use super::manifest::{Platform, RunConfig};
use super::pull::{Board, Chosen, LayerStage, blocking};
use super::record::{ImageRecord, LayerRecord};
use super::{ImageService, MAX_CONFIG, now_nanos};
use crate::content::{Content, Hasher};
use crate::registry::{Algorithm, Descriptor, Digest};
use crate::snapshot::SnapshotError;

/// How long a file's name may be; what file systems take.
const MAX_NAME: usize = 255;
const PIECE: usize = 256 << 10;
/// An archive consists of blocks of this size.
const BLOCK: usize = 512;

/// What makes an image record one of an artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// The type that its publisher gave it.
    pub kind: String,
    /// Its configuration, which often says nothing.
    pub config: Digest,
    /// Names the folder with its files.
    pub tree: Digest,
    pub files: Vec<ArtifactFile>,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactFile {
    /// Its path in the artifact.
    pub name: String,
    pub blob: Digest,
    pub media_type: String,
    pub size: u64,
}

/// The part of a manifest that only an artifact has.
#[derive(Clone, Debug)]
pub(super) struct ArtifactManifest {
    pub kind: String,
    pub files: Vec<ArtifactFile>,
}

/// The file that a layer stands for: named by its title, or by its digest where it has none.
pub(super) fn file(layer: &Descriptor, title: Option<&String>) -> Result<ArtifactFile, String> {
    let name = title.cloned().unwrap_or_else(|| layer.digest.hex().to_owned());
    let part_fits = |part: Component<'_>| match part {
        Component::Normal(part) => part.len() <= MAX_NAME && !part.as_encoded_bytes().starts_with(b".wh."),
        _ => false,
    };
    let fits = !name.is_empty() && name.len() <= 4096 && !name.contains('\0') && !name.ends_with('/');
    if !fits || !Path::new(&name).components().all(part_fits) {
        return Err(format!("has a file named {name:?}, which is no plain relative path"));
    }
    Ok(ArtifactFile {
        name,
        blob: layer.digest.clone(),
        media_type: layer.media_type.clone(),
        size: layer.size,
    })
}

/// Two files at the same place, or one where another needs a folder.
pub(super) fn check_names(files: &[ArtifactFile]) -> Result<(), String> {
    let names: HashSet<&Path> = files.iter().map(|file| Path::new(&file.name)).collect();
    let twice = names.len() != files.len();
    let hidden = names.iter().any(|name| name.ancestors().skip(1).any(|above| names.contains(above)));
    if twice || hidden { Err("has two files at the same place".to_owned()) } else { Ok(()) }
}

impl ImageService {
    /// Fetches an artifact's files and records it.
    pub(super) async fn install_artifact(
        self: &Arc<Self>,
        origin: &Origin,
        chosen: Chosen,
        artifact: ArtifactManifest,
        names: (Vec<String>, Vec<String>),
        board: &Board,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let Chosen { digest, media_type, bytes, manifest } = chosen;
        let all = self.checked_size(&digest, &artifact.files)?;
        let config = self.fetch_small(origin, &manifest.config, MAX_CONFIG).await?;
        self.fetch_files(origin, &artifact.files, board).await?;
        failpoint!("image.artifact.files_fetched");
        let size = all + (bytes.len() + config.len()) as u64;
        let tree = self.unpack_files(&artifact.files, origin.name()).await?;
        failpoint!("image.artifact.tree_made");
        let (content, snapshots, id) = (self.content.clone(), self.snapshots.clone(), digest.clone());
        if self.content.size(&digest).is_none() {
            self.disown_blob(&digest).await?;
        }
        blocking(move || {
            content.put(&id, &bytes)?;
            durable::sync(&[content.folder(), &snapshots.layers().folder()])
        })
        .await??;
        failpoint!("image.artifact.synced");
        let (repo_tags, repo_digests) = names;
        self.record(ImageRecord {
            // Its configuration is the same for many artifacts.
            id: digest.clone(),
            repo_tags,
            repo_digests,
            manifest: digest,
            manifest_type: media_type,
            size,
            layers: Vec::new(),
            platform: Platform::default(),
            created: None,
            config: RunConfig::default(),
            pulled_at: now_nanos(),
            pinned: false,
            artifact: Some(ArtifactRecord {
                kind: artifact.kind,
                config: manifest.config.digest,
                tree,
                files: artifact.files,
            }),
        })
        .await
    }

    /// All bytes of the files, none of which may be larger than it says, nor all together than a layer may be.
    fn checked_size(&self, digest: &Digest, files: &[ArtifactFile]) -> Result<u64, ImageError> {
        let malformed =
            |problem: String| ImageError::Malformed { what: "manifest", digest: digest.to_string(), problem };
        let most = self.config.limits().max_bytes;
        let sum = files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size));
        let sum = sum.filter(|sum| *sum <= most);
        let sum = sum.ok_or_else(|| malformed(format!("has files of more than {most} bytes")))?;
        for file in files {
            if self.content.size(&file.blob).is_some_and(|size| size != file.size) {
                return Err(malformed(format!("gives {:?} a size that is not its own", file.name)));
            }
        }
        Ok(sum)
    }

    /// Makes the folder with the files, once for all artifacts that have the same.
    async fn unpack_files(&self, files: &[ArtifactFile], name: String) -> Result<Digest, ImageError> {
        let failed = move |source| ImageError::Layer { layer: name.clone(), source };
        let (content, all, failed_hash) = (self.content.clone(), files.to_vec(), failed.clone());
        let (stop, still) = (self.stopping.clone(), self.stopping.clone());
        let hashed = blocking(move || hash(&content, &all, &stop)).await?;
        let tree = hashed.map_err(|e| failed_hash(SnapshotError::Source(e)))?;
        let lock = self.layer_lock(&tree);
        let unpacked = {
            let _alone = lock.lock().await;
            self.disown_tree(&tree).await?;
            let (content, snapshots, limits) =
                (self.content.clone(), self.snapshots.clone(), self.config.limits());
            let (files, tree) = (files.to_vec(), tree.clone());
            blocking(move || -> Result<(), ImageError> {
                if snapshots.layers().get(&tree).is_none() {
                    let mut archive = Archive::new(&content, &files, &still);
                    let mut source = || archive.piece();
                    snapshots.layers().unpack(&tree, &mut source, &limits).map_err(failed)?;
                }
                Ok(snapshots.settle(std::slice::from_ref(&tree))?)
            })
            .await
        };
        self.forget_lock(&lock, &tree);
        unpacked??;
        Ok(tree)
    }

    async fn fetch_files(
        &self,
        origin: &Origin,
        files: &[ArtifactFile],
        board: &Board,
    ) -> Result<(), ImageError> {
        // A file is its own content: nothing is unpacked while it comes.
        let as_layer = |file: &ArtifactFile| LayerRecord {
            blob: file.blob.clone(),
            media_type: file.media_type.clone(),
            size: file.size,
            diff_id: file.blob.clone(),
        };
        let layers: Vec<LayerRecord> = files.iter().map(as_layer).collect();
        board.begin(&layers);
        for (index, layer) in layers.iter().enumerate() {
            let lock = self.layer_lock(&layer.diff_id);
            let fetched = {
                let _alone = lock.lock().await;
                self.fetch_file(origin, layer, index, board).await
            };
            self.forget_lock(&lock, &layer.diff_id);
            fetched?;
        }
        Ok(())
    }

    async fn fetch_file(
        &self,
        origin: &Origin,
        layer: &LayerRecord,
        index: usize,
        board: &Board,
    ) -> Result<(), ImageError> {
        if self.content.size(&layer.blob).is_some() {
            board.set(index, LayerStage::Present, layer.size);
            return Ok(());
        }
        self.disown_blob(&layer.blob).await?;
        let _slot = self.slots.acquire().await.map_err(|_| ImageError::Interrupted("the pull"))?;
        self.download(origin, layer, index, board, &self.stopping, Purpose::Keep).await?;
        board.set(index, LayerStage::Done, layer.size);
        Ok(())
    }
}

type SourceError = Box<dyn std::error::Error + Send + Sync>;

fn hash(content: &Content, files: &[ArtifactFile], stop: &CancellationToken) -> Result<Digest, SourceError> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut archive = Archive::new(content, files, stop);
    while let Some(piece) = archive.piece()? {
        hasher.update(&piece);
    }
    Ok(hasher.finish())
}

/// The archive that the files make, piece by piece; the same files make the same bytes.
struct Archive<'a> {
    content: &'a Content,
    files: VecDeque<&'a ArtifactFile>,
    /// The file being read, and how much of it is left.
    current: Option<(File, u64, u64)>,
    ended: bool,
    /// Cancelled when the daemon ends: a large artifact takes longer than it waits.
    stop: &'a CancellationToken,
}

impl<'a> Archive<'a> {
    fn new(content: &'a Content, files: &'a [ArtifactFile], stop: &'a CancellationToken) -> Self {
        Self { content, files: files.iter().collect(), current: None, ended: false, stop }
    }

    fn piece(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.stop.is_cancelled() {
            return Err("the daemon ends".into());
        }
        if let Some((file, left, size)) = &mut self.current {
            if *left > 0 {
                let mut piece = Vec::with_capacity(PIECE);
                let wanted = (*left).min(PIECE as u64);
                file.take(wanted).read_to_end(&mut piece)?;
                if piece.len() as u64 != wanted {
                    return Err("a blob is shorter than its manifest says".into());
                }
                *left -= wanted;
                return Ok(Some(piece.into()));
            }
            let padding = size.next_multiple_of(BLOCK as u64) - *size;
            self.current = None;
            if padding > 0 {
                return Ok(Some(vec![0; usize::try_from(padding)?].into()));
            }
        }
        if let Some(file) = self.files.pop_front() {
            self.current = Some((self.content.open_blob(&file.blob)?, file.size, file.size));
            return Ok(Some(head(file)?.into()));
        }
        if self.ended {
            return Ok(None);
        }
        self.ended = true;
        Ok(Some(vec![0; 2 * BLOCK].into()))
    }
}

/// What stands before a file's bytes.
fn head(file: &ArtifactFile) -> std::io::Result<Vec<u8>> {
    let mut header = tar::Header::new_gnu();
    header.set_size(file.size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, &file.name, std::io::empty())?;
    // Without the end mark that finishing the builder would add.
    Ok(std::mem::take(builder.get_mut()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(hex: char) -> Descriptor {
        let digest = Digest::parse(&format!("sha256:{}", hex.to_string().repeat(64))).unwrap();
        Descriptor { media_type: "text/plain".to_owned(), digest, size: 1 }
    }

    #[test]
    fn names_of_files_are_plain_paths() {
        let named = |name: &str| file(&layer('a'), Some(&name.to_owned()));
        assert_eq!(named("models/one.bin").unwrap().name, "models/one.bin");
        assert_eq!(file(&layer('a'), None).unwrap().name, "a".repeat(64));
        for bad in ["", "/etc/passwd", "../x", "a/../b", "a/", "a\0b", ".", ".wh.x", &"x".repeat(256)] {
            assert!(named(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_daemon_that_ends_does_not_read_on() {
        let folder = tempfile::tempdir().unwrap();
        let content = Content::open(folder.path(), &crate::notices::Notices::default()).unwrap();
        let bytes = vec![7; 3 * PIECE];
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(&bytes);
        let blob = Descriptor { digest: hasher.finish(), size: bytes.len() as u64, ..layer('a') };
        content.put(&blob.digest, &bytes).unwrap();
        let files = [file(&blob, Some(&"big".to_owned())).unwrap()];
        let stop = CancellationToken::new();
        assert!(hash(&content, &files, &stop).is_ok());
        let mut archive = Archive::new(&content, &files, &stop);
        // The head and the first piece, which is all that is held of the file.
        archive.piece().unwrap();
        assert_eq!(archive.piece().unwrap().unwrap().len(), PIECE);
        stop.cancel();
        assert!(archive.piece().unwrap_err().to_string().contains("ends"));
        assert!(hash(&content, &files, &stop).is_err());
    }

    #[test]
    fn two_files_at_one_place_are_refused() {
        let files = |names: &[&str]| -> Vec<_> {
            names.iter().map(|name| file(&layer('a'), Some(&(*name).to_owned())).unwrap()).collect()
        };
        assert!(check_names(&files(&["a", "b/a", "b/c"])).is_ok());
        assert!(check_names(&files(&["a", "a"])).is_err());
        assert!(check_names(&files(&["a/b", "a"])).is_err());
    }
}
