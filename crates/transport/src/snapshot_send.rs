//! The sending end of a snapshot stream: its own connection, a bounded number of chunks in flight, and a new connection if that
//! one breaks (`snapshot_resume.rs`).

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::peer_client::PeerClient;
use pontoon_proto::peer::v1::snapshot_frame::Part;
use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::dial::{self, DialError};
use crate::io::KillOnDrop;
use crate::snapshot_io::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader};
use crate::snapshot_receive::FRAME_BYTES_MAX;
use crate::snapshot_resume::{Outgoing, Piece, Place};
use crate::status::Lane;
use crate::transport::{Peer, Shared};
use crate::wire;

/// Chunks between the disk and the connection.
const CHUNKS_WAITING_MAX: usize = 2;

/// For the connection.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);

/// How often in a row a call may fail without having brought a segment. With the waits between, some three seconds: about as long
/// as a connection that comes back needs; after that the leader judges anew what the follower needs.
const TRIES_MAX: u32 = 5;

/// The wait before the first new try; each further one is longer by as much.
const RETRY: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
enum SendError {
    #[error("the message is no InstallSnapshot from this store to that one")]
    Message,
    #[error("the store is no peer")]
    UnknownStore,
    #[error("another snapshot is on its way")]
    Busy,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the image cannot be read: {0}")]
    Read(#[source] io::Error),
    #[error("a piece has {0} bytes, more than {SNAPSHOT_CHUNK_BYTES_MAX}")]
    ChunkSize(usize),
    #[error("the receiver took nothing for {0:?}")]
    Stalled(Duration),
    #[error("not done within {0:?}")]
    TooLong(Duration),
    #[error("the stream failed: {}", .0.message())]
    Stream(#[from] Status),
    #[error("the receiver refused: {0}")]
    Refused(String),
    #[error("shutting down, or no longer a peer")]
    Stopped,
}

/// Sends one snapshot and tells the host how it ended.
pub(crate) async fn run(
    shared: Arc<Shared>,
    to: StoreId,
    group: GroupId,
    message: Message,
    reader: Box<dyn SnapshotReader>,
) {
    let replica = message.to;
    let sent = send(&shared, to, group, message, reader).await;
    if let Err(error) = &sent {
        tracing::info!(store = %to, %group, %error, "snapshot not sent");
    }
    shared.inbound.snapshot_sent(to, group, replica, sent.is_ok());
}

async fn send(
    shared: &Arc<Shared>,
    to: StoreId,
    group: GroupId,
    message: Message,
    reader: Box<dyn SnapshotReader>,
) -> Result<(), SendError> {
    let ours = message.from.store == shared.config.store && message.to.store == to;
    if !ours || !matches!(message.body, Body::InstallSnapshot(_)) {
        return Err(SendError::Message);
    }
    let peer = shared.peer(to).ok_or(SendError::UnknownStore)?;
    let turns = turns(shared, &peer).ok_or(SendError::Busy)?;
    let limit = shared.config.limits.snapshot_duration_max;
    let result = tokio::select! {
        biased;
        () = peer.stop.cancelled() => Err(SendError::Stopped),
        result = timeout(limit, stream(shared, &peer, group, message, reader)) => {
            result.unwrap_or(Err(SendError::TooLong(limit)))
        }
    };
    drop(turns);
    result
}

fn turns(shared: &Shared, peer: &Peer) -> Option<[OwnedSemaphorePermit; 2]> {
    let of_peer = Arc::clone(&peer.snapshot_send).try_acquire_owned().ok()?;
    let of_all = Arc::clone(&shared.snapshot_sends).try_acquire_owned().ok()?;
    Some([of_peer, of_all])
}

/// How one call ended that did not fail.
enum Progress {
    /// The receiver has the segment; there is more.
    More,
    Done,
}

async fn stream(
    shared: &Arc<Shared>,
    peer: &Peer,
    group: GroupId,
    message: Message,
    reader: Box<dyn SnapshotReader>,
) -> Result<(), SendError> {
    let header = pb::SnapshotHeader {
        hello: Some(shared.hello(peer.control.store, Lane::Snapshot)),
        message: Some(wire::message_to_wire(group, message, Vec::new())),
        // Zero would mean that it cannot be resumed.
        image: RandomState::new().hash_one(group.0).max(1),
        offset: 0,
    };
    let mut sending = Sending { outgoing: Outgoing::default(), source: Source::Idle(reader) };
    let (mut connection, mut tries) = (None, 0);
    loop {
        match segment(shared, peer, &header, &mut sending, &mut connection).await {
            Ok(Progress::Done) => return Ok(()),
            Ok(Progress::More) => tries = 0,
            Err(error) => {
                // What the receiver has it keeps for a while. "Busy" is its old call, if there was one.
                let resumes = match &error {
                    SendError::Dial(_) | SendError::Stalled(_) | SendError::Stream(_) => true,
                    SendError::Busy => tries > 0,
                    _ => false,
                };
                if !resumes || tries == TRIES_MAX {
                    return Err(error);
                }
                tries += 1;
                tracing::debug!(%group, %error, tries, "the snapshot's stream broke; it goes on from what is there");
                connection = None;
                tokio::time::sleep(RETRY * tries).await;
            }
        }
    }
}

/// What is sent, and where it comes from.
struct Sending {
    outgoing: Outgoing,
    source: Source,
}

/// A piece, `None` at the end, and the reader that it came from.
type ReadPiece = io::Result<(Option<Piece>, Box<dyn SnapshotReader>)>;

/// The image. Reading blocks, so it happens elsewhere, and goes on there when the call it was for breaks.
enum Source {
    Idle(Box<dyn SnapshotReader>),
    Reading(JoinHandle<ReadPiece>),
    /// It has ended, or failed.
    Over,
}

/// A connection for snapshots, and what ends it when it is dropped.
type Connection = (PeerClient<Channel>, KillOnDrop);

/// One call: everything that is not answered for, up to the end of a segment or of the image.
async fn segment(
    shared: &Arc<Shared>,
    peer: &Peer,
    header: &pb::SnapshotHeader,
    sending: &mut Sending,
    connection: &mut Option<Connection>,
) -> Result<Progress, SendError> {
    let stall = shared.config.limits.snapshot_stall;
    if connection.is_none() {
        let address = peer.address.read().unwrap_or_else(PoisonError::into_inner).clone();
        let dialled = timeout(
            DIAL_PATIENCE,
            dial::connect(&address, shared.config.tls.as_ref(), FRAME_BYTES_MAX, stall),
        )
        .await;
        *connection = Some(dialled.map_err(|_| DialError::TimedOut(DIAL_PATIENCE))??);
    }
    let Some((client, _)) = connection else { return Err(SendError::Stopped) };
    let (frames, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let header = pb::SnapshotHeader { offset: sending.outgoing.begin().offset, ..header.clone() };
    let call = client.snapshot(ReceiverStream::new(waiting));
    let mut fed = None;
    // The receiver may answer before everything is sent: a refusal.
    let answer = {
        let feed = feed(frames, Part::Header(header), sending, stall);
        tokio::pin!(call, feed);
        loop {
            tokio::select! {
                biased;
                answer = &mut call => break answer?.into_inner(),
                result = &mut feed, if fed.is_none() => fed = Some(result?),
            }
        }
    };
    if answer.busy {
        return Err(SendError::Busy);
    }
    if !answer.refused.is_empty() {
        return Err(SendError::Refused(wire::cut(answer.refused)));
    }
    match fed {
        Some(Fed::Image) => Ok(Progress::Done),
        Some(Fed::Segment) => {
            sending.outgoing.answered();
            Ok(Progress::More)
        }
        Some(Fed::Interrupted) | None => {
            Err(SendError::Refused("it answered before everything was sent".to_owned()))
        }
    }
}

/// What a call was given.
#[derive(Clone, Copy)]
enum Fed {
    /// Everything to the end.
    Image,
    /// A whole segment.
    Segment,
    /// The call ended before, and its answer says why.
    Interrupted,
}

async fn feed(
    frames: mpsc::Sender<pb::SnapshotFrame>,
    header: Part,
    sending: &mut Sending,
    stall: Duration,
) -> Result<Fed, SendError> {
    // `false`: the call has ended.
    let give = async |part| {
        let frame = pb::SnapshotFrame { part: Some(part) };
        match timeout(stall, frames.send(frame)).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(SendError::Stalled(stall)),
        }
    };
    if !give(header).await? {
        return Ok(Fed::Interrupted);
    }
    let ends = loop {
        let Some((offset, Piece { data, crc32c })) = sending.outgoing.next_kept() else {
            if sending.outgoing.is_full() {
                break Fed::Segment;
            }
            match sending.source.next().await? {
                Some(piece) if piece.data.len() > SNAPSHOT_CHUNK_BYTES_MAX => {
                    return Err(SendError::ChunkSize(piece.data.len()));
                }
                Some(piece) => sending.outgoing.read(piece),
                None => break Fed::Image,
            }
            continue;
        };
        if !give(Part::Chunk(pb::SnapshotChunk { offset, crc32c, data })).await? {
            return Ok(Fed::Interrupted);
        }
    };
    let Place { offset: bytes, crc32c } = sending.outgoing.sent();
    let trailer = pb::SnapshotTrailer { bytes, crc32c };
    let last = if matches!(ends, Fed::Image) { Part::Trailer(trailer) } else { Part::Pause(trailer) };
    Ok(if give(last).await? { ends } else { Fed::Interrupted })
}

impl Source {
    /// The next piece; `None` at the end. If this is given up, the piece is not lost.
    async fn next(&mut self) -> Result<Option<Piece>, SendError> {
        if let Self::Idle(_) = self
            && let Self::Idle(mut reader) = std::mem::replace(self, Self::Over)
        {
            *self = Self::Reading(tokio::task::spawn_blocking(move || {
                let piece = reader.read()?.map(|data| Piece { crc32c: crc32c::crc32c(&data), data });
                Ok((piece, reader))
            }));
        }
        let Self::Reading(task) = self else { return Ok(None) };
        let read = task.await;
        *self = Self::Over;
        let (piece, reader) = match read {
            Ok(result) => result.map_err(SendError::Read)?,
            Err(panic) => return Err(SendError::Read(io::Error::other(panic))),
        };
        if piece.is_some() {
            *self = Self::Idle(reader);
        }
        Ok(piece)
    }
}
