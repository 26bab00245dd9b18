//! Where the daemon keeps what.
//!
//! ```text
//! <root>/metadata.redb               the records
//! <root>/owner                       the key in the daemon's ids
//! <root>/...                         images, layers, writable layers: see content, snapshot
//! <root>/checkpoints/<id>/           images of a checkpoint under way
//! <root>/restores/<id>/              what a container is to be restored from, until it runs
//! <state>/sandboxes/<id>/            a sandbox's bundle, resolv.conf, hostname, hosts, shm/
//! <state>/containers/<id>/           a container's bundle
//! <state>/netns/<sandbox id>         pinned network namespaces
//! <state>/cni/                       results of CNI plugins
//! <state>/events.sock                where shims send their events
//! ```

use std::path::{Path, PathBuf};

use crate::model::{ContainerId, SandboxId};

/// The folders of one daemon.
#[derive(Clone, Debug)]
pub struct Places {
    root: PathBuf,
    state: PathBuf,
}

impl Places {
    /// The places below `root` (survives a reboot) and `state` (does not).
    #[must_use]
    pub fn new(root: &Path, state: &Path) -> Self {
        Self { root: root.to_owned(), state: state.to_owned() }
    }

    /// Makes the folders that everything else relies on.
    ///
    /// # Errors
    /// When one cannot be made; the error names it.
    pub fn create(&self) -> std::io::Result<()> {
        use std::os::unix::fs::DirBuilderExt;
        let mut folders = vec![self.root.clone(), self.state.clone()];
        folders.push(self.state.join("sandboxes"));
        folders.push(self.state.join("containers"));
        for folder in folders {
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o711)
                .create(&folder)
                .map_err(|e| std::io::Error::new(e.kind(), format!("{}: {e}", folder.display())))?;
        }
        Ok(())
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    #[must_use]
    pub fn state(&self) -> &Path {
        &self.state
    }

    #[must_use]
    pub fn records(&self) -> PathBuf {
        self.root.join("metadata.redb")
    }

    /// Where checkpoints under way keep their images: memory of containers, so not on a small /run.
    #[must_use]
    pub fn checkpoints(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// Where containers that do not run yet keep what they are to be restored from.
    #[must_use]
    pub fn restores(&self) -> PathBuf {
        self.root.join("restores")
    }

    #[must_use]
    pub fn restore(&self, id: &ContainerId) -> PathBuf {
        self.restores().join(id.as_str())
    }

    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> PathBuf {
        self.state.join("sandboxes").join(id.as_str())
    }

    /// The names in the folder of sandboxes, whether or not anything is known by them.
    #[must_use]
    pub fn sandbox_names(&self) -> Vec<String> {
        names(&self.state.join("sandboxes"))
    }

    /// The same for containers.
    #[must_use]
    pub fn container_names(&self) -> Vec<String> {
        names(&self.state.join("containers"))
    }

    #[must_use]
    pub fn container(&self, id: &ContainerId) -> PathBuf {
        self.state.join("containers").join(id.as_str())
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
