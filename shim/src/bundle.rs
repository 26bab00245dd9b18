//! The files that the shim keeps in a container's bundle.
//!
//! ```text
//! <bundle>/
//!   config.json   the OCI specification (the daemon's)
//!   rootfs/       mount point of the root filesystem
//!   shim.sock     the ttrpc socket, when the path is short enough
//!   address       the socket's address
//!   shim.pid      the server
//!   init.pid      the container's first process
//!   task.json     what a `delete` without a shim needs to clean up
//!   poststop      the hooks that run after the end have run
//!   exit.json     how the first process ended
//!   why           a line on why it ended, where it was not its own doing
//!   shim.log      warnings, made only when there is one
//!   oci/          the OCI runtime's own state
//! ```
//! Invariant: a file appears complete or not at all (written beside, then renamed).

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

#[derive(Debug, Clone)]
pub struct Bundle(PathBuf);

impl Bundle {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Bundle(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn rootfs(&self) -> PathBuf {
        self.join("rootfs")
    }

    /// Where the OCI runtime keeps the state of its containers.
    pub fn runtime_root(&self) -> PathBuf {
        self.join("oci")
    }

    pub fn write(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let beside = self.join(&format!(".{name}.new"));
        fs::write(&beside, content)?;
        fs::rename(&beside, self.join(name))
    }

    pub fn write_json(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        self.write(name, &serde_json::to_vec(value)?)
    }

    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> io::Result<T> {
        Ok(serde_json::from_slice(&fs::read(self.join(name))?)?)
    }

    /// Notes why the first process ended, for the daemon to tell. That it ended is known without.
    pub fn tell_why(&self, reason: &str) {
        if let Err(error) = self.write("why", reason.as_bytes()) {
            self.warn(&format!("keep the reason of the end: {error}"));
        }
    }

    /// Notes something an operator may want to know. The log is the last place to complain to, so a failure to write
    /// it is let go.
    pub fn warn(&self, message: &str) {
        let line = format!("{} warning: {message}\n", crate::task::log::timestamp_now());
        let file = OpenOptions::new().create(true).append(true).open(self.join("shim.log"));
        drop(file.and_then(|mut f| f.write_all(line.as_bytes())));
    }
}
