//! Port-forward sessions: connections from a client to ports inside a pod.
//!
//! Invariant: each connection lives and fails alone, an end of one direction leaves the other open, and what is idle
//! for too long or belongs to a pod that stopped is closed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::copy;
use super::dial::{DialError, Way};
use super::remote::{BoxDuplex, BoxWrite, Forward, ForwardSession};
use crate::report::chain;
use crate::sandbox::Sandbox;

/// The most connections at a time, of all sessions together.
pub(super) const MOST: usize = 2048;
/// A connection on which nothing moves for so long is closed.
const IDLE: Duration = Duration::from_secs(4 * 3600);

/// What the client asked for.
pub struct Request {
    pub sandbox: Arc<Sandbox>,
    /// The pod's folder.
    pub bundle: PathBuf,
    /// None for a pod in the node's own namespace.
    pub netns: Option<PathBuf>,
    pub ports: Vec<u16>,
}

/// Serves every connection that the client opens, until it or the pod is gone.
pub(super) async fn serve(
    request: Request,
    mut session: ForwardSession,
    room: &Arc<Semaphore>,
    stopping: &CancellationToken,
) {
    let mut connections = JoinSet::new();
    let way = Arc::new(Way::to(Arc::clone(&request.sandbox), request.bundle, request.netns));
    let over = async {
        tokio::select! {
            () = request.sandbox.ended() => {}
            () = stopping.cancelled() => {}
        }
    };
    tokio::pin!(over);
    loop {
        let forward = tokio::select! {
            forward = session.next() => forward,
            Some(_) = connections.join_next() => continue,
            () = &mut over => break,
        };
        let Some(forward) = forward else { break };
        connections.spawn(connect(Arc::clone(&way), forward, Arc::clone(room)));
    }
    connections.shutdown().await;
}

async fn connect(way: Arc<Way>, forward: Forward, room: Arc<Semaphore>) {
    let Forward { port, data, mut error, .. } = forward;
    let Ok(_room) = room.try_acquire_owned() else {
        let words = format!("port {port}: {MOST} connections are forwarded already");
        return refuse(error, &words).await;
    };
    match relay(&way, port, data).await {
        // Closed without a word: all went well.
        Ok(()) => drop(error.shutdown().await),
        Err(failure) => refuse(error, &format!("port {port}: {}", chain(&failure))).await,
    }
}

async fn refuse(mut error: BoxWrite, words: &str) {
    // A client that is gone does not need to know.
    let _ = error.write_all(words.as_bytes()).await;
    let _ = error.shutdown().await;
}

async fn relay(way: &Way, port: u16, data: BoxDuplex) -> Result<(), DialError> {
    let pod = way.dial(port).await?;
    let (from_client, to_client) = tokio::io::split(data);
    let last = Mutex::new(Instant::now());
    let moved = || *last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    let both = async {
        tokio::try_join!(copy::half(from_client, pod.to, moved), copy::half(pod.from, to_client, moved))
    };
    tokio::select! {
        // Either side may break off: clients do it with every connection that they are done with, and dropping the
        // stream tells the other. Words on the error stream would end all the client's connections.
        ended = both => {
            if let Err(error) = ended {
                tracing::debug!(port, %error, "a forwarded connection was broken off");
            }
            Ok(())
        }
        () = idle(&last) => Err(std::io::Error::other(format!("nothing moved for {IDLE:?}")).into()),
    }
}

async fn idle(last: &Mutex<Instant>) {
    loop {
        let due = *last.lock().unwrap_or_else(PoisonError::into_inner) + IDLE;
        if due <= Instant::now() {
            return;
        }
        tokio::time::sleep_until(due).await;
    }
}
