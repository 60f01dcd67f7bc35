//! The codecs of a lane. The acceptor's: bytes off the stream become frames, or a named violation that the stream survives. The
//! dialer's: frames become bytes without being moved again.

use bytes::Buf as _;
use pontoon_proto::peer::v1 as pb;
use prost::Message as _;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic_prost::{ProstCodec, ProstDecoder, ProstEncoder};

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

/// The dialer's side.
#[derive(Debug, Default)]
pub(crate) struct DialCodec;

impl Codec for DialCodec {
    type Encode = pb::LaneFrame;
    type Decode = pb::LaneReply;
    type Encoder = FrameEncoder;
    type Decoder = ProstDecoder<pb::LaneReply>;

    fn encoder(&mut self) -> Self::Encoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<pb::LaneFrame, pb::LaneReply>::raw_decoder(BufferSettings::new(512, 4096))
    }
}

/// See [`DialCodec`].
#[derive(Debug)]
pub(crate) struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = pb::LaneFrame;
    type Error = Status;

    fn encode(&mut self, frame: Self::Item, buffer: &mut EncodeBuf<'_>) -> Result<(), Self::Error> {
        // At once: a buffer that doubles until a frame of 256 KiB fits moves what it holds several times.
        buffer.reserve(frame.encoded_len());
        frame.encode_raw(buffer);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        // Nothing before it is needed, and each frame goes as soon as it is made.
        BufferSettings::new(512, 1)
    }
}
