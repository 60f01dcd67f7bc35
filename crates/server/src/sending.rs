//! Large answers on their way to clients.
//!
//! What an answer takes is charged until it is sent (`pontoon_kv`, `AnswerCharge`), and it is the client who decides how fast
//! that goes. So a large answer is given to its connection piece by piece, as the client takes it; and one whose client does
//! not take it is thrown away: else a few clients that ask for much and never read would hold the memory that all share.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use pontoon_kv::AnswerCharge;
use tower::{Layer, Service};

/// A piece: some frames of HTTP/2, so that what a client has not taken is held here, where it can be thrown away, and not in
/// the connection.
const PIECE_BYTES: usize = 64 << 10;

/// How often it is looked whether a client takes what it has asked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// What a client takes in that time at least, if there is so much: 35 KiB/s, a bad line.
const TAKEN_BYTES_MIN: usize = 1 << 20;

/// Sends large answers piece by piece.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendingLayer;

impl<S> Layer<S> for SendingLayer {
    type Service = Sending<S>;
    fn layer(&self, inner: S) -> Sending<S> {
        Sending(inner)
    }
}

/// See [`SendingLayer`].
#[derive(Clone, Debug)]
pub(crate) struct Sending<S>(S);

impl<S, Q, B> Service<Request<Q>> for Sending<S>
where
    S: Service<Request<Q>, Response = Response<B>>,
{
    type Response = Response<Sent<B>>;
    type Error = S::Error;
    type Future = SendingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        SendingFuture(Box::pin(self.0.call(request)))
    }
}

/// See [`SendingLayer`].
pub(crate) struct SendingFuture<F>(Pin<Box<F>>);

impl<F, B, E> Future for SendingFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<Sent<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map_ok(|mut response| {
            let large = response.extensions_mut().remove::<AnswerCharge>().map(Large::new);
            response.map(|body| Sent { body, large })
        })
    }
}

/// A large answer that is being sent.
struct Large {
    /// Shared with whoever looks whether it is taken.
    shared: Arc<Mutex<Waiting>>,
    is_watched: bool,
}

/// What has not been taken.
struct Waiting {
    bytes: Bytes,
    /// Given back with the last of it.
    charge: Option<AnswerCharge>,
    taken: usize,
    is_thrown_away: bool,
}

fn lock(waiting: &Mutex<Waiting>) -> MutexGuard<'_, Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Large {
    fn new(charge: AnswerCharge) -> Self {
        let waiting = Waiting { bytes: Bytes::new(), charge: Some(charge), taken: 0, is_thrown_away: false };
        Self { shared: Arc::new(Mutex::new(waiting)), is_watched: false }
    }

    /// The next piece of what the body has given.
    fn next(&mut self) -> Option<Result<Bytes, NotTaken>> {
        let mut waiting = lock(&self.shared);
        if waiting.is_thrown_away {
            return Some(Err(NotTaken));
        }
        let bytes = waiting.bytes.len().min(PIECE_BYTES);
        if bytes == 0 {
            return None;
        }
        waiting.taken += bytes;
        // A copy: one piece must not keep all of it in memory.
        let piece = Bytes::copy_from_slice(&waiting.bytes.split_to(bytes));
        if waiting.bytes.is_empty() {
            waiting.bytes = Bytes::new();
        }
        Some(Ok(piece))
    }

    fn hold(&mut self, bytes: Bytes) {
        lock(&self.shared).bytes = bytes;
        if !self.is_watched {
            self.is_watched = true;
            tokio::spawn(watch(Arc::downgrade(&self.shared)));
        }
    }
}

/// Throws an answer away that is not taken.
async fn watch(waiting: Weak<Mutex<Waiting>>) {
    let mut taken = 0;
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        let Some(waiting) = waiting.upgrade() else { return };
        let mut waiting = lock(&waiting);
        if waiting.bytes.is_empty() {
            return;
        }
        if waiting.taken - taken < TAKEN_BYTES_MIN {
            tracing::info!(
                left = waiting.bytes.len(),
                "a client does not take the large answer that it has asked for; the answer is thrown away"
            );
            (waiting.bytes, waiting.charge, waiting.is_thrown_away) = (Bytes::new(), None, true);
            return;
        }
        taken = waiting.taken;
    }
}

/// The client did not take the answer; its stream is reset.
#[derive(Debug)]
struct NotTaken;

impl fmt::Display for NotTaken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the client did not take the answer")
    }
}

impl Error for NotTaken {}

/// The body of an answer.
pub(crate) struct Sent<B> {
    body: B,
    large: Option<Large>,
}

impl<B: Default> Default for Sent<B> {
    fn default() -> Self {
        Self { body: B::default(), large: None }
    }
}

impl<B> Body for Sent<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.large.as_mut().and_then(Large::next) {
                return Poll::Ready(Some(piece.map(Frame::data).map_err(Into::into)));
            }
            let frame = match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                None => return Poll::Ready(None),
            };
            let Some(large) = &mut this.large else { return Poll::Ready(Some(Ok(frame))) };
            match frame.into_data() {
                Ok(bytes) => large.hold(bytes),
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_sent = self.large.as_ref().is_none_or(|large| {
            let waiting = lock(&large.shared);
            waiting.bytes.is_empty() && !waiting.is_thrown_away
        });
        is_sent && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.large.is_some() { SizeHint::default() } else { self.body.size_hint() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    struct Once(Option<Bytes>);

    impl Body for Once {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    async fn large(bytes: usize) -> (Sent<Once>, Weak<()>) {
        let charge = Arc::new(());
        let weak = Arc::downgrade(&charge);
        let mut response = Response::new(Once(Some(Bytes::from(vec![7; bytes]))));
        response.extensions_mut().insert(AnswerCharge::new(charge));
        let mut response = Some(response);
        let mut service = SendingLayer.layer(tower::service_fn(move |_: Request<()>| {
            std::future::ready(Ok::<_, Infallible>(response.take().expect("one call")))
        }));
        (service.call(Request::new(())).await.expect("infallible").into_body(), weak)
    }

    async fn next(body: &mut Sent<Once>) -> Option<Result<usize, String>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(frame.map(|frame| frame.into_data().expect("data").len()).map_err(|e| e.to_string()))
    }

    #[tokio::test]
    async fn a_large_answer_goes_in_pieces_and_is_charged_until_the_last() {
        let (mut body, charge) = large(3 * PIECE_BYTES + 1).await;
        let mut pieces = Vec::new();
        while let Some(piece) = next(&mut body).await {
            assert!(charge.upgrade().is_some());
            pieces.push(piece.expect("no error"));
        }
        assert_eq!(pieces, [PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 1]);
        drop(body);
        assert!(charge.upgrade().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_thrown_away() {
        let (mut body, charge) = large(4 << 20).await;
        next(&mut body).await.expect("a piece").expect("no error");
        tokio::time::sleep(LOOK_INTERVAL - Duration::from_secs(1)).await;
        assert!(charge.upgrade().is_some(), "it has still time");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(charge.upgrade().is_none(), "the memory is free, whatever the connection does");
        assert!(next(&mut body).await.expect("an end").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_slow_and_goes_on_gets_all() {
        let (mut body, _charge) = large(4 << 20).await;
        let mut bytes = 0;
        while let Some(piece) = next(&mut body).await {
            bytes += piece.expect("no error");
            tokio::time::sleep(LOOK_INTERVAL / 20).await;
        }
        assert_eq!(bytes, 4 << 20);
    }
}
