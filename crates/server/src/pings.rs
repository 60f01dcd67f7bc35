//! Clients that ask too often whether the store is still there.
//!
//! gRPC's keep-alive is a ping of HTTP/2, which the other side answers at once; it costs both a little, and a client with a wrong
//! setting sends them for ever. etcd takes one in 5 s and ends the connection of who sends more: GOAWAY with ENHANCE_YOUR_CALM
//! and `too_many_pings`, upon which gRPC libraries connect again and ask half as often. The rule here is gRPC's own: a ping
//! that comes sooner than [`INTERVAL_MIN`] after the last one is a strike, the third strike too many; when the store has sent
//! headers or data since the last ping, the ping is none and strikes are forgotten (libraries measure lines by such pings).
//! Unlike etcd, a client may also ask while it has no request under way: some pools of connections do.
//!
//! The HTTP library answers pings by itself and tells nobody. So this looks at the frames' headers as they pass, in both
//! directions; a connection that does not begin as HTTP/2 does is left alone.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pontoon_tls::{ClientStream, ConnectionInfo};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;

/// As in etcd (`--grpc-keepalive-min-time`).
const INTERVAL_MIN: Duration = Duration::from_secs(5);
/// As in gRPC: a ping may be late on its way and the next one not.
const STRIKES_MAX: u32 = 2;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER_BYTES: usize = 9;

// RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const ACK: u8 = 1;
const ENHANCE_YOUR_CALM: u32 = 11;
const DEBUG_DATA: &[u8; 14] = b"too_many_pings";

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FrameHeader {
    kind: u8,
    flags: u8,
    stream: u32,
}

/// Walks over one direction's bytes from header to header.
#[derive(Debug)]
enum Walk {
    /// So many bytes of the preface have come.
    Preface(usize),
    /// So many bytes of a header have come.
    Header([u8; HEADER_BYTES], usize),
    /// So many bytes of a frame are to come.
    Payload(usize),
    /// This is not HTTP/2.
    Other,
}

impl Walk {
    const fn between_frames() -> Self {
        Self::Header([0; HEADER_BYTES], 0)
    }

    /// Takes the next bytes and tells of each header that is complete.
    fn feed(&mut self, mut bytes: &[u8], mut seen: impl FnMut(FrameHeader)) {
        while !bytes.is_empty() {
            let taken = match self {
                Self::Other => return,
                Self::Preface(have) => {
                    let expected = &PREFACE[*have..];
                    let n = expected.len().min(bytes.len());
                    if bytes[..n] != expected[..n] {
                        *self = Self::Other;
                        return;
                    }
                    *have += n;
                    if *have == PREFACE.len() {
                        *self = Self::between_frames();
                    }
                    n
                }
                Self::Payload(left) => {
                    let n = bytes.len().min(*left);
                    *left -= n;
                    if *left == 0 {
                        *self = Self::between_frames();
                    }
                    n
                }
                Self::Header(header, have) => {
                    let n = (HEADER_BYTES - *have).min(bytes.len());
                    header[*have..*have + n].copy_from_slice(&bytes[..n]);
                    *have += n;
                    if *have == HEADER_BYTES {
                        let [a, b, c, kind, flags, stream @ ..] = *header;
                        let payload = u32::from_be_bytes([0, a, b, c]) as usize;
                        seen(FrameHeader {
                            kind,
                            flags,
                            stream: u32::from_be_bytes(stream) & (u32::MAX >> 1),
                        });
                        *self = if payload == 0 { Self::between_frames() } else { Self::Payload(payload) };
                    }
                    n
                }
            };
            bytes = &bytes[taken..];
        }
    }

    fn is_between_frames(&self) -> bool {
        matches!(self, Self::Header(_, 0))
    }
}

/// The rule.
#[derive(Debug, Default)]
struct Judge {
    last: Option<Instant>,
    strikes: u32,
    /// The store has sent headers or data since the last ping.
    answered: bool,
}

impl Judge {
    /// A ping has come; `false` if it is one too many.
    fn ping(&mut self, now: Instant) -> bool {
        let last = self.last.replace(now);
        if std::mem::take(&mut self.answered) {
            self.strikes = 0;
        } else if last.is_some_and(|last| now.saturating_duration_since(last) < INTERVAL_MIN) {
            self.strikes += 1;
        }
        self.strikes <= STRIKES_MAX
    }
}

/// A client's connection that is ended when it carries too many pings.
#[derive(Debug)]
pub(crate) struct Guarded {
    io: ClientStream,
    read: Walk,
    written: Walk,
    judge: Judge,
    /// The client's last stream, for the farewell.
    last_stream: u32,
    is_over: bool,
}

impl Guarded {
    pub(crate) fn new(io: ClientStream) -> Self {
        Self {
            io,
            read: Walk::Preface(0),
            written: Walk::between_frames(),
            judge: Judge::default(),
            last_stream: 0,
            is_over: false,
        }
    }

    /// Bytes came from the client.
    fn came(&mut self, bytes: &[u8]) {
        let Self { read, judge, last_stream, is_over, .. } = self;
        read.feed(bytes, |header| match header.kind {
            PING if header.flags & ACK == 0 => *is_over |= !judge.ping(Instant::now()),
            HEADERS => *last_stream = (*last_stream).max(header.stream),
            _ => {}
        });
    }

    /// Bytes were given to the connection.
    fn went(&mut self, bytes: &[u8]) {
        let judge = &mut self.judge;
        self.written.feed(bytes, |header| judge.answered |= matches!(header.kind, DATA | HEADERS));
    }

    /// Says why, if that is possible at once: in the middle of a frame it would not be understood, and who does not read is
    /// not waited for.
    fn say_farewell(&mut self, cx: &mut Context<'_>) {
        if self.written.is_between_frames() {
            let frame = goaway(self.last_stream);
            if let Poll::Ready(Ok(_)) = Pin::new(&mut self.io).poll_write(cx, &frame) {
                let _ = Pin::new(&mut self.io).poll_flush(cx);
            }
        }
        let remote = self.io.connect_info().remote;
        tracing::debug!(?remote, "a client sends too many pings; its connection is closed");
    }
}

/// The frame that ends a connection.
fn goaway(last_stream: u32) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER_BYTES + 8 + DEBUG_DATA.len());
    let [_, length @ ..] = (8 + DEBUG_DATA.len() as u32).to_be_bytes();
    frame.extend_from_slice(&length);
    frame.extend_from_slice(&[GOAWAY, 0, 0, 0, 0, 0]);
    frame.extend_from_slice(&last_stream.to_be_bytes());
    frame.extend_from_slice(&ENHANCE_YOUR_CALM.to_be_bytes());
    frame.extend_from_slice(DEBUG_DATA);
    frame
}

impl Connected for Guarded {
    type ConnectInfo = ConnectionInfo;
    fn connect_info(&self) -> ConnectionInfo {
        self.io.connect_info()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        std::task::ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        this.came(&buf.filled()[before..]);
        if this.is_over {
            this.say_farewell(cx);
            return Poll::Ready(Err(io::Error::other("too many pings")));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = std::task::ready!(Pin::new(&mut this.io).poll_write(cx, buf))?;
        this.went(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let n = std::task::ready!(Pin::new(&mut this.io).poll_write_vectored(cx, bufs))?;
        let mut left = n;
        for buf in bufs {
            let part = buf.len().min(left);
            this.went(&buf[..part]);
            left -= part;
        }
        Poll::Ready(Ok(n))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, stream: u32, payload: usize) -> Vec<u8> {
        let mut frame = (payload as u32).to_be_bytes()[1..].to_vec();
        frame.extend_from_slice(&[kind, flags]);
        frame.extend_from_slice(&stream.to_be_bytes());
        frame.extend(std::iter::repeat_n(PING, payload));
        frame
    }

    #[test]
    fn headers_are_found_however_the_bytes_are_cut() {
        let bytes = [
            PREFACE.to_vec(),
            frame(4, 0, 0, 18),
            frame(HEADERS, 4, 7, 300),
            frame(DATA, 1, 7, 70_000),
            frame(PING, 0, 0, 8),
            frame(4, ACK, 0, 0),
            frame(PING, ACK, 0, 8),
        ]
        .concat();
        for size in [1, 2, 7, 9, 24, 33, 1000, bytes.len()] {
            let (mut walk, mut seen) = (Walk::Preface(0), Vec::new());
            for piece in bytes.chunks(size) {
                walk.feed(piece, |h| seen.push((h.kind, h.flags, h.stream)));
            }
            assert_eq!(seen, [(4, 0, 0), (1, 4, 7), (0, 1, 7), (6, 0, 0), (4, 1, 0), (6, 1, 0)], "by {size}");
            assert!(walk.is_between_frames());
        }
        let (mut walk, mut seen) = (Walk::Preface(0), 0);
        walk.feed(b"GET /health HTTP/1.1\r\n", |_| seen += 1);
        walk.feed(&bytes, |_| seen += 1);
        assert_eq!(seen, 0, "that is another protocol");
    }

    #[test]
    fn the_third_hasty_ping_is_too_many_unless_something_was_answered() {
        let t = Instant::now();
        let second = |n: u64| t + Duration::from_secs(n);
        let mut judge = Judge::default();
        assert!((0..100).all(|n| judge.ping(second(5 * n))), "one in five seconds is welcome");
        let mut judge = Judge::default();
        assert_eq!([0, 1, 2, 3].map(|n| judge.ping(second(n))), [true, true, true, false]);
        let mut judge = Judge::default();
        for n in 0..100 {
            judge.answered = n % 3 == 0;
            assert!(judge.ping(second(0)), "who gets answers may measure");
        }
    }

    #[test]
    fn the_farewell_is_a_frame() {
        let (mut walk, mut seen) = (Walk::between_frames(), Vec::new());
        walk.feed(&goaway(5), |h| seen.push(h));
        assert_eq!(seen, [FrameHeader { kind: GOAWAY, flags: 0, stream: 0 }]);
        assert!(walk.is_between_frames() && goaway(5).ends_with(b"\0\0\0\x05\0\0\0\x0btoo_many_pings"));
    }
}
