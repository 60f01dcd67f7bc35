//! A keyspace's state as a stream for clients, as `etcdctl snapshot save` takes it.
//!
//! What is streamed is an image (`mvcc/frames.rs`), zeros up to a multiple of 512 bytes, and the SHA-256 of all that:
//! etcd's client checks the length, and `pontoon keyspace restore` the sum. It is no bolt file: etcd's own tools can save
//! it, and not look into it.

use std::time::Duration;

use bytes::Bytes;
use pontoon_node::state_machine::SnapshotReader as _;
use pontoon_proto::etcdserverpb::{ResponseHeader, SnapshotResponse};
use ring::digest::{Context, SHA256};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::session::Session;

/// Streams that are made at a time, on one store: each keeps old versions from being removed.
pub(super) const SNAPSHOTS_MAX: usize = 4;

/// Pieces that wait for the connection.
const PIECES_MAX: usize = 4;

/// A client that takes nothing for so long is cut off.
const STALL_MAX: Duration = Duration::from_secs(60);

/// What the length without the sum is a multiple of.
pub(super) const BLOCK_BYTES: u64 = 512;

type Piece = Result<SnapshotResponse, Status>;

struct Sender {
    pieces: mpsc::Sender<Piece>,
    runtime: Handle,
    header: Option<ResponseHeader>,
    version: &'static str,
    hash: Context,
    sent: u64,
    /// An estimate of the whole: what comes is not known before it has come.
    estimate: u64,
}

impl Sender {
    /// Waits for room; `Err` when nobody listens any more.
    fn give(&self, piece: Piece) -> Result<(), ()> {
        let sent = self.runtime.block_on(tokio::time::timeout(STALL_MAX, self.pieces.send(piece)));
        sent.map_err(drop)?.map_err(drop)
    }

    fn blob(&mut self, blob: Bytes, remaining_bytes: u64) -> Result<(), ()> {
        self.sent += blob.len() as u64;
        self.hash.update(&blob);
        let (header, version) = (self.header, self.version.to_owned());
        self.give(Ok(SnapshotResponse { header, remaining_bytes, blob, version }))
    }

    fn run(mut self, session: &Session) -> Result<(), ()> {
        let mut image = match session.image() {
            Ok(image) => image,
            Err(e) => return self.give(Err(Status::unavailable(format!("etcdserver: server stopped: {e}")))),
        };
        loop {
            match image.read() {
                Ok(Some(blob)) => {
                    let remaining = self.estimate.saturating_sub(self.sent + blob.len() as u64).max(1);
                    self.blob(blob, remaining)?;
                }
                Ok(None) => break,
                Err(e) => return self.give(Err(Status::new(Code::Unavailable, e.to_string()))),
            }
        }
        let padding = self.sent.next_multiple_of(BLOCK_BYTES) - self.sent;
        self.blob(Bytes::from(vec![0; padding as usize]), ring::digest::SHA256_OUTPUT_LEN as u64)?;
        let sum = self.hash.clone().finish();
        self.blob(Bytes::copy_from_slice(sum.as_ref()), 0)
    }
}

/// Makes the stream on a thread of its own.
pub(super) fn stream(
    session: Session,
    header: Option<ResponseHeader>,
    version: &'static str,
    place: OwnedSemaphorePermit,
) -> ReceiverStream<Piece> {
    let (pieces, stream) = mpsc::channel(PIECES_MAX);
    let sender = Sender {
        pieces,
        runtime: Handle::current(),
        header,
        version,
        hash: Context::new(&SHA256),
        sent: 0,
        estimate: session.size_bytes(),
    };
    tokio::task::spawn_blocking(move || {
        let _place = place;
        // Whoever does not listen need not be told.
        let _ = sender.run(&session);
    });
    ReceiverStream::new(stream)
}
