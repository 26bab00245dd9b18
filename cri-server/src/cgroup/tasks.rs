//! The cgroups of tasks, for callers that must not block: each call runs where blocking is allowed.

use std::path::Path;
use std::sync::Arc;

use super::{CgroupError, CgroupPaths, DEFAULT_PARENT, Hierarchies, Layout};
use super::{change_oom_score, hold, kill_all, oom_kill_count, remove_all, remove_if_empty};

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

    /// Changes the OOM score adjustment of a task's processes that have `from`.
    ///
    /// # Errors
    /// When the kernel does not let this process do so.
    pub async fn change_oom_score(&self, cgroups_path: &str, from: i32, to: i32) -> Result<(), CgroupError> {
        self.blocking(cgroups_path, move |paths| Ok(change_oom_score(paths, from, to)?)).await
    }

    /// Whether a process is in a task's cgroup.
    #[must_use]
    pub fn hold(&self, cgroups_path: &str, pid: u32) -> bool {
        self.hierarchies.paths(cgroups_path).is_ok_and(|paths| hold(&paths, pid))
    }

    /// How often the kernel killed for want of memory in a task; none when the cgroup is gone.
    #[must_use]
    pub fn oom_kill_count(&self, cgroups_path: &str) -> Option<u64> {
        oom_kill_count(&self.hierarchies.paths(cgroups_path).ok()?)
    }

    /// After a pod's last task: takes away what was made around it besides the cgroup that the kubelet gave. On a hybrid
    /// node that are the folders above it in the unified hierarchy, as kubelets only know the v1 side of one; with
    /// systemd it is the pod's scope in those v1 hierarchies that systemd does not look after.
    pub fn remove_around(&self, cgroups_path: &str) {
        let Ok(paths) = self.hierarchies.paths(cgroups_path) else { return };
        let scope =
            Path::new(cgroups_path).parent().filter(|above| above.extension().is_some_and(|e| e == "scope"));
        if let Some(scope) = scope {
            let scope = self.hierarchies.paths(&scope.to_string_lossy()).unwrap_or_default();
            // What systemd has taken away already is done; what it is about to, it finds gone.
            if let Err(error) = remove_if_empty(&scope) {
                tracing::debug!(%error, "the pod's scope stays to systemd");
            }
            return;
        }
        let mount = self.hierarchies.mounts().unified.as_ref();
        let (Layout::Hybrid, Some(mount), Some(folder)) = (self.hierarchies.layout(), mount, paths.unified)
        else {
            return;
        };
        // The first that is in use ends it.
        let mut above = folder.ancestors().skip(1).take_while(|above| above != mount);
        while above.next().is_some_and(|above| {
            let removed = std::fs::remove_dir(above);
            removed.is_ok() || removed.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        }) {}
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
