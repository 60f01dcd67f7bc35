//! The tower layers in front of the client services: admission with load shedding, and deadlines.
//!
//! Order, from the outside: trace, admission, deadline, keyspace, service. tower's own concurrency limit gives its permit
//! back when the response *headers* are ready, so that streams would not count; here the permit lives in the response
//! body. tower's time-out would become CANCELLED or UNKNOWN at the client; etcd clients look for DEADLINE_EXCEEDED.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use http_body::{Body, Frame, SizeHint};
use pontoon_kv::outcome;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tonic::Status;
use tower::{Layer, Service};

/// Refuses requests above a bound instead of queueing them: RESOURCE_EXHAUSTED, in etcd's words.
#[derive(Clone, Debug)]
pub(crate) struct AdmissionLayer {
    places: Arc<Semaphore>,
}

impl AdmissionLayer {
    /// At most `requests_max` requests and streams at a time.
    pub(crate) fn new(requests_max: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(requests_max)) }
    }
}

impl<S> Layer<S> for AdmissionLayer {
    type Service = Admission<S>;
    fn layer(&self, inner: S) -> Admission<S> {
        Admission { inner, places: Arc::clone(&self.places) }
    }
}

/// See [`AdmissionLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Admission<S> {
    inner: S,
    places: Arc<Semaphore>,
}

impl<S, Q, B> Service<Request<Q>> for Admission<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<Held<B>>;
    type Error = S::Error;
    type Future = AdmissionFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        match Arc::clone(&self.places).try_acquire_owned() {
            Ok(permit) => {
                AdmissionFuture::Admitted { inner: Box::pin(self.inner.call(request)), permit: Some(permit) }
            }
            Err(_) => AdmissionFuture::Refused,
        }
    }
}

/// See [`AdmissionLayer`].
pub(crate) enum AdmissionFuture<F> {
    Admitted { inner: Pin<Box<F>>, permit: Option<OwnedSemaphorePermit> },
    Refused,
}

impl<F, B, E> Future for AdmissionFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<Held<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut *self {
            Self::Admitted { inner, permit } => {
                let response = ready!(inner.as_mut().poll(cx))?;
                let permit = permit.take();
                Poll::Ready(Ok(response.map(|body| Held { body, _permit: permit })))
            }
            Self::Refused => {
                let status = outcome::mark(outcome::too_many_requests(), outcome::NOT_EXECUTED);
                Poll::Ready(Ok(status.into_http::<B>().map(|body| Held { body, _permit: None })))
            }
        }
    }
}

/// A response body that holds a place until it ends.
#[derive(Debug)]
pub(crate) struct Held<B> {
    body: B,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<B: Default> Default for Held<B> {
    fn default() -> Self {
        Self { body: B::default(), _permit: None }
    }
}

impl<B: Body + Unpin> Body for Held<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Ends a request whose `grpc-timeout` has passed with DEADLINE_EXCEEDED.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeadlineLayer;

impl<S> Layer<S> for DeadlineLayer {
    type Service = Deadline<S>;
    fn layer(&self, inner: S) -> Deadline<S> {
        Deadline { inner }
    }
}

/// See [`DeadlineLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S> {
    inner: S,
}

impl<S, Q, B> Service<Request<Q>> for Deadline<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
    B: Default,
{
    type Response = Response<B>;
    type Error = S::Error;
    type Future = DeadlineFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let limit = time_left(request.headers());
        DeadlineFuture {
            inner: Box::pin(self.inner.call(request)),
            limit: limit.map(|d| Box::pin(tokio::time::sleep(d))),
        }
    }
}

/// See [`DeadlineLayer`].
pub(crate) struct DeadlineFuture<F> {
    inner: Pin<Box<F>>,
    limit: Option<Pin<Box<Sleep>>>,
}

impl<F, B, E> Future for DeadlineFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: Default,
{
    type Output = Result<Response<B>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(response) = self.inner.as_mut().poll(cx) {
            return Poll::Ready(response);
        }
        match &mut self.limit {
            Some(limit) => {
                ready!(limit.as_mut().poll(cx));
                Poll::Ready(Ok(Status::deadline_exceeded("context deadline exceeded").into_http()))
            }
            None => Poll::Pending,
        }
    }
}

/// What `grpc-timeout` leaves, less a margin: the gRPC library has a timer of its own for the same header that answers
/// CANCELLED, and ours has to be first.
fn time_left(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    let limit = match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    };
    Some(limit - (limit / 10).min(Duration::from_millis(20)))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use tower::ServiceExt as _;

    use super::*;

    fn with_timeout(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", value.parse().expect("a header value"));
        headers
    }

    #[test]
    fn the_header_is_read_as_grpc_defines_it() {
        assert_eq!(time_left(&with_timeout("1S")), Some(Duration::from_millis(980)));
        assert_eq!(time_left(&with_timeout("100m")), Some(Duration::from_millis(90)));
        for bad in ["", "S", "1", "x1S", "123456789S", "1Q"] {
            assert_eq!(time_left(&with_timeout(bad)), None, "{bad}");
        }
        assert_eq!(time_left(&HeaderMap::new()), None);
    }

    #[tokio::test]
    async fn a_stream_keeps_its_place_until_it_ends_and_the_next_is_refused() {
        let service = AdmissionLayer::new(1).layer(tower::service_fn(|_: Request<()>| async {
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
        let first = service.clone().oneshot(Request::new(())).await.expect("infallible");
        let refused = service.clone().oneshot(Request::new(())).await.expect("infallible");
        assert_eq!(refused.headers().get("grpc-status").map(http::HeaderValue::as_bytes), Some(&b"8"[..]));
        assert_eq!(refused.headers()[outcome::METADATA], outcome::NOT_EXECUTED);
        drop(first);
        let third = service.oneshot(Request::new(())).await.expect("infallible");
        assert!(third.headers().get("grpc-status").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_deadline_has_the_code_that_clients_look_for() {
        let service = DeadlineLayer.layer(tower::service_fn(|_: Request<()>| async {
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
        let mut request = Request::new(());
        *request.headers_mut() = with_timeout("1S");
        let response = service.oneshot(request).await.expect("infallible");
        assert_eq!(response.headers().get("grpc-status").map(http::HeaderValue::as_bytes), Some(&b"4"[..]));
    }
}
