//! What waits for one store on one lane: bounded in messages and bytes, shared by all groups; says what it drops.
//!
//! Every message that is pushed ends as exactly one of *sent* (given to the stream), *cancelled* (a stale append) or
//! *reported*: its group is named in [`Events::unreachable`], a relayed proposal in [`Events::not_sent`]. Messages
//! that were sent and not yet acknowledged when the stream breaks may be lost too, so the groups whose appends are
//! among them are reported as well.

mod credit;
mod in_flight;
mod item;
mod large;
mod losses;
mod waiting;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::types::GroupId;
use tokio::sync::Notify;

use crate::error::NotQueued;
use crate::status::WaitsFor;
use credit::Credit;
use in_flight::InFlight;
pub(crate) use item::{Batch, Content, Counters, Events, Held, Helping, Item, Room, Sent};
use large::Larges;
pub(crate) use large::{LARGE_MAX, Large, PIECE_BYTES};
use losses::Losses;
pub(crate) use waiting::KEEP_CAPACITY;
use waiting::Waiting;

/// With less than this in flight the peer may see no reason to acknowledge what it has read (it does at each 64 KiB), so
/// it is asked to by a ping when nothing may be sent before that.
const ASK_BELOW_BYTES: usize = 256 << 10;

/// About a frame.
const WANTS_BEYOND_BYTES: u64 = 256 << 10;

/// The limits of every queue of a transport; can change while it runs.
#[derive(Debug)]
pub(crate) struct QueueLimits {
    pub(crate) messages: AtomicUsize,
    pub(crate) bytes: AtomicUsize,
}

/// How much of a queue's bound may be in flight. The rest is for what waits, so both together stay below the bound,
/// though an append that takes next to nothing in the queue takes its entries' bytes in a frame.
const fn window(bytes_max: usize) -> usize {
    bytes_max / 2
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
    waiting: Waiting,
    larges: Larges,
    /// While both wait, items and pieces of large messages have every other frame.
    pieces_next: bool,
    /// Of the task that builds frames, while there is nothing for it.
    waker: Option<Waker>,
    losses: Losses,
    /// Something was refused since the queue was last empty.
    overflowed: bool,
    /// Frames given to this stream.
    sent_frames: u64,
    in_flight: InFlight,
    /// The next message has no room until more is acknowledged.
    blocked: bool,
    credit: Credit,
    /// The peer was asked to acknowledge what it has read.
    asked: bool,
    counters: Counters,
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
                waiting: Waiting::default(),
                larges: Larges::default(),
                pieces_next: false,
                waker: None,
                losses: Losses::default(),
                overflowed: false,
                sent_frames: 0,
                in_flight: InFlight::default(),
                blocked: false,
                credit: Credit::default(),
                asked: false,
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

    fn bytes_max(&self) -> usize {
        self.limits.bytes.load(Ordering::Relaxed)
    }

    /// Ends a critical section that may have made work: tells the lane's task of events and wakes the stream.
    fn finish(&self, mut inner: MutexGuard<'_, Inner>) {
        let events = inner.losses.any();
        let said = inner.hello.is_some() || inner.ping.is_some() || inner.credit.wants();
        let work = said || inner.waiting.len() > 0 || !inner.larges.is_empty();
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
        let bytes_max = self.bytes_max();
        let mut result = Ok(());
        let mut inner = self.lock();
        for item in items {
            if let Err(why) = inner.admit(&item, messages_max, bytes_max) {
                inner.overflowed |= inner.phase == Phase::Open;
                inner.counters.dropped += 1;
                inner.losses.refuse(item);
                result = Err(why);
            } else {
                inner.waiting.push(item);
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
        inner.new_stream();
        inner.epoch
    }

    /// The peer, which can `features`, has acknowledged the hello: what waits may go, up to `credit`.
    pub(crate) fn opened(&self, features: u64, credit: Option<u64>) {
        let mut inner = self.lock();
        inner.features = features;
        inner.credit = Credit::new(credit);
        inner.phase = Phase::Open;
        inner.overflowed = false;
        inner.losses.new_epoch();
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
        for item in inner.larges.drain().chain(inner.waiting.drain()) {
            inner.counters.dropped += 1;
            inner.losses.drop(item);
        }
        inner.losses.lose_under_way();
        inner.new_stream();
        // The old stream's task must see that it is over.
        self.finish(inner);
    }

    /// The peer has taken this many frames off the stream.
    pub(crate) fn acknowledged(&self, frames: u64) {
        let mut inner = self.lock();
        let sent = inner.sent_frames;
        inner.losses.acknowledged(frames, sent);
        inner.in_flight.acknowledged(frames, Instant::now());
        inner.blocked = false;
        inner.asked = false;
        // There may be room now.
        self.finish(inner);
    }

    /// The peer lets us send up to this offset of the stream.
    pub(crate) fn credited(&self, offset: u64) {
        let mut inner = self.lock();
        inner.credit.granted(offset);
        self.finish(inner);
    }

    /// What the host must be told.
    pub(crate) fn events(&self) -> Events {
        self.lock().losses.events()
    }

    /// What waits, what is under way, and totals.
    pub(crate) fn status(&self) -> Held {
        let inner = self.lock();
        let room = inner.room(window(self.bytes_max()));
        let waits = inner.waiting.len() > 0 || !inner.larges.is_empty();
        Held {
            messages: inner.waiting.len(),
            bytes: inner.waiting.bytes(),
            in_flight_bytes: inner.in_flight.bytes(),
            large_bytes: inner.larges.bytes(),
            credit_bytes: inner.credit.left(),
            waits_for: match inner.phase {
                _ if !waits => None,
                Phase::Open if inner.credit.starves() => Some(WaitsFor::Credit),
                Phase::Open if !room.any() => Some(WaitsFor::Acknowledgement),
                Phase::Open => Some(WaitsFor::Connection),
                Phase::Opening | Phase::Closed | Phase::Retired => Some(WaitsFor::Stream),
            },
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
            let room = inner.room(window(self.bytes_max()));
            if let Some(content) = inner.content(room) {
                return Poll::Ready(Some(Helping::Items(content)));
            }
        }
        match &inner.waker {
            Some(waker) if waker.will_wake(cx.waker()) => {}
            _ => inner.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// More items for the frame that is being built; empty if there are none. `later` are those of the frame so far that are
    /// for the next round.
    pub(crate) fn more(&self, epoch: u64, later: &mut Vec<Item>) -> Batch {
        let mut inner = self.lock();
        if inner.epoch != epoch || inner.credit.starves() {
            return Batch::default();
        }
        inner.waiting.postpone_all(later.drain(..));
        inner.help()
    }

    /// Begins to send a message of so many bytes in pieces, if there is room for another one. Otherwise its group waits, and the
    /// message belongs to what is for later.
    pub(crate) fn begin_large(
        &self,
        epoch: u64,
        group: GroupId,
        bytes: usize,
        make: impl FnOnce() -> Large,
    ) -> bool {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            // What is for later is lost like everything else.
            return false;
        }
        inner.waiting.stop(group);
        let room = inner.larges.has_room(bytes, self.bytes_max());
        if room {
            inner.larges.begin(make());
        } else {
            inner.larges.wait(group);
        }
        room
    }

    /// Pieces of large messages, of at most so many bytes, to be sent next; notes in `sent` what they are.
    pub(crate) fn pieces(&self, epoch: u64, mut bytes_max: usize, sent: &mut Sent) -> Vec<pb::Piece> {
        let mut pieces = Vec::new();
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return pieces;
        }
        while bytes_max > 0
            && let Some((piece, group, go_on)) = inner.larges.next_piece(bytes_max)
        {
            bytes_max -= piece.data.len();
            sent.messages += u64::from(!go_on.is_empty());
            sent.appends.push(group);
            for group in go_on {
                inner.waiting.go_on(group);
            }
            pieces.push(piece);
        }
        pieces
    }

    /// Takes back what the frame had no room for, to be first in the next one, and notes what the frame holds.
    pub(crate) fn sent(
        &self,
        epoch: u64,
        rest: impl DoubleEndedIterator<Item = Item>,
        sent: &mut Sent,
        frame: bool,
    ) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.counters.messages += sent.messages;
        inner.counters.bytes += sent.bytes;
        inner.counters.cancelled += sent.cancelled;
        inner.counters.frames += u64::from(frame);
        inner.counters.dropped += sent.lost.len() as u64;
        inner.sent_frames += u64::from(frame);
        if inner.epoch == epoch {
            if frame {
                let number = inner.sent_frames;
                inner.in_flight.sent(
                    number,
                    usize::try_from(sent.bytes).unwrap_or(usize::MAX),
                    Instant::now(),
                );
            }
            let back = inner.waiting.built(rest, sent.later.drain(..));
            // A large message that is under way takes the whole window for a while, so what is behind the next one asks
            // for some credit, too, and not for one message after another.
            let behind = !inner.larges.is_empty() && inner.waiting.len() > 1;
            let beyond = if behind { WANTS_BEYOND_BYTES } else { 0 };
            inner.credit.sent(sent.charge, sent.starved, beyond);
            // Without credit it waits for that, and not for an acknowledgement.
            inner.blocked |= back > 0 && !frame && sent.starved.is_none();
            inner.losses.under_way(sent.appends.drain(..));
            for group in inner.larges.retry() {
                inner.waiting.go_on(group);
            }
        } else {
            // Closed while the frame was built: nothing of it will arrive.
            for item in rest.chain(sent.later.drain(..)) {
                inner.counters.dropped += 1;
                inner.losses.drop(item);
            }
            for group in sent.appends.drain(..) {
                inner.losses.lose(group);
            }
        }
        for group in sent.lost.drain(..) {
            inner.losses.lose(group);
        }
        sent.clear();
        self.finish(guard);
    }
}

impl Inner {
    fn admit(&self, item: &Item, messages_max: usize, bytes_max: usize) -> Result<(), NotQueued> {
        match self.phase {
            Phase::Closed => return Err(NotQueued::Down),
            Phase::Retired => return Err(NotQueued::UnknownStore),
            Phase::Opening | Phase::Open => {}
        }
        if self.waiting.len() >= messages_max {
            return Err(NotQueued::Messages { max: messages_max });
        }
        let bytes = item.charge_bytes();
        // A queue that is empty takes one message whatever its size, or it could never be sent at all.
        let held = self.waiting.held_bytes();
        if self.waiting.len() > 0 && held.saturating_add(bytes) > bytes_max - window(bytes_max) {
            return Err(NotQueued::Bytes { bytes, max: bytes_max });
        }
        Ok(())
    }

    /// How much of the window is free.
    fn room(&self, window: usize) -> Room {
        let credit = self.credit.left().unwrap_or(u64::MAX);
        if self.blocked {
            return Room { bytes: 0, any_one: false, credit };
        }
        let in_flight = self.in_flight.bytes();
        Room {
            bytes: window.min(self.in_flight.limit()).saturating_sub(in_flight),
            any_one: in_flight == 0,
            credit,
        }
    }

    /// What the next frame is made of; `None`: there is nothing, or no room.
    fn content(&mut self, room: Room) -> Option<Content> {
        let pieces = room.any() && !self.larges.is_empty();
        let mut batch = Batch::default();
        let mut pieces_bytes_max = 0;
        if pieces && self.pieces_next {
            self.pieces_next = false;
            pieces_bytes_max = PIECE_BYTES;
        } else {
            if room.any() && !self.credit.starves() {
                batch = self.help();
            }
            if pieces {
                // What the items leave.
                pieces_bytes_max = usize::MAX;
                self.pieces_next = !batch.items.is_empty();
            }
        }
        if !room.any() && (!self.larges.is_empty() || (self.waiting.len() > 0 && !self.credit.starves())) {
            self.ask();
        }
        let (ping, wants) = (self.ping.take(), self.credit.take_wants());
        let any = ping.is_some() || wants.is_some() || !batch.items.is_empty() || pieces_bytes_max > 0;
        any.then_some(Content { ping, wants, batch, pieces_bytes_max, room, features: self.features })
    }

    /// Something waits and has no room: makes sure that the peer says what it has read.
    fn ask(&mut self) {
        if !self.asked && self.in_flight.bytes() < ASK_BELOW_BYTES {
            self.asked = true;
            self.ping.get_or_insert(self.pings);
        }
    }

    fn new_stream(&mut self) {
        self.sent_frames = 0;
        self.losses.new_stream();
        self.in_flight = InFlight::default();
        self.larges = Larges::default();
        self.pieces_next = false;
        self.blocked = false;
        self.credit = Credit::default();
        self.asked = false;
    }

    fn help(&mut self) -> Batch {
        let batch = self.waiting.take();
        // A queue that had overflowed has been sent whole: what is lost from now on is told again.
        if self.overflowed && self.waiting.len() == 0 {
            self.overflowed = false;
            self.losses.new_epoch();
        }
        batch
    }
}

#[cfg(test)]
mod tests;
