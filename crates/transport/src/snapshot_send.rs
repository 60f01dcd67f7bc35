//! The sending end of a snapshot stream: its own connection, a bounded number of chunks in flight.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::snapshot_frame::Part;
use pontoon_raft_core::message::{Body, Message};
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::dial::{self, DialError};
use crate::snapshot_io::{SNAPSHOT_CHUNK_BYTES_MAX, SnapshotReader};
use crate::snapshot_receive::FRAME_BYTES_MAX;
use crate::status::Lane;
use crate::transport::{Peer, Shared};
use crate::wire;

/// Chunks between the disk and the connection.
const CHUNKS_WAITING_MAX: usize = 2;

/// For the connection.
const DIAL_PATIENCE: Duration = Duration::from_secs(5);

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

async fn stream(
    shared: &Arc<Shared>,
    peer: &Peer,
    group: GroupId,
    message: Message,
    reader: Box<dyn SnapshotReader>,
) -> Result<(), SendError> {
    let stall = shared.config.limits.snapshot_stall;
    let address = peer.address.read().unwrap_or_else(PoisonError::into_inner).clone();
    let (mut client, kill) = timeout(DIAL_PATIENCE, dial::connect(&address, FRAME_BYTES_MAX, Some(stall)))
        .await
        .map_err(|_| DialError::TimedOut(DIAL_PATIENCE))??;
    let (frames, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let header = pb::SnapshotHeader {
        hello: Some(shared.hello(peer.control.store, Lane::Snapshot)),
        message: Some(wire::message_to_wire(group, message, Vec::new())),
    };
    let call = client.snapshot(ReceiverStream::new(waiting));
    let feed = feed(frames, Part::Header(header), reader, stall);
    tokio::pin!(call, feed);
    let mut fed = false;
    // The receiver may answer before everything is sent: a refusal.
    let answer = loop {
        tokio::select! {
            biased;
            answer = &mut call => break answer?.into_inner(),
            result = &mut feed, if !fed => {
                result?;
                fed = true;
            }
        }
    };
    drop(kill);
    if answer.busy {
        return Err(SendError::Busy);
    }
    if answer.refused.is_empty() { Ok(()) } else { Err(SendError::Refused(wire::cut(answer.refused))) }
}

async fn feed(
    frames: mpsc::Sender<pb::SnapshotFrame>,
    header: Part,
    mut reader: Box<dyn SnapshotReader>,
    stall: Duration,
) -> Result<(), SendError> {
    // `false`: the call has ended, and its answer says why.
    let give = async |part| {
        let frame = pb::SnapshotFrame { part: Some(part) };
        match timeout(stall, frames.send(frame)).await {
            Ok(sent) => Ok(sent.is_ok()),
            Err(_) => Err(SendError::Stalled(stall)),
        }
    };
    if !give(header).await? {
        return Ok(());
    }
    let (mut offset, mut total_crc) = (0u64, 0u32);
    loop {
        let (read, returned) = read(reader).await?;
        reader = returned;
        let Some((data, crc32c)) = read else { break };
        if data.len() > SNAPSHOT_CHUNK_BYTES_MAX {
            return Err(SendError::ChunkSize(data.len()));
        }
        total_crc = crc32c::crc32c_append(total_crc, &data);
        let chunk = pb::SnapshotChunk { offset, crc32c, data };
        offset += chunk.data.len() as u64;
        if !give(Part::Chunk(chunk)).await? {
            return Ok(());
        }
    }
    give(Part::Trailer(pb::SnapshotTrailer { bytes: offset, crc32c: total_crc })).await?;
    Ok(())
}

type ReadChunk = (Option<(Bytes, u32)>, Box<dyn SnapshotReader>);

/// Reads a piece where blocking is allowed.
async fn read(mut reader: Box<dyn SnapshotReader>) -> Result<ReadChunk, SendError> {
    let task = tokio::task::spawn_blocking(move || {
        let chunk = reader.read()?.map(|data| {
            let crc = crc32c::crc32c(&data);
            (data, crc)
        });
        Ok((chunk, reader))
    });
    match task.await {
        Ok(result) => result.map_err(SendError::Read),
        Err(panic) => Err(SendError::Read(io::Error::other(panic))),
    }
}
