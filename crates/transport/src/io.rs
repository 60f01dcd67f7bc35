//! A socket that can be closed from outside.
//!
//! A connection whose peer no longer reads cannot even be told to end: HTTP/2 would wait for ever to write that down.
//! Dropping a link therefore kills the socket under it, which frees all that was buffered for it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

#[derive(Debug, Default)]
struct Switch {
    killed: AtomicBool,
    reader: AtomicWaker,
    writer: AtomicWaker,
}

/// Kills the socket when dropped.
#[derive(Debug)]
pub(crate) struct KillOnDrop(Arc<Switch>);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        self.0.killed.store(true, Ordering::Release);
        self.0.reader.wake();
        self.0.writer.wake();
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PeerSocket {
    tcp: TcpStream,
    switch: Arc<Switch>,
}

impl PeerSocket {
    pub(crate) fn new(tcp: TcpStream) -> (Self, KillOnDrop) {
        let switch = Arc::new(Switch::default());
        (Self { tcp, switch: Arc::clone(&switch) }, KillOnDrop(switch))
    }

    fn alive(&self) -> io::Result<()> {
        if self.switch.killed.load(Ordering::Acquire) {
            Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the link was dropped"))
        } else {
            Ok(())
        }
    }
}

impl AsyncRead for PeerSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.alive()?;
        let poll = Pin::new(&mut self.tcp).poll_read(cx, buf);
        if poll.is_pending() {
            self.switch.reader.register(cx.waker());
            // Killed between the check and the registration: nobody would wake us.
            self.alive()?;
        }
        poll
    }
}

impl AsyncWrite for PeerSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.alive()?;
        let poll = Pin::new(&mut self.tcp).poll_write(cx, buf);
        if poll.is_pending() {
            self.switch.writer.register(cx.waker());
            self.alive()?;
        }
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.alive()?;
        let poll = Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs);
        if poll.is_pending() {
            self.switch.writer.register(cx.waker());
            self.alive()?;
        }
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive()?;
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.alive()?;
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
