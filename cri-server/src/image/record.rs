//! What is known about an image on this node.
//!
//! Invariant: immutable once in the catalogue; a change makes a new record.

use std::sync::Arc;

use cofferdam_proto::cri;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use super::artifact::ArtifactRecord;
use super::manifest::{Platform, RunConfig};
use crate::registry::Digest;

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the blob as it came.
    pub blob: Digest,
    /// How the manifest calls it.
    pub media_type: String,
    /// Size of the blob.
    pub size: u64,
    /// Digest of the unpacked archive; names the directory.
    pub diff_id: Digest,
}

impl LayerRecord {
    /// What the blob is and what it holds.
    pub(super) fn pair(&self) -> (Digest, Digest) {
        (self.blob.clone(), self.diff_id.clone())
    }
}

/// An image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Digest of the configuration.
    pub id: Digest,
    /// `registry/repository:tag`.
    pub repo_tags: Vec<String>,
    /// `registry/repository@digest`, what the registry calls it.
    pub repo_digests: Vec<String>,
    /// The manifest that its blobs come from.
    pub manifest: Digest,
    /// And its media type.
    pub manifest_type: String,
    /// Bytes of manifest, configuration and layers as they came.
    pub size: u64,
    /// Bottom first.
    pub layers: Vec<LayerRecord>,
    /// What it runs on.
    pub platform: Platform,
    /// When it was built, as it says itself.
    pub created: Option<String>,
    /// How to run it.
    pub config: RunConfig,
    /// When it came here, in nanoseconds since 1970.
    pub pulled_at: i64,
    /// Never removed.
    #[serde(default)]
    pub pinned: bool,
    /// Set for an artifact, which has files instead of layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactRecord>,
}

/// Who an image's processes run as, in the CRI's two ways of saying so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    /// Nothing said.
    Unset,
    /// A number.
    Uid(i64),
    /// A name that only the image's own passwd can translate.
    Name(String),
}

impl ImageRecord {
    /// Diff ids, bottom first: what snapshots are made from.
    #[must_use]
    pub fn diff_ids(&self) -> Vec<Digest> {
        match &self.artifact {
            Some(artifact) => vec![artifact.tree.clone()],
            None => self.layers.iter().map(|layer| layer.diff_id.clone()).collect(),
        }
    }

    /// What ContainerStatus tells as the image's reference: a repository digest, or the id where there is none.
    #[must_use]
    pub fn reference(&self) -> String {
        self.repo_digests.first().cloned().unwrap_or_else(|| self.id.to_string())
    }

    /// What to call it where `asked` named it: by its user's words, where they are told; the kubelet itself asks by id.
    #[must_use]
    pub fn called(&self, asked: &cri::ImageSpec) -> String {
        if !asked.user_specified_image.is_empty() {
            return asked.user_specified_image.clone();
        }
        let hex = asked.image.strip_prefix("sha256:").unwrap_or(&asked.image);
        let names = self.repo_tags.iter().chain(&self.repo_digests);
        let name = self.id.hex().starts_with(hex).then(|| names.into_iter().next()).flatten();
        name.unwrap_or(&asked.image).clone()
    }

    /// How to run it, in the OCI image specification's type.
    #[must_use]
    pub fn configuration(&self) -> ImageConfiguration {
        let run = &self.config;
        let mut config = oci_spec::image::Config::default();
        config.set_user(Some(run.user.clone()));
        config.set_env(Some(run.env.clone()));
        config.set_entrypoint(Some(run.entrypoint.clone()));
        config.set_cmd(Some(run.cmd.clone()));
        config.set_working_dir(Some(run.working_dir.clone()));
        config.set_stop_signal(Some(run.stop_signal.clone()).filter(|s| !s.is_empty()));
        config.set_volumes(Some(run.volumes.clone()));
        let mut image = ImageConfiguration::default();
        image.set_config(Some(config));
        image
    }

    /// The user part of the configuration's `User`.
    #[must_use]
    pub fn user(&self) -> ImageUser {
        match self.config.user.split(':').next().unwrap_or_default() {
            "" => ImageUser::Unset,
            user => user.parse().map_or_else(|_| ImageUser::Name(user.to_owned()), ImageUser::Uid),
        }
    }

    pub(super) fn blobs(&self) -> impl Iterator<Item = &Digest> {
        let artifact = self.artifact.iter();
        let files = artifact.flat_map(|a| a.files.iter().map(|file| &file.blob).chain([&a.config]));
        let layers = self.layers.iter().map(|layer| &layer.blob);
        [&self.id, &self.manifest].into_iter().chain(layers).chain(files)
    }
}

type Images = std::collections::BTreeMap<Digest, Arc<ImageRecord>>;

/// All records, as one immutable value that readers share.
#[derive(Clone, Debug, Default)]
pub(super) struct Catalogue {
    pub images: Images,
    /// Records whose layers or configuration are gone; a pull makes them whole.
    pub broken: Images,
}

/// Shortest beginning of an id that is taken for one.
const MIN_PREFIX: usize = 4;

/// What a search found.
pub(super) enum Found {
    One(Arc<ImageRecord>),
    None,
    Several,
}

impl Catalogue {
    /// Finds an image by id, reference or the beginning of an id, in this order.
    pub fn find(&self, text: &str) -> Found {
        search(&self.images, text)
    }

    /// The same among those that are not whole.
    pub fn find_broken(&self, text: &str) -> Found {
        search(&self.broken, text)
    }
}

fn search(images: &Images, text: &str) -> Found {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    if let Some(image) = Digest::parse(&format!("sha256:{hex}")).ok().and_then(|id| images.get(&id)) {
        return Found::One(image.clone());
    }
    let reference = crate::registry::Reference::parse(text).ok();
    if let Some(image) = reference.and_then(|reference| search_reference(images, &reference)) {
        return Found::One(image.clone());
    }
    if hex.len() < MIN_PREFIX || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Found::None;
    }
    let mut fitting = images.values().filter(|image| image.id.hex().starts_with(hex));
    match (fitting.next(), fitting.next()) {
        (None, _) => Found::None,
        (Some(image), None) => Found::One(image.clone()),
        (Some(_), Some(_)) => Found::Several,
    }
}

fn search_reference<'a>(
    images: &'a Images,
    reference: &crate::registry::Reference,
) -> Option<&'a Arc<ImageRecord>> {
    match reference.digest() {
        // With a digest the tag is only a comment.
        Some(digest) => {
            let name = reference.with_digest(digest.clone()).to_string();
            images.values().find(|image| image.repo_digests.contains(&name))
        }
        None => {
            let name = reference.to_string();
            images.values().find(|image| image.repo_tags.contains(&name))
        }
    }
}
