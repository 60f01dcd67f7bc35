//! Reads the lanes that peers have opened: hello, check, hand over. The stream is always drained; what cannot be
//! taken in is dropped and counted, never left in the socket, where it would hold up everything behind it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Message};
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::acceptor::{Acceptor, Greeted, welcome};
use crate::api::{FEATURE_CREDITS, FEATURES, ProposalOutcome, ProposalReply, RelayedProposal};
use crate::assembly::{Added, Assembler, Purse};
use crate::dial::PROTOCOL_VERSION;
use crate::error::WireError;
use crate::frames::Frames;
use crate::receive_budget::{MESSAGE_CHARGE_BYTES, ReceivePermit, charge};
use crate::send_queue::Item;
use crate::status::Lane;
use crate::transport::Shared;
use crate::wire::pieces::Whole;
use crate::wire::{self, Ends, Frame};

/// For the hello of a new stream.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// How many replies may wait for a peer that does not read them.
const REPLIES_MAX: usize = 16;

/// How much is taken off a stream before the peer hears of it: often enough to show life on a slow link, seldom
/// enough to cost nothing.
const ACKNOWLEDGE_BYTES: usize = 64 << 10;

/// The same while more is there already: an eighth of what may be in flight by default. Else a fast stream would be
/// acknowledged some thousand times a second, and each time wakes its sender.
const ACKNOWLEDGE_BUSY_BYTES: usize = 512 << 10;

/// A stream whose frames break the rules this often is closed: its peer does not speak this protocol.
const BAD_FRAMES_MAX: u32 = 100;

type Replies = mpsc::Sender<Result<pb::LaneReply, Status>>;

/// Reads `frames` in a task of its own; what is returned are the replies.
pub(crate) fn start(shared: Arc<Shared>, frames: Frames) -> ReceiverStream<Result<pb::LaneReply, Status>> {
    let (replies, stream) = mpsc::channel(REPLIES_MAX);
    tokio::spawn(async move {
        let mut frames = frames;
        if let Some((greeted, credit)) = hello(&shared, &mut frames, &replies).await {
            serve(&shared, greeted, credit, frames, replies).await;
        }
    });
    ReceiverStream::new(stream)
}

async fn hello(
    shared: &Arc<Shared>,
    frames: &mut Frames,
    replies: &Replies,
) -> Option<(Greeted, Option<watch::Receiver<u64>>)> {
    let stranger = Acceptor::stranger(shared);
    let first = tokio::select! {
        biased;
        () = shared.stop.cancelled() => return None,
        first = timeout(HELLO_PATIENCE, frames.next()) => first,
    };
    let (who, mut checked) = match first {
        Ok(Ok(Some(encoded))) => match wire::hello(&encoded) {
            Some(hello) => {
                let who = (hello.store, wire::cut(hello.name.clone()));
                let checked = if stranger.is_some() {
                    welcome(shared, hello, &[Lane::Control, Lane::Log]).await
                } else {
                    Err((pb::Refusal::Busy, "too many streams without a hello".to_owned()))
                };
                (who, checked)
            }
            None => {
                let refusal = (pb::Refusal::Malformed, "the first frame is no hello".to_owned());
                ((0, String::new()), Err(refusal))
            }
        },
        // It left, or says nothing: there is nobody to answer.
        Ok(Ok(None) | Err(_)) | Err(_) => return None,
    };
    let (refusal, reason) = match &checked {
        Ok(_) => (pb::Refusal::Unspecified, String::new()),
        Err((refusal, reason)) => (*refusal, reason.clone()),
    };
    let ack = pb::HelloAck {
        refusal: refusal.into(),
        reason,
        protocol_version: PROTOCOL_VERSION,
        cluster: shared.config.cluster,
        store: shared.config.store.0,
        name: shared.config.name.clone(),
        features: FEATURES,
        incarnation: shared.incarnation,
        lineage: shared.lineage(),
    };
    let mut credit = None;
    if let Ok(greeted) = &mut checked
        && greeted.lane == Lane::Log
        && greeted.features & FEATURE_CREDITS != 0
    {
        let (account, heard) = shared.credits.open();
        greeted.account = Some(account);
        credit = Some(heard);
    }
    let reply = pb::LaneReply {
        hello_ack: Some(ack),
        credit: credit.as_mut().map(|credit| *credit.borrow_and_update()),
        ..pb::LaneReply::default()
    };
    // The channel is new and empty.
    let _ = replies.try_send(Ok(reply));
    match checked {
        Ok(greeted) => Some((greeted, credit)),
        Err((refusal, reason)) => {
            if let Some(left_out) = shared.acceptor.refusals.allow() {
                tracing::warn!(store = %StoreId(who.0), name = who.1, refusal = refusal.as_str_name(), reason,
                    left_out, "refused a peer");
            }
            None
        }
    }
}

async fn serve(
    shared: &Arc<Shared>,
    mut greeted: Greeted,
    mut credit: Option<watch::Receiver<u64>>,
    mut frames: Frames,
    replies: Replies,
) {
    let ends = Ends { from: greeted.store, to: shared.config.store };
    let mut reader = Reader {
        frames: 1,
        unacknowledged: 0,
        pong: None,
        credit: None,
        bad: 0,
        assembler: Assembler::new(shared.config.limits.message_bytes_max),
    };
    let stop = greeted.stop.clone();
    let mut stopped = pin!(stop.cancelled());
    let ended = loop {
        // The dialer probes after its election timer and a second of silence; four times that is no longer alive.
        let patience = Duration::from_millis(*shared.election_timer.borrow()) * 4 + Duration::from_secs(9);
        let next = tokio::select! {
            biased;
            () = &mut stopped => break "closed here: replaced by a newer stream, or no longer a peer".to_owned(),
            next = timeout(patience, frames.next()) => next,
            more = changed(&mut credit) => {
                reader.credit = Some(more);
                continue;
            }
            // Nothing is there to be read.
            Ok(_) = replies.reserve(), if reader.owes() => {
                reader.reply(&replies);
                continue;
            }
        };
        match next {
            Ok(Ok(Some(encoded))) => {
                let frame = match reader.check(shared, &greeted, ends, &encoded) {
                    Ok(frame) => frame,
                    Err(why) => break why,
                };
                if let Some(taken) = frame {
                    if !greeted.admitted && taken.has_messages() {
                        let admitted = tokio::select! {
                            biased;
                            () = &mut stopped => break "closed here while it was being admitted".to_owned(),
                            admitted = shared.admit(greeted.store, greeted.claim) => admitted,
                        };
                        if let Err(unwelcome) = admitted {
                            break format!("closed here: {unwelcome}");
                        }
                        greeted.admitted = true;
                    }
                    deliver(shared, &greeted, taken);
                }
                if let Some(credit) = credit.as_mut().filter(|credit| credit.has_changed().unwrap_or(false)) {
                    reader.credit = Some(*credit.borrow_and_update());
                }
                if reader.unacknowledged >= ACKNOWLEDGE_BUSY_BYTES || reader.pong.is_some() {
                    reader.reply(&replies);
                }
            }
            Ok(Ok(None)) => break "the peer ended the stream".to_owned(),
            Ok(Err(status)) => break wire::cut(status.message().to_owned()),
            Err(_) => break format!("silent for {patience:?}"),
        }
    };
    tracing::debug!(store = %greeted.store, lane = %greeted.lane, why = ended, "inbound stream over");
    greeted.ended = Some(ended);
}

/// The next offset that the peer may go to.
async fn changed(credit: &mut Option<watch::Receiver<u64>>) -> u64 {
    // The sender of news is there as long as the account is.
    if let Some(credit) = credit
        && credit.changed().await.is_ok()
    {
        *credit.borrow_and_update()
    } else {
        std::future::pending().await
    }
}

struct Reader {
    /// Taken off the stream, the hello included.
    frames: u64,
    /// Bytes since the last reply.
    unacknowledged: usize,
    /// A ping that is not answered yet.
    pong: Option<u64>,
    /// News of how far the peer may send.
    credit: Option<u64>,
    bad: u32,
    /// Large messages of which a part has come.
    assembler: Assembler,
}

/// A frame, and the large messages that it made whole.
#[derive(Default)]
struct Taken {
    frame: Frame,
    wholes: Vec<(GroupId, Message, ReceivePermit)>,
    /// Large messages for which there was no room.
    dropped: u64,
}

impl Taken {
    fn has_messages(&self) -> bool {
        !self.frame.messages.is_empty() || !self.wholes.is_empty()
    }
}

impl Reader {
    /// A frame that passes the gate; `None` for one that does not.
    ///
    /// # Errors
    /// The stream is to be closed.
    fn check(
        &mut self,
        shared: &Arc<Shared>,
        greeted: &Greeted,
        ends: Ends,
        encoded: &Bytes,
    ) -> Result<Option<Taken>, String> {
        let bytes = encoded.len();
        self.frames += 1;
        self.unacknowledged += bytes;
        let counters = &greeted.counters;
        counters.heard(shared);
        counters.frames.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        // What a refused frame was charged is not known, nor which pieces it held.
        let mut goes_on = greeted.account.is_none() && self.assembler.is_empty();
        let frame = wire::open(encoded, ends).and_then(|frame| {
            goes_on &= frame.pieces.is_empty();
            self.assemble(shared, greeted, ends, frame)
        });
        let taken = match frame {
            Ok(taken) => taken,
            Err(error) => {
                counters.refused_frames.fetch_add(1, Ordering::Relaxed);
                self.bad += 1;
                if let Some(left_out) = shared.acceptor.bad_frames.allow() {
                    tracing::warn!(store = %greeted.store, lane = %greeted.lane, %error, left_out, "refused a frame");
                }
                if !goes_on {
                    return Err(format!("closed here: a bad frame: {error}"));
                }
                if self.bad >= BAD_FRAMES_MAX {
                    return Err(format!("closed here: {} bad frames, the last: {error}", self.bad));
                }
                return Ok(None);
            }
        };
        let Frame { messages, proposals, replies, reports, .. } = &taken.frame;
        let messages = messages.len() + taken.wholes.len() + proposals.len() + replies.len() + reports.len();
        counters.messages.fetch_add(messages as u64, Ordering::Relaxed);
        counters.dropped.fetch_add(taken.dropped, Ordering::Relaxed);
        counters.partial_bytes.store(self.assembler.bytes() as u64, Ordering::Relaxed);
        self.pong = taken.frame.ping.or(self.pong);
        Ok(Some(taken))
    }

    /// Puts together what the frame has pieces of.
    fn assemble(
        &mut self,
        shared: &Arc<Shared>,
        greeted: &Greeted,
        ends: Ends,
        mut frame: Frame,
    ) -> Result<Taken, WireError> {
        let pieces = std::mem::take(&mut frame.pieces);
        let mut taken = Taken { frame, ..Taken::default() };
        if !pieces.is_empty() && greeted.lane != Lane::Log {
            return Err(WireError::Piece { why: "is on a lane that has none" });
        }
        let purse =
            Purse { budget: &shared.budget, share: &greeted.share, account: greeted.account.as_ref() };
        for piece in pieces {
            match self.assembler.add(&piece, ends, purse)? {
                Added::Part => {}
                Added::Whole(whole, permit) => match *whole {
                    Whole::Append(group, message) => taken.wholes.push((group, message, permit)),
                    // The host bounds what it keeps of proposals.
                    Whole::Proposal(proposal) => taken.frame.proposals.push(proposal),
                },
                Added::Dropped => taken.dropped += 1,
            }
        }
        Ok(taken)
    }

    /// Whether the peer is to hear something.
    fn owes(&self) -> bool {
        self.pong.is_some() || self.credit.is_some() || self.unacknowledged >= ACKNOWLEDGE_BYTES
    }

    fn reply(&mut self, replies: &Replies) {
        let reply = pb::LaneReply {
            hello_ack: None,
            pong: self.pong,
            received_frames: self.frames,
            credit: self.credit,
        };
        // A peer that does not read replies gets them later, all in one.
        if replies.try_send(Ok(reply)).is_ok() {
            self.pong = None;
            self.credit = None;
            self.unacknowledged = 0;
        }
    }
}

fn deliver(shared: &Arc<Shared>, greeted: &Greeted, taken: Taken) {
    let Taken { frame, wholes, dropped: _ } = taken;
    let Frame { mut messages, proposals, replies, reports, reached, wants, ping: _, pieces: _ } = frame;
    if let Some(account) = greeted.account.as_ref().filter(|_| wants > 0) {
        account.wants(wants);
    }
    // Before, it is not settled that the process is the store.
    if reached > 0 && greeted.admitted {
        shared.inbound.reached(greeted.store, reached);
    }
    if !reports.is_empty() && greeted.admitted {
        shared.inbound.reports(greeted.store, reports);
    }
    if !replies.is_empty() {
        shared.inbound.proposal_replies(greeted.store, replies);
    }
    if !proposals.is_empty() {
        take_proposals(shared, greeted, proposals);
    }
    if !messages.is_empty() {
        let before = messages.len();
        let permit = admit(shared, greeted, &mut messages);
        let dropped = before - messages.len();
        if dropped > 0 {
            greeted.counters.dropped.fetch_add(dropped as u64, Ordering::Relaxed);
        }
        if !messages.is_empty() {
            shared.inbound.receive(greeted.store, messages, permit);
        }
    }
    // They have their place in the budget since they came.
    for (group, message, permit) in wholes {
        shared.inbound.receive(greeted.store, vec![(group, message)], permit);
    }
}

/// Hands proposals over, or refuses them while too much waits to be processed. They hold no permit: the host bounds
/// what it keeps of them.
fn take_proposals(shared: &Arc<Shared>, greeted: &Greeted, proposals: Vec<RelayedProposal>) {
    let bytes: u64 = proposals.iter().map(|p| MESSAGE_CHARGE_BYTES + p.data.len() as u64).sum();
    if shared.budget.has_room(&greeted.share, bytes, false) {
        shared.inbound.proposals(greeted.store, proposals);
        return;
    }
    greeted.counters.dropped.fetch_add(proposals.len() as u64, Ordering::Relaxed);
    if let Some(peer) = shared.peer(greeted.store) {
        let overloaded = |p: RelayedProposal| {
            Item::Reply(ProposalReply {
                group: p.group,
                id: p.id,
                term: p.term,
                number: p.at.number,
                outcome: ProposalOutcome::Overloaded,
            })
        };
        // If there is no room for the answer, the proposer asks. A question that is dropped is asked again.
        let _ = peer.control.queue.push(proposals.into_iter().filter(|p| !p.asks).map(overloaded));
    }
}

/// Takes room for the messages. Without enough, appends with entries go first: losing them is safe, and their leader
/// sends them again.
fn admit(shared: &Arc<Shared>, greeted: &Greeted, messages: &mut Vec<(GroupId, Message)>) -> ReceivePermit {
    let budget = &shared.budget;
    let all: u64 = messages.iter().map(|(_, m)| charge_bytes(m)).sum();
    // Who has credit has room. One that sends more than it may is treated like one that has no credits.
    if let Some(charge) = greeted.account.as_ref().and_then(|account| account.received(all)) {
        return budget.take(&greeted.share, all, Some(charge));
    }
    if budget.has_room(&greeted.share, all, false) {
        return budget.take(&greeted.share, all, None);
    }
    messages.retain(
        |(_, m)| !matches!(&m.body, Body::AppendEntries(a) if a.entries != Entries::Inline(Vec::new())),
    );
    let rest = MESSAGE_CHARGE_BYTES * messages.len() as u64;
    if !budget.has_room(&greeted.share, rest, true) {
        messages.clear();
        return ReceivePermit::default();
    }
    budget.take(&greeted.share, rest, None)
}

pub(crate) fn charge_bytes(message: &Message) -> u64 {
    match &message.body {
        Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) => charge(entries),
        _ => MESSAGE_CHARGE_BYTES,
    }
}
