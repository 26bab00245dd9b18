//! Image volumes: the files of an image, mounted read-only into a container of another.
//!
//! ```text
//! <state>/containers/<id>/volumes/N    the mount of the N-th image volume, which the container's spec binds
//! ```
//!
//! Invariants: what is mounted is the folder that was found inside the image, whatever the image's symbolic links say; the
//! layers of a mounted image stay as long as the container, whether or not the image is removed meanwhile.

mod error;
mod mount;
mod request;

pub use error::VolumeError;
pub use mount::{Mapping, mount, unmount_all};
pub use request::{ImageVolume, requested};
