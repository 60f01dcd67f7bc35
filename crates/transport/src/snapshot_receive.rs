//! The receiving end of a snapshot stream: one at a time per store, each piece checked before it is written. Between two calls of
//! one image, and after a call that broke, what is there waits ([`Parked`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_proto::peer::v1::snapshot_frame::Part;
use pontoon_raft_core::message::Message;
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Streaming;

use crate::acceptor::{Acceptor, Greeted, check_hello, welcome};
use crate::error::Refused;
use crate::receive_budget::MESSAGE_CHARGE_BYTES;
use crate::snapshot_io::SNAPSHOT_CHUNK_BYTES_MAX;
use crate::snapshot_resume::{Arrived, Incoming};
use crate::status::Lane;
use crate::transport::Shared;
use crate::wire::{self, Ends, cut};

/// A chunk and what is around it.
pub(crate) const FRAME_BYTES_MAX: usize = SNAPSHOT_CHUNK_BYTES_MAX + (64 << 10);

/// How long a call waits for an earlier one of the same image to leave what it has.
const OVERTAKE_PATIENCE: Duration = Duration::from_secs(1);

/// How long a new image waits for the one before it to be thrown away.
const TURN_PATIENCE: Duration = Duration::from_millis(100);

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
    check_hello(shared, &hello, &[Lane::Snapshot]).map_err(|(_, reason)| failed(reason))?;
    let from = StoreId(hello.store);
    let ends = Ends { from, to: shared.config.store };
    let (image, begins) = (header.image, header.offset);
    let call = CancellationToken::new();
    // However it ends, there is nothing left to be overtaken then.
    let _over = call.clone().drop_guard();
    // Before the greeting, which ends an earlier call of this peer without a trace of what it has.
    let overtaken = image != 0 && overtake(shared, image, &call);
    let mut greeted =
        welcome(shared, hello, &[Lane::Snapshot]).await.map_err(|(_, reason)| failed(reason))?;
    // It ends in a Raft message.
    shared.admit(from, greeted.claim).await.map_err(|unwelcome| failed(unwelcome.reason))?;
    let message = header.message.ok_or_else(|| failed("a header without a message"))?;
    let (group, message) = wire::install_snapshot(message, ends).map_err(|e| failed(e.to_string()))?;
    let mut parked = take_parked(shared, from, group, image);
    let patience = Instant::now() + OVERTAKE_PATIENCE;
    while overtaken && parked.is_none() && Instant::now() < patience {
        tokio::time::sleep(OVERTAKE_PATIENCE / 100).await;
        parked = take_parked(shared, from, group, image);
    }
    let staging = match parked {
        Some(staging) if staging.incoming.continues(begins) => staging,
        _ if begins > 0 => return Err(failed("what came before of this image is not here any more")),
        _ => begin(shared, from, image, group, message).await?,
    };
    let result = stage(shared, &greeted, frames, staging, &call).await;
    greeted.ended = result.as_ref().err().map(ToString::to_string);
    result
}

/// A call of this image begins. Returns whether an earlier one is still under way: its sender has given it up, though its connection
/// has not been seen to break here, so it ends and leaves what it has.
fn overtake(shared: &Shared, image: u64, call: &CancellationToken) -> bool {
    let mut under_way = shared.snapshot_call.lock().unwrap_or_else(PoisonError::into_inner);
    let earlier = under_way.replace((image, call.clone()));
    let Some((_, earlier)) = earlier.filter(|(of, earlier)| *of == image && !earlier.is_cancelled()) else {
        return false;
    };
    earlier.cancel();
    true
}

/// An image that is being staged.
pub(crate) struct Staging {
    /// Its name; 0: it cannot be resumed.
    image: u64,
    from: StoreId,
    group: GroupId,
    message: Message,
    incoming: Incoming,
    writer: Writer,
}

/// A staged part of an image that waits for the next call of its sender. It keeps the store's turn.
pub(crate) struct Parked(Staging);

/// The part of this image that is here. What else this sender has left here is thrown away: it has begun anew.
fn take_parked(shared: &Shared, from: StoreId, group: GroupId, image: u64) -> Option<Staging> {
    let mut parked = shared.snapshot_parked.lock().unwrap_or_else(PoisonError::into_inner);
    let Parked(staging) = parked.take_if(|Parked(staging)| staging.from == from)?;
    (image != 0 && (staging.image, staging.group) == (image, group)).then_some(staging)
}

/// Keeps what is there for the sender's next call, for as long as a silence may last within one.
fn park(shared: &Arc<Shared>, staging: Staging) {
    let (image, offset) = (staging.image, staging.incoming.has().offset);
    let park = |parked: Option<Parked>| {
        *shared.snapshot_parked.lock().unwrap_or_else(PoisonError::into_inner) = parked;
    };
    park(Some(Parked(staging)));
    let (shared, patience) = (Arc::clone(shared), shared.config.limits.snapshot_stall);
    tokio::spawn(async move {
        tokio::select! {
            () = shared.stop.cancelled() => {}
            () = tokio::time::sleep(patience) => {}
        }
        let mut parked = shared.snapshot_parked.lock().unwrap_or_else(PoisonError::into_inner);
        drop(
            parked
                .take_if(|Parked(staging)| (staging.image, staging.incoming.has().offset) == (image, offset)),
        );
    });
}

/// Begins to stage an image.
async fn begin(
    shared: &Arc<Shared>,
    from: StoreId,
    image: u64,
    group: GroupId,
    message: Message,
) -> Result<Staging, Refused> {
    // Held by the writing thread until it is done: a sink that hangs on its disk keeps others out. One that was just told to
    // throw its image away needs a moment.
    let turn = timeout(TURN_PATIENCE, Arc::clone(&shared.snapshot_receive).acquire_owned());
    let Ok(Ok(turn)) = turn.await else { return Err(Refused::Busy) };
    let (pieces, waiting) = mpsc::channel(CHUNKS_WAITING_MAX);
    let (done, written) = oneshot::channel();
    let (inbound, meta) = (Arc::clone(&shared.inbound), message.clone());
    tokio::task::spawn_blocking(move || {
        let result = inbound.snapshot_begin(from, group, meta).and_then(|sink| write(sink, waiting));
        drop(turn);
        let _ = done.send(result);
    });
    let writer = Writer { pieces, written, patience: shared.config.limits.snapshot_stall };
    Ok(Staging { image, from, group, message, incoming: Incoming::default(), writer })
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
    mut staging: Staging,
    call: &CancellationToken,
) -> Result<(), Refused> {
    let patience = shared.config.limits.snapshot_stall;
    loop {
        let part = tokio::select! {
            biased;
            // The sink failed or refused: no need to hear the rest.
            result = &mut staging.writer.written => return Err(ended_early(result)),
            () = call.cancelled() => Err(failed("its sender has begun another call")),
            // Also when another connection takes the place of this one.
            () = greeted.stop.cancelled() => Err(failed("closed here: no longer a peer")),
            part = next(frames, patience) => part,
        };
        let part = match part {
            Ok(part) => part,
            Err(broken) => {
                if staging.image != 0 {
                    park(shared, staging);
                }
                return Err(broken);
            }
        };
        match part {
            Part::Chunk(chunk) => {
                let crc = crc32c::crc32c(&chunk.data);
                if crc != chunk.crc32c {
                    return Err(failed(format!(
                        "the chunk at offset {} is corrupt: its checksum differs",
                        chunk.offset
                    )));
                }
                let expected = staging.incoming.has().offset;
                let bytes = chunk.data.len();
                let arrived = staging.incoming.piece(chunk.offset, &chunk.data);
                if arrived == Arrived::Misplaced || bytes > SNAPSHOT_CHUNK_BYTES_MAX {
                    return Err(failed(format!(
                        "expected at most {SNAPSHOT_CHUNK_BYTES_MAX} bytes at offset {expected}, found {bytes} at {}",
                        chunk.offset
                    )));
                }
                greeted.counters.frames.fetch_add(1, Ordering::Relaxed);
                greeted.counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
                if arrived == Arrived::New {
                    staging.writer.give(Piece::Chunk(chunk.data)).await?;
                }
            }
            Part::Trailer(trailer) => {
                check_end(&staging.incoming, &trailer)?;
                break;
            }
            Part::Pause(trailer) => {
                check_end(&staging.incoming, &trailer)?;
                if staging.image == 0 {
                    return Err(failed("a pause in an image without a name"));
                }
                park(shared, staging);
                return Ok(());
            }
            Part::Header(_) => return Err(failed("a second header")),
        }
    }
    let Staging { group, message, from, writer, .. } = staging;
    tokio::select! {
        biased;
        () = greeted.stop.cancelled() => return Err(failed("closed here: no longer a peer")),
        result = writer.finish(shared.config.limits.snapshot_duration_max) => result?,
    }
    let permit = shared.budget.take(&greeted.share, MESSAGE_CHARGE_BYTES, None);
    shared.inbound.receive(from, vec![(group, message)], permit);
    Ok(())
}

fn check_end(incoming: &Incoming, trailer: &pb::SnapshotTrailer) -> Result<(), Refused> {
    let has = incoming.has();
    if (trailer.bytes, trailer.crc32c) == (has.offset, has.crc32c) {
        return Ok(());
    }
    Err(failed(format!(
        "the trailer speaks of {} bytes and {} came, or the checksum differs",
        trailer.bytes, has.offset
    )))
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
