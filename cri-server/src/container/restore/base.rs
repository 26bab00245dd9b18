//! The image that a checkpoint's container was made of.
//!
//! Invariant: where the checkpoint says which image it was, by its digest, no other is taken: the changes and the open
//! files of the container are of that one.

use std::sync::Arc;

use serde::Deserialize;

use crate::container::{ContainerError, Containers};
use crate::image::{ImageError, ImageRecord};
use crate::registry::{Credentials, Digest, Reference};

/// What is read of `config.dump`. Runtimes differ in which field holds a name and which an id.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Base {
    #[serde(default)]
    rootfs_image_ref: String,
    #[serde(default)]
    rootfs_image: String,
    #[serde(default)]
    rootfs_image_name: String,
}

impl Base {
    fn words(&self) -> [&str; 3] {
        [&self.rootfs_image_ref, &self.rootfs_image, &self.rootfs_image_name]
    }

    /// The image's id: the digest of its configuration.
    fn id(&self) -> Option<Digest> {
        let id =
            |text: &str| Digest::parse(&format!("sha256:{}", text.strip_prefix("sha256:").unwrap_or(text)));
        self.words().into_iter().find_map(|text| id(text).ok())
    }

    /// References, those with a digest first.
    fn references(&self) -> Vec<Reference> {
        let plain = |text: &&str| !text.is_empty() && Digest::parse(text).is_err() && !is_hex(text);
        let parsed = self.words().into_iter().filter(plain).filter_map(|text| Reference::parse(text).ok());
        let mut found: Vec<Reference> = parsed.collect();
        found.sort_by_key(|reference| reference.digest().is_none());
        found
    }
}

fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Containers {
    /// Finds the image on the node, or pulls it with what the node itself may log in with.
    pub(super) async fn base_image(&self, base: &Base) -> Result<Arc<ImageRecord>, ContainerError> {
        let images = &self.ports.images;
        let id = base.id();
        if let Some(image) = id.as_ref().and_then(|id| images.find(id.as_str()).ok()) {
            return runnable(image);
        }
        let references = base.references();
        let mut last = None;
        for reference in &references {
            let name = reference.to_string();
            let found = match images.find(&name) {
                Ok(image) => Ok(image),
                Err(_) => images.pull(&name, Credentials::default()).await,
            };
            match found {
                // A digest names the manifest, which names the configuration.
                Ok(image) if reference.digest().is_some() || id.as_ref().is_none_or(|id| *id == image.id) => {
                    return runnable(image);
                }
                Ok(image) => {
                    let (is, was) = (&image.id, id.as_ref().map(Digest::as_str).unwrap_or_default());
                    return Err(ContainerError::NoRestore(format!(
                        "{name} is image {is} now, and was {was}"
                    )));
                }
                Err(source) => last = Some(ContainerError::BaseImage { name, source }),
            }
        }
        let unknown = || match id {
            Some(id) => ContainerError::BaseImage {
                name: id.to_string(),
                source: Arc::new(ImageError::NotFound(id.to_string())),
            },
            None => ContainerError::BadCheckpoint {
                name: "config.dump".to_owned(),
                problem: "it names no image".to_owned(),
            },
        };
        Err(last.unwrap_or_else(unknown))
    }
}

fn runnable(image: Arc<ImageRecord>) -> Result<Arc<ImageRecord>, ContainerError> {
    match image.artifact {
        Some(_) => Err(ContainerError::NoRestore(format!("{} is an artifact", image.id))),
        None => Ok(image),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "24bf2129b2933f993017802684bebe9ee9288584e93c1c993790dbd505bad55b";

    fn base(reference: &str, image: &str, name: &str) -> Base {
        let text = serde_json::json!({
            "rootfsImageRef": reference, "rootfsImage": image, "rootfsImageName": name, "more": 1,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn digests_come_before_tags_whatever_field_holds_them() {
        let pinned = format!("docker.io/library/busybox@sha256:{HEX}");
        for base in [
            base(&pinned, &format!("sha256:{HEX}"), "docker.io/library/busybox:1"),
            base(HEX, "busybox:1", &pinned),
        ] {
            assert_eq!(base.id().unwrap().hex(), HEX);
            let names: Vec<String> = base.references().iter().map(ToString::to_string).collect();
            assert_eq!(names, [pinned.as_str(), "docker.io/library/busybox:1"]);
        }
    }

    #[test]
    fn nothing_is_made_up() {
        let empty: Base = serde_json::from_str("{}").unwrap();
        assert!(empty.id().is_none() && empty.references().is_empty());
        assert!(base("no name at all!", "", "").references().is_empty());
    }
}
