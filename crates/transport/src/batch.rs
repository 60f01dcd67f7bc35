//! Which of the waiting messages form the next frame.
//!
//! There is no linger timer: a frame holds what waits when the stream asks for it, up to a target. While one frame is
//! on its way the next one gathers by itself, so an idle link sends a lone message at once and a busy one sends large
//! frames.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{AppendEntries, Body, Entries, Message};
use pontoon_raft_core::types::{Entry, GroupId, StoreId};
use tokio_stream::Stream;

use crate::api::EntrySource;
use crate::beats::{self, BEAT_BYTES, Beat};
use crate::receive_budget::{MESSAGE_CHARGE_BYTES, charge};
use crate::send_queue::{Helping, Item, Room, SendQueue, Sent};
use crate::wire;

/// About what a message takes on the wire beyond its data.
const MESSAGE_BYTES: usize = 48;
/// Messages in one frame; the receiver takes four times as many.
const FRAME_MESSAGES_MAX: usize = 4096;

/// Where a frame ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameLimits {
    /// Nothing is added once a frame has this many bytes.
    pub(crate) target: usize,
    /// Several messages together stay below.
    pub(crate) several: usize,
    /// A single message above it is lost: the peer would refuse the frame.
    pub(crate) single: usize,
}

/// The frames of one stream, made when the stream has room for them.
pub(crate) struct FrameStream {
    queue: Arc<SendQueue>,
    epoch: u64,
    entries: Arc<dyn EntrySource>,
    limits: FrameLimits,
    sent: Sent,
}

impl FrameStream {
    pub(crate) fn new(
        queue: Arc<SendQueue>,
        epoch: u64,
        entries: Arc<dyn EntrySource>,
        limits: FrameLimits,
    ) -> Self {
        Self { queue, epoch, entries, limits, sent: Sent::default() }
    }

    /// Builds a frame of `items` and more from the queue; `None` if all were stale, or the first has no room.
    fn build(
        &mut self,
        ping: Option<u64>,
        wants: Option<u64>,
        items: Vec<Item>,
        room: Room,
        packs: bool,
    ) -> Option<pb::LaneFrame> {
        let mut frame = Builder {
            frame: pb::LaneFrame {
                ping,
                wants: wants.unwrap_or_default(),
                messages: Vec::with_capacity(items.len()),
                ..pb::LaneFrame::default()
            },
            messages: 0,
            bytes: 0,
            limits: FrameLimits { several: self.limits.several.min(room.bytes), ..self.limits },
            any_one: room.any_one,
            credit: room.credit,
            packs,
        };
        let mut waiting = items.into_iter();
        let rest = loop {
            if frame.is_full() {
                break None;
            }
            let Some(item) = waiting.next() else {
                waiting = self.queue.more(self.epoch).into_iter();
                if waiting.len() == 0 {
                    break None;
                }
                continue;
            };
            if let Some(rest) = frame.add(item, &*self.entries, &mut self.sent) {
                break Some(rest);
            }
        };
        self.sent.messages = frame.messages as u64;
        self.sent.bytes = frame.bytes as u64;
        self.sent.charge = room.credit - frame.credit;
        let holds_something = ping.is_some() || wants.is_some() || frame.messages > 0;
        // After the items were taken: what they rest on was durable when they were queued.
        frame.frame.reached = self.entries.durable();
        self.queue.sent(self.epoch, rest.into_iter().chain(waiting), &mut self.sent, holds_something);
        holds_something.then_some(frame.frame)
    }
}

impl Stream for FrameStream {
    type Item = pb::LaneFrame;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            match ready!(this.queue.poll_helping(this.epoch, cx)) {
                None => return Poll::Ready(None),
                Some(Helping::Hello(hello)) => {
                    return Poll::Ready(Some(pb::LaneFrame { hello: Some(*hello), ..Default::default() }));
                }
                Some(Helping::Items { ping, wants, items, room, packs }) => {
                    if let Some(frame) = this.build(ping, wants, items, room, packs) {
                        return Poll::Ready(Some(frame));
                    }
                }
            }
        }
    }
}

struct Builder {
    frame: pb::LaneFrame,
    messages: usize,
    bytes: usize,
    limits: FrameLimits,
    /// The first message may be larger than `limits.several`.
    any_one: bool,
    /// What the peer lets us send yet. Only appends with entries are held to it; nothing else is sent where there is a bound.
    credit: u64,
    /// The peer takes [`pb::Beats`].
    packs: bool,
}

impl Builder {
    /// Whether a message of this size belongs into the next frame.
    fn has_no_room(&self, bytes: usize) -> bool {
        let first = self.messages == 0 && self.any_one;
        !first && self.bytes.saturating_add(bytes) > self.limits.several
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.limits.target || self.messages >= FRAME_MESSAGES_MAX
    }

    /// Adds an item, or returns what of it must wait for the next frame.
    fn add(&mut self, item: Item, source: &dyn EntrySource, sent: &mut Sent) -> Option<Item> {
        match item {
            Item::Raft(group, message) => return self.add_raft(group, message, source, sent),
            Item::Beats(beats) => return self.add_beats(beats),
            Item::Proposal(proposal) => {
                let bytes = MESSAGE_BYTES + proposal.data.len();
                if self.has_no_room(bytes) {
                    return Some(Item::Proposal(proposal));
                }
                self.frame.proposals.push(wire::proposal_to_wire(proposal));
                self.count(bytes);
            }
            Item::Reply(reply) => {
                self.frame.proposal_replies.push(wire::reply_to_wire(reply));
                self.count(MESSAGE_BYTES);
            }
            Item::Report(report) => {
                self.frame.admitted.push(wire::report_to_wire(report));
                self.count(MESSAGE_BYTES);
            }
        }
        None
    }

    fn add_beats(&mut self, beats: Vec<Beat>) -> Option<Item> {
        let bytes =
            if self.packs { MESSAGE_BYTES + beats.len() * BEAT_BYTES } else { beats.len() * MESSAGE_BYTES };
        if self.has_no_room(bytes) {
            return Some(Item::Beats(beats));
        }
        if self.packs {
            self.frame.beats.push(beats::to_wire(self.frame.messages.len(), &beats));
        } else {
            // Only the replicas' numbers are on the wire.
            let ends = wire::Ends { from: StoreId(0), to: StoreId(0) };
            self.frame.messages.extend(beats.iter().map(|beat| {
                let (group, message) = beat.message(ends);
                wire::message_to_wire(group, message, Vec::new())
            }));
        }
        self.messages += beats.len();
        self.bytes += bytes;
        None
    }

    fn add_raft(
        &mut self,
        group: GroupId,
        mut message: Message,
        source: &dyn EntrySource,
        sent: &mut Sent,
    ) -> Option<Item> {
        let mut rest = None;
        let entries = match &mut message.body {
            Body::AppendEntries(append) => {
                let room = self.limits.several.saturating_sub(self.bytes) as u64;
                let room = room.min(self.credit.saturating_sub(MESSAGE_CHARGE_BYTES));
                let Some(entries) = read(group, append, source, room) else {
                    sent.cancelled += 1;
                    return None;
                };
                let bytes = entries.iter().map(|e| usize::try_from(e.size_bytes()).unwrap_or(usize::MAX));
                let bytes = bytes.fold(MESSAGE_BYTES, usize::saturating_add);
                if bytes > self.limits.single {
                    tracing::error!(%group, bytes, max = self.limits.single, "an entry is too large for any frame");
                    sent.lost.push(group);
                    return None;
                }
                let charge = charge(&entries);
                let starved = charge > self.credit;
                if starved {
                    sent.starved = Some(charge);
                }
                if starved || self.has_no_room(bytes) {
                    if let Entries::Inline(place) = &mut append.entries {
                        *place = entries;
                    }
                    return Some(Item::Raft(group, message));
                }
                rest = remainder(append, &entries);
                self.credit -= charge;
                self.bytes += bytes - MESSAGE_BYTES;
                sent.appends.push(group);
                entries
            }
            _ => Vec::new(),
        };
        let rest = rest.map(|append| {
            Item::Raft(group, Message { body: Body::AppendEntries(append), ..message.clone() })
        });
        self.frame.messages.push(wire::message_to_wire(group, message, entries));
        self.count(MESSAGE_BYTES);
        rest
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
