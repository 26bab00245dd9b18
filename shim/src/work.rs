//! Operations that are seen to their end, whoever asked for them and hung up.
//!
//! The server of ttrpc drops a handler when its caller's connection breaks or its time is over, at whatever point it is: a
//! container half paused, a program that runs and counts as not started. So what changes something runs as a task of the
//! shim's own. Invariant: the tasks belong to this set and end with it.

use std::sync::{Mutex, PoisonError};

use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::error::ShimError;

#[derive(Default)]
pub struct Work(Mutex<JoinSet<()>>);

impl Work {
    /// Does `work` and gives its result; when this future is dropped, the work goes on.
    pub async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, ShimError>> + Send + 'static,
    ) -> Result<T, ShimError> {
        let (tell, told) = oneshot::channel();
        {
            let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            while tasks.try_join_next().is_some() {}
            tasks.spawn(async move {
                // Nobody listens when the caller is gone.
                drop(tell.send(work.await));
            });
        }
        told.await.map_err(|_| ShimError::Invalid("the operation was cut off".into()))?
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_goes_on_when_nobody_waits_for_it() {
        let (work, done) = (Work::default(), Arc::new(Mutex::new(0)));
        let slow = |number| {
            let done = Arc::clone(&done);
            async move {
                sleep(Duration::from_secs(3)).await;
                *done.lock().unwrap() += number;
                Ok(number)
            }
        };
        timeout(Duration::from_secs(1), work.finish(slow(1))).await.unwrap_err();
        assert_eq!(work.finish(slow(10)).await.unwrap(), 10);
        assert_eq!(*done.lock().unwrap(), 11);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_caller_alone() {
        let work = Work::default();
        let broken = work.finish::<()>(async { panic!("on purpose") }).await;
        assert!(broken.unwrap_err().to_string().contains("cut off"));
        assert_eq!(work.finish(async { Ok(1) }).await.unwrap(), 1);
    }
}
