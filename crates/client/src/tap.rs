//! Watches the bytes of a session's connections: the only honest sign of life.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};

/// What is known of one session's life; shared by its connections, its calls and its driver.
///
/// Each flag is set by many and taken by the one who waits on `changed`.
#[derive(Debug)]
pub(crate) struct Life {
    /// Per connection: bytes came since the last time all had been set.
    heard: Box<[AtomicBool]>,
    /// Why the first of the connections ended.
    closed: OnceLock<String>,
    /// Why the store is sick.
    sick: OnceLock<String>,
    /// The store works, but is not the right one.
    unsuitable: AtomicBool,
    /// The store answered a call that it does not lead.
    doubted: AtomicBool,
    changed: Notify,
    /// True once calls that wait for an answer wait in vain.
    dead: watch::Sender<bool>,
}

impl Life {
    pub(crate) fn new(connections: usize) -> Self {
        Self {
            heard: (0..connections).map(|_| AtomicBool::new(false)).collect(),
            closed: OnceLock::new(),
            sick: OnceLock::new(),
            unsuitable: AtomicBool::new(false),
            doubted: AtomicBool::new(false),
            changed: Notify::new(),
            dead: watch::Sender::new(false),
        }
    }

    fn hear(&self, connection: usize) {
        // The flag is mostly set already: reading it is cheaper than waking somebody.
        let heard = &self.heard[connection];
        if !heard.load(Ordering::Relaxed) && !heard.swap(true, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    /// A connection ended. The first reason is kept: the others follow from it.
    fn close(&self, reason: String) {
        if self.closed.set(reason).is_ok() {
            self.changed.notify_one();
        }
    }

    pub(crate) fn mark_sick(&self, reason: String) {
        if self.sick.set(reason).is_ok() {
            self.changed.notify_one();
        }
    }

    pub(crate) fn mark_unsuitable(&self) {
        if !self.unsuitable.swap(true, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn doubt(&self) {
        if !self.doubted.swap(true, Ordering::AcqRel) {
            self.changed.notify_one();
        }
    }

    pub(crate) fn take_doubt(&self) -> bool {
        self.doubted.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn closed(&self) -> Option<&str> {
        self.closed.get().map(String::as_str)
    }

    pub(crate) fn sick(&self) -> Option<&str> {
        self.sick.get().map(String::as_str)
    }

    pub(crate) fn is_unsuitable(&self) -> bool {
        self.unsuitable.load(Ordering::Acquire)
    }

    /// Whether *every* connection was heard since this was last true: a session lives as long as all its parts do.
    pub(crate) fn take_heard(&self) -> bool {
        let all = self.heard.iter().all(|heard| heard.load(Ordering::Acquire));
        if all {
            self.heard.iter().for_each(|heard| heard.store(false, Ordering::Release));
        }
        all
    }

    /// Waits for anything above to change.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Ends the calls that wait for an answer.
    pub(crate) fn condemn(&self) {
        self.dead.send_replace(true);
    }

    /// Waits until the calls' waiting is in vain.
    pub(crate) async fn dead(&self) {
        // The sender is `self`, so waiting cannot fail.
        let _ = self.dead.subscribe().wait_for(|dead| *dead).await;
    }
}

/// A TCP connection that tells a [`Life`] what it sees.
#[derive(Debug)]
pub(crate) struct Tap {
    stream: TcpStream,
    life: Arc<Life>,
    connection: usize,
}

impl Tap {
    pub(crate) fn new(stream: TcpStream, life: Arc<Life>, connection: usize) -> Self {
        Self { stream, life, connection }
    }

    fn note<T>(&self, result: io::Result<T>) -> Poll<io::Result<T>> {
        if let Err(error) = &result {
            self.life.close(error.to_string());
        }
        Poll::Ready(result)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.life.close("the connection broke an HTTP/2 rule or was given up".to_owned());
    }
}

impl AsyncRead for Tap {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        if result.is_ok() && room > 0 {
            if buffer.filled().len() > before {
                self.life.hear(self.connection);
            } else {
                self.life.close("closed by the store".to_owned());
            }
        }
        self.note(result)
    }
}

impl AsyncWrite for Tap {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.note(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.note(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_flush(cx));
        self.note(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = ready!(Pin::new(&mut self.stream).poll_shutdown(cx));
        self.note(result)
    }
}
