//! The HTTP side: GET /metrics, and nothing else.
//!
//! Invariant: few connections, each bounded in time and in what is read of it. Everybody who reaches the address may
//! read: it is a loopback one unless the operator says otherwise.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How many connections are open at a time.
const MOST: usize = 32;
/// How long a client may take for a request's head.
const HEAD: Duration = Duration::from_secs(10);
/// Scrapers keep their connections; each is made anew after a while all the same.
const CONNECTION: Duration = Duration::from_secs(600);
const HEAD_SIZE: usize = 16 << 10;
/// After a failed accept, as for want of descriptors.
const BREATH: Duration = Duration::from_millis(100);
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

pub(super) struct Server {
    registry: Registry,
    stopping: CancellationToken,
    tracker: TaskTracker,
    room: Arc<Semaphore>,
}

type Answer = Response<Full<Bytes>>;

impl Server {
    pub(super) fn new(registry: Registry, stopping: CancellationToken, tracker: TaskTracker) -> Arc<Self> {
        Arc::new(Self { registry, stopping, tracker, room: Arc::new(Semaphore::new(MOST)) })
    }

    /// Accepts until the daemon ends.
    pub(super) async fn listen(self: Arc<Self>, listener: TcpListener) {
        while let Some(accepted) = self.stopping.run_until_cancelled(listener.accept()).await {
            match (accepted, Arc::clone(&self.room).try_acquire_owned()) {
                (Ok((stream, _)), Ok(room)) => {
                    self.tracker.spawn(Arc::clone(&self).connection(stream, room));
                }
                (Ok((_, peer)), Err(_)) => tracing::warn!(%peer, "too many connections for metrics"),
                (Err(error), _) => {
                    tracing::warn!(%error, "accept a connection for metrics");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, _room: OwnedSemaphorePermit) {
        let service = service_fn(|request| {
            let answer = self.answer(&request);
            async move { Ok::<_, Infallible>(answer) }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_SIZE);
        let served = tokio::time::timeout(CONNECTION, http.serve_connection(TokioIo::new(stream), service));
        if let Some(Ok(Err(error))) = self.stopping.run_until_cancelled(served).await {
            tracing::debug!(%error, "a request for metrics");
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Answer {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "metrics are at /metrics\n");
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET it\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        let mut metrics = String::new();
        if text::encode(&mut metrics, &self.registry).is_err() {
            return plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n");
        }
        let mut answer = Response::new(Full::from(metrics));
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(FORMAT));
        answer
    }
}

fn plain(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Response::new(Full::from(text));
    *answer.status_mut() = status;
    answer
}
