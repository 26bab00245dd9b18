//! A throwaway node: network namespace, registry, daemon, clients, and the check that nothing is left behind.
//!
//! Invariant: whatever a [`Node`] makes carries its folder's name or lies in its network namespace, so that nodes side
//! by side never see each other, and what is left over can be told apart from what others do on the machine.
//!
//! With `COFFERDAM_TEST_ENDPOINT` set, nodes attach to that socket instead (any CRI runtime; it must read the folder
//! `COFFERDAM_TEST_CERTS_D` for its registries): it proves the tests themselves. Tests that need a daemon of their own
//! then print that they are skipped. With `COFFERDAM_TEST_SHIM` set, nodes run their daemon with that shim (and, if
//! `COFFERDAM_TEST_OCI_RUNTIME` is set, with that OCI runtime under it) instead of ours.

pub mod cli;
pub mod crash;
pub mod faults;
pub mod kubelet;
pub mod leak;
pub mod limits;
pub mod log;
pub mod microvm;
pub mod netns;
pub mod node;
pub mod registry;
pub mod shim;
mod sys;
pub mod terminal;

pub use node::{Node, NodeBuilder, Pod};
pub use registry::Registry;
pub use sys::inherited;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The endpoint to attach to, when the tests are tried on another runtime.
pub fn attached() -> Option<String> {
    std::env::var("COFFERDAM_TEST_ENDPOINT").ok().filter(|value| !value.is_empty())
}

/// Where the binaries of the build are.
pub fn binaries() -> PathBuf {
    match std::env::var_os("COFFERDAM_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => workspace().join("target/release"),
    }
}

/// The folder of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the workspace")
}

/// Panics with the fix when something that the test needs is not there.
pub fn require(path: &str, package: &str) {
    assert!(Path::new(path).exists(), "{path} is not there: apt-get install {package}");
}

/// Asks until `condition` holds; false when `limit` is over.
pub async fn eventually(limit: Duration, mut condition: impl AsyncFnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition().await {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
