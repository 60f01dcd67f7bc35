//! The acceptor's codec: bytes off the stream become frames, or a named violation that the stream survives.

use bytes::Buf as _;
use pontoon_proto::peer::v1 as pb;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::error::WireError;
use crate::wire;

/// One frame as it came.
#[derive(Debug)]
pub(crate) struct Incoming {
    /// Its encoded length.
    pub(crate) bytes: usize,
    /// The frame, unless it cannot be one. Boxed would cost an allocation per frame; it is moved once.
    pub(crate) frame: Result<pb::LaneFrame, WireError>,
}

/// Decodes frames through the gate, encodes replies with prost.
#[derive(Debug, Default)]
pub(crate) struct LaneCodec;

impl Codec for LaneCodec {
    type Encode = pb::LaneReply;
    type Decode = Incoming;
    type Encoder = ProstEncoder<pb::LaneReply>;
    type Decoder = FrameDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<pb::LaneReply, pb::LaneFrame>::raw_encoder(BufferSettings::new(512, 4096))
    }

    fn decoder(&mut self) -> Self::Decoder {
        FrameDecoder
    }
}

/// See [`LaneCodec`].
#[derive(Debug)]
pub(crate) struct FrameDecoder;

impl Decoder for FrameDecoder {
    type Item = Incoming;
    type Error = Status;

    fn decode(&mut self, src: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Self::Error> {
        let bytes = src.remaining();
        // No copy: a slice of the receive buffer.
        let encoded = src.copy_to_bytes(bytes);
        Ok(Some(Incoming { bytes, frame: wire::decode(encoded) }))
    }
}
