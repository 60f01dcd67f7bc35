//! What the registry holds. Fields are only ever added: older bytes decode, and [`Registry::upgrade`] fills in what they lack.

use std::collections::BTreeMap;

use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};

use super::{DEFAULT_GROUP, META_GROUP};

/// What a group replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum GroupKind {
    /// The registry itself.
    Meta = 0,
    /// An etcd keyspace.
    Kv = 1,
    /// A plain log.
    Log = 2,
}

impl std::fmt::Display for GroupKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Meta => "meta",
            Self::Kv => "kv",
            Self::Log => "log",
        })
    }
}

/// Where a store is in its life.
///
/// ```text
///   Reserved -> Joining -> Member -> Leaving -> gone (a tombstone)
///       |          |          |         |         ^
///       +----------+----------+---------+-> Kicked
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum StoreState {
    /// It holds replicas, and new ones may be placed on it.
    Member = 0,
    /// It was let in, and has not caught up with the registry yet.
    Joining = 1,
    /// It wishes to leave: its replicas move to others, then it is gone.
    Leaving = 2,
    /// Somebody removes it: its replicas move to others while it runs, and go at once where it does not; then it is gone.
    Kicked = 3,
    /// A place for a store that will come with this peer address (etcd's `MemberAdd`).
    Reserved = 4,
}

/// One store.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StoreRecord {
    /// Its id.
    #[prost(fixed64, tag = "1")]
    pub store: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other stores reach it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients reach it; empty until it has announced itself.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// Of its data directory, which it keeps for ever ([`crate::lineage`]); 0 until it has announced itself.
    #[prost(fixed64, tag = "5")]
    pub lineage: u64,
    /// The latest start that it has announced.
    #[prost(uint64, tag = "6")]
    pub start: u64,
    /// Where it is in its life.
    #[prost(enumeration = "StoreState", tag = "7")]
    pub state: i32,
    /// It has no vote and no keyspaces until it is promoted (etcd's `MemberAdd` of a learner).
    #[prost(bool, tag = "8")]
    pub learner: bool,
}

impl StoreRecord {
    /// The id as a type.
    #[must_use]
    pub fn id(&self) -> StoreId {
        StoreId(self.store)
    }

    /// Whether it belongs to the cluster and is to stay: the stores that replicas are placed on, if it may vote.
    #[must_use]
    pub fn stays(&self) -> bool {
        self.state() == StoreState::Member
    }

    /// Whether it is on its way out.
    #[must_use]
    pub fn goes(&self) -> bool {
        matches!(self.state(), StoreState::Leaving | StoreState::Kicked)
    }
}

/// A store that is gone. Kept for ever: its id never comes back.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RemovedStore {
    /// Its last name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// It was kicked; else it left by itself.
    #[prost(bool, tag = "2")]
    pub kicked: bool,
    /// Of its data directory; 0 if it never announced one.
    #[prost(fixed64, tag = "3")]
    pub lineage: u64,
}

impl RemovedStore {
    /// What the store is told.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if self.kicked { "it was kicked from the cluster" } else { "it has left the cluster" }
    }
}

/// A replica, as it is written down.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ReplicaRecord {
    /// The store that hosts it.
    #[prost(fixed64, tag = "1")]
    pub store: u64,
    /// Never reused within the group.
    #[prost(uint64, tag = "2")]
    pub number: u64,
    /// What it is to be. (The group's own log says what it is.)
    #[prost(enumeration = "ReplicaState", tag = "3")]
    pub state: i32,
}

/// What a replica is to be, and whether it is that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ReplicaState {
    /// A voter.
    Voter = 0,
    /// To become a voter.
    Joining = 1,
    /// To be removed.
    Removing = 2,
    /// A learner, to stay one.
    Learner = 3,
    /// To become such a learner.
    JoiningLearner = 4,
}

impl ReplicaRecord {
    /// A new one.
    #[must_use]
    pub fn new(store: u64, number: u64, state: ReplicaState) -> Self {
        Self { store, number, state: state as i32 }
    }

    /// The id as a type.
    #[must_use]
    pub fn id(&self) -> ReplicaId {
        ReplicaId { store: StoreId(self.store), number: self.number }
    }
}

/// One group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupRecord {
    /// Its id, never reused.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Its name, unique among the groups that exist.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it replicates.
    #[prost(enumeration = "GroupKind", tag = "3")]
    pub kind: i32,
    /// The voters that it was created with. Never changed: they began with this configuration, all others begin with none.
    #[prost(message, repeated, tag = "4")]
    pub founders: Vec<ReplicaRecord>,
    /// How many voters it is to have; 0: one on each store, up to a bound ([`GroupRecord::voters_wished`]).
    #[prost(uint32, tag = "5")]
    pub wished: u32,
    /// Its replicas, sorted by store.
    #[prost(message, repeated, tag = "6")]
    pub replicas: Vec<ReplicaRecord>,
    /// The number of the next replica; 0 in records of a version that did not change members.
    #[prost(uint64, tag = "7")]
    pub next_number: u64,
    /// Counts the changes of `replicas`: a wish names the state that it was made for.
    #[prost(uint64, tag = "8")]
    pub version: u64,
}

/// A group that is wished on all stores has no more voters than this: more cost each write an answer, and help nobody.
pub const VOTERS_MAX: usize = 7;

impl GroupRecord {
    /// A new one with a first voter on each of these stores.
    #[must_use]
    pub fn found(group: GroupId, name: &str, kind: GroupKind, stores: &[u64], wished: u32) -> Self {
        let founders: Vec<_> =
            stores.iter().map(|&store| ReplicaRecord::new(store, 1, ReplicaState::Voter)).collect();
        Self {
            group: group.0,
            name: name.to_owned(),
            kind: kind as i32,
            replicas: founders.clone(),
            founders,
            wished,
            next_number: 2,
            version: 0,
        }
    }

    /// The id as a type.
    #[must_use]
    pub fn id(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The voters that it was created with.
    #[must_use]
    pub fn founder_ids(&self) -> Vec<ReplicaId> {
        self.founders.iter().map(ReplicaRecord::id).collect()
    }

    /// Its replica on a store.
    #[must_use]
    pub fn on(&self, store: u64) -> Option<&ReplicaRecord> {
        self.replicas.iter().find(|r| r.store == store)
    }

    /// The stores whose replicas are voters, sorted.
    pub fn voters(&self) -> impl Iterator<Item = &ReplicaRecord> {
        self.replicas.iter().filter(|r| r.state() == ReplicaState::Voter)
    }

    /// How many voters it should have if so many stores can take one.
    #[must_use]
    pub fn voters_wished(&self, stores: usize) -> usize {
        let wished = if self.wished == 0 { VOTERS_MAX } else { self.wished as usize };
        wished.min(stores)
    }

    /// Whether this replica was one of the group and is no more. One that the record does not know yet has a number that was
    /// not given yet: the record is older than the replica.
    #[must_use]
    pub fn has_removed(&self, replica: ReplicaId) -> bool {
        replica.number < self.next_number && self.replicas.iter().all(|r| r.id() != replica)
    }
}

/// Everything that the meta group knows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Registry {
    /// The stores, by id.
    #[prost(btree_map = "fixed64, message", tag = "1")]
    pub stores: BTreeMap<u64, StoreRecord>,
    /// The groups but the meta group, by id.
    #[prost(btree_map = "uint64, message", tag = "2")]
    pub groups: BTreeMap<u64, GroupRecord>,
    /// The id of the next group.
    #[prost(uint64, tag = "3")]
    pub next_group: u64,
    /// The group of each name.
    #[prost(btree_map = "string, uint64", tag = "4")]
    pub names: BTreeMap<String, u64>,
    /// The meta group itself.
    #[prost(message, optional, tag = "5")]
    pub meta: Option<GroupRecord>,
    /// The stores as they were when the cluster was founded: what comes before the meta group's first entry. A store that
    /// joins begins with [`Registry::bootstrap`] of them and then applies the same log as everybody.
    #[prost(message, repeated, tag = "6")]
    pub founders: Vec<StoreRecord>,
    /// The election timer that groups begin with, in milliseconds; 0: each store's own setting.
    #[prost(uint64, tag = "7")]
    pub election_timer_ms: u64,
    /// The stores that are gone, by id.
    #[prost(btree_map = "fixed64, message", tag = "8")]
    pub removed: BTreeMap<u64, RemovedStore>,
    /// The recoveries without a quorum, the oldest first; the last [`RECOVERIES_MAX`].
    #[prost(message, repeated, tag = "9")]
    pub recoveries: Vec<RecoveryRecord>,
    /// By which stores vouch to each other, the newest first; at most two.
    #[prost(message, repeated, tag = "12")]
    pub vouch_secrets: Vec<VouchSecret>,
}

/// The newest secret, and the one before it: what was signed a moment before it was replaced still counts.
pub(super) const VOUCH_SECRETS_MAX: usize = 2;

/// The bytes of a [`VouchSecret`]: as many as the hash has that signs with it.
pub const VOUCH_SECRET_BYTES: usize = 32;

/// What a store signs with when it tells another one who has asked it for something. Every store of the cluster has it, and
/// nobody else; it is never shown.
#[derive(Clone, PartialEq, Eq, prost::Message)]
#[prost(skip_debug)]
pub struct VouchSecret {
    /// [`VOUCH_SECRET_BYTES`] random bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for VouchSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VouchSecret(..)")
    }
}

/// So many recoveries are remembered.
pub const RECOVERIES_MAX: usize = 64;

/// The record of a recovery: who lost what, by whose word.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RecoveryRecord {
    /// When, in milliseconds since 1970, by the clock of the machine where it was done.
    #[prost(uint64, tag = "1")]
    pub at_ms: u64,
    /// What the operator said.
    #[prost(string, tag = "2")]
    pub note: String,
    /// The stores that were given up, by name; their ids are among [`Registry::removed`] when they are gone.
    #[prost(string, repeated, tag = "3")]
    pub lost: Vec<String>,
    /// The stores that went on, by name.
    #[prost(string, repeated, tag = "4")]
    pub survivors: Vec<String>,
    /// The groups that were given a new configuration.
    #[prost(message, repeated, tag = "5")]
    pub groups: Vec<RecoveredGroup>,
}

/// One group of a recovery.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct RecoveredGroup {
    /// Its id.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Its name at that time.
    #[prost(string, tag = "2")]
    pub name: String,
    /// The last entry that was left.
    #[prost(uint64, tag = "3")]
    pub last_index: u64,
    /// Its term.
    #[prost(uint64, tag = "4")]
    pub last_term: u64,
    /// Whether writes after it may have been acknowledged, and are lost then.
    #[prost(bool, tag = "5")]
    pub may_have_lost: bool,
    /// The term from which on the group goes on; higher than any of before.
    #[prost(uint64, tag = "6")]
    pub epoch: u64,
}

impl Registry {
    /// Whether there is anything in it: not in that of a store which has not heard of its cluster.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.meta.is_some()
    }

    /// Fills in what a version that did not change members left out. The same everywhere, as it looks at nothing else.
    pub fn upgrade(&mut self) {
        if self.stores.is_empty() {
            return;
        }
        if self.founders.is_empty() {
            self.founders = self.stores.values().cloned().collect();
            for founder in &mut self.founders {
                // What was announced since is announced in the log, too.
                (founder.peer_address, founder.client_address) = (String::new(), String::new());
                (founder.lineage, founder.start) = (0, 0);
            }
        }
        for group in self.groups.values_mut().filter(|g| g.next_number == 0) {
            group.replicas.clone_from(&group.founders);
            group.next_number = 2;
            if group.id() != DEFAULT_GROUP {
                group.wished = u32::try_from(group.founders.len()).unwrap_or(u32::MAX);
            }
        }
        if self.meta.is_none() {
            self.meta = Some(Self::meta_of(self.founders.iter().map(|s| s.store)));
        }
    }

    pub(super) fn meta_of(stores: impl Iterator<Item = u64>) -> GroupRecord {
        let mut stores: Vec<_> = stores.collect();
        stores.sort_unstable();
        GroupRecord::found(META_GROUP, "meta", GroupKind::Meta, &stores, 0)
    }

    /// A group, the meta group too.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<&GroupRecord> {
        if group == META_GROUP { self.meta.as_ref() } else { self.groups.get(&group.0) }
    }

    /// Whether there was a group of this number. Ids are handed out in order and never again: one below the next that is not
    /// there was deleted. Others may be so new that this registry does not know them yet.
    #[must_use]
    pub fn is_deleted(&self, group: GroupId) -> bool {
        group != META_GROUP && group.0 < self.next_group && !self.groups.contains_key(&group.0)
    }

    pub(super) fn group_mut(&mut self, group: u64) -> Option<&mut GroupRecord> {
        if group == META_GROUP.0 { self.meta.as_mut() } else { self.groups.get_mut(&group) }
    }

    /// All groups, the meta group first.
    pub fn all_groups(&self) -> impl Iterator<Item = &GroupRecord> {
        self.meta.iter().chain(self.groups.values())
    }

    /// The group of this name.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&GroupRecord> {
        self.groups.get(self.names.get(name)?)
    }

    /// How many replicas a store has, the meta group's not counted.
    #[must_use]
    pub fn replicas_on(&self, store: u64) -> usize {
        self.groups.values().filter(|g| g.on(store).is_some()).count()
    }
}
