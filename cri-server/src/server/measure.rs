//! How long each call takes, for the metrics: around everything else, deadlines included.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::{Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

use crate::metrics::RpcSeconds;

/// Puts [`Measured`] around a service.
#[derive(Clone, Debug)]
pub(super) struct MeasureLayer(pub RpcSeconds);

impl<S> Layer<S> for MeasureLayer {
    type Service = Measured<S>;

    fn layer(&self, service: S) -> Self::Service {
        Measured { service, seconds: self.0.clone() }
    }
}

/// Measures the time until a call's answer begins.
#[derive(Clone, Debug)]
pub(super) struct Measured<S> {
    service: S,
    seconds: RpcSeconds,
}

impl<S> Service<Request<Body>> for Measured<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let timer = self.seconds.begin(request.uri().path());
        let answer = self.service.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            // Errors come in the head; an answer without the header ends with its status, which is OK for all but
            // streams that break later.
            let code =
                answer.headers().get("grpc-status").map(|code| code.to_str().unwrap_or_default().parse());
            timer.answered(code.map_or(0, |code| code.unwrap_or(2)));
            Ok(answer)
        })
    }
}
