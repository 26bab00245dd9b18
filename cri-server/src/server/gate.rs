//! Calls that arrive while the daemon starts: they wait for it. Only health is answered at once.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tokio::sync::watch;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Body as HttpBody, Bytes, StdError};
use tonic::service::Routes;
use tower::Service;

/// Who opens the gate. Dropped before, it turns away who waits.
pub(super) struct Key(watch::Sender<Option<Routes>>);

impl Key {
    /// From now on `services` answer.
    pub(super) fn open(&self, services: Routes) {
        self.0.send_replace(Some(services));
    }
}

/// Stands for the services until they are there, and passes on to them then.
#[derive(Clone)]
pub(super) struct Gate(watch::Receiver<Option<Routes>>);

/// A gate that is closed.
pub(super) fn closed() -> (Key, Gate) {
    let (key, gate) = watch::channel(None);
    (Key(key), Gate(gate))
}

impl<B> Service<Request<B>> for Gate
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<StdError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let mut waiting = self.0.clone();
        Box::pin(async move {
            let services = waiting.wait_for(Option::is_some).await.ok().and_then(|open| open.clone());
            match services {
                Some(mut services) => services.call(request).await,
                None => Ok(Status::unavailable("the daemon ended while it started").into_http()),
            }
        })
    }
}
