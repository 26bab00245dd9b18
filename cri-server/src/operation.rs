//! Operations that outlive their callers, and that retries join.
//!
//! The kubelet gives up after its deadline and asks again. The operation under way is a task of the daemon, keyed
//! by what was asked for; a second request for the same key waits for the first one's result. Each operation has
//! a name, an age and a stage with a deadline of its own; `cofferdam info`, the log and the metrics show them, and a stage
//! that takes longer than it should is told once in the log.
//!
//! Invariant: at most one operation per key runs at a time; the entry is gone before the result is given out.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;

/// A request that joins an operation of this age is a retry; an earlier one is the ordinary course of things.
const WORTH_A_LINE: Duration = Duration::from_secs(1);
/// The deadline of a stage that only the node itself works on.
const ORDINARY: Duration = Duration::from_secs(10);

/// The operation ended without a result: its task panicked or was ended with the daemon.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the operation {name} ended without a result")]
pub struct Lost {
    name: &'static str,
}

/// Where an operation is; cheap to set.
#[derive(Clone, Debug)]
pub struct Stage(Arc<Mutex<Current>>);

#[derive(Debug)]
struct Current {
    name: &'static str,
    since: Instant,
    deadline: Duration,
    /// The log has told that it is over its deadline.
    told: bool,
    /// What the operation makes or changes, once that has an id beside the key.
    id: Option<String>,
}

impl Stage {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Current {
            name: "starting",
            since: Instant::now(),
            deadline: ORDINARY,
            told: false,
            id: None,
        })))
    }

    /// Names what is being done from now on, by the node itself.
    pub fn set(&self, stage: &'static str) {
        self.within(stage, ORDINARY);
    }

    /// Names what is being done from now on, and how long it should take at most. Whoever does it enforces that.
    pub fn within(&self, stage: &'static str, deadline: Duration) {
        let mut current = self.current();
        (current.name, current.since) = (stage, Instant::now());
        (current.deadline, current.told) = (deadline, false);
    }

    /// Tells the id of what is made.
    pub fn about(&self, id: &str) {
        self.current().id = Some(id.to_owned());
    }

    fn current(&self) -> MutexGuard<'_, Current> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an operation is about. Operations of different variants on one subject run beside each other.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    subject: String,
    variant: String,
}

impl From<&str> for Key {
    fn from(subject: &str) -> Self {
        Self { subject: subject.to_owned(), variant: String::new() }
    }
}

impl From<&String> for Key {
    fn from(subject: &String) -> Self {
        subject.as_str().into()
    }
}

impl From<(&str, String)> for Key {
    fn from((subject, variant): (&str, String)) -> Self {
        Self { subject: subject.to_owned(), variant }
    }
}

/// What is under way, for a person to read.
#[derive(Clone, Debug, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnderWay {
    pub operation: &'static str,
    pub key: String,
    /// Of what it makes, where the key is no id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub stage: &'static str,
    /// Of the operation.
    pub age: Duration,
    pub stage_age: Duration,
    /// Of the stage.
    pub deadline: Duration,
    /// The stage takes longer than it should.
    pub overdue: bool,
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
    running: Arc<Mutex<HashMap<Key, Entry<T>>>>,
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
    pub async fn join<F>(&self, key: impl Into<Key>, begin: impl FnOnce(Stage) -> F) -> Result<T, Lost>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let key = key.into();
        let mut result = {
            let mut running = self.running();
            match running.get(&key) {
                Some(entry) => {
                    let (stage, age) = (entry.stage.current().name, entry.since.elapsed());
                    if age > WORTH_A_LINE {
                        tracing::info!(
                            operation = self.name,
                            key = key.subject,
                            stage,
                            ?age,
                            "a retry joins"
                        );
                    }
                    entry.result.clone()
                }
                None => {
                    let stage = Stage::new();
                    let result = self.spawn(key.clone(), begin(stage.clone()));
                    running.insert(key, Entry { since: Instant::now(), stage, result: result.clone() });
                    result
                }
            }
        };
        let lost = Lost { name: self.name };
        let value = result.wait_for(Option::is_some).await.map_err(|_| lost)?;
        value.clone().ok_or(lost)
    }

    /// Waits for the end of the operation `key`, if one is under way.
    pub async fn ended(&self, key: impl Into<Key>) {
        let result = self.running().get(&key.into()).map(|entry| entry.result.clone());
        if let Some(mut result) = result {
            // An operation without a result has ended as well.
            let _ = result.wait_for(Option::is_some).await;
        }
    }

    fn spawn<F>(&self, key: Key, operation: F) -> watch::Receiver<Option<T>>
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

    fn running(&self) -> MutexGuard<'_, HashMap<Key, Entry<T>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What runs now.
    #[must_use]
    pub fn under_way(&self) -> Vec<UnderWay> {
        self.running().iter().map(|(key, entry)| entry.row(self.name, key)).collect()
    }

    /// What has just been found to be over its stage's deadline: each stage is told once.
    #[must_use]
    pub fn newly_overdue(&self) -> Vec<UnderWay> {
        let mut rows = Vec::new();
        for (key, entry) in self.running().iter() {
            let row = entry.row(self.name, key);
            if row.overdue && !std::mem::replace(&mut entry.stage.current().told, true) {
                rows.push(row);
            }
        }
        rows
    }
}

impl<T> Entry<T> {
    fn row(&self, operation: &'static str, key: &Key) -> UnderWay {
        let current = self.stage.current();
        let stage_age = current.since.elapsed();
        UnderWay {
            operation,
            key: key.subject.clone(),
            id: current.id.clone(),
            stage: current.name,
            age: self.since.elapsed(),
            stage_age,
            deadline: current.deadline,
            overdue: stage_age > current.deadline,
        }
    }
}

/// The entry of a running operation; dropping it, also in a panic, lets the next request begin anew.
struct Registered<T> {
    key: Key,
    running: Arc<Mutex<HashMap<Key, Entry<T>>>>,
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

    #[tokio::test]
    async fn variants_run_beside_each_other_under_one_subject() -> Result<(), Lost> {
        let operations = Operations::new("stop", TaskTracker::new());
        let slow = |_stage: Stage| async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            1
        };
        let (slow, quick) = tokio::join!(
            operations.join(("pod", "30".to_owned()), slow),
            operations.join(("pod", "0".to_owned()), |_| async { 2 })
        );
        assert_eq!((slow?, quick?), (1, 2));
        Ok(())
    }

    #[tokio::test]
    async fn a_stage_over_its_deadline_is_told_once() {
        let operations = Arc::new(Operations::new("slow", TaskTracker::new()));
        let begin = |stage: Stage| async move {
            stage.about("id");
            stage.within("hanging", Duration::from_millis(1));
            std::future::pending::<()>().await;
        };
        let _ = tokio::time::timeout(Duration::from_millis(20), operations.join("pod", begin)).await;
        let told = operations.newly_overdue();
        assert_eq!(told.len(), 1);
        assert_eq!(
            (told[0].stage, told[0].key.as_str(), told[0].id.as_deref()),
            ("hanging", "pod", Some("id"))
        );
        assert!(operations.newly_overdue().is_empty());
        assert!(operations.under_way()[0].overdue);
    }
}
