//! What waits for one store on one lane: bounded in messages and bytes, shared by all groups; says what it drops.
//!
//! Every message that is pushed ends as exactly one of *sent* (given to the stream), *cancelled* (a stale append) or
//! *reported*: its group is named in [`Events::unreachable`], a relayed proposal in [`Events::not_sent`]. Messages
//! that were sent and not yet acknowledged when the stream breaks may be lost too, so the groups whose appends are
//! among them are reported as well.

mod in_flight;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{Body, Entries, Message};
use pontoon_raft_core::types::{EntryId, GroupId, Term};
use tokio::sync::Notify;

use crate::api::{FEATURE_BEATS, ProposalReply, RelayedProposal, Report};
use crate::beats::Beat;
use crate::error::NotQueued;
use in_flight::InFlight;

/// What a message is charged beyond its payload: about what it takes in memory.
const ITEM_CHARGE_BYTES: usize = 160;

/// Items handed out at a time while a frame is built; the rest of the frame is fetched in further helpings.
pub(crate) const HELPING: usize = 64;

/// With less than this in flight the peer may see no reason to acknowledge what it has read (it does at each 64 KiB), so
/// it is asked to by a ping when nothing may be sent before that.
const ASK_BELOW_BYTES: usize = 256 << 10;

/// Above this capacity an emptied queue gives its memory back, so that an idle destination holds next to nothing.
const KEEP_CAPACITY: usize = 64;

/// The limits of every queue of a transport; can change while it runs.
#[derive(Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
}

/// One thing that waits.
#[derive(Debug)]
pub(crate) enum Item {
    Raft(GroupId, Message),
    /// Heartbeats of several groups, and answers to them.
    Beats(Vec<Beat>),
    Proposal(RelayedProposal),
    Reply(ProposalReply),
    Report(Report),
}

impl Item {
    fn charge_bytes(&self) -> usize {
        ITEM_CHARGE_BYTES
            + match self {
                Self::Raft(_, message) => match &message.body {
                    Body::AppendEntries(append) => match &append.entries {
                        Entries::Interval { .. } => 0,
                        Entries::Inline(entries) => entries
                            .iter()
                            .map(|e| usize::try_from(e.size_bytes()).unwrap_or(usize::MAX))
                            .sum(),
                    },
                    _ => 0,
                },
                Self::Beats(beats) => beats.len() * size_of::<Beat>(),
                Self::Proposal(proposal) => proposal.data.len(),
                Self::Reply(_) | Self::Report(_) => 0,
            }
    }
}

/// What the lane's task must tell the host.
#[derive(Debug, Default)]
pub(crate) struct Events {
    pub(crate) unreachable: Vec<GroupId>,
    /// With the numbers of the attempts.
    pub(crate) not_sent: Vec<(GroupId, EntryId, Term, u64)>,
}

/// What goes into the next frame.
#[derive(Debug)]
pub(crate) enum Helping {
    /// The first frame of a stream.
    Hello(Box<pb::Hello>),
    /// A ping, items, or both. The frame may take `room` bytes; one message more if nothing is in flight. `packs`: the peer
    /// takes [`pb::Beats`].
    Items { ping: Option<u64>, wants: Option<u64>, items: Vec<Item>, room: Room, packs: bool },
}

/// How much of a queue's bound may be in flight. The rest is for what waits, so both together stay below the bound,
/// though an append that takes next to nothing in the queue takes its entries' bytes in a frame.
const fn window(bytes_max: usize) -> usize {
    bytes_max / 2
}

/// What may be given to the stream now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Room {
    pub(crate) bytes: usize,
    /// Nothing is in flight, so one message may go, whatever its size: it could never be sent otherwise.
    pub(crate) any_one: bool,
    /// What the peer lets us send, in charges of messages ([`charge`](crate::receive_budget::charge)).
    pub(crate) credit: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Between attempts: nothing is taken in.
    Closed,
    /// An attempt is being made: messages wait for its end, which comes within its time limit.
    Opening,
    /// The stream is greeted.
    Open,
    /// The store is no longer a peer.
    Retired,
}

#[derive(Debug)]
struct Inner {
    phase: Phase,
    /// Grows with each attempt; a stream of an older epoch gets nothing more.
    epoch: u64,
    /// What the peer can.
    features: u64,
    hello: Option<Box<pb::Hello>>,
    ping: Option<u64>,
    /// The number of the last ping.
    pings: u64,
    items: VecDeque<Item>,
    /// The charges of `items`.
    bytes: usize,
    /// The charges of items of which a frame is being built; what finds no room in it comes back.
    building: usize,
    /// Of the task that builds frames, while there is nothing for it.
    waker: Option<Waker>,
    /// Groups already reported in this loss epoch.
    reported: HashSet<GroupId>,
    /// Something was refused since the queue was last empty.
    overflowed: bool,
    events: Events,
    /// Frames given to this stream.
    sent_frames: u64,
    in_flight: InFlight,
    /// The next message has no room until more is acknowledged.
    blocked: bool,
    /// The peer lets us send up to this offset; `None`: without bounds.
    credit: Option<u64>,
    /// What was sent on this stream, in charges.
    charged: u64,
    /// The next message ends there, beyond the credit: nothing is sent before there is more.
    starved: Option<u64>,
    /// The peer is to be told of `starved`.
    wants: Option<u64>,
    /// The peer was asked to acknowledge what it has read.
    asked: bool,
    /// Groups with appends in frames up to `older_until`, and after it; both not known to have arrived.
    older: HashSet<GroupId>,
    older_until: u64,
    newer: HashSet<GroupId>,
    counters: Counters,
}

/// Totals since the start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    pub(crate) messages: u64,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) cancelled: u64,
    pub(crate) dropped: u64,
}

/// What a queue holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) messages: usize,
    /// The charges of the messages that wait.
    pub(crate) bytes: usize,
    /// Given to the stream and not acknowledged.
    pub(crate) in_flight_bytes: usize,
    /// What the peer lets us send yet.
    pub(crate) credit_bytes: Option<u64>,
    pub(crate) counters: Counters,
}

/// What a finished frame held.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    pub(crate) messages: u64,
    pub(crate) bytes: u64,
    pub(crate) cancelled: u64,
    pub(crate) lost: Vec<GroupId>,
    pub(crate) appends: Vec<GroupId>,
    /// The charges of its messages.
    pub(crate) charge: u64,
    /// The charge of the message that had no credit.
    pub(crate) starved: Option<u64>,
}

/// The queue of one lane to one store.
#[derive(Debug)]
pub(crate) struct SendQueue {
    inner: Mutex<Inner>,
    limits: Arc<QueueLimits>,
    /// Told when there are [`Events`].
    notify: Arc<Notify>,
}

impl SendQueue {
    pub(crate) fn new(limits: Arc<QueueLimits>, notify: Arc<Notify>) -> Self {
        Self {
            inner: Mutex::new(Inner {
                // The first attempt is about to begin.
                phase: Phase::Opening,
                epoch: 0,
                features: 0,
                hello: None,
                ping: None,
                pings: 0,
                items: VecDeque::new(),
                bytes: 0,
                building: 0,
                waker: None,
                reported: HashSet::new(),
                overflowed: false,
                events: Events::default(),
                sent_frames: 0,
                in_flight: InFlight::default(),
                blocked: false,
                credit: None,
                charged: 0,
                starved: None,
                wants: None,
                asked: false,
                older: HashSet::new(),
                older_until: 0,
                newer: HashSet::new(),
                counters: Counters::default(),
            }),
            limits,
            notify,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it holds the lock; if it did, the counters might be off by one message.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a critical section that may have made work: tells the lane's task of events and wakes the stream.
    fn finish(&self, mut inner: MutexGuard<'_, Inner>) {
        let events = !inner.events.unreachable.is_empty() || !inner.events.not_sent.is_empty();
        let said = inner.hello.is_some() || inner.ping.is_some() || inner.wants.is_some();
        let work = said || !inner.items.is_empty();
        let over = matches!(inner.phase, Phase::Closed | Phase::Retired);
        let waker = if over || (work && inner.phase == Phase::Open) { inner.waker.take() } else { None };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        if events {
            self.notify.notify_one();
        }
    }

    /// Adds items in order. Those that find no room, and those pushed while the lane is down, are lost and reported;
    /// the reason of the last loss is returned. Never waits.
    pub(crate) fn push(&self, items: impl IntoIterator<Item = Item>) -> Result<(), NotQueued> {
        let messages_max = self.limits.messages.load(Ordering::Relaxed);
        let bytes_max = self.limits.bytes.load(Ordering::Relaxed);
        let mut result = Ok(());
        let mut inner = self.lock();
        for item in items {
            if let Err(why) = inner.admit(&item, messages_max, bytes_max) {
                inner.overflowed |= inner.phase == Phase::Open;
                inner.counters.dropped += 1;
                match item {
                    Item::Raft(group, _) => inner.lose(group),
                    Item::Beats(beats) => inner.lose_all(&beats),
                    // The caller is told by the result; what is said of reports and replies below holds here too.
                    Item::Proposal(_) | Item::Reply(_) | Item::Report(_) => {}
                }
                result = Err(why);
            } else {
                inner.bytes += item.charge_bytes();
                inner.items.push_back(item);
            }
        }
        self.finish(inner);
        result
    }

    /// Asks for a ping to be sent before anything that waits.
    pub(crate) fn ping(&self, number: u64) {
        let mut inner = self.lock();
        inner.ping = Some(number);
        inner.pings = number;
        self.finish(inner);
    }

    /// Begins a stream. Until [`Self::opened`] only `hello` is handed out.
    pub(crate) fn begin(&self, hello: pb::Hello) -> u64 {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.phase = Phase::Opening;
        inner.hello = Some(Box::new(hello));
        inner.ping = None;
        inner.waker = None;
        inner.sent_frames = 0;
        inner.older_until = 0;
        inner.new_stream();
        inner.epoch
    }

    /// The peer, which can `features`, has acknowledged the hello: what waits may go, up to `credit`.
    pub(crate) fn opened(&self, features: u64, credit: Option<u64>) {
        let mut inner = self.lock();
        inner.features = features;
        inner.credit = credit;
        inner.phase = Phase::Open;
        inner.new_loss_epoch();
        self.finish(inner);
    }

    /// The stream or the attempt is over: what waits is dropped and reported, and so is what may have been lost on
    /// the way.
    pub(crate) fn close(&self) {
        self.end(Phase::Closed);
    }

    /// The store is no longer a peer.
    pub(crate) fn retire(&self) {
        self.end(Phase::Retired);
    }

    fn end(&self, phase: Phase) {
        let mut inner = self.lock();
        inner.phase = phase;
        inner.epoch += 1;
        inner.hello = None;
        inner.ping = None;
        inner.bytes = 0;
        inner.building = 0;
        inner.new_stream();
        let items = std::mem::take(&mut inner.items);
        inner.counters.dropped += items.len() as u64;
        for item in items {
            match item {
                Item::Raft(group, _) => inner.lose(group),
                Item::Beats(beats) => inner.lose_all(&beats),
                // A question that is lost says nothing of what it asks about.
                Item::Proposal(p) if p.asks => {}
                Item::Proposal(p) => inner.events.not_sent.push((p.group, p.id, p.term, p.at.number)),
                // Its proposer waits for the commit or its own deadline, as for any reply lost on the way. A report is
                // told again when the leader asks.
                Item::Reply(_) | Item::Report(_) => {}
            }
        }
        let underway = std::mem::take(&mut inner.older);
        let newer = std::mem::take(&mut inner.newer);
        for group in underway.into_iter().chain(newer) {
            inner.lose(group);
        }
        // The old stream's task must see that it is over.
        self.finish(inner);
    }

    /// The peer has taken this many frames off the stream.
    pub(crate) fn acknowledged(&self, frames: u64) {
        let mut inner = self.lock();
        if frames >= inner.older_until {
            inner.older = std::mem::take(&mut inner.newer);
            inner.older_until = inner.sent_frames;
        }
        if frames >= inner.sent_frames {
            inner.older = HashSet::new();
        }
        inner.in_flight.acknowledged(frames);
        inner.blocked = false;
        inner.asked = false;
        // There may be room now.
        self.finish(inner);
    }

    /// The peer lets us send up to this offset of the stream.
    pub(crate) fn credited(&self, offset: u64) {
        let mut inner = self.lock();
        let Some(credit) = &mut inner.credit else { return };
        *credit = offset.max(*credit);
        let credit = *credit;
        inner.starved.take_if(|starved| *starved <= credit);
        self.finish(inner);
    }

    /// What the host must be told.
    pub(crate) fn events(&self) -> Events {
        std::mem::take(&mut self.lock().events)
    }

    /// What waits, what is under way, and totals.
    pub(crate) fn status(&self) -> Held {
        let inner = self.lock();
        Held {
            messages: inner.items.len(),
            bytes: inner.bytes,
            in_flight_bytes: inner.in_flight.bytes(),
            credit_bytes: inner.credit.map(|credit| credit.saturating_sub(inner.charged)),
            counters: inner.counters,
        }
    }

    // ---- The stream's side.

    /// The beginning of the next frame of stream `epoch`; `None` when that stream is over.
    pub(crate) fn poll_helping(&self, epoch: u64, cx: &Context<'_>) -> Poll<Option<Helping>> {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return Poll::Ready(None);
        }
        if let Some(hello) = inner.hello.take() {
            inner.sent_frames += 1;
            return Poll::Ready(Some(Helping::Hello(hello)));
        }
        if inner.phase == Phase::Open {
            let room = inner.room(window(self.limits.bytes.load(Ordering::Relaxed)));
            let open = inner.starved.is_none();
            let items = if open && (room.bytes > 0 || room.any_one) { inner.help() } else { Vec::new() };
            if open && items.is_empty() && !inner.items.is_empty() {
                inner.ask();
            }
            let (ping, wants) = (inner.ping.take(), inner.wants.take());
            if ping.is_some() || wants.is_some() || !items.is_empty() {
                let packs = inner.features & FEATURE_BEATS != 0;
                return Poll::Ready(Some(Helping::Items { ping, wants, items, room, packs }));
            }
        }
        match &inner.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => inner.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// More items for the frame that is being built; empty if there are none.
    pub(crate) fn more(&self, epoch: u64) -> Vec<Item> {
        let mut inner = self.lock();
        if inner.epoch == epoch && inner.starved.is_none() { inner.help() } else { Vec::new() }
    }

    /// Takes back what the frame had no room for, to be first in the next one, and notes what the frame holds.
    pub(crate) fn sent(
        &self,
        epoch: u64,
        rest: impl DoubleEndedIterator<Item = Item>,
        sent: &mut Sent,
        frame: bool,
    ) {
        let mut inner = self.lock();
        inner.counters.messages += sent.messages;
        inner.counters.bytes += sent.bytes;
        inner.counters.cancelled += sent.cancelled;
        inner.counters.frames += u64::from(frame);
        inner.sent_frames += u64::from(frame);
        inner.building = 0;
        if inner.epoch == epoch {
            if frame {
                let number = inner.sent_frames;
                inner.in_flight.sent(number, usize::try_from(sent.bytes).unwrap_or(usize::MAX));
            }
            inner.charged += sent.charge;
            if let Some(charge) = sent.starved {
                let needed = inner.charged.saturating_add(charge);
                // It may have come while the frame was built.
                if inner.credit.is_some_and(|credit| credit < needed) {
                    (inner.starved, inner.wants) = (Some(needed), Some(needed));
                }
            }
            for item in rest.rev() {
                inner.bytes += item.charge_bytes();
                inner.items.push_front(item);
                // Without credit it waits for that, and not for an acknowledgement.
                inner.blocked |= !frame && sent.starved.is_none();
            }
            inner.newer.extend(sent.appends.drain(..));
            for group in sent.lost.drain(..) {
                inner.counters.dropped += 1;
                inner.lose(group);
            }
        } else {
            // Closed while the frame was built: nothing of it will arrive.
            for item in rest {
                inner.counters.dropped += 1;
                match item {
                    Item::Raft(group, _) => inner.lose(group),
                    Item::Beats(beats) => inner.lose_all(&beats),
                    Item::Proposal(p) if p.asks => {}
                    Item::Proposal(p) => inner.events.not_sent.push((p.group, p.id, p.term, p.at.number)),
                    Item::Reply(_) | Item::Report(_) => {}
                }
            }
            for group in sent.appends.drain(..).chain(sent.lost.drain(..)) {
                inner.lose(group);
            }
        }
        sent.messages = 0;
        sent.bytes = 0;
        sent.cancelled = 0;
        sent.charge = 0;
        sent.starved = None;
        self.finish(inner);
    }
}

impl Inner {
    fn admit(&self, item: &Item, messages_max: usize, bytes_max: usize) -> Result<(), NotQueued> {
        match self.phase {
            Phase::Closed => return Err(NotQueued::Down),
            Phase::Retired => return Err(NotQueued::UnknownStore),
            Phase::Opening | Phase::Open => {}
        }
        if self.items.len() >= messages_max {
            return Err(NotQueued::Messages { max: messages_max });
        }
        let bytes = item.charge_bytes();
        // A queue that is empty takes one message whatever its size, or it could never be sent at all.
        let held = self.bytes.saturating_add(self.building);
        if !self.items.is_empty() && held.saturating_add(bytes) > bytes_max - window(bytes_max) {
            return Err(NotQueued::Bytes { bytes, max: bytes_max });
        }
        Ok(())
    }

    /// How much of the window is free.
    fn room(&self, window: usize) -> Room {
        let credit = self.credit.map_or(u64::MAX, |credit| credit.saturating_sub(self.charged));
        if self.blocked {
            return Room { bytes: 0, any_one: false, credit };
        }
        let in_flight = self.in_flight.bytes();
        Room { bytes: window.saturating_sub(in_flight), any_one: in_flight == 0, credit }
    }

    /// Something waits and has no room: makes sure that the peer says what it has read.
    fn ask(&mut self) {
        if !self.asked && self.in_flight.bytes() < ASK_BELOW_BYTES {
            self.asked = true;
            self.ping.get_or_insert(self.pings);
        }
    }

    fn new_stream(&mut self) {
        self.in_flight = InFlight::default();
        self.blocked = false;
        self.credit = None;
        self.charged = 0;
        self.starved = None;
        self.wants = None;
        self.asked = false;
    }

    fn help(&mut self) -> Vec<Item> {
        let n = self.items.len().min(HELPING);
        let items: Vec<Item> = self.items.drain(..n).collect();
        let charges = items.iter().map(Item::charge_bytes).sum::<usize>();
        self.building += charges;
        if self.items.is_empty() {
            self.bytes = 0;
            if self.items.capacity() > KEEP_CAPACITY {
                self.items = VecDeque::new();
            }
            if self.overflowed {
                self.new_loss_epoch();
            }
        } else {
            self.bytes -= charges;
        }
        items
    }

    /// From here on every group may be reported once more. A full queue has to be sent whole, or a stream to be
    /// opened, between two reports of one group: that is what paces them.
    fn new_loss_epoch(&mut self) {
        self.overflowed = false;
        self.reported = HashSet::new();
    }

    fn lose_all(&mut self, beats: &[Beat]) {
        for beat in beats {
            self.lose(beat.group);
        }
    }

    fn lose(&mut self, group: GroupId) {
        if self.reported.insert(group) {
            self.events.unreachable.push(group);
        }
    }
}

#[cfg(test)]
mod tests;
