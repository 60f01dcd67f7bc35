//! What callers write, and what they get back.

use pontoon_raft_core::types::{Entry, GroupId, HardState, LogIndex, ReplicaId, SnapshotMeta, Term};

/// The number of a batch, in submit order, without gaps, over all openings of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchSeq(pub u64);

/// Changes to any number of groups that become durable together or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The changes; several for one group are carried out in order.
    pub groups: Vec<GroupWrite>,
}

/// Changes to one group, carried out in the order of the fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupWrite {
    /// Which group.
    pub group: GroupId,
    /// The group begins to exist here, as this replica. Nothing happens if it does already as the same replica.
    pub create: Option<ReplicaId>,
    /// The new term and vote. Terms never go down.
    pub hard_state: Option<HardState>,
    /// Replaces the whole log, which now begins after this snapshot.
    pub snapshot: Option<SnapshotMeta>,
    /// Entries at and after this index are void.
    pub truncate_from: Option<LogIndex>,
    /// New entries, contiguous with each other and with the log.
    pub entries: Vec<Entry>,
    /// The commit index, as a note: it never goes down, and never past the last entry.
    pub commit: Option<LogIndex>,
    /// The replica leads this term: a note for those who check the records of several stores (`pontoon check-cluster`).
    /// It is kept as long as the journal keeps its record, and changes nothing.
    pub leads: Option<Term>,
    /// The log now begins after this: entries at and before its index are dropped, later ones stay. An older one than
    /// the log's present begin changes nothing.
    pub compact: Option<SnapshotMeta>,
    /// The group is gone, with all its entries. Its id and its replica stay known, see `LogStore::tombstone`; later
    /// writes to it are ignored until a replica with a higher number is created.
    pub destroy: bool,
}

/// A group as the store has it: everything submitted, durable or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupState {
    /// The replica that this store hosts.
    pub replica: ReplicaId,
    /// Term and vote.
    pub hard_state: HardState,
    /// The commit index as last noted.
    pub commit: LogIndex,
    /// What the log begins after.
    pub snapshot: SnapshotMeta,
    /// The first entry of the log, if there is one: `snapshot.index + 1`.
    pub first_index: LogIndex,
    /// The last entry; `snapshot.index` if the log is empty.
    pub last_index: LogIndex,
}
