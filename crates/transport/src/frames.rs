//! Frames in the bodies of a lane's HTTP/2 streams, each behind a prefix of five bytes, as gRPC has it.
//!
//! The ways in and out are our own: a frame has memory of just its size, while it is on its way, and none is kept for the next
//! one. A stream that is idle holds nothing, however large what it carried was.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http_body::{Body as _, Frame};
use pontoon_proto::peer::v1 as pb;
use tokio_stream::Stream as _;
use tonic::Status;
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

use crate::batch::FrameStream;

/// Whether what follows is compressed, which nothing here is, and its length.
const PREFIX_BYTES: usize = 5;

/// The body of a dialer's request.
pub(crate) struct FrameBody(pub(crate) FrameStream);

impl http_body::Body for FrameBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(frame) = ready!(Pin::new(&mut self.0).poll_next(cx)) else { return Poll::Ready(None) };
        let len = frame.encoded_len();
        let mut encoded = BytesMut::with_capacity(PREFIX_BYTES + len);
        encoded.put_u8(0);
        // A frame is far below 4 GiB: what is larger than `message_bytes_max` is not sent.
        encoded.put_u32(u32::try_from(len).map_err(|_| Status::out_of_range("a frame is too large"))?);
        frame.encode(&mut encoded);
        Poll::Ready(Some(Ok(Frame::data(encoded.freeze()))))
    }
}

/// The frames in the body of a request, as bytes.
pub(crate) struct Frames {
    body: Body,
    frame_bytes_max: usize,
    /// What came last and is not looked at yet.
    chunk: Bytes,
    prefix: [u8; PREFIX_BYTES],
    /// How much of the prefix has come.
    prefix_len: usize,
    /// What has come of the frame; its capacity is the frame's length.
    frame: Vec<u8>,
    frame_len: usize,
}

impl Frames {
    pub(crate) fn new(body: Body, frame_bytes_max: usize) -> Self {
        Self {
            body,
            frame_bytes_max,
            chunk: Bytes::new(),
            prefix: [0; PREFIX_BYTES],
            prefix_len: 0,
            frame: Vec::new(),
            frame_len: 0,
        }
    }

    /// The next frame; `None` at the end.
    ///
    /// # Errors
    /// The stream broke, or breaks the rules. There is no next frame then.
    ///
    /// # Cancel safety
    /// Nothing is lost if it is dropped.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Status> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Status>> {
        loop {
            if let Some(frame) = self.take()? {
                return Poll::Ready(Ok(Some(frame)));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.chunk = frame.into_data().unwrap_or_default(),
                Some(Err(status)) if status.code() != tonic::Code::Cancelled => {
                    return Poll::Ready(Err(status));
                }
                _ if self.prefix_len == 0 => return Poll::Ready(Ok(None)),
                _ => return Poll::Ready(Err(Status::data_loss("the stream ended in the midst of a frame"))),
            }
        }
    }

    /// A frame, if what has come makes it whole.
    fn take(&mut self) -> Result<Option<Bytes>, Status> {
        if self.prefix_len < PREFIX_BYTES {
            let part = self.chunk.len().min(PREFIX_BYTES - self.prefix_len);
            self.chunk.copy_to_slice(&mut self.prefix[self.prefix_len..self.prefix_len + part]);
            self.prefix_len += part;
            if self.prefix_len < PREFIX_BYTES {
                return Ok(None);
            }
            let [compressed, len @ ..] = self.prefix;
            if compressed != 0 {
                return Err(Status::unimplemented("frames are not compressed here"));
            }
            self.frame_len = usize::try_from(u32::from_be_bytes(len)).unwrap_or(usize::MAX);
            if self.frame_len > self.frame_bytes_max {
                let (len, max) = (self.frame_len, self.frame_bytes_max);
                return Err(Status::out_of_range(format!("a frame of {len} bytes, above {max}")));
            }
            // Memory that is not written to is not used.
            self.frame = Vec::with_capacity(self.frame_len);
        }
        let part = self.chunk.len().min(self.frame_len - self.frame.len());
        self.frame.extend_from_slice(&self.chunk[..part]);
        self.chunk.advance(part);
        if self.frame.len() < self.frame_len {
            return Ok(None);
        }
        if self.chunk.is_empty() {
            // It would keep the connection's buffer from being used again.
            self.chunk = Bytes::new();
        }
        self.prefix_len = 0;
        Ok(Some(Bytes::from(std::mem::take(&mut self.frame))))
    }
}

/// The codec of the other direction, with small buffers: replies are tiny. What it has for frames is for tonic, which wants a
/// codec for both directions.
#[derive(Debug, Default)]
pub(crate) struct AcceptCodec;

impl Codec for AcceptCodec {
    type Encode = pb::LaneReply;
    type Decode = pb::LaneFrame;
    type Encoder = ProstEncoder<pb::LaneReply>;
    type Decoder = ProstDecoder<pb::LaneFrame>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<pb::LaneReply, pb::LaneFrame>::raw_encoder(BufferSettings::new(512, 4096))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<pb::LaneReply, pb::LaneFrame>::raw_decoder(BufferSettings::new(0, 1))
    }
}

/// The dialer's side of [`AcceptCodec`].
#[derive(Debug, Default)]
pub(crate) struct DialCodec;

impl Codec for DialCodec {
    type Encode = pb::LaneFrame;
    type Decode = pb::LaneReply;
    type Encoder = ProstEncoder<pb::LaneFrame>;
    type Decoder = ProstDecoder<pb::LaneReply>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<pb::LaneFrame, pb::LaneReply>::raw_encoder(BufferSettings::new(0, 1))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<pb::LaneFrame, pb::LaneReply>::raw_decoder(BufferSettings::new(512, 4096))
    }
}
