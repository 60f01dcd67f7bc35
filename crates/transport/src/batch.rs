//! Which of the waiting messages form the next frame.
//!
//! There is no linger timer: a frame holds what waits when the stream asks for it, up to a target. While one frame is
//! on its way the next one gathers by itself, so an idle link sends a lone message at once and a busy one sends large
//! frames. A message that is larger than several together may be is sent in pieces, beside what else waits, to a peer that takes
//! them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Message};
use pontoon_raft_core::types::{Entry, GroupId, StoreId};
use tokio_stream::Stream;

use crate::api::{EntrySource, FEATURE_BEATS, FEATURE_PIECES, RelayedProposal};
use crate::beats::{self, BEAT_BYTES, Beat};
use crate::groups::GroupMap;
use crate::receive_budget::{MESSAGE_CHARGE_BYTES, charge};
use crate::send_queue::{Content, Helping, Item, KEEP_CAPACITY, Large, PIECE_BYTES, SendQueue, Sent};
use crate::wire;
use crate::wire::outgoing::Outgoing;

/// About what a message takes on the wire beyond its data.
const MESSAGE_BYTES: usize = 48;
/// Messages in one frame; the receiver takes four times as many.
const FRAME_MESSAGES_MAX: usize = 4096;

/// Where a frame ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLimits {
    /// Nothing is added once a frame has this many bytes. And the share of one group in each round.
    pub(crate) target: usize,
    /// Several messages together stay below. What is larger alone is sent in pieces, if the peer takes them.
    pub(crate) several: usize,
    /// A single message above it is lost: the peer would refuse it.
    pub(crate) single: usize,
}

/// The frames of one stream, made when the stream has room for them.
pub(crate) struct FrameStream {
    queue: Arc<SendQueue>,
    epoch: u64,
    entries: Arc<dyn EntrySource>,
    limits: FrameLimits,
    sent: Sent,
    shares: Shares,
}

/// What each group had of the present round, in bytes.
#[derive(Debug, Default)]
struct Shares {
    round: u64,
    had: GroupMap<usize>,
    /// Groups that have nothing more in this round, because a large message of theirs has begun.
    over: Vec<GroupId>,
}

impl Shares {
    /// A new round begins all anew.
    fn in_round(&mut self, round: u64) {
        if self.round != round {
            self.round = round;
            self.had.clear();
            self.over.clear();
        }
    }

    fn had(&self, group: GroupId) -> usize {
        if self.over.contains(&group) {
            return usize::MAX;
        }
        self.had.get(&group).copied().unwrap_or(0)
    }

    /// Returns what the group had with that.
    fn has(&mut self, group: GroupId, bytes: usize) -> usize {
        let had = self.had.entry(group).or_default();
        *had += bytes;
        *had
    }
}

impl FrameStream {
    pub(crate) fn new(
        queue: Arc<SendQueue>,
        epoch: u64,
        entries: Arc<dyn EntrySource>,
        limits: FrameLimits,
    ) -> Self {
        Self { queue, epoch, entries, limits, sent: Sent::default(), shares: Shares::default() }
    }

    /// Builds a frame of `content` and more from the queue; `None` if all items were stale, or the first has no room.
    fn build(&mut self, content: Content) -> Option<Outgoing> {
        let Content { ping, wants, batch, pieces_bytes_max, room, features } = content;
        // (A frame of pieces that are due takes no items.)
        let takes_items = !batch.items.is_empty();
        if takes_items {
            self.shares.in_round(batch.round);
        }
        let mut frame = Builder {
            frame: Outgoing::new(
                pb::LaneFrame { ping, wants: wants.unwrap_or_default(), ..pb::LaneFrame::default() },
                batch.items.len(),
            ),
            messages: 0,
            bytes: 0,
            limits: FrameLimits { several: self.limits.several.min(room.bytes), ..self.limits },
            large: if features & FEATURE_PIECES != 0 { self.limits.several } else { usize::MAX },
            any_one: room.any_one,
            credit: room.credit,
            packs: features & FEATURE_BEATS != 0,
            queue: &self.queue,
            epoch: self.epoch,
            source: &*self.entries,
            sent: &mut self.sent,
            shares: &mut self.shares,
        };
        let mut waiting = batch.items.into_iter();
        let rest = loop {
            if !takes_items || frame.is_full() {
                break None;
            }
            let Some(item) = waiting.next() else {
                let batch = frame.queue.more(frame.epoch, &mut frame.sent.later);
                if batch.items.is_empty() {
                    break None;
                }
                frame.shares.in_round(batch.round);
                waiting = batch.items.into_iter();
                continue;
            };
            match frame.add(item) {
                Added::Yes => {}
                Added::Later(item) => frame.sent.later.push(item),
                Added::NoRoom(item) => break Some(item),
            }
        };
        // Pieces would take the room that an item waits for.
        if rest.is_none() || frame.sent.starved.is_some() {
            frame.add_pieces(pieces_bytes_max);
        }
        let Builder { frame: mut built, messages, bytes, credit, .. } = frame;
        self.sent.messages += messages as u64;
        self.sent.bytes = bytes as u64;
        self.sent.charge = room.credit - credit;
        let holds_something =
            ping.is_some() || wants.is_some() || messages > 0 || !built.rest.pieces.is_empty();
        // After the items were taken: what they rest on was durable when they were queued.
        built.rest.reached = self.entries.durable();
        self.queue.sent(self.epoch, rest.into_iter().chain(waiting), &mut self.sent, holds_something);
        holds_something.then_some(built)
    }
}

impl FrameStream {
    /// There is nothing to be sent for now: gives back the memory of large frames.
    fn rest(&mut self) {
        self.sent.shrink(KEEP_CAPACITY);
        self.shares.had.shrink_to(KEEP_CAPACITY);
        self.shares.over.shrink_to(KEEP_CAPACITY);
    }
}

impl Stream for FrameStream {
    type Item = Outgoing;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(helping) = this.queue.poll_helping(this.epoch, cx) else {
                this.rest();
                return Poll::Pending;
            };
            match helping {
                None => return Poll::Ready(None),
                Some(Helping::Hello(hello)) => {
                    let hello = pb::LaneFrame { hello: Some(*hello), ..Default::default() };
                    return Poll::Ready(Some(Outgoing::new(hello, 0)));
                }
                Some(Helping::Items(content)) => {
                    if let Some(frame) = this.build(content) {
                        return Poll::Ready(Some(frame));
                    }
                }
            }
        }
    }
}

/// What became of an item.
enum Added {
    /// It is in the frame, or nothing of it is left to be sent.
    Yes,
    /// The frame ends before it, or in the midst of it.
    NoRoom(Item),
    /// It is for the next round.
    Later(Item),
}

struct Builder<'a> {
    frame: Outgoing,
    messages: usize,
    bytes: usize,
    limits: FrameLimits,
    /// What is larger is sent in pieces.
    large: usize,
    /// The first message may be larger than `limits.several`.
    any_one: bool,
    /// What the peer lets us send yet. Only appends with entries are held to it; nothing else is sent where there is a bound.
    credit: u64,
    /// The peer takes [`pb::Beats`].
    packs: bool,
    queue: &'a SendQueue,
    epoch: u64,
    source: &'a dyn EntrySource,
    sent: &'a mut Sent,
    shares: &'a mut Shares,
}

impl Builder<'_> {
    /// Whether a message of this size belongs into the next frame.
    fn has_no_room(&self, bytes: usize) -> bool {
        let first = self.messages == 0 && self.any_one;
        !first && self.bytes.saturating_add(bytes) > self.limits.several
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.limits.target || self.messages >= FRAME_MESSAGES_MAX
    }

    fn add(&mut self, item: Item) -> Added {
        let had = item.group().map_or(0, |group| self.shares.had(group));
        if had >= self.limits.target {
            return Added::Later(item);
        }
        match item {
            Item::Raft(group, message) => return self.add_raft(group, message, had),
            Item::Beats(beats) => return self.add_beats(beats),
            Item::Proposal(proposal) => return self.add_proposal(proposal),
            Item::Reply(reply) => {
                self.frame.rest.proposal_replies.push(wire::reply_to_wire(reply));
                self.count(MESSAGE_BYTES);
            }
            Item::Report(report) => {
                self.frame.rest.admitted.push(wire::report_to_wire(report));
                self.count(MESSAGE_BYTES);
            }
        }
        Added::Yes
    }

    fn add_beats(&mut self, beats: Vec<Beat>) -> Added {
        let bytes =
            if self.packs { MESSAGE_BYTES + beats.len() * BEAT_BYTES } else { beats.len() * MESSAGE_BYTES };
        if self.has_no_room(bytes) {
            return Added::NoRoom(Item::Beats(beats));
        }
        if self.packs {
            self.frame.rest.beats.push(beats::to_wire(self.frame.messages(), &beats));
        } else {
            // Only the replicas' numbers are on the wire.
            let ends = wire::Ends { from: StoreId(0), to: StoreId(0) };
            for beat in &beats {
                let (group, message) = beat.message(ends);
                self.frame.push(group, message);
            }
        }
        self.messages += beats.len();
        self.bytes += bytes;
        Added::Yes
    }

    fn add_proposal(&mut self, proposal: RelayedProposal) -> Added {
        let (group, bytes) = (proposal.group, MESSAGE_BYTES + proposal.data.len());
        if bytes > self.large {
            let without_data = RelayedProposal { data: Bytes::new(), ..proposal.clone() };
            let begun = self.begin_large(group, bytes, || Large {
                group,
                item: Item::Proposal(without_data),
                of: pb::PieceOf::Proposal,
                charge: 0,
                rest: wire::pieces::proposal(proposal.clone()),
            });
            return if begun { Added::Yes } else { Added::Later(Item::Proposal(proposal)) };
        }
        if self.has_no_room(bytes) {
            return Added::NoRoom(Item::Proposal(proposal));
        }
        self.frame.rest.proposals.push(wire::proposal_to_wire(proposal));
        self.shares.has(group, bytes);
        self.count(bytes);
        Added::Yes
    }

    /// Adds a message of a group that `had` so much of the round.
    fn add_raft(&mut self, group: GroupId, mut message: Message, mut had: usize) -> Added {
        let mut rest = None;
        if let Body::AppendEntries(append) = &mut message.body {
            let share = self.limits.target - had;
            let room = self.limits.several.saturating_sub(self.bytes).min(share) as u64;
            let room = room.min(self.credit.saturating_sub(MESSAGE_CHARGE_BYTES));
            let Some(entries) = read(group, append, self.source, room) else {
                self.sent.cancelled += 1;
                return Added::Yes;
            };
            let bytes = entries.iter().map(|e| usize::try_from(e.size_bytes()).unwrap_or(usize::MAX));
            let bytes = bytes.fold(MESSAGE_BYTES, usize::saturating_add);
            if bytes > self.limits.single {
                tracing::error!(%group, bytes, max = self.limits.single, "an entry is too large for any frame");
                self.sent.lost.push(group);
                return Added::Yes;
            }
            let charge = charge(&entries);
            let starved = charge > self.credit;
            if starved {
                self.sent.starved = Some(charge);
            }
            let large = bytes > self.large;
            if starved || (!large && self.has_no_room(bytes)) {
                if let Entries::Inline(place) = &mut append.entries {
                    *place = entries;
                }
                return Added::NoRoom(Item::Raft(group, message));
            }
            let remainder = remainder(append, &entries);
            if large {
                return self.add_large(group, message, entries, remainder, charge);
            }
            self.credit -= charge;
            if !entries.is_empty() {
                had = self.shares.has(group, bytes);
            }
            self.bytes += bytes - MESSAGE_BYTES;
            self.sent.appends.push(group);
            append.entries = Entries::Inline(entries);
            let Message { from, to, term, doubt, .. } = message;
            rest = remainder.map(|append| {
                Item::Raft(group, Message { from, to, term, doubt, body: Body::AppendEntries(append) })
            });
        }
        self.frame.push(group, message);
        self.count(MESSAGE_BYTES);
        match rest {
            None => Added::Yes,
            Some(rest) if had >= self.limits.target => Added::Later(rest),
            Some(rest) => Added::NoRoom(rest),
        }
    }

    /// Begins an append that is sent in pieces.
    fn add_large(
        &mut self,
        group: GroupId,
        mut message: Message,
        entries: Vec<Entry>,
        rest: Option<AppendEntries>,
        charge: u64,
    ) -> Added {
        let bytes = usize::try_from(charge).unwrap_or(usize::MAX);
        let begun = self.begin_large(group, bytes, || Large {
            group,
            // Its entries were taken out, if it held any.
            item: Item::Raft(group, message.clone()),
            of: pb::PieceOf::Append,
            charge,
            rest: wire::pieces::append(group, message.clone(), &entries),
        });
        if begun {
            self.credit -= charge;
            let Some(rest) = rest else { return Added::Yes };
            message.body = Body::AppendEntries(rest);
        } else if let Body::AppendEntries(append) = &mut message.body
            && let Entries::Inline(place) = &mut append.entries
        {
            *place = entries;
        }
        Added::Later(Item::Raft(group, message))
    }

    /// Adds pieces of large messages, of at most so many bytes.
    fn add_pieces(&mut self, bytes_max: usize) {
        let free = self.limits.several.saturating_sub(self.bytes);
        let free = if self.any_one && self.bytes == 0 { free.max(PIECE_BYTES) } else { free };
        let bytes = bytes_max.min(free).min(self.limits.target.saturating_sub(self.bytes));
        if bytes > 0 {
            self.frame.rest.pieces = self.queue.pieces(self.epoch, bytes, self.sent);
            self.bytes += self.frame.rest.pieces.iter().map(|piece| piece.data.len()).sum::<usize>();
        }
    }

    /// See [`SendQueue::begin_large`]. Either way the group has nothing more in this round.
    fn begin_large(&mut self, group: GroupId, bytes: usize, make: impl FnOnce() -> Large) -> bool {
        self.shares.over.push(group);
        self.queue.begin_large(self.epoch, group, bytes, make)
    }

    fn count(&mut self, bytes: usize) {
        self.messages += 1;
        self.bytes += bytes;
    }
}

/// The entries that an append stands for, as far as there is room; `None` if it is stale.
fn read(
    group: GroupId,
    append: &mut AppendEntries,
    source: &dyn EntrySource,
    room: u64,
) -> Option<Vec<Entry>> {
    let prev = append.prev_log_index;
    match &mut append.entries {
        Entries::Inline(entries) => Some(std::mem::take(entries)),
        Entries::Interval { last, .. } if *last <= prev => Some(Vec::new()),
        Entries::Interval { last, last_term } => {
            let entries = source.entries(group, prev, *last, *last_term, room)?;
            // The wire carries no indexes, so a source that skips one would corrupt the follower's log.
            let follow = entries.iter().zip(prev.0 + 1..).all(|(e, index)| e.index.0 == index);
            let end = entries.last().map(|e| e.index);
            (follow && end.is_some_and(|end| end <= *last)).then_some(entries)
        }
    }
}

/// The part of an interval that `entries` do not cover, as an append of its own.
fn remainder(append: &AppendEntries, entries: &[Entry]) -> Option<AppendEntries> {
    let Entries::Interval { last, last_term } = append.entries else { return None };
    let end = entries.last()?;
    (end.index < last).then(|| AppendEntries {
        prev_log_index: end.index,
        prev_log_term: end.term,
        leader_commit: append.leader_commit,
        entries: Entries::Interval { last, last_term },
    })
}

#[cfg(test)]
mod tests;
