//! Checkpoints: the images of all processes of a task, which runs on.

use cofferdam_failpoints::failpoint;
use std::path::Path;
use std::time::Duration;

use containerd_shim_protos::events::task as events;
use containerd_shim_protos::topics;

use super::Task;
use super::state::Lifecycle;
use crate::cgroup::freeze;
use crate::error::ShimError;
use crate::launch;
use crate::wire::{CheckpointOrder, Order};

impl Task {
    /// Writes the images into the folder `images`. A paused task stays paused, a running one runs on.
    pub async fn checkpoint(&self, images: &Path, limit: Duration) -> Result<(), ShimError> {
        if self.options.binary.is_some() {
            return Err(ShimError::Unsupported("checkpointing with an external OCI runtime"));
        }
        let state = self.init.state();
        let (Lifecycle::Running { pid } | Lifecycle::Paused { pid }) = state else {
            return Err(self.init.refuse("checkpoint", state.name()));
        };
        if !images.is_absolute() || !images.is_dir() {
            return Err(ShimError::Invalid(format!("{} is not a folder for images", images.display())));
        }
        let order = Order::Checkpoint(CheckpointOrder {
            init_pid: pid,
            cgroups: self.created.cgroups.clone(),
            images: images.to_owned(),
            limit,
        });
        let child = launch::spawn(&self.around.reaper, &self.bundle, &order, Default::default())?;
        let done = child.done().await;
        failpoint!("shim.checkpoint.dumped", infallible);
        // criu thaws and freezes as it needs; one that was ended in the middle left it as it was then.
        let frozen = match self.init.state() {
            Lifecycle::Paused { .. } => Some(true),
            Lifecycle::Running { .. } => Some(false),
            Lifecycle::Added | Lifecycle::Created { .. } | Lifecycle::Stopped(_) => None,
        };
        if let Some(frozen) = frozen {
            freeze::reach(&self.created.cgroups, frozen)
                .await
                .map_err(ShimError::io("put the freezer back"))?;
        }
        done?;
        let mut event = events::TaskCheckpointed::new();
        event.container_id.clone_from(&self.id);
        event.checkpoint = images.display().to_string();
        self.around.publisher.send(topics::TASK_CHECKPOINTED_EVENT_TOPIC, &event);
        Ok(())
    }
}
