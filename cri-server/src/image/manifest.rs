//! Reads manifests, indexes and configurations of both formats: OCI and Docker schema 2.
//!
//! Invariant: pure functions of bytes from strangers; sizes were bounded before, counts and contradictions are checked
//! here. Unknown fields are ignored, as both specifications ask.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::artifact::{self, ArtifactManifest};
use super::error::ImageError;
use crate::registry::{Descriptor, Digest};

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(super) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Names the file that a layer of an artifact is.
const TITLE: &str = "org.opencontainers.image.title";
const LAYER_TYPES: [&str; 4] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RawDescriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
}

impl RawDescriptor {
    pub fn descriptor(&self) -> Descriptor {
        Descriptor { media_type: self.media_type.clone(), digest: self.digest.clone(), size: self.size }
    }
}

/// What an image runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Processor, in Go's words.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Kind of processor.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    artifact_type: Option<String>,
    config: Option<RawDescriptor>,
    layers: Option<Vec<RawDescriptor>>,
    manifests: Option<Vec<RawDescriptor>>,
    fs_layers: Option<serde_json::Value>,
}

/// An image's parts.
#[derive(Clone, Debug)]
pub(super) struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    /// Set for what is no container image.
    pub artifact: Option<ArtifactManifest>,
}

/// What a reference leads to.
#[derive(Clone, Debug)]
pub(super) enum Document {
    Index(Vec<RawDescriptor>),
    Manifest(Manifest),
}

/// Reads a manifest or an index; `reference` is for errors only.
pub(super) fn parse(
    bytes: &[u8],
    digest: &Digest,
    reference: &str,
    max_layers: usize,
) -> Result<Document, ImageError> {
    let malformed =
        |problem: String| ImageError::Malformed { what: "manifest", digest: digest.to_string(), problem };
    let raw: RawDocument = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    if raw.schema_version == 1 || raw.fs_layers.is_some() {
        return Err(ImageError::Schema1(reference.to_owned()));
    }
    match (raw.manifests, raw.layers, raw.config) {
        // One reader's index must not be another reader's manifest.
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(malformed("is an index and a manifest at once".to_owned()))
        }
        (Some(manifests), None, None) => match raw.media_type.as_str() {
            "" | OCI_INDEX | DOCKER_LIST => Ok(Document::Index(manifests)),
            other => Err(malformed(format!("has manifests but calls itself {other:?}"))),
        },
        (None, layers, Some(config)) => {
            if !matches!(raw.media_type.as_str(), "" | OCI_MANIFEST | DOCKER_MANIFEST) {
                return Err(malformed(format!("has a configuration but calls itself {:?}", raw.media_type)));
            }
            let layers = layers.unwrap_or_default();
            if layers.len() > max_layers {
                return Err(malformed(format!(
                    "has {} layers, more than the {max_layers} allowed",
                    layers.len()
                )));
            }
            let artifact = artifact_of(raw.artifact_type, &config, &layers).map_err(malformed)?;
            if artifact.is_none() {
                check_layers(reference, &layers)?;
            }
            let layers = layers.iter().map(RawDescriptor::descriptor).collect();
            Ok(Document::Manifest(Manifest { config: config.descriptor(), layers, artifact }))
        }
        (None, _, None) => Err(malformed("is neither a manifest nor an index".to_owned())),
    }
}

/// What is described by another configuration than an image's is an artifact: its layers are files.
fn artifact_of(
    artifact_type: Option<String>,
    config: &RawDescriptor,
    layers: &[RawDescriptor],
) -> Result<Option<ArtifactManifest>, String> {
    if matches!(config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG) {
        return Ok(None);
    }
    let one = |layer: &RawDescriptor| artifact::file(&layer.descriptor(), layer.annotations.get(TITLE));
    let files = layers.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    artifact::check_names(&files)?;
    let kind = artifact_type.unwrap_or_else(|| config.media_type.clone());
    Ok(Some(ArtifactManifest { kind, files }))
}

fn check_layers(reference: &str, layers: &[RawDescriptor]) -> Result<(), ImageError> {
    let artifact = |kind: String| ImageError::Artifact { reference: reference.to_owned(), kind };
    match layers.iter().find(|layer| !is_layer(&layer.media_type)) {
        Some(layer) => Err(artifact(layer.media_type.clone())),
        None => Ok(()),
    }
}

fn is_layer(media_type: &str) -> bool {
    LAYER_TYPES.iter().any(|base| {
        media_type
            .strip_prefix(base)
            .is_some_and(|end| matches!(end, "" | "+gzip" | "+zstd" | ".gzip" | ".zstd"))
    })
}

/// The parts of an image's configuration that containers are made from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    /// User and group, by name or number.
    #[serde(deserialize_with = "null_as_default")]
    pub user: String,
    /// `KEY=value`.
    #[serde(deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    /// What always runs.
    #[serde(deserialize_with = "null_as_default")]
    pub entrypoint: Vec<String>,
    /// Its default arguments, or what runs.
    #[serde(deserialize_with = "null_as_default")]
    pub cmd: Vec<String>,
    /// Where it runs.
    #[serde(deserialize_with = "null_as_default")]
    pub working_dir: String,
    /// Name or number; empty means SIGTERM.
    #[serde(deserialize_with = "null_as_default")]
    pub stop_signal: String,
    /// Paths that should be volumes.
    #[serde(deserialize_with = "keys_only", serialize_with = "keys_as_map")]
    pub volumes: Vec<String>,
    /// The image's own labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
}

fn null_as_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    d: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

fn keys_only<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde_json::Value>> = Option::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

fn keys_as_map<S: serde::Serializer>(keys: &[String], serializer: S) -> Result<S::Ok, S::Error> {
    let map: BTreeMap<&str, serde_json::Value> =
        keys.iter().map(|key| (key.as_str(), serde_json::Value::Object(serde_json::Map::new()))).collect();
    map.serialize(serializer)
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(flatten)]
    platform: Platform,
    #[serde(default)]
    created: Option<String>,
    #[serde(default)]
    config: Option<RunConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

/// An image's configuration.
#[derive(Clone, Debug)]
pub(super) struct ImageConfig {
    pub platform: Platform,
    pub created: Option<String>,
    pub run: RunConfig,
    pub diff_ids: Vec<Digest>,
}

/// Reads a configuration, and checks it against the number of layers.
pub(super) fn parse_config(bytes: &[u8], digest: &Digest, layers: usize) -> Result<ImageConfig, ImageError> {
    let malformed = |problem: String| ImageError::Malformed {
        what: "image configuration",
        digest: digest.to_string(),
        problem,
    };
    let raw: RawConfig = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
    let diff_ids = raw.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diff_ids.len() != layers {
        return Err(malformed(format!("names {} layers, the manifest {layers}", diff_ids.len())));
    }
    Ok(ImageConfig {
        platform: raw.platform,
        created: raw.created,
        run: raw.config.unwrap_or_default(),
        diff_ids,
    })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
