//! Imports archives: OCI layouts and what `docker save` writes, old and new, plain or compressed.
//!
//! Invariant: an archive is read once, front to back; its blobs go to the content store under the digests of their bytes, and
//! from there on an import is a pull without a registry. What no image uses is swept afterwards.

use cofferdam_failpoints::failpoint;
use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;

use super::error::ImageError;
use super::fetch::Origin;
use super::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, RawDescriptor};
use super::pull::{Board, blocking};
use super::record::ImageRecord;
use super::{ImageService, MAX_MANIFEST};
use crate::content::Content;
use crate::registry::{Descriptor, Digest, Reference, Resolved};
use crate::snapshot::archive::{Archive, Kind};
use crate::snapshot::{Limits, decompress};

/// Annotations that hold a name, the more specific first.
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BLOBS: &str = "blobs/";

/// What an archive says about itself.
#[derive(Default)]
struct Listing {
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    /// Files by path; links resolved.
    files: HashMap<String, (Digest, u64)>,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<RawDescriptor>,
}

/// One image of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// An image to install.
struct Candidate {
    start: Resolved,
    tags: Vec<String>,
}

impl ImageService {
    /// Imports every image of the archive at `path`.
    ///
    /// # Errors
    /// When the archive is none, holds nothing for this node, or an image of it is damaged.
    pub async fn import(self: &Arc<Self>, path: &Path) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
        let service = Arc::clone(self);
        let path = path.to_owned();
        // As with a pull, what has begun is finished, whoever waits.
        let task = self.tasks.spawn(async move {
            let result = service.run_import(&path).await;
            service.want_sweep();
            service.sweep_when_idle().await;
            result
        });
        task.await.map_err(|_| ImageError::Interrupted("the import"))?
    }

    async fn run_import(self: &Arc<Self>, path: &Path) -> Result<Vec<Arc<ImageRecord>>, ImageError> {
        let _keeping = self.garbage.read().await;
        let (content, file) = (self.content.clone(), path.to_owned());
        let listing = blocking(move || store_files(&content, &file)).await??;
        failpoint!("image.import.stored");
        let refused =
            |problem: &str| ImageError::Archive { path: path.to_owned(), problem: problem.to_owned() };
        let saved: Vec<Saved> = match &listing.docker {
            Some(bytes) => {
                serde_json::from_slice(bytes).map_err(|e| refused(&format!("manifest.json: {e}")))?
            }
            None => Vec::new(),
        };
        let candidates = match &listing.index {
            Some(bytes) => {
                let index: Index =
                    serde_json::from_slice(bytes).map_err(|e| refused(&format!("index.json: {e}")))?;
                self.list_index(&index, &saved, &listing, path)?
            }
            None if listing.docker.is_some() => {
                saved.iter().map(|image| Self::read_saved(image, &listing, path)).collect::<Result<_, _>>()?
            }
            None => return Err(refused("holds neither index.json nor manifest.json")),
        };
        if candidates.is_empty() {
            return Err(refused("holds no image"));
        }
        let origin = Origin::Stored(path.display().to_string());
        let (mut images, mut elsewhere): (Vec<Arc<ImageRecord>>, Option<ImageError>) = (Vec::new(), None);
        for candidate in candidates {
            match self.install_candidate(&origin, candidate).await {
                Ok(image) => {
                    images.retain(|other| other.id != image.id);
                    images.push(image);
                }
                // An archive of several platforms lists images of the others too.
                Err(error @ ImageError::Platform { .. }) => elsewhere = Some(error),
                Err(error) => return Err(error),
            }
        }
        match elsewhere {
            Some(error) if images.is_empty() => Err(error),
            _ => Ok(images),
        }
    }

    async fn install_candidate(
        self: &Arc<Self>,
        origin: &Origin,
        candidate: Candidate,
    ) -> Result<Arc<ImageRecord>, ImageError> {
        let digest = candidate.start.descriptor.digest.clone();
        let name =
            |tag: &String| Reference::parse(tag).ok().map(|r| r.with_digest(digest.clone()).to_string());
        let mut digests: Vec<String> = candidate.tags.iter().filter_map(name).collect();
        digests.dedup();
        let chosen = self.choose(origin, candidate.start).await?;
        failpoint!("image.import.chosen");
        let (board, _) = Board::new();
        self.install(origin, chosen, candidate.tags, digests, &board).await
    }

    fn list_index(
        &self,
        index: &Index,
        saved: &[Saved],
        listing: &Listing,
        path: &Path,
    ) -> Result<Vec<Candidate>, ImageError> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for entry in &index.manifests {
            let bytes = self.content.read(&entry.digest, MAX_MANIFEST).map_err(|_| ImageError::Archive {
                path: path.to_owned(),
                problem: format!("index.json names {}, which is not in it", entry.digest),
            })?;
            let mut tags: Vec<String> = names(entry).collect();
            tags.extend(saved_tags(&bytes, saved, listing));
            // One image under several names is listed once for each.
            match candidates.iter_mut().find(|known| known.start.descriptor.digest == entry.digest) {
                Some(known) => super::merge(&mut known.tags, &tags),
                None => {
                    let mut unique = Vec::new();
                    super::merge(&mut unique, &tags);
                    let start =
                        Resolved { descriptor: entry.descriptor(), bytes: bytes.into(), host: String::new() };
                    candidates.push(Candidate { start, tags: unique });
                }
            }
        }
        Ok(candidates)
    }

    /// Older archives have no manifest: one is written that says the same.
    fn read_saved(image: &Saved, listing: &Listing, path: &Path) -> Result<Candidate, ImageError> {
        let part = |name: &String, media_type: &str| {
            let (digest, size) = listing.files.get(name).ok_or_else(|| ImageError::Archive {
                path: path.to_owned(),
                problem: format!("manifest.json names {name:?}, which is not in it"),
            })?;
            Ok::<_, ImageError>(
                serde_json::json!({ "mediaType": media_type, "digest": digest, "size": size }),
            )
        };
        let layers = image.layers.iter().map(|name| part(name, OCI_LAYER)).collect::<Result<Vec<_>, _>>()?;
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": part(&image.config, OCI_CONFIG)?,
            "layers": layers,
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = Digest::sha256(&bytes);
        let descriptor = Descriptor { media_type: OCI_MANIFEST.to_owned(), digest, size: bytes.len() as u64 };
        let tags = image.repo_tags.iter().flatten().filter_map(|tag| normalise(tag)).collect();
        Ok(Candidate { start: Resolved { descriptor, bytes: bytes.into(), host: String::new() }, tags })
    }
}

/// Names that an entry of `index.json` carries. A bare tag is no name.
fn names(entry: &RawDescriptor) -> impl Iterator<Item = String> {
    let full = entry.annotations.get(NAME).and_then(|name| normalise(name));
    let short =
        || entry.annotations.get(REF_NAME).filter(|n| n.contains(['/', ':'])).and_then(|n| normalise(n));
    full.or_else(short).into_iter()
}

fn normalise(tag: &str) -> Option<String> {
    Reference::parse(tag).ok().filter(|r| r.digest().is_none()).map(|r| r.to_string())
}

/// Tags that `manifest.json` gives the image whose manifest is `bytes`.
fn saved_tags(bytes: &[u8], saved: &[Saved], listing: &Listing) -> Vec<String> {
    #[derive(Deserialize)]
    struct OnlyConfig {
        config: RawDescriptor,
    }
    let Ok(manifest) = serde_json::from_slice::<OnlyConfig>(bytes) else { return Vec::new() };
    let same =
        |image: &&Saved| listing.files.get(&image.config).is_some_and(|(d, _)| *d == manifest.config.digest);
    saved
        .iter()
        .filter(same)
        .flat_map(|i| i.repo_tags.iter().flatten())
        .filter_map(|t| normalise(t))
        .collect()
}

/// Stores every file of the archive and notes what is what.
fn store_files(content: &Content, path: &Path) -> Result<Listing, ImageError> {
    let refused = |problem: String| ImageError::Archive { path: path.to_owned(), problem };
    let file = File::open(path).map_err(ImageError::io("open", path))?;
    let plain = decompress(BufReader::new(file)).map_err(|e| refused(e.to_string()))?;
    let mut archive = Archive::new(BufReader::with_capacity(256 << 10, plain), &Limits::default());
    let mut listing = Listing::default();
    let mut links = Vec::new();
    while let Some(entry) = archive.next_entry().map_err(|e| refused(crate::registry::chain(&e)))? {
        let name = clean(&entry.path);
        match entry.kind {
            Kind::File if matches!(name.as_str(), "index.json" | "manifest.json") => {
                if entry.size > MAX_MANIFEST {
                    return Err(refused(format!("{name} has {} bytes", entry.size)));
                }
                let mut bytes = Vec::new();
                copy(&mut archive, &refused, |piece| {
                    bytes.extend_from_slice(piece);
                    Ok(())
                })?;
                let slot = if name == "index.json" { &mut listing.index } else { &mut listing.docker };
                *slot = Some(bytes);
            }
            Kind::File => {
                let mut ingest = match expected_digest(&name) {
                    Some(digest) => content.ingest(&digest, Some(entry.size))?,
                    None => content.ingest_unnamed()?,
                };
                copy(&mut archive, &refused, |piece| Ok(ingest.write(piece)?))?;
                listing.files.insert(name, (content.commit(ingest)?, entry.size));
            }
            // Layers that images share are links in archives of older versions.
            Kind::Symlink => links.push((name.clone(), clean(&[parent(&name), b"/", &entry.link].concat()))),
            Kind::Hardlink => links.push((name, clean(&entry.link))),
            _ => {}
        }
    }
    for (name, target) in links {
        if let Some(found) = listing.files.get(&target).cloned() {
            listing.files.insert(name, found);
        }
    }
    Ok(listing)
}

fn copy<R: std::io::BufRead>(
    archive: &mut Archive<R>,
    refused: &impl Fn(String) -> ImageError,
    mut take: impl FnMut(&[u8]) -> Result<(), ImageError>,
) -> Result<(), ImageError> {
    loop {
        let piece = archive.content().map_err(|e| refused(crate::registry::chain(&e)))?;
        if piece.is_empty() {
            return Ok(());
        }
        take(piece)?;
        let length = piece.len();
        archive.consume(length);
    }
}

fn expected_digest(name: &str) -> Option<Digest> {
    let (algorithm, hex) = name.strip_prefix(BLOBS)?.split_once('/')?;
    Digest::parse(&format!("{algorithm}:{hex}")).ok()
}

fn parent(name: &str) -> &[u8] {
    name.rsplit_once('/').map_or(b"", |(parent, _)| parent.as_bytes())
}

fn clean(path: &[u8]) -> String {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    String::from_utf8_lossy(&parts.join(&b'/')).into_owned()
}
