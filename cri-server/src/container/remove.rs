//! RemoveContainer: whatever state it is in, the container goes, and its record last. Its log stays: it is the kubelet's.

use cofferdam_failpoints::failpoint;
use std::sync::Arc;

use nix::mount::MntFlags;

use super::{Container, ContainerError, Containers, Shared};
use crate::event::Phase;
use crate::operation::Stage;
use crate::store::Table;
use crate::volume;

impl Containers {
    /// Ends the container if it runs and forgets it.
    ///
    /// # Errors
    /// What could not be taken away; the record stays, and the next call tries again.
    pub async fn remove(self: &Arc<Self>, container: &Arc<Container>) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let begin = |stage| async move { containers.take_away(&target, &stage).await.map_err(Arc::new) };
        let joined = self.removals.join(container.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    /// Undoes a creation that came to no end; retries wait for it.
    pub(super) async fn unmake(self: &Arc<Self>, container: &Arc<Container>) -> Shared<()> {
        let (containers, target) = (Arc::clone(self), Arc::clone(container));
        let begin =
            |stage: Stage| async move { containers.dismantle(&target, &stage).await.map_err(Arc::new) };
        let joined = self.removals.join(container.id().as_str(), begin).await;
        joined.map_err(|lost| Arc::new(lost.into()))?
    }

    pub(super) async fn take_away(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stage: &Stage,
    ) -> Result<(), ContainerError> {
        stage.set("recording");
        container.begin_removal(&self.ports).await?;
        failpoint!("container.remove.recorded");
        self.dismantle(container, stage).await
    }

    /// [`Self::take_away`] for a container that is not known as created yet: its record says already that it goes,
    /// which matters on a full disk, where no other state can be recorded.
    pub(super) async fn dismantle(
        self: &Arc<Self>,
        container: &Arc<Container>,
        stage: &Stage,
    ) -> Result<(), ContainerError> {
        stage.within("waiting for its preparation", self.making());
        self.forestall(container).await;
        stage.set("ending the task");
        self.end_task(container).await?;
        failpoint!("container.remove.task_ended");
        stage.set("telling NRI plugins");
        self.plugins_remove(container).await;
        stage.set("unmounting and removing its files");
        // Some shims mount it on the host, and a dead one leaves it there.
        let bundle = self.ports.places.container(container.id());
        let rootfs = bundle.join("rootfs");
        tokio::task::spawn_blocking(move || {
            volume::unmount_all(&bundle);
            let flags = MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW;
            while nix::mount::umount2(&rootfs, flags).is_ok() {}
        })
        .await?;
        failpoint!("container.remove.unmounted");
        let (snapshots, id) = (Arc::clone(&self.ports.snapshots), container.id().clone());
        tokio::task::spawn_blocking(move || snapshots.remove(&id)).await??;
        failpoint!("container.remove.layer_removed");
        self.forget_restore(container).await;
        let bundle = self.ports.places.container(container.id());
        match tokio::fs::remove_dir_all(&bundle).await {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(ContainerError::File { operation: "remove", path: bundle, source });
            }
            Ok(()) | Err(_) => {}
        }
        failpoint!("container.remove.bundle_removed");
        stage.set("removing the record");
        self.ports.store.delete(Table::Containers, container.id().as_str()).await?;
        failpoint!("container.remove.record_deleted");
        self.all.remove(container.id().as_str());
        container.tell(&self.ports, Some(Phase::Deleted));
        Ok(())
    }
}
