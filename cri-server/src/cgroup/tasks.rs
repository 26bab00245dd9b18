//! The cgroups of tasks, for callers that must not block: each call runs where blocking is allowed.

use std::sync::Arc;

use super::{CgroupError, CgroupPaths, DEFAULT_PARENT, Hierarchies};
use super::{kill_all, oom_kill_count, remove_all, remove_if_empty};

/// The node's cgroups.
#[derive(Clone, Debug)]
pub struct Cgroups {
    hierarchies: Arc<Hierarchies>,
}

impl Cgroups {
    /// The hierarchies that this process sees.
    ///
    /// # Errors
    /// When the mounts cannot be read.
    pub fn open() -> Result<Self, CgroupError> {
        Ok(Self { hierarchies: Arc::new(Hierarchies::detect()?) })
    }

    /// The hierarchies themselves.
    #[must_use]
    pub fn hierarchies(&self) -> &Hierarchies {
        &self.hierarchies
    }

    async fn blocking<T: Send + 'static>(
        &self,
        cgroups_path: &str,
        work: impl FnOnce(&CgroupPaths) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, CgroupError> {
        let paths = self.hierarchies.paths(cgroups_path)?;
        let result = tokio::task::spawn_blocking(move || work(&paths)).await;
        result.unwrap_or_else(|_| Err(CgroupError::Interrupted))
    }

    /// Kills every process of a task; absent cgroups have none.
    ///
    /// # Errors
    /// When processes do not die.
    pub async fn kill_all(&self, cgroups_path: &str) -> Result<(), CgroupError> {
        self.blocking(cgroups_path, |paths| Ok(kill_all(paths)?)).await
    }

    /// Kills every process of a task and removes its cgroups; absent is done.
    ///
    /// # Errors
    /// When processes do not die or a folder stays.
    pub async fn remove(&self, cgroups_path: &str) -> Result<(), CgroupError> {
        self.blocking(cgroups_path, remove_all).await
    }

    /// How often the kernel killed for want of memory in a task; none when the cgroup is gone.
    #[must_use]
    pub fn oom_kill_count(&self, cgroups_path: &str) -> Option<u64> {
        oom_kill_count(&self.hierarchies.paths(cgroups_path).ok()?)
    }

    /// Removes the cgroup that pods without a parent are in, when none is left.
    pub fn remove_default_parent(&self) {
        if let Ok(paths) = self.hierarchies.paths(DEFAULT_PARENT)
            && let Err(error) = remove_if_empty(&paths)
        {
            tracing::debug!(%error, "the default cgroup stays");
        }
    }
}
