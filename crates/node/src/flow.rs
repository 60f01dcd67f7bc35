//! Flow control: what a shard tells the controllers of the groups that it leads, and what they let it do; and what followers
//! tell their leaders. The decisions are `pontoon-flow`'s.
//!
//! A look at a group that leads goes: [`begin`] (who leads, how the followers are sent to), [`Gate::passes`] for each command that
//! waits, [`plan`] (what the core may send), then the core's `Ready`, then [`end`] (what was appended and sent).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pontoon_flow::{
    ASK_AFTER_MS, Admitted, BacklogLimits, Class, Controller, EntryCost, FollowerState, Limits, LogTracker,
    Mode, PerClass, Pools, StoreView, Verdict,
};
use pontoon_raft_core::message::{AppendReply, Body, Entries, Message};
use pontoon_raft_core::status::FollowerState as Sends;
use pontoon_raft_core::types::{Entry, GroupId, LogIndex, ReplicaId, StoreId, Term};
use pontoon_transport::{FEATURE_REPORTS, Report};

use crate::group_host::GroupHost;
use crate::line::Line;

/// A group whose commands wait for tokens is looked at this often, in milliseconds, whether it is woken or not.
const LOOK_MS: u64 = 50;

/// What all shards of a store share.
#[derive(Debug)]
pub(crate) struct Flow {
    pools: Mutex<Pools>,
    /// A copy of the pools' mode, to be read without the lock.
    mode: AtomicU8,
    /// Regular commands that were answered, and what they took together in microseconds; and how many of both the last pass
    /// has seen. Those change under the pools' lock alone.
    answered: AtomicU64,
    answered_micros: AtomicU64,
    passed: AtomicU64,
    passed_micros: AtomicU64,
    /// A copy of when the pools are to be passed over next; `u64::MAX`: not before something happens.
    next_pass: AtomicU64,
    /// Stores that report what they admit.
    reporting: RwLock<HashSet<StoreId>>,
    /// Commands that wait for tokens.
    pub(crate) line: Line,
}

impl Flow {
    pub(crate) fn new(mode: Mode, limits: Limits) -> Self {
        let flow = Self {
            pools: Mutex::new(Pools::new(mode, limits)),
            mode: AtomicU8::new(0),
            answered: AtomicU64::new(0),
            answered_micros: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            passed_micros: AtomicU64::new(0),
            next_pass: AtomicU64::new(u64::MAX),
            reporting: RwLock::default(),
            line: Line::default(),
        };
        flow.set_mode(mode);
        flow
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Pools> {
        // What panics within would have broken an invariant of the pools; the node goes down with its shard then.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn mode(&self) -> Mode {
        Mode::ALL[usize::from(self.mode.load(Ordering::Relaxed))]
    }

    /// Every group is to be looked at afterwards.
    pub(crate) fn set_mode(&self, mode: Mode) {
        self.lock().set_mode(mode);
        let at = Mode::ALL.iter().position(|known| *known == mode).unwrap_or_default();
        self.mode.store(u8::try_from(at).unwrap_or_default(), Ordering::Relaxed);
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.lock().set_limits(limits);
    }

    /// A regular command was answered.
    pub(crate) fn note_answered(&self, took: Duration) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        self.answered_micros
            .fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Regular commands that were answered since the node started, and the microseconds that they took together.
    pub(crate) fn answered(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.answered_micros.load(Ordering::Relaxed))
    }

    /// A turn of a shard's loop: elastic work goes on at its pace. Returns the groups that are to be looked at.
    pub(crate) fn pass(&self, now: u64) -> BTreeSet<GroupId> {
        // One after the other: a command that falls in between counts a little too much or too little.
        let mut pools = self.lock();
        let (commands, micros) = self.answered();
        let commands_before = self.passed.swap(commands, Ordering::Relaxed);
        let micros_before = self.passed_micros.swap(micros, Ordering::Relaxed);
        pools.pass(now, commands - commands_before, micros - micros_before);
        self.next_pass.store(pools.next_pass().unwrap_or(u64::MAX), Ordering::Relaxed);
        pools.take_wakes()
    }

    /// When some shard is to have a turn at the latest.
    pub(crate) fn next_pass(&self) -> Option<u64> {
        Some(self.next_pass.load(Ordering::Relaxed)).filter(|at| *at != u64::MAX)
    }

    pub(crate) fn note_features(&self, store: StoreId, features: u64) {
        let mut reporting = self.reporting.write().unwrap_or_else(PoisonError::into_inner);
        if features & FEATURE_REPORTS == 0 {
            reporting.remove(&store);
        } else {
            reporting.insert(store);
        }
    }

    fn reports(&self, store: StoreId) -> bool {
        self.reporting.read().unwrap_or_else(PoisonError::into_inner).contains(&store)
    }

    pub(crate) fn view(&self) -> FlowView {
        let pools = self.lock();
        FlowView {
            mode: pools.mode(),
            limits: pools.limits(),
            unaccounted_bytes: pools.unaccounted(),
            elastic_bytes_per_second: pools.elastic_bytes_per_second(),
            stores: pools.views().collect(),
        }
    }
}

/// Flow control of a store at one moment, as people and metrics see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlowView {
    /// What is governed.
    pub mode: Mode,
    /// The limits in force.
    pub limits: Limits,
    /// Tokens that came back and had not been taken: always 0, or there is a mistake.
    pub unaccounted_bytes: u64,
    /// The pace of elastic work: how much may begin, or be sent to followers that lag.
    pub elastic_bytes_per_second: u64,
    /// The pools of each destination.
    pub stores: Vec<StoreView>,
}

/// One group's part.
#[derive(Debug)]
pub(crate) struct GroupFlow {
    /// While this replica leads, and flow control is on.
    controller: Option<Controller>,
    /// How far this replica has admitted what its leader sends.
    log: LogTracker,
    /// When that was last told.
    reported_at: u64,
    /// What the core was told last that it may send.
    credits: BTreeMap<ReplicaId, Option<u64>>,
    /// Elastic entries that were proposed since the last `Ready`.
    elastic: Vec<Range<LogIndex>>,
    /// Commands wait for tokens: when to look again.
    look_at: Option<u64>,
}

impl GroupFlow {
    pub(crate) fn new(applied: LogIndex, backlog: BacklogLimits) -> Self {
        Self {
            controller: None,
            log: LogTracker::new(applied, backlog),
            reported_at: 0,
            credits: BTreeMap::new(),
            elastic: Vec::new(),
            look_at: None,
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        let asks = self.controller.as_ref().and_then(Controller::next_deadline);
        [asks, self.look_at].into_iter().flatten().min()
    }

    pub(crate) fn note_appended(&mut self, truncate_from: Option<LogIndex>, entries: &[Entry]) {
        if let Some(from) = truncate_from {
            self.log.truncated(from);
        }
        for entry in entries {
            self.log.appended(entry.index, entry.size_bytes());
        }
    }

    pub(crate) fn note_reset(&mut self, index: LogIndex) {
        self.log.reset(index);
    }

    pub(crate) fn note_applied(&mut self, index: LogIndex) {
        self.log.applied(index);
    }

    /// Commands were proposed, in this order.
    pub(crate) fn note_proposed(&mut self, range: Range<LogIndex>, classes: impl Iterator<Item = Class>) {
        for (index, class) in (range.start.0..range.end.0).zip(classes) {
            if class == Class::Elastic {
                match self.elastic.last_mut() {
                    Some(last) if last.end.0 == index => last.end = LogIndex(index + 1),
                    _ => self.elastic.push(LogIndex(index)..LogIndex(index + 1)),
                }
            }
        }
    }

    /// Commands wait for tokens.
    pub(crate) fn waits(&mut self, now: u64) {
        self.look_at = Some(now + LOOK_MS);
    }

    /// The group goes away.
    pub(crate) fn close(&mut self, group: GroupId, flow: &Flow) {
        let mut pools = flow.lock();
        match self.controller.take() {
            Some(controller) => controller.close(&mut pools),
            None => pools.forget(group),
        }
    }

    /// A follower reports. Whoever waited for that is among the pools' wakes.
    pub(crate) fn reported(&mut self, pools: &mut Pools, now: u64, from: ReplicaId, admitted: Admitted) {
        if let Some(controller) = &mut self.controller {
            controller.admitted(pools, now, from, admitted);
        }
    }

    /// The link to the stores of these replicas is down: nothing is admitted there that this leader will hear of soon.
    pub(crate) fn link_lost(&mut self, flow: &Flow, now: u64, peers: &[ReplicaId]) {
        if let Some(controller) = &mut self.controller {
            let mut pools = flow.lock();
            for peer in peers {
                controller.follower(&mut pools, now, *peer, FollowerState::Probe);
            }
        }
    }

    /// In words, for status calls: who waits, and why.
    pub(crate) fn describe(&self) -> Option<String> {
        self.controller.as_ref().map(ToString::to_string)
    }
}

/// Begins a look: opens and closes the controller as leadership comes and goes, and tells it of the followers.
pub(crate) fn begin(host: &mut GroupHost, flow: &Flow, now: u64) {
    host.flow.look_at = None;
    let mode = flow.mode();
    let term = host.core.term();
    let leads = host.core.is_leader() && mode != Mode::Off;
    if !leads || host.flow.controller.as_ref().is_some_and(|controller| controller.term() != term) {
        if let Some(controller) = host.flow.controller.take() {
            controller.close(&mut flow.lock());
        }
        if mode == Mode::Off {
            for (replica, credit) in std::mem::take(&mut host.flow.credits) {
                if credit.is_some() {
                    host.core.send_credit(now, replica, None);
                }
            }
        }
        if !leads {
            host.shared.set_waits_for_room(false);
            return;
        }
    }
    let GroupHost { core, flow: own, shared, size, .. } = host;
    let controller = own.controller.get_or_insert_with(|| {
        let (first, next) = (core.first_index(), core.last_index().next());
        let configuration = core.configuration().clone();
        let mut controller = Controller::new(shared.id, term, core.id(), next, configuration);
        controller.set_mean_entry_bytes(size.bytes() / next.0.saturating_sub(first.0).max(1));
        controller
    });
    let mut pools = flow.lock();
    controller.set_configuration(&mut pools, core.configuration());
    for follower in core.followers() {
        let state = match follower.state {
            Sends::Replicate if !flow.reports(follower.id.store) => FollowerState::Uncontrolled,
            Sends::Replicate => FollowerState::Replicate { next: follower.next_index },
            Sends::Probe => FollowerState::Probe,
            Sends::Snapshot => FollowerState::Snapshot,
        };
        controller.follower(&mut pools, now, follower.id, state);
    }
    drop(pools);
    if controller.asks(now) {
        // Answers to heartbeats bring reports along. A silent group holds no tokens for long.
        controller.asked(now);
        core.wake(now);
    }
}

/// Decides for each command that waits whether it may begin in this look.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// What is left of what may begin; `None`: not asked yet.
    room: PerClass<Option<u64>>,
}

impl Gate {
    pub(crate) fn passes(&mut self, own: &mut GroupFlow, flow: &Flow, class: Class, bytes: usize) -> bool {
        let Some(controller) = &mut own.controller else { return true };
        let room = self.room.get_mut(class).get_or_insert_with(|| {
            match controller.evaluate(&mut flow.lock(), class) {
                Verdict::Go { bytes } => bytes,
                Verdict::Wait => 0,
            }
        });
        let passes = *room > 0;
        *room = room.saturating_sub(bytes as u64);
        passes
    }
}

/// Tells the core what each follower may be sent.
pub(crate) fn plan(host: &mut GroupHost, flow: &Flow, now: u64) {
    let GroupHost { core, flow: own, .. } = host;
    let Some(controller) = &mut own.controller else { return };
    let credits = &mut own.credits;
    let tell = |replica, credit: Option<u64>| {
        // What was granted may have been used up since.
        if credits.insert(replica, credit) != Some(credit) || credit.is_some_and(|bytes| bytes > 0) {
            core.send_credit(now, replica, credit);
        }
    };
    controller.plan(&mut flow.lock(), !own.elastic.is_empty(), tell);
}

/// What one `Ready` held, as far as flow control is concerned.
#[derive(Debug, Default)]
pub(crate) struct Happened {
    appended: Vec<EntryCost>,
    sent: Vec<(ReplicaId, Range<LogIndex>)>,
    answered: bool,
}

impl Happened {
    /// These entries are about to be written.
    pub(crate) fn appended(&mut self, own: &GroupFlow, entries: &[Entry]) {
        if own.controller.is_none() {
            return;
        }
        let class = |index: LogIndex| {
            let elastic = own.elastic.iter().any(|range| range.contains(&index));
            if elastic { Class::Elastic } else { Class::Regular }
        };
        self.appended.extend(entries.iter().map(|entry| EntryCost {
            index: entry.index,
            class: class(entry.index),
            bytes: entry.size_bytes(),
        }));
    }

    /// This message leaves.
    pub(crate) fn sent(&mut self, own: &mut GroupFlow, message: &Message) {
        match &message.body {
            Body::AppendEntries(append) if own.controller.is_some() => {
                if let Entries::Interval { last, .. } = append.entries
                    && last > append.prev_log_index
                {
                    self.sent.push((message.to, append.prev_log_index.next()..last.next()));
                }
            }
            Body::AppendReply(AppendReply::Accepted { match_index }) => {
                own.log.accepted(message.term, *match_index);
            }
            Body::HeartbeatReply { .. } => self.answered = true,
            _ => {}
        }
    }
}

/// Ends a look. Returns what the leader should hear, and adds groups that are to be looked at to `wakes`.
pub(crate) fn end(
    host: &mut GroupHost,
    flow: &Flow,
    now: u64,
    happened: &Happened,
    wakes: &mut BTreeSet<GroupId>,
) -> Option<Report> {
    let own = &mut host.flow;
    own.elastic.clear();
    if let Some(controller) = &mut own.controller {
        let mut pools = flow.lock();
        controller.appended(&mut pools, &happened.appended);
        for (to, range) in &happened.sent {
            controller.sent(&mut pools, now, *to, range.clone());
        }
        controller.settle(&mut pools);
        wakes.append(&mut pools.take_wakes());
        return None;
    }
    let (from, term) = (host.core.id(), host.core.term());
    let to = host.core.leader().filter(|leader| *leader != from)?;
    let again = happened.answered && now >= own.reported_at.saturating_add(ASK_AFTER_MS);
    let admitted = own.log.news().or_else(|| own.log.admitted().filter(|_| again))?;
    own.reported_at = now;
    (admitted.term == term && term > Term::ZERO).then_some(Report {
        group: host.shared.id,
        from,
        to,
        admitted,
    })
}
