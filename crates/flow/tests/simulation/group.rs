//! One group: the leader's Raft as far as flow control sees it, and its followers.

use std::collections::{BTreeMap, VecDeque};

use pontoon_flow::{Class, Controller, EntryCost, FollowerState, LogTracker, Mode, Pools, Verdict};
use pontoon_raft_core::types::{Configuration, GroupId, LogIndex, ReplicaId, Term};

/// Raft's window.
const WINDOW_BYTES: u64 = 2 << 20;
/// Raft's append.
const APPEND_BYTES: u64 = 256 << 10;

/// The most that one look at a group can send to one follower beyond what was there: a window, and one entry.
pub(crate) const BATCH_BYTES: u64 = WINDOW_BYTES + (1 << 20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sends {
    Probe,
    Replicate,
    Snapshot,
}

/// The leader's view of one follower.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) sends: Sends,
    pub(crate) matched: u64,
    pub(crate) next: u64,
    inflight: VecDeque<(u64, u64)>,
    credit: Option<u64>,
}

impl Progress {
    fn new(next: u64) -> Self {
        Self { sends: Sends::Probe, matched: 0, next, inflight: VecDeque::new(), credit: None }
    }

    pub(crate) fn replicate(&mut self) {
        self.sends = Sends::Replicate;
        self.next = self.matched + 1;
        self.inflight.clear();
    }

    pub(crate) fn accepted(&mut self, index: u64) {
        self.matched = self.matched.max(index);
        self.next = self.next.max(index + 1);
        while self.inflight.front().is_some_and(|(last, _)| *last <= index) {
            self.inflight.pop_front();
        }
    }

    pub(crate) fn probe(&mut self) {
        self.sends = Sends::Probe;
        self.inflight.clear();
    }

    /// A refusal moved it back within the pipeline.
    pub(crate) fn rewind(&mut self, to: u64) {
        self.next = to.clamp(self.matched + 1, self.next);
        self.inflight.clear();
    }
}

/// A replica elsewhere.
#[derive(Debug)]
pub(crate) struct Follower {
    pub(crate) term: u64,
    pub(crate) end: u64,
    /// Of this term's leader.
    pub(crate) matched: u64,
    pub(crate) applied: u64,
    pub(crate) tracker: LogTracker,
}

/// An append on its way.
#[derive(Clone, Debug)]
pub(crate) struct Append {
    pub(crate) to: ReplicaId,
    pub(crate) term: u64,
    pub(crate) first: u64,
    /// The bytes of each entry.
    pub(crate) entries: Vec<u64>,
}

pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) me: ReplicaId,
    pub(crate) term: u64,
    /// While this store leads.
    pub(crate) controller: Option<Controller>,
    /// Every entry of the leader's log, from index 1 on.
    pub(crate) log: Vec<(Class, u64)>,
    /// The last entry when this term began.
    pub(crate) began: u64,
    pub(crate) progress: BTreeMap<ReplicaId, Progress>,
    pub(crate) followers: BTreeMap<ReplicaId, Follower>,
    pub(crate) configuration: Configuration,
    /// Commands that wait.
    pub(crate) commands: [VecDeque<u64>; 2],
    fresh: Vec<EntryCost>,
}

impl Group {
    pub(crate) fn new(
        id: GroupId,
        me: ReplicaId,
        configuration: Configuration,
        followers: BTreeMap<ReplicaId, Follower>,
    ) -> Self {
        Self {
            id,
            me,
            term: 0,
            controller: None,
            log: Vec::new(),
            began: 0,
            progress: BTreeMap::new(),
            followers,
            configuration,
            commands: [VecDeque::new(), VecDeque::new()],
            fresh: Vec::new(),
        }
    }

    pub(crate) fn last(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn lead(&mut self) {
        self.term += 1;
        self.began = self.last();
        let next = self.last() + 1;
        self.progress = self.others().map(|replica| (replica, Progress::new(next))).collect();
        let mut controller =
            Controller::new(self.id, Term(self.term), self.me, LogIndex(next), self.configuration.clone());
        controller.set_mean_entry_bytes(2_000);
        self.controller = Some(controller);
    }

    pub(crate) fn others(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        let me = self.me;
        self.configuration.members().into_iter().filter(move |replica| *replica != me)
    }

    pub(crate) fn configure(&mut self, configuration: Configuration) {
        self.configuration = configuration;
        let next = self.last() + 1;
        let others: Vec<_> = self.others().collect();
        self.progress.retain(|replica, _| others.contains(replica));
        for replica in others {
            self.progress.entry(replica).or_insert_with(|| Progress::new(next));
        }
    }

    /// A host's look: told what is, decides, sends, settles.
    pub(crate) fn look(&mut self, pools: &mut Pools, now: u64) -> Vec<Append> {
        let Some(mut controller) = self.controller.take() else {
            pools.forget(self.id);
            return Vec::new();
        };
        if pools.mode() == Mode::Off {
            self.append_commands(u64::MAX, Class::Regular);
            self.append_commands(u64::MAX, Class::Elastic);
            controller.close(pools);
            // A host keeps none in this mode; here it is made anew, so that the mode can come back.
            let mut controller = Controller::new(
                self.id,
                Term(self.term),
                self.me,
                LogIndex(self.last() + 1),
                self.configuration.clone(),
            );
            controller.set_mean_entry_bytes(2_000);
            self.fresh.clear();
            self.controller = Some(controller);
            return self.send(|_| None).into_iter().map(|(append, _)| append).collect();
        }
        controller.set_configuration(pools, &self.configuration);
        for (replica, progress) in &self.progress {
            let state = match progress.sends {
                Sends::Probe => FollowerState::Probe,
                Sends::Replicate => FollowerState::Replicate { next: LogIndex(progress.next) },
                Sends::Snapshot => FollowerState::Snapshot,
            };
            controller.follower(pools, now, *replica, state);
        }
        for class in Class::ALL {
            if !self.commands[class as usize].is_empty()
                && let Verdict::Go { bytes } = controller.evaluate(pools, class)
            {
                self.append_commands(bytes, class);
            }
        }
        let elastic = self.fresh.iter().any(|entry| entry.class == Class::Elastic);
        let mut credits = BTreeMap::new();
        controller.plan(pools, elastic, |replica, credit| {
            credits.insert(replica, credit);
        });
        let sent = self.send(|replica| credits.get(&replica).copied().flatten());
        controller.appended(pools, &std::mem::take(&mut self.fresh));
        for (append, end) in &sent {
            controller.sent(pools, now, append.to, LogIndex(append.first)..LogIndex(*end));
        }
        controller.settle(pools);
        self.controller = Some(controller);
        sent.into_iter().map(|(append, _)| append).collect()
    }

    fn append_commands(&mut self, room: u64, class: Class) {
        let mut begun = 0;
        while begun < room
            && let Some(bytes) = self.commands[class as usize].pop_front()
        {
            begun = begun.saturating_add(bytes);
            self.log.push((class, bytes));
            self.fresh.push(EntryCost { index: LogIndex(self.last()), class, bytes });
        }
    }

    /// What Raft does with its credit.
    fn send(&mut self, credit: impl Fn(ReplicaId) -> Option<u64>) -> Vec<(Append, u64)> {
        let mut sent = Vec::new();
        for (replica, progress) in &mut self.progress {
            progress.credit = credit(*replica);
            if progress.sends != Sends::Replicate {
                continue;
            }
            while progress.next <= self.log.len() as u64
                && progress.credit != Some(0)
                && (progress.inflight.is_empty()
                    || progress.inflight.iter().map(|(_, bytes)| bytes).sum::<u64>() < WINDOW_BYTES)
            {
                let most = progress.credit.map_or(APPEND_BYTES, |left| left.min(APPEND_BYTES));
                let (first, mut bytes, mut entries) = (progress.next, 0, Vec::new());
                while let Some((_, size)) = self.log.get(usize::try_from(progress.next - 1).expect("small"))
                    && (entries.is_empty() || bytes + size <= most)
                {
                    bytes += size;
                    entries.push(*size);
                    progress.next += 1;
                }
                progress.inflight.push_back((progress.next - 1, bytes));
                if let Some(left) = &mut progress.credit {
                    *left = left.saturating_sub(bytes);
                }
                let append = Append { to: *replica, term: self.term, first, entries };
                sent.push((append, progress.next));
            }
        }
        sent
    }
}

impl Follower {
    pub(crate) fn truncate(&mut self, end: u64) {
        if end < self.end {
            self.tracker.truncated(LogIndex(end + 1));
            self.end = end;
            self.applied = self.applied.min(end);
        }
    }
}

impl Group {
    pub(crate) fn probe(&mut self, replica: ReplicaId) {
        if let Some(progress) = self.progress.get_mut(&replica) {
            progress.probe();
        }
    }

    pub(crate) fn snapshot(&mut self, replica: ReplicaId) {
        if let Some(progress) = self.progress.get_mut(&replica) {
            progress.probe();
            progress.sends = Sends::Snapshot;
        }
    }

    /// A follower answers a probe, or has got its snapshot: it is found out where the logs part, `back` entries before what
    /// could be.
    pub(crate) fn answer(&mut self, replica: ReplicaId, back: u64) {
        let (term, last) = (self.term, self.last());
        let Some(follower) = self.followers.get_mut(&replica) else { return };
        let Some(progress) = self.progress.get_mut(&replica) else { return };
        if follower.term < term {
            if progress.sends == Sends::Snapshot {
                follower.end = last;
                follower.applied = last;
                follower.tracker.reset(LogIndex(last));
                follower.matched = last;
            } else {
                let matched =
                    follower.end.min(self.began).saturating_sub(back).max(follower.applied.min(self.began));
                follower.truncate(matched);
                follower.matched = matched;
            }
            follower.term = term;
        }
        progress.accepted(follower.matched);
        progress.replicate();
    }

    /// Where it is sent to is not known, or is not right, which heartbeats find out.
    pub(crate) fn is_lost(&self, replica: ReplicaId, heartbeat: bool) -> bool {
        let progress = &self.progress[&replica];
        let lags = self.followers.get(&replica).is_some_and(|f| f.matched + 1 < progress.next);
        progress.sends != Sends::Replicate || (heartbeat && lags)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.commands.iter().all(VecDeque::is_empty)
            && self.progress.values().all(|p| p.sends == Sends::Replicate && p.matched == self.last())
    }

    pub(crate) fn describe(&self) -> String {
        let commands = [self.commands[0].len(), self.commands[1].len()];
        format!("group {} waits {commands:?}, last {}, {:?}", self.id, self.last(), self.progress)
    }
}
