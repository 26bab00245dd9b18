//! What a container asks for, checked before anything is made.

use std::path::{Component, Path};
use std::sync::Arc;

use cofferdam_proto::cri::{self, MountPropagation};

use super::error::VolumeError;
use crate::image::{ImageError, ImageRecord, ImageService};

/// One image volume of a container.
#[derive(Clone, Debug)]
pub struct ImageVolume {
    /// Which of the container's mounts it is.
    pub index: usize,
    /// Where the container wants it.
    pub place: String,
    pub image: Arc<ImageRecord>,
    /// A path inside the image; empty for all of it.
    pub sub_path: String,
}

/// The image volumes among a container's mounts.
///
/// # Errors
/// When one contradicts itself, or its image is not on the node.
pub fn requested(images: &ImageService, mounts: &[cri::Mount]) -> Result<Vec<ImageVolume>, VolumeError> {
    let mut volumes = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        // A mount of a path has no use for image_sub_path, but the kubelet of a pod with an image volume sets it to the
        // subPath of every mount, which it has already resolved in the path.
        let Some(spec) = &mount.image else { continue };
        check(mount, &spec.image)?;
        let place = mount.container_path.clone();
        let image = match images.find(&spec.image) {
            Ok(image) => image,
            Err(ImageError::NotFound(image)) => return Err(VolumeError::NoImage { place, image }),
            Err(error) => return Err(VolumeError::Image { place, source: Box::new(error) }),
        };
        volumes.push(ImageVolume { index, place, image, sub_path: mount.image_sub_path.clone() });
    }
    Ok(volumes)
}

fn invalid(mount: &cri::Mount, why: &'static str) -> VolumeError {
    VolumeError::Invalid { place: mount.container_path.clone(), why }
}

fn check(mount: &cri::Mount, image: &str) -> Result<(), VolumeError> {
    if image.is_empty() {
        return Err(invalid(mount, "the image has no name"));
    }
    if !mount.host_path.is_empty() {
        return Err(invalid(mount, "an image and a path of the host are given"));
    }
    if !mount.readonly {
        return Err(invalid(mount, "an image volume is read-only, and readonly is not set"));
    }
    if mount.propagation() != MountPropagation::PropagationPrivate {
        return Err(invalid(mount, "an image volume has private propagation"));
    }
    // Links in the image may lead anywhere inside it; the request itself may not climb.
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_) | Component::CurDir);
    let path = Path::new(&mount.image_sub_path);
    if !path.components().all(plain) || mount.image_sub_path.contains('\0') {
        return Err(invalid(mount, "image_sub_path is not a plain relative path"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(change: impl FnOnce(&mut cri::Mount)) -> Result<(), VolumeError> {
        let mut mount = cri::Mount { container_path: "/v".into(), readonly: true, ..Default::default() };
        change(&mut mount);
        check(&mount, "busybox")
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(asked(|_| ()).is_ok() && asked(|m| m.image_sub_path = "a/./b".into()).is_ok());
        assert!(asked(|m| m.readonly = false).is_err());
        assert!(asked(|m| m.host_path = "/x".into()).is_err());
        assert!(asked(|m| m.propagation = 2).is_err());
        for bad in ["/etc", "..", "a/../..", "a\0b"] {
            assert!(asked(|m| m.image_sub_path = bad.into()).is_err(), "{bad:?}");
        }
    }
}
