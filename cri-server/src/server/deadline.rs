//! The caller's deadline, in the words that callers expect.
//!
//! tonic answers CANCELLED when the time in `grpc-timeout` is over; kubelets and crictl look for DEADLINE_EXCEEDED. The
//! answer is given a moment earlier here. What was begun goes on: see [`crate::operation`]; but a command of ExecSync is ended.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// How much earlier than tonic's own timer.
const EARLIER: Duration = Duration::from_millis(2);

/// Puts [`WithDeadline`] around a service.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = WithDeadline<S>;

    fn layer(&self, service: S) -> Self::Service {
        WithDeadline { service }
    }
}

/// Answers DEADLINE_EXCEEDED when the caller's time is over.
#[derive(Clone, Debug)]
pub(super) struct WithDeadline<S> {
    service: S,
}

impl<S> Service<Request<Body>> for WithDeadline<S>
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
        let time = caller_time(request.headers());
        let answer = self.service.call(request);
        let Some(time) = time else { return Box::pin(answer) };
        Box::pin(async move {
            match tokio::time::timeout(time.saturating_sub(EARLIER), answer).await {
                Ok(answer) => answer,
                Err(_) => {
                    let text =
                        format!("no answer within {time:?}; what was begun goes on, and a retry joins it");
                    Ok(Status::deadline_exceeded(text).into_http())
                }
            }
        })
    }
}

/// The time of the header `grpc-timeout`: up to eight digits and a unit. gRPC over HTTP2, "Requests"
fn caller_time(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_digits_and_a_unit() {
        let time = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            caller_time(&headers)
        };
        assert_eq!(time("2S"), Some(Duration::from_secs(2)));
        assert_eq!(time("150m"), Some(Duration::from_millis(150)));
        assert_eq!(time("999u"), Some(Duration::from_micros(999)));
        assert_eq!(time("1H"), Some(Duration::from_secs(3600)));
        for wrong in ["", "S", "12", "123456789S", "-1S", "1x", "é"] {
            assert_eq!(time(wrong), None, "{wrong}");
        }
    }
}
