//! Tells the supervisor that the daemon works, for as long as it really does: a beat follows only when a call over the
//! daemon's own socket was answered, the store's writer has answered, and a blocking thread was to be had.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::service_fn;

use super::supervisor::Supervisor;
use crate::report::chain;
use crate::store::Store;

/// Beats in the time after which the supervisor gives up.
const BEATS: u32 = 3;

/// Why there is no beat.
#[derive(Debug, thiserror::Error)]
enum Stuck {
    #[error("the daemon's own socket")]
    Connect(#[source] tonic::transport::Error),
    #[error("a call over the daemon's own socket")]
    Call(#[source] tonic::Status),
    #[error("no answer within {limit:?} of {part}")]
    Silent { part: &'static str, limit: Duration },
    #[error("the store's writer has ended")]
    Store,
    #[error("no blocking thread")]
    Blocking(#[source] tokio::task::JoinError),
}

/// Beats until `stop`; not at all where nobody waits for it.
pub(super) async fn beat(
    supervisor: &Supervisor,
    socket: &Path,
    store: &Arc<Store>,
    stop: &CancellationToken,
) {
    let Some(patience) = supervisor.patience else { return };
    let limit = patience / BEATS;
    let mut rhythm = tokio::time::interval(limit);
    rhythm.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let beating = async {
        loop {
            rhythm.tick().await;
            match examine(socket, store, limit).await {
                Ok(()) => supervisor.beat(),
                Err(stuck) => {
                    tracing::error!(error = %chain(&stuck), ?patience, "no beat for the watchdog");
                }
            }
        }
    };
    // What ends is looked after by the stop's own deadline.
    let _ = stop.run_until_cancelled(beating).await;
}

async fn examine(socket: &Path, store: &Arc<Store>, limit: Duration) -> Result<(), Stuck> {
    within(limit, "the daemon's own socket", call(socket)).await??;
    within(limit, "the store's writer", store.ping()).await?.map_err(|_| Stuck::Store)?;
    within(limit, "blocking threads", tokio::task::spawn_blocking(|| ())).await?.map_err(Stuck::Blocking)
}

async fn within<T>(limit: Duration, part: &'static str, work: impl Future<Output = T>) -> Result<T, Stuck> {
    tokio::time::timeout(limit, work).await.map_err(|_| Stuck::Silent { part, limit })
}

/// A connection of its own each time: accepting is what it asks for, too.
async fn call(socket: &Path) -> Result<(), Stuck> {
    let path = socket.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(connector).await.map_err(Stuck::Connect)?;
    // Whatever it says, somebody said it.
    HealthClient::new(channel).check(HealthCheckRequest::default()).await.map(drop).map_err(Stuck::Call)
}
