//! Calls as a kubelet makes them: a call that the daemon's death cut off is made again.

use std::time::{Duration, Instant};

use tonic::{Code, Status};

/// How long a daemon may be away: longer than any restart here takes.
const AWAY: Duration = Duration::from_secs(90);

/// Makes a call until the daemon answers it.
pub async fn until_answered<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + AWAY;
    loop {
        match call().await {
            Err(status) if lost(&status) && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            answered => return answered,
        }
    }
}

/// Nobody answered, as opposed to: it was refused.
fn lost(status: &Status) -> bool {
    let said = status.message();
    let transport = ["transport", "h2 protocol", "connection", "stream closed", "broken pipe"];
    match status.code() {
        Code::Unavailable | Code::Cancelled => true,
        Code::Unknown | Code::Internal => transport.iter().any(|word| said.to_lowercase().contains(word)),
        _ => false,
    }
}

/// For calls that may find their work done by an attempt before them.
pub fn unless(result: Result<(), Status>, done: Code) -> Result<(), Status> {
    match result {
        Err(status) if status.code() == done => Ok(()),
        other => other,
    }
}
