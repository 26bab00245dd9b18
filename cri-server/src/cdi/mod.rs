//! CDI devices: what a vendor's file says a container needs to use a device (nodes, mounts, variables, hooks).
//!
//! Invariants: files are read when a container asks for a device, never kept, and bounded; one that is broken takes only its
//! own devices away. An edit is made as it is written, or the container is refused: nothing is left out.
//!
//! Follows the Container Device Interface specification, versions 0.3.0 to 1.1.0.

mod apply;
mod error;
mod file;
mod find;
mod name;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use apply::apply;
pub use error::CdiError;
pub use file::Edits;
pub use find::resolve;
pub use name::{DeviceName, requested};

/// `[cdi]` of the configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where the files lie; a device of a later folder takes the place of one of an earlier.
    pub spec_dirs: Vec<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()] }
    }
}
