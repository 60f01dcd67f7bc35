//! The receiving end of a snapshot stream: one at a time per store, each piece checked before it is written.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::snapshot_frame::Part;
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::time::timeout;
use tonic::Streaming;

use crate::acceptor::{Acceptor, Greeted, welcome};
use crate::error::Refused;
use crate::receive_budget::MESSAGE_CHARGE_BYTES;
use crate::snapshot_io::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::status::Lane;
use crate::transport::Shared;
use crate::wire::{self, Ends, cut};

/// A chunk and what is around it.
pub(crate) const FRAME_BYTES_MAX: usize = SNAPSHOT_CHUNK_BYTES_MAX + (64 << 10);

/// Chunks that wait for the disk.
const CHUNKS_WAITING_MAX: usize = 2;

/// Receives one snapshot, whatever comes of it.
pub(crate) async fn run(
    shared: &Arc<Shared>,
    mut frames: Streaming<pb::SnapshotFrame>,
) -> pb::SnapshotResult {
    let limit = shared.config.limits.snapshot_duration_max;
    let received = tokio::select! {
        biased;
        () = shared.stop.cancelled() => Err(failed("shutting down")),
        received = timeout(limit, receive(shared, &mut frames)) => {
            received.unwrap_or_else(|_| Err(failed(format!("took longer than {limit:?}"))))
        }
    };
    match received {
        Ok(()) => pb::SnapshotResult::default(),
        Err(refused) => {
            tracing::debug!(%refused, "snapshot not received");
            pb::SnapshotResult { busy: refused == Refused::Busy, refused: cut(refused.to_string()) }
        }
    }
}

fn failed(reason: impl Into<String>) -> Refused {
    Refused::Failed { reason: reason.into() }
}

async fn next(frames: &mut Streaming<pb::SnapshotFrame>, patience: Duration) -> Result<Part, Refused> {
    let frame = timeout(patience, frames.message())
        .await
        .map_err(|_| failed(format!("the sender was silent for {patience:?}")))?
        .map_err(|status| failed(status.message()))?
        .ok_or_else(|| failed("the stream ended before its trailer"))?;
    frame.part.ok_or_else(|| failed("a frame of an unknown kind"))
}

async fn receive(shared: &Arc<Shared>, frames: &mut Streaming<pb::SnapshotFrame>) -> Result<(), Refused> {
    let patience = shared.config.limits.snapshot_stall;
    let stranger = Acceptor::stranger(shared);
    if stranger.is_none() {
        return Err(Refused::Busy);
    }
    let Part::Header(header) = next(frames, patience).await? else {
        return Err(failed("the first frame is no header"));
    };
    drop(stranger);
    let hello = header.hello.ok_or_else(|| failed("a header without a hello"))?;
    let from = StoreId(hello.store);
    let ends = Ends { from, to: shared.config.store };
    let mut greeted =
        welcome(shared, hello, &[Lane::Snapshot]).await.map_err(|(_, reason)| failed(reason))?;
    // It ends in a Raft message.
    shared.admit(from, greeted.claim).await.map_err(|unwelcome| failed(unwelcome.reason))?;
    let message = header.message.ok_or_else(|| failed("a header without a message"))?;
    let (group, message) = wire::install_snapshot(message, ends).map_err(|e| failed(e.to_string()))?;
    // Held by the writing thread until it is done: a sink that hangs on its disk keeps others out.
    let turn = Arc::clone(&shared.snapshot_receive).try_acquire_owned().map_err(|_| Refused::Busy)?;
    let result = tokio::select! {
        biased;
        () = greeted.stop.cancelled() => Err(failed("closed here: no longer a peer")),
        result = stage(shared, &greeted, frames, turn, group, message) => result,
    };
    greeted.ended = result.as_ref().err().map(ToString::to_string);
    result
}

/// What the writing thread is told.
enum Piece {
    Chunk(Bytes),
    /// Everything was received and checked.
    Finish,
}

async fn stage(
    shared: &Arc<Shared>,
    greeted: &Greeted,
    frames: &mut Streaming<pb::SnapshotFrame>,
    turn: OwnedSemaphorePermit,
    group: GroupId,
    message: Message,
) -> Result<(), Refused> {
    let patience = shared.config.limits.snapshot_stall;
    let (pieces, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (done, written) = oneshot::channel();
    let (from, inbound, meta) = (greeted.store, Arc::clone(&shared.inbound), message.clone());
    tokio::task::spawn_blocking(move || {
        let result = inbound.snapshot_begin(from, group, meta).and_then(|sink| write(sink, waiting));
        drop(turn);
        let _ = done.send(result);
    });
    let mut writer = Writer { pieces, written, patience };
    let (mut offset, mut total_crc) = (0u64, 0u32);
    loop {
        let part = tokio::select! {
            biased;
            // The sink failed or refused: no need to hear the rest.
            result = &mut writer.written => return Err(ended_early(result)),
            part = next(frames, patience) => part?,
        };
        match part {
            Part::Chunk(chunk) => {
                if chunk.offset != offset || chunk.data.len() > SNAPSHOT_CHUNK_BYTES_MAX {
                    return Err(failed(format!(
                        "expected at most {SNAPSHOT_CHUNK_BYTES_MAX} bytes at offset {offset}, found {} at {}",
                        chunk.data.len(),
                        chunk.offset
                    )));
                }
                let crc = crc32c::crc32c(&chunk.data);
                if crc != chunk.crc32c {
                    return Err(failed(format!(
                        "the chunk at offset {offset} is corrupt: its checksum differs"
                    )));
                }
                total_crc = crc32c::crc32c_append(total_crc, &chunk.data);
                offset += chunk.data.len() as u64;
                greeted.counters.frames.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                greeted
                    .counters
                    .bytes
                    .fetch_add(chunk.data.len() as u64, std::sync::atomic::Ordering::Relaxed);
                writer.give(Piece::Chunk(chunk.data)).await?;
            }
            Part::Trailer(trailer) => {
                if trailer.bytes != offset || trailer.crc32c != total_crc {
                    return Err(failed(format!(
                        "the trailer speaks of {} bytes and {offset} came, or the checksum differs",
                        trailer.bytes
                    )));
                }
                break;
            }
            Part::Header(_) => return Err(failed("a second header")),
        }
    }
    writer.finish(shared.config.limits.snapshot_duration_max).await?;
    let permit = shared.budget.take(&greeted.share, MESSAGE_CHARGE_BYTES);
    shared.inbound.receive(from, vec![(group, message)], permit);
    Ok(())
}

fn write(
    mut sink: Box<dyn crate::snapshot_io::SnapshotSink>,
    mut waiting: mpsc::Receiver<Piece>,
) -> Result<(), Refused> {
    let io = |e: std::io::Error| failed(e.to_string());
    loop {
        match waiting.blocking_recv() {
            Some(Piece::Chunk(chunk)) => sink.write(chunk).map_err(io)?,
            Some(Piece::Finish) => return sink.finish().map_err(io),
            // Given up: dropping the sink throws the image away.
            None => return Err(failed("given up by the receiver")),
        }
    }
}

fn ended_early(result: Result<Result<(), Refused>, oneshot::error::RecvError>) -> Refused {
    match result {
        Ok(Err(refused)) => refused,
        Ok(Ok(())) | Err(_) => failed("the sink stopped"),
    }
}

struct Writer {
    pieces: mpsc::Sender<Piece>,
    written: oneshot::Receiver<Result<(), Refused>>,
    patience: Duration,
}

impl Writer {
    async fn give(&mut self, piece: Piece) -> Result<(), Refused> {
        match timeout(self.patience, self.pieces.send(piece)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(ended_early((&mut self.written).await)),
            Err(_) => Err(failed(format!("the disk took nothing for {:?}", self.patience))),
        }
    }

    async fn finish(mut self, limit: Duration) -> Result<(), Refused> {
        self.give(Piece::Finish).await?;
        match timeout(limit, self.written).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(failed("the sink panicked")),
            Err(_) => Err(failed(format!("the image was not durable within {limit:?}"))),
        }
    }
}
