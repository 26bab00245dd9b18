//! Exports images into one archive that is an OCI layout and, by its `manifest.json`, what `docker load` reads.
//!
//! Invariant: blobs leave byte for byte as they came; the archive appears under its name only when it is whole.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

use super::ImageService;
use super::error::ImageError;
use super::pull::blocking;
use super::record::ImageRecord;
use crate::content::Content;
use crate::registry::Digest;

/// An image and the names it gets in the archive.
struct Selected {
    image: Arc<ImageRecord>,
    tags: Vec<String>,
}

impl ImageService {
    /// Writes the images with these references or ids to `path`; returns the archive's size. A reference brings only
    /// its own tag along, an id all of them.
    ///
    /// # Errors
    /// When an image is not here, or the file cannot be written; then it is not there.
    pub async fn export(self: &Arc<Self>, path: &Path, names: &[String]) -> Result<u64, ImageError> {
        let _keeping = self.garbage.read().await;
        let mut selected: Vec<Selected> = Vec::new();
        for name in names {
            let image = self.find(name)?;
            let own = crate::registry::Reference::parse(name).map(|r| r.to_string()).unwrap_or_default();
            let tags = if image.repo_tags.contains(&own) { vec![own] } else { image.repo_tags.clone() };
            match selected.iter_mut().find(|known| known.image.id == image.id) {
                Some(known) => super::merge(&mut known.tags, &tags),
                None => selected.push(Selected { image, tags }),
            }
        }
        let (content, path) = (self.content.clone(), path.to_owned());
        blocking(move || write_archive(&content, &path, &selected)).await?
    }
}

fn write_archive(content: &Content, path: &Path, selected: &[Selected]) -> Result<u64, ImageError> {
    let failed = |op| ImageError::io(op, path);
    let directory = path.parent().unwrap_or_else(|| Path::new("/"));
    let mut scratch = tempfile::NamedTempFile::new_in(directory).map_err(failed("create a file beside"))?;
    {
        let mut tar = tar::Builder::new(std::io::BufWriter::with_capacity(256 << 10, scratch.as_file_mut()));
        let text = |value: &Value| value.to_string().into_bytes();
        append(&mut tar, "oci-layout", &text(&json!({ "imageLayoutVersion": "1.0.0" })))
            .map_err(failed("write"))?;
        append(&mut tar, "index.json", &text(&oci_index(content, selected))).map_err(failed("write"))?;
        append(&mut tar, "manifest.json", &text(&docker_manifest(selected))).map_err(failed("write"))?;
        let blobs: BTreeSet<&Digest> = selected.iter().flat_map(|s| s.image.blobs()).collect();
        for digest in blobs {
            let file = content.open_blob(digest)?;
            append_blob(&mut tar, &blob_path(digest), &file).map_err(failed("write"))?;
        }
        tar.into_inner().and_then(|mut inner| inner.flush()).map_err(failed("write"))?;
    }
    scratch.as_file().sync_all().map_err(failed("sync"))?;
    let size = scratch.as_file().metadata().map_err(failed("stat"))?.len();
    scratch.persist(path).map_err(|e| failed("rename to")(e.error))?;
    Ok(size)
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// One entry for each name, because a name is an annotation of an entry.
fn oci_index(content: &Content, selected: &[Selected]) -> Value {
    let mut manifests = Vec::new();
    for Selected { image, tags } in selected {
        let entry = |annotations: Value| {
            json!({
                "mediaType": image.manifest_type,
                "digest": image.manifest,
                "size": content.size(&image.manifest).unwrap_or_default(),
                "platform": image.platform,
                "annotations": annotations,
            })
        };
        for tag in tags {
            let short = tag.rsplit_once(':').map_or("", |(_, tag)| tag);
            manifests.push(entry(json!({
                "io.containerd.image.name": tag,
                "org.opencontainers.image.ref.name": short,
            })));
        }
        if tags.is_empty() {
            manifests.push(entry(json!({})));
        }
    }
    json!({ "schemaVersion": 2, "mediaType": super::manifest::OCI_INDEX, "manifests": manifests })
}

fn docker_manifest(selected: &[Selected]) -> Value {
    let image = |Selected { image, tags }: &Selected| {
        json!({
            "Config": blob_path(&image.id),
            "RepoTags": tags,
            "Layers": image.layers.iter().map(|layer| blob_path(&layer.blob)).collect::<Vec<_>>(),
        })
    };
    // Docker's format knows no artifacts; those are in the index only.
    Value::Array(selected.iter().filter(|one| one.image.artifact.is_none()).map(image).collect())
}

fn header(size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

fn append<W: Write>(tar: &mut tar::Builder<W>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    tar.append_data(&mut header(bytes.len() as u64), name, bytes)
}

fn append_blob<W: Write>(tar: &mut tar::Builder<W>, name: &str, file: &File) -> std::io::Result<()> {
    tar.append_data(&mut header(file.metadata()?.len()), name, file)
}
