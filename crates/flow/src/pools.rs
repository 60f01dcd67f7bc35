//! What all groups share: the tokens for each destination store, and who waits for them.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};

use crate::class::{Bytes, Class, PerClass};
use crate::fifo::Fifo;
use crate::limits::{GRANT_BYTES_MAX, GRANT_BYTES_MIN, GRANT_BYTES_SHARED, Limits, Mode};
use crate::pace::Pace;
use crate::window::Window;

/// One follower of one group, as a pool knows it.
pub(crate) type StreamKey = (GroupId, ReplicaId);

/// What is held of one pool. What is available is the limit less that, so no return can ever raise it above the limit, and
/// limits can change at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) held: Bytes,
}

impl Pool {
    /// Regular work counts against both limits, elastic work against its own. Negative: debt.
    fn available(&self, limits: &Limits, class: Class) -> i64 {
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        match class {
            Class::Regular => signed(limits.regular_bytes) - signed(self.held.regular),
            Class::Elastic => signed(limits.elastic_bytes) - signed(self.held.total()),
        }
    }

    /// Gives back what is held. Returns what was not, which must be nothing.
    fn give(&mut self, bytes: Bytes) -> u64 {
        let mut excess = 0;
        for class in Class::ALL {
            let (held, back) = (self.held.get_mut(class), *bytes.get(class));
            excess += back.saturating_sub(*held);
            *held = held.saturating_sub(back);
        }
        excess
    }
}

/// Tokens of both kinds, on their way back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) eval: Bytes,
    pub(crate) send: Bytes,
    /// The part of `send` that went out by force.
    pub(crate) forced: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct StorePools {
    /// May a command begin?
    pub(crate) eval: Pool,
    /// May entries go on the wire?
    pub(crate) send: Pool,
    /// What bounds `eval` beside the limits, while the store is slow.
    pub(crate) window: Window,
    /// Sent beyond the tokens, for a quorum, and not admitted yet.
    pub(crate) forced: u64,
    /// Streams with a queue, and about what it holds.
    pub(crate) queues: Fifo<StreamKey>,
    pub(crate) wants: BTreeMap<StreamKey, u64>,
    /// Elastic send tokens taken for a stream that has not fetched them.
    pub(crate) grants: BTreeMap<StreamKey, u64>,
    /// Groups whose commands wait.
    pub(crate) waiting: PerClass<Fifo<GroupId>>,
    /// The group that was woken and has not been looked at since.
    pub(crate) turn: PerClass<Option<GroupId>>,
    pub(crate) counters: Counters,
}

impl StorePools {
    /// What may begin towards this store: within the limits, and within its window; elastic work within half of that.
    fn eval_available(&self, limits: &Limits, class: Class) -> i64 {
        let window = self.window.bytes();
        let limits = Limits {
            regular_bytes: limits.regular_bytes.min(window),
            elastic_bytes: limits.elastic_bytes.min(window / 2),
            ..*limits
        };
        self.eval.available(&limits, class)
    }
}

/// Totals of one destination store since the start, in bytes unless said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Send tokens taken.
    pub deducted: Bytes,
    /// Send tokens that came back because the follower admitted the entries.
    pub admitted: Bytes,
    /// Send tokens that came back because a stream closed.
    pub disconnected: Bytes,
    /// Sent beyond the tokens, for a quorum.
    pub forced: u64,
    /// Times that a group had to wait before it might begin.
    pub waits: PerClass<u64>,
}

/// What a store's pools look like, for people and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreView {
    /// The destination.
    pub store: StoreId,
    /// Evaluation tokens left, negative in debt.
    pub eval_available: PerClass<i64>,
    /// Send tokens left, negative in debt.
    pub send_available: PerClass<i64>,
    /// What bounds evaluation tokens beside the limits: about what the store admits in half a second, and above any limit while
    /// it is quick.
    pub window_bytes: u64,
    /// Sent by force and not admitted.
    pub forced_bytes: u64,
    /// Groups whose commands wait for tokens of this store.
    pub waiting_groups: PerClass<usize>,
    /// Groups with a send queue to this store that wait for tokens.
    pub waiting_queues: usize,
    /// Totals.
    pub counters: Counters,
}

/// The pools of all destination stores, for all groups of this store. One owner, or one lock: nothing in here is atomic, so
/// nothing can race.
#[derive(Clone, Debug, Default)]
pub struct Pools {
    limits: Limits,
    mode: Mode,
    stores: BTreeMap<StoreId, StorePools>,
    wakes: BTreeSet<GroupId>,
    unaccounted: u64,
    /// Of all elastic work, to whichever store.
    pace: Pace,
    /// The destination that had its turn first the last time.
    first: Option<StoreId>,
}

impl Pools {
    /// Pools of these limits, full.
    #[must_use]
    pub fn new(mode: Mode, limits: Limits) -> Self {
        Self { mode, limits: limits.clamped(), ..Self::default() }
    }

    /// The limits in force.
    #[must_use]
    pub const fn limits(&self) -> Limits {
        self.limits
    }

    /// What is governed.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Changes the limits, to the nearest that are allowed. What is held stays held; a pool whose limit fell below that is
    /// in debt until enough has come back.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits.clamped();
        self.dispatch_all();
    }

    /// Changes what is governed. Every group that leads is to be looked at afterwards: with [`Mode::Off`] to close its
    /// controller, and otherwise because it may have waited for what it need not wait for any more.
    pub fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.dispatch_all();
    }

    /// It is `now`: elastic work goes on at its pace. Since the last time `commands` regular commands were answered, which took
    /// `micros` microseconds altogether from their proposal to their answer: the pace yields to them. To be called in each turn of
    /// a host's loop, and when [`next_pass`](Self::next_pass) says so.
    pub fn pass(&mut self, now: u64, commands: u64, micros: u64) {
        self.pace.pass(now, commands, micros);
        let mut grown = false;
        for pools in self.stores.values_mut() {
            grown |= pools.window.pass(now, pools.send.held.total());
        }
        if grown || self.next_pass().is_some() {
            self.dispatch_all();
        }
    }

    /// When [`pass`](Self::pass) is to be called at the latest; `None`: no elastic work waits for its pace.
    #[must_use]
    pub fn next_pass(&self) -> Option<u64> {
        let limits = &self.limits;
        let waits = |pools: &StorePools| {
            (!pools.queues.is_empty() && pools.send.available(limits, Class::Elastic) > 0)
                || (!pools.waiting.elastic.is_empty()
                    && pools.turn.elastic.is_none()
                    && pools.eval_available(limits, Class::Elastic) > 0)
        };
        self.stores.values().any(waits).then(|| self.pace.next_pass())
    }

    /// The pace of elastic work at present, in bytes a second.
    #[must_use]
    pub const fn elastic_bytes_per_second(&self) -> u64 {
        self.pace.rate()
    }

    /// Groups to be looked at, because tokens they waited for are there. Each must be, soon: others wait for their turn
    /// meanwhile. "Looked at" means [`Controller::settle`](crate::Controller::settle), or [`Pools::forget`].
    pub fn take_wakes(&mut self) -> BTreeSet<GroupId> {
        std::mem::take(&mut self.wakes)
    }

    /// A group without a controller was woken, or goes away: nobody waits for it.
    pub fn forget(&mut self, group: GroupId) {
        for pools in self.stores.values_mut() {
            for class in Class::ALL {
                pools.waiting.get_mut(class).leave(group);
                pools.turn.get_mut(class).take_if(|turn| *turn == group);
            }
        }
        self.dispatch_all();
    }

    /// Bytes that were given back and had not been taken: 0, or there is a mistake in here.
    #[must_use]
    pub const fn unaccounted(&self) -> u64 {
        self.unaccounted
    }

    /// Whether nothing is held and nobody waits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.stores.values().all(|pools| {
            pools.eval.held.is_zero()
                && pools.send.held.is_zero()
                && pools.forced == 0
                && pools.queues.is_empty()
                && pools.grants.is_empty()
                && Class::ALL.into_iter().all(|class| pools.waiting.get(class).is_empty())
        })
    }

    /// Every store that tokens were taken for.
    pub fn views(&self) -> impl Iterator<Item = StoreView> + '_ {
        self.stores.iter().map(|(store, pools)| {
            let limits = &self.limits;
            StoreView {
                store: *store,
                eval_available: PerClass {
                    regular: pools.eval_available(limits, Class::Regular),
                    elastic: pools.eval_available(limits, Class::Elastic),
                },
                send_available: PerClass {
                    regular: pools.send.available(limits, Class::Regular),
                    elastic: pools.send.available(limits, Class::Elastic),
                },
                window_bytes: pools.window.bytes(),
                forced_bytes: pools.forced,
                waiting_groups: PerClass {
                    regular: pools.waiting.regular.len(),
                    elastic: pools.waiting.elastic.len(),
                },
                waiting_queues: pools.queues.len(),
                counters: pools.counters,
            }
        })
    }

    // ---- For controllers.

    pub(crate) fn stores(&self) -> &BTreeMap<StoreId, StorePools> {
        &self.stores
    }

    fn of(&mut self, store: StoreId) -> &mut StorePools {
        self.stores.entry(store).or_default()
    }

    pub(crate) fn send_available(&self, store: StoreId, class: Class) -> i64 {
        self.stores.get(&store).map_or_else(Pool::default, |pools| pools.send).available(&self.limits, class)
    }

    pub(crate) fn eval_available(&self, store: StoreId, class: Class) -> i64 {
        match self.stores.get(&store) {
            Some(pools) => pools.eval_available(&self.limits, class),
            None => Pool::default().available(&self.limits, class),
        }
    }

    /// What elastic work may begin now, whatever tokens there are.
    pub(crate) fn allowance(&self) -> u64 {
        self.pace.allowance()
    }

    /// Elastic commands began.
    pub(crate) fn elastic_began(&mut self, bytes: u64) {
        self.pace.spend(bytes);
    }

    /// Elastic commands wait for nothing but the pace.
    pub(crate) fn is_short(&mut self) {
        self.pace.is_short();
    }

    /// What may still be forced onto a store.
    pub(crate) fn force_room(&self, store: StoreId) -> u64 {
        self.limits.forced_bytes.saturating_sub(self.stores.get(&store).map_or(0, |pools| pools.forced))
    }

    pub(crate) fn take_eval(&mut self, store: StoreId, bytes: Bytes) {
        self.of(store).eval.held += bytes;
    }

    pub(crate) fn take_send(&mut self, store: StoreId, bytes: Bytes, forced: u64) {
        let pools = self.of(store);
        pools.send.held += bytes;
        pools.forced += forced;
        pools.counters.deducted += bytes;
        pools.counters.forced += forced;
    }

    /// Regular entries were queued: they wait, and will be sent, as elastic ones.
    pub(crate) fn eval_becomes_elastic(&mut self, store: StoreId, regular: u64) {
        self.pace.queued(regular);
        self.take_eval(store, Bytes::of(Class::Elastic, regular));
        self.give(store, Held { eval: Bytes::of(Class::Regular, regular), ..Held::default() });
    }

    /// Tokens come back because their entries were admitted.
    pub(crate) fn admitted(&mut self, store: StoreId, held: Held) {
        let pools = self.of(store);
        pools.counters.admitted += held.send;
        pools.window.admitted(held.send.total());
        self.give(store, held);
        self.dispatch(store);
    }

    /// Tokens come back because their stream closed.
    pub(crate) fn disconnected(&mut self, store: StoreId, held: Held) {
        self.of(store).counters.disconnected += held.send;
        self.give(store, held);
        self.dispatch(store);
    }

    fn give(&mut self, store: StoreId, held: Held) {
        let pools = self.of(store);
        let excess = pools.eval.give(held.eval)
            + pools.send.give(held.send)
            + held.forced.saturating_sub(pools.forced);
        pools.forced = pools.forced.saturating_sub(held.forced);
        self.unaccounted += excess;
    }

    /// A stream with a queue waits for tokens.
    pub(crate) fn wait_to_send(&mut self, key: StreamKey, wants: u64) {
        let pools = self.of(key.1.store);
        pools.queues.join(key);
        pools.wants.insert(key, wants);
    }

    pub(crate) fn waits_to_send(&self, key: StreamKey) -> bool {
        self.stores
            .get(&key.1.store)
            .is_some_and(|pools| pools.queues.contains(key) || pools.grants.contains_key(&key))
    }

    /// What was taken for this stream: its own from here on.
    pub(crate) fn fetch_grant(&mut self, key: StreamKey) -> u64 {
        self.of(key.1.store).grants.remove(&key).unwrap_or(0)
    }

    /// The stream waits no longer; what was granted and not fetched comes back.
    pub(crate) fn leave_queue(&mut self, key: StreamKey) {
        let pools = self.of(key.1.store);
        pools.queues.leave(key);
        pools.wants.remove(&key);
        if let Some(bytes) = pools.grants.remove(&key) {
            self.give_grant(key.1.store, bytes);
        }
    }

    /// Granted and not used.
    pub(crate) fn give_grant(&mut self, store: StoreId, bytes: u64) {
        let send = Bytes::of(Class::Elastic, bytes);
        self.of(store).counters.deducted -= send;
        self.pace.give_back(bytes);
        self.give(store, Held { send, ..Held::default() });
    }

    /// Whether `group` must let others go first.
    pub(crate) fn is_behind(&self, store: StoreId, class: Class, group: GroupId) -> bool {
        self.stores.get(&store).is_some_and(|pools| {
            let waiting = pools.waiting.get(class);
            let turn = *pools.turn.get(class);
            turn.is_some_and(|turn| turn != group) || (turn.is_none() && !waiting.is_empty())
        })
    }

    /// Whether other groups wait for tokens of `store`.
    pub(crate) fn is_contended(&self, store: StoreId, class: Class, group: GroupId) -> bool {
        self.stores.get(&store).is_some_and(|pools| {
            let waiting = pools.waiting.get(class);
            waiting.len() > usize::from(waiting.contains(group))
        })
    }

    pub(crate) fn has_turn(&self, class: Class, group: GroupId) -> bool {
        self.stores.values().any(|pools| *pools.turn.get(class) == Some(group))
    }

    /// A command of `group` waits for tokens of `store`.
    pub(crate) fn wait_to_begin(&mut self, store: StoreId, class: Class, group: GroupId) {
        let pools = self.of(store);
        if !pools.waiting.get(class).contains(group) {
            pools.waiting.get_mut(class).join(group);
            *pools.counters.waits.get_mut(class) += 1;
        }
    }

    /// The group need not wait any more.
    pub(crate) fn leave_wait(&mut self, class: Class, group: GroupId) {
        for pools in self.stores.values_mut() {
            pools.waiting.get_mut(class).leave(group);
        }
    }

    /// The group was looked at: whoever waits behind it is next.
    pub(crate) fn end_turns(&mut self, group: GroupId) {
        for pools in self.stores.values_mut() {
            for class in Class::ALL {
                pools.turn.get_mut(class).take_if(|turn| *turn == group);
            }
        }
    }

    pub(crate) fn dispatch_all(&mut self) {
        // Each destination is the first one in turn: they share the pace.
        let after = self.first.and_then(|first| self.stores.range(first..).nth(1));
        self.first = after.or_else(|| self.stores.iter().next()).map(|(store, _)| *store);
        let from = self.first.unwrap_or_default();
        let (before, after): (Vec<_>, Vec<_>) = self.stores.keys().partition(|store| **store < from);
        for store in after.into_iter().chain(before) {
            self.dispatch(store);
        }
    }

    /// Hands tokens that are there to who waits longest.
    pub(crate) fn dispatch(&mut self, store: StoreId) {
        let (limits, pace) = (self.limits, &mut self.pace);
        let pools = self.stores.entry(store).or_default();
        while let Ok(available @ 1..) = u64::try_from(pools.send.available(&limits, Class::Elastic)) {
            if pools.queues.is_empty() {
                break;
            }
            let allowance = pace.allowance();
            if allowance == 0 {
                pace.is_short();
                break;
            }
            let Some(key) = pools.queues.pop() else { break };
            let most = if pools.queues.is_empty() { GRANT_BYTES_MAX } else { GRANT_BYTES_SHARED };
            let wants = pools.wants.remove(&key).unwrap_or(0);
            let bytes = available.min(most).min(wants).min(allowance).max(GRANT_BYTES_MIN);
            let send = Bytes::of(Class::Elastic, bytes);
            pace.spend(bytes);
            pools.send.held += send;
            pools.counters.deducted += send;
            pools.grants.insert(key, bytes);
            self.wakes.insert(key.0);
        }
        for class in Class::ALL {
            if pools.turn.get(class).is_some()
                || pools.eval_available(&limits, class) <= 0
                || pools.waiting.get(class).is_empty()
            {
                continue;
            }
            if class == Class::Elastic && pace.allowance() == 0 {
                pace.is_short();
                continue;
            }
            if let Some(group) = pools.waiting.get_mut(class).pop() {
                *pools.turn.get_mut(class) = Some(group);
                self.wakes.insert(group);
            }
        }
    }
}
