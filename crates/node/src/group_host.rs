//! One group as its shard keeps it: the core, and what waits beside it.

use std::collections::VecDeque;
use std::sync::Arc;

use pontoon_raft_core::Group;
use pontoon_raft_core::relay::{Ledger, Relay};
use pontoon_raft_core::types::{
    Entry, EntryId, LogIndex, ReplicaId, Role, SnapshotMeta, StoreId, Term, Ticket,
};
use pontoon_storage::GroupLog;
use pontoon_transport::RelayedProposal;
use tokio::sync::oneshot;

use crate::failure::MemberSteps;
use crate::flow::GroupFlow;
use crate::hand_over::HandOver;
use crate::line::Spot;
use crate::shared::{GroupShared, ReadResult};

/// Marks in the running total of log bytes are this far apart; it bounds both their number and the error of a cut.
const MARK_BYTES: u64 = 256 << 10;

/// A read that waits for a read index: its callers, asked for in one round.
#[derive(Debug)]
pub(crate) struct ReadBatch {
    pub(crate) context: u64,
    pub(crate) readers: Vec<oneshot::Sender<ReadResult>>,
}

/// One group of a shard.
pub(crate) struct GroupHost {
    pub(crate) core: Group<GroupLog>,
    pub(crate) shared: Arc<GroupShared>,
    /// Whether the group is on the shard's list of groups to look at in this round.
    pub(crate) dirty: bool,
    /// Commands that arrived in this round, or wait for a leader; the callers are in `shared.waiters`.
    pub(crate) arrived: Vec<EntryId>,
    /// Commands that other stores relayed, and their bytes.
    pub(crate) relayed: Vec<(StoreId, RelayedProposal)>,
    pub(crate) relayed_bytes: usize,
    /// Relayed commands that wait, for tokens or while somebody else is asked to lead. To their stores they are in progress.
    pub(crate) held: Vec<HeldCommand>,
    /// What this store relayed to leaders elsewhere.
    pub(crate) relay: Relay,
    /// What other stores relayed to this one.
    pub(crate) ledgers: Ledgers,
    /// The newest ticket with entries of this leader that is not durable yet. While there is one, commands gather, so
    /// that the next sync carries all of them: under load a round is as large as a sync is long, as in any group commit.
    pub(crate) appending: Option<Ticket>,
    /// Callers of reads that arrived in this round.
    pub(crate) readers: Vec<oneshot::Sender<ReadResult>>,
    /// Reads under way.
    pub(crate) reads: Vec<ReadBatch>,
    pub(crate) next_read_context: u64,
    /// When commands or reads that found no leader are looked at again.
    pub(crate) retry_at: Option<u64>,
    /// A log reset that is being written; the state machine follows once the ticket is durable.
    pub(crate) restoring: Option<(Ticket, SnapshotMeta)>,
    /// What the log begins after.
    pub(crate) snapshot: SnapshotMeta,
    pub(crate) size: LogSize,
    /// The latest term of which an entry has been applied here.
    pub(crate) applied_term: Term,
    /// A sync of the state machine has been asked for and not answered.
    pub(crate) syncing: bool,
    /// The state machine is durable up to here.
    pub(crate) synced: LogIndex,
    /// `size.total()` when the last sync was asked for.
    pub(crate) synced_total: u64,
    /// Snapshots that are being sent, by their index: the log from there on is kept for their receivers.
    pub(crate) sending: Vec<(ReplicaId, LogIndex)>,
    pub(crate) election: Option<Election>,
    /// The leader or the host has asked this replica to lead, and it has not stood since.
    pub(crate) asked_to_lead: bool,
    /// The replica started in doubt, and that was not settled when it was last looked at.
    pub(crate) in_doubt: bool,
    pub(crate) hand_over: HandOver,
    pub(crate) flow: GroupFlow,
    /// The latest term that this replica led and noted in the log store, for those who check the records later.
    pub(crate) led: Term,
    /// The last entry that this leader made of a command which another store relayed.
    pub(crate) relayed_upto: LogIndex,
    /// The term in which a failure test has handed this leadership over.
    pub(crate) failure_handed_over: Option<Term>,
    pub(crate) failure_members: MemberSteps,
}

/// A command that another store relayed, and that waits.
#[derive(Debug)]
pub(crate) struct HeldCommand {
    pub(crate) from: StoreId,
    pub(crate) command: RelayedProposal,
    /// While it waits for tokens.
    pub(crate) spot: Option<Spot>,
}

/// What is left of a replica that was closed: a replica that moves away may come back, and to the other stores this process is
/// who it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Earlier {
    /// The last number under which it relayed a command.
    relayed: u64,
    /// Up to here it may have led, and taken what others relayed.
    term: Term,
}

/// Runs of other stores that a group remembers; one that is forgotten ended that many restarts ago, and its connections with it.
const LEDGERS_MAX: usize = 16;

/// The ledgers of one group: one for each run of each store that relayed to it, the latest used last.
#[derive(Debug)]
pub(crate) struct Ledgers {
    /// What a run of this store before may have taken, in terms up to this one, is not in them.
    restored: Term,
    ledgers: Vec<((StoreId, u64), Ledger)>,
}

impl Ledgers {
    /// The ledger for `store` in the run that made `id`.
    pub(crate) fn of(&mut self, store: StoreId, id: EntryId) -> &mut Ledger {
        // The upper half of an id names the run that made it.
        let key = (store, (id.0 >> 64) as u64);
        let ledgers = &mut self.ledgers;
        match ledgers.iter().position(|(of, _)| *of == key) {
            Some(at) if at + 1 == ledgers.len() => {}
            Some(at) => ledgers[at..].rotate_left(1),
            None => {
                if ledgers.len() >= LEDGERS_MAX {
                    ledgers.remove(0);
                }
                ledgers.push((key, Ledger::after(self.restored)));
            }
        }
        let last = ledgers.last_mut().expect("it was put there");
        &mut last.1
    }
}

/// The last election that this replica took part in as a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Election {
    /// When it began, in milliseconds of the node's clock.
    pub started_ms: u64,
    /// The leader, or an operator, asked for it; else no leader was heard.
    pub asked: bool,
    /// When it was won.
    pub won_ms: Option<u64>,
}

impl Election {
    /// What the last election is once the replica has come into this role, in another term or under another leader than
    /// before. `asked`: it was asked to lead.
    pub(crate) fn next(last: Option<Self>, role: Role, asked: bool, now: u64) -> Option<Self> {
        let begun = Self { started_ms: now, asked, won_ms: None };
        match role {
            Role::Candidate => Some(begun),
            // Who is alone wins without having stood.
            Role::Leader => {
                Some(Self { won_ms: Some(now), ..last.filter(|e| e.won_ms.is_none()).unwrap_or(begun) })
            }
            Role::Follower | Role::PreCandidate => last,
        }
    }
}

impl GroupHost {
    /// `restored`: the term that the log store knew, or the highest there is if it may have lost it.
    pub(crate) fn new(
        core: Group<GroupLog>,
        shared: Arc<GroupShared>,
        snapshot: SnapshotMeta,
        size: LogSize,
        applied_term: Term,
        restored: Term,
        flow: GroupFlow,
    ) -> Self {
        // What the machine has may not be durable yet; what the log begins after is.
        let synced = snapshot.index;
        Self {
            // Also if it settled the doubt while it started: somebody has to hear of it.
            in_doubt: true,
            core,
            shared,
            dirty: false,
            arrived: Vec::new(),
            relayed: Vec::new(),
            relayed_bytes: 0,
            held: Vec::new(),
            relay: Relay::default(),
            ledgers: Ledgers { restored, ledgers: Vec::new() },
            appending: None,
            readers: Vec::new(),
            reads: Vec::new(),
            next_read_context: 1,
            retry_at: None,
            restoring: None,
            size,
            snapshot,
            applied_term,
            syncing: false,
            synced,
            synced_total: 0,
            sending: Vec::new(),
            election: None,
            asked_to_lead: false,
            hand_over: HandOver::default(),
            flow,
            led: Term::ZERO,
            relayed_upto: LogIndex::ZERO,
            failure_handed_over: None,
            failure_members: MemberSteps::default(),
        }
    }

    /// What the next replica of the group in this process has to know of this one.
    pub(crate) fn earlier(&self) -> Earlier {
        Earlier { relayed: self.relay.last(), term: self.core.term().max(self.ledgers.restored) }
    }

    /// This replica comes after another one of the group in this process.
    pub(crate) fn come_after(&mut self, earlier: Earlier) {
        self.relay = Relay::after(earlier.relayed);
        self.ledgers.restored = self.ledgers.restored.max(earlier.term);
    }

    /// Notes what is about to be appended.
    pub(crate) fn note_appended(&mut self, truncate_from: Option<LogIndex>, entries: &[Entry]) {
        if let Some(from) = truncate_from {
            self.size.truncate(from);
        }
        for entry in entries {
            self.size.append(entry.index, entry.size_bytes());
        }
        self.flow.note_appended(truncate_from, entries);
    }

    /// The whole log was replaced by a snapshot.
    pub(crate) fn note_reset(&mut self, snapshot: &SnapshotMeta) {
        self.snapshot = snapshot.clone();
        self.size = LogSize::default();
        self.flow.note_reset(snapshot.index);
    }

    /// The log begins after this snapshot from now on.
    pub(crate) fn note_cut(&mut self, snapshot: &SnapshotMeta) {
        self.snapshot = snapshot.clone();
        self.size.cut(snapshot.index);
        self.core.compacted(snapshot.index.next());
    }
}

/// How many bytes the log holds, and roughly where. Sizes are those of [`Entry::size_bytes`].
#[derive(Debug, Default)]
pub(crate) struct LogSize {
    /// (index, total including it), about every [`MARK_BYTES`].
    marks: VecDeque<(LogIndex, u64)>,
    total: u64,
    start: u64,
}

impl LogSize {
    pub(crate) fn append(&mut self, index: LogIndex, bytes: u64) {
        self.total += bytes;
        if self.marks.back().is_none_or(|(_, at)| self.total - at >= MARK_BYTES) {
            self.marks.push_back((index, self.total));
        }
    }

    fn truncate(&mut self, from: LogIndex) {
        while self.marks.back().is_some_and(|(index, _)| *index >= from) {
            self.marks.pop_back();
        }
        // The bytes behind the last mark that is left are forgotten: an error of at most one mark.
        self.total = self.marks.back().map_or(self.start, |(_, at)| *at);
    }

    fn cut(&mut self, index: LogIndex) {
        while self.marks.front().is_some_and(|(at, _)| *at <= index) {
            self.start = self.marks.pop_front().map_or(self.start, |(_, at)| at);
        }
    }

    /// The bytes in the log.
    pub(crate) fn bytes(&self) -> u64 {
        self.total - self.start
    }

    /// A running total of what was appended; only differences mean something.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Roughly the bytes up to and including `index`.
    pub(crate) fn bytes_until(&self, index: LogIndex) -> u64 {
        let at = self.marks.partition_point(|(mark, _)| *mark <= index);
        at.checked_sub(1).map_or(0, |i| self.marks[i].1 - self.start)
    }

    /// The last index such that about `bytes` follow it; `None` if the log holds less.
    pub(crate) fn index_with_bytes_after(&self, bytes: u64) -> Option<LogIndex> {
        let at = self.marks.partition_point(|(_, total)| self.total - total >= bytes);
        at.checked_sub(1).map(|i| self.marks[i].0)
    }
}

#[cfg(test)]
mod tests {
    use pontoon_raft_core::relay::{RelayNumber, Verdict};

    use super::*;

    /// What the run before took is in the log, and not in these.
    #[test]
    fn a_store_that_restarted_denies_nothing_of_the_terms_before() {
        let at = RelayNumber { number: 1, floor: 1 };
        let mut ledgers = Ledgers { restored: Term(4), ledgers: Vec::new() };
        assert_eq!(ledgers.of(StoreId(2), EntryId(7)).asked(Term(4), at, false), Verdict::Silent);
        assert_eq!(ledgers.of(StoreId(2), EntryId(7)).asked(Term(5), at, false), Verdict::NotTaken);
    }

    #[test]
    fn log_size_finds_where_to_cut() {
        let mut size = LogSize::default();
        for i in 1..=100 {
            size.append(LogIndex(i), 100 << 10);
        }
        assert_eq!(size.bytes(), 100 * (100 << 10));
        let cut = size.index_with_bytes_after(1 << 20).expect("the log is larger");
        assert!((85..=90).contains(&cut.0), "{cut}: ten entries and at most one mark more stay");
        size.cut(cut);
        assert!(size.bytes() >= 1 << 20 && size.bytes() < (1 << 20) + 2 * MARK_BYTES + (100 << 10));
        assert_eq!(size.index_with_bytes_after(1 << 30), None);
        size.truncate(LogIndex(1));
        assert_eq!(size.bytes(), 0);
    }
}
