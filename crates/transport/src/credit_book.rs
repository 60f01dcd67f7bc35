//! The receiver's credits: how far each peer's log stream may go, so that what all of them together bring stays within the
//! budget. The arithmetic is [`Credits`]'; here is who is told.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pontoon_flow::Credits;
use tokio::sync::watch;

/// The least that a stream may send before it hears from us: so that a new leader starts without a round trip.
const FLOOR_BYTES: u64 = 256 << 10;

/// The credits of all log streams into this store.
#[derive(Debug)]
pub(crate) struct CreditBook {
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    credits: Credits,
    /// Where each stream hears how far it may go.
    streams: HashMap<u64, watch::Sender<u64>>,
}

impl CreditBook {
    /// A quarter of what may wait is left for what has no credits: control messages, and peers of older versions.
    pub(crate) fn new(receive_bytes_max: u64, message_bytes_max: u64) -> Arc<Self> {
        let credits = Credits::new(receive_bytes_max - receive_bytes_max / 4, FLOOR_BYTES, message_bytes_max);
        Arc::new(Self { inner: Mutex::new(Inner { credits, streams: HashMap::new() }) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing within panics.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stream begins.
    pub(crate) fn open(self: &Arc<Self>) -> (Account, watch::Receiver<u64>) {
        let mut inner = self.lock();
        let (stream, granted) = inner.credits.open();
        let (sender, receiver) = watch::channel(granted);
        inner.streams.insert(stream, sender);
        inner.serve();
        (Account { book: Arc::clone(self), stream }, receiver)
    }
}

impl Inner {
    fn tell(&self, stream: u64, offset: u64) {
        if let Some(sender) = self.streams.get(&stream) {
            sender.send_replace(offset);
        }
    }

    /// Serves those that starve.
    fn serve(&mut self) {
        while let Some((stream, offset)) = self.credits.next_grant() {
            self.tell(stream, offset);
        }
    }
}

/// One stream. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Account {
    book: Arc<CreditBook>,
    stream: u64,
}

impl Drop for Account {
    fn drop(&mut self) {
        let mut inner = self.book.lock();
        inner.credits.close(self.stream);
        inner.streams.remove(&self.stream);
        inner.serve();
    }
}

impl Account {
    /// Bytes have come. `None`: the sender had no credit for them.
    pub(crate) fn received(&self, bytes: u64) -> Option<Charge> {
        let allowed = self.book.lock().credits.received(self.stream, bytes);
        allowed.then(|| Charge { book: Arc::clone(&self.book), stream: self.stream, bytes })
    }

    /// The sender's next message ends at this offset.
    pub(crate) fn wants(&self, offset: u64) {
        let mut inner = self.book.lock();
        inner.credits.wants(self.stream, offset);
        inner.serve();
    }
}

/// Bytes of a stream that are not processed; they are when this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    book: Arc<CreditBook>,
    stream: u64,
    bytes: u64,
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut inner = self.book.lock();
        if let Some(offset) = inner.credits.processed(self.stream, self.bytes) {
            inner.tell(self.stream, offset);
        }
        inner.serve();
    }
}
