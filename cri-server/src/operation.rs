//! Operations that outlive their callers, and that retries join.
//!
//! The kubelet gives up after its deadline and asks again. The operation under way is a task of the daemon, keyed
//! by what was asked for; a second request for the same key waits for the first one's result. Each operation has
//! a name, an age and a stage, which `cofferdam info` and the log show.
//!
//! Invariant: at most one operation per key runs at a time; the entry is gone before the result is given out.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// A request that joins an operation of this age is a retry; an earlier one is the ordinary course of things.
const WORTH_A_LINE: Duration = Duration::from_secs(1);

/// The operation ended without a result: its task panicked or was ended with the daemon.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the operation {name} ended without a result")]
pub struct Lost {
    name: &'static str,
}

/// Where an operation is; cheap to set.
#[derive(Clone, Debug)]
pub struct Stage(Arc<Mutex<&'static str>>);

impl Stage {
    fn new() -> Self {
        Self(Arc::new(Mutex::new("starting")))
    }

    /// Names what is being done from now on.
    pub fn set(&self, stage: &'static str) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stage;
    }

    fn get(&self) -> &'static str {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is under way, for a person to read.
#[derive(Clone, Debug, serde::Serialize)]
pub struct UnderWay {
    pub operation: &'static str,
    pub key: String,
    pub stage: &'static str,
    pub age: Duration,
}

struct Entry<T> {
    since: Instant,
    stage: Stage,
    result: watch::Receiver<Option<T>>,
}

/// All operations of one kind.
pub struct Operations<T> {
    name: &'static str,
    tracker: TaskTracker,
    running: Arc<Mutex<HashMap<String, Entry<T>>>>,
}

impl<T> fmt::Debug for Operations<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Operations").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<T: Clone + Send + Sync + 'static> Operations<T> {
    /// No operation yet; their tasks are counted by `tracker`, which the daemon waits for when it ends.
    #[must_use]
    pub fn new(name: &'static str, tracker: TaskTracker) -> Self {
        Self { name, tracker, running: Arc::default() }
    }

    /// The result of the operation `key`: the one under way, or the one that `begin` makes. The operation goes on
    /// when the caller goes away.
    ///
    /// # Errors
    /// When the operation's task ended without a result.
    pub async fn join<F>(&self, key: &str, begin: impl FnOnce(Stage) -> F) -> Result<T, Lost>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut result = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            match running.get(key) {
                Some(entry) => {
                    let (stage, age) = (entry.stage.get(), entry.since.elapsed());
                    if age > WORTH_A_LINE {
                        tracing::info!(operation = self.name, key, stage, ?age, "a retry joins");
                    }
                    entry.result.clone()
                }
                None => {
                    let stage = Stage::new();
                    let result = self.spawn(key.to_owned(), begin(stage.clone()));
                    running.insert(
                        key.to_owned(),
                        Entry { since: Instant::now(), stage, result: result.clone() },
                    );
                    result
                }
            }
        };
        let lost = Lost { name: self.name };
        let value = result.wait_for(Option::is_some).await.map_err(|_| lost)?;
        value.clone().ok_or(lost)
    }

    /// Waits for the end of the operation `key`, if one is under way.
    pub async fn ended(&self, key: &str) {
        let result = {
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.get(key).map(|entry| entry.result.clone())
        };
        if let Some(mut result) = result {
            // An operation without a result has ended as well.
            let _ = result.wait_for(Option::is_some).await;
        }
    }

    fn spawn<F>(&self, key: String, operation: F) -> watch::Receiver<Option<T>>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let (sender, receiver) = watch::channel(None);
        let entry = Registered { key, running: Arc::clone(&self.running) };
        self.tracker.spawn(async move {
            let value = operation.await;
            drop(entry);
            sender.send_replace(Some(value));
        });
        receiver
    }

    /// What runs now.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        let row = |(key, entry): (&String, &Entry<T>)| UnderWay {
            operation: self.name,
            key: key.clone(),
            stage: entry.stage.get(),
            age: entry.since.elapsed(),
        };
        running.iter().map(row).collect()
    }
}

/// The entry of a running operation; dropping it, also in a panic, lets the next request begin anew.
struct Registered<T> {
    key: String,
    running: Arc<Mutex<HashMap<String, Entry<T>>>>,
}

impl<T> Drop for Registered<T> {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn retries_join_the_operation_under_way() -> Result<(), Lost> {
        let operations = Operations::new("count", TaskTracker::new());
        let runs = Arc::new(AtomicUsize::new(0));
        let begin = |_stage: Stage| {
            let runs = Arc::clone(&runs);
            async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                runs.fetch_add(1, Ordering::SeqCst) + 1
            }
        };
        let (a, b) = tokio::join!(operations.join("pod", begin), operations.join("pod", begin));
        assert_eq!((a?, b?), (1, 1));
        assert_eq!(operations.join("pod", begin).await?, 2);
        assert!(operations.under_way().is_empty());
        Ok(())
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_changes_nothing() -> Result<(), Lost> {
        let operations = Arc::new(Operations::new("slow", TaskTracker::new()));
        let begin = |_stage: Stage| async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            7
        };
        let impatient = tokio::time::timeout(Duration::from_millis(5), operations.join("pod", begin)).await;
        assert!(impatient.is_err());
        assert_eq!(operations.under_way().len(), 1);
        assert_eq!(operations.join("pod", |_| async { 8 }).await?, 7);
        Ok(())
    }

    #[tokio::test]
    async fn a_panic_is_an_error_and_frees_the_key() {
        let operations = Operations::new("broken", TaskTracker::new());
        assert!(
            operations.join("pod", |_| async { if true { panic!("on purpose") } else { 1 } }).await.is_err()
        );
        assert_eq!(operations.join("pod", |_| async { 2 }).await.ok(), Some(2));
    }
}
