//! The tasks of the shim, by id, from the moment that one is being created.
//!
//! Invariant: an id that is taken by a creation is free or a task's when the creation is over, however it ended.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::error::ShimError;
use crate::task::Task;

enum Slot {
    /// Being created; told when it is to be given up.
    Creating(Arc<Notify>),
    Task(Arc<Task>),
}

#[derive(Default)]
pub struct Tasks {
    slots: Mutex<HashMap<String, Slot>>,
    settled: Notify,
}

/// An id for a task that is being created.
pub struct Reserved {
    tasks: Arc<Tasks>,
    id: String,
    /// Told when nobody wants the task any more.
    pub give_up: Arc<Notify>,
    made: Option<Arc<Task>>,
}

impl Reserved {
    pub fn settle(mut self, task: Arc<Task>) {
        self.made = Some(task);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut slots = self.tasks.slots();
        match self.made.take() {
            Some(task) => drop(slots.insert(self.id.clone(), Slot::Task(task))),
            None => drop(slots.remove(&self.id)),
        }
        self.tasks.settled.notify_waiters();
    }
}

impl Tasks {
    fn slots(&self) -> std::sync::MutexGuard<'_, HashMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn get(&self, id: &str) -> Result<Arc<Task>, ShimError> {
        match self.slots().get(id) {
            Some(Slot::Task(task)) => Ok(Arc::clone(task)),
            Some(Slot::Creating(_)) | None => Err(ShimError::NoTask(id.to_owned())),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.slots().is_empty()
    }

    pub fn reserve(self: &Arc<Self>, id: &str) -> Result<Reserved, ShimError> {
        let mut slots = self.slots();
        if slots.contains_key(id) {
            return Err(ShimError::Exists(format!("task {id}")));
        }
        let give_up = Arc::new(Notify::new());
        slots.insert(id.to_owned(), Slot::Creating(Arc::clone(&give_up)));
        Ok(Reserved { tasks: Arc::clone(self), id: id.to_owned(), give_up, made: None })
    }

    pub fn forget(&self, id: &str) {
        self.slots().remove(id);
        self.settled.notify_waiters();
    }

    /// Has the creation of a task, if one is under way, come to its end without the task.
    pub fn give_up(&self, id: &str) {
        if let Some(Slot::Creating(give_up)) = self.slots().get(id) {
            // Kept for a creation that does not listen yet.
            give_up.notify_one();
        }
    }

    /// Waits until nothing is being created, for so long. Whoever ends a task must meet what a creation under way makes,
    /// also one whose caller died in the middle; but a creation can hang for ever, and no end may hang with it.
    pub async fn settled(&self, patience: Duration) -> Result<(), ShimError> {
        let creating = || self.slots().values().any(|slot| matches!(slot, Slot::Creating(_)));
        let settling = async {
            loop {
                let mut settled = pin!(self.settled.notified());
                // From here on no notification is missed.
                settled.as_mut().enable();
                if !creating() {
                    return;
                }
                settled.await;
            }
        };
        timeout(patience, settling).await.map_err(|_| ShimError::Creating(patience))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(4);

    #[tokio::test(start_paused = true)]
    async fn a_creation_that_hangs_holds_nobody_up_for_ever() {
        let tasks = Arc::new(Tasks::default());
        tasks.settled(PATIENCE).await.unwrap();
        let reserved = tasks.reserve("a").unwrap();
        assert!(matches!(tasks.reserve("a"), Err(ShimError::Exists(_))));
        assert!(matches!(tasks.get("a"), Err(ShimError::NoTask(_))));
        assert!(matches!(tasks.settled(PATIENCE).await, Err(ShimError::Creating(_))));
        tasks.give_up("a");
        reserved.give_up.notified().await;
        drop(reserved);
        tasks.settled(PATIENCE).await.unwrap();
        assert!(tasks.is_empty());
    }

    #[tokio::test]
    async fn a_creation_that_panics_frees_its_id() {
        let tasks = Arc::new(Tasks::default());
        let reserved = tasks.reserve("a").unwrap();
        let creation = tokio::spawn(async move {
            let _reserved = reserved;
            panic!("on purpose");
        });
        creation.await.unwrap_err();
        tasks.reserve("a").map(drop).unwrap();
    }
}
