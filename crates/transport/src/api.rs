//! What the transport and its host owe each other: the host's side as traits, and what travels besides Raft messages.

use bytes::Bytes;
use pontoon_flow::{Admitted, Class};
use pontoon_raft_core::CommandStatus;
use pontoon_raft_core::message::Message;
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{Entry, EntryId, GroupId, LogIndex, ReplicaId, StoreId, Term};

use crate::error::{Refused, Unwelcome};
use crate::identity::Claim;
use crate::receive_budget::ReceivePermit;
use crate::snapshot_io::SnapshotSink;

/// A command on its way to the store of the group's leader. Whoever waits for it waits on the sending store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RelayedProposal {
    /// The group it is for.
    pub group: GroupId,
    /// The term in which the relaying store saw the receiver lead; a receiver that does not lead in exactly this term
    /// refuses it.
    pub term: Term,
    /// Names the command; never [`EntryId::NONE`].
    pub id: EntryId,
    /// Names this attempt, for the receiver's [`Ledger`](pontoon_raft_core::relay::Ledger).
    pub at: RelayNumber,
    /// This is not the command, which was sent before, but the question what became of it; `data` is empty.
    pub asks: bool,
    /// What kind of work it is.
    pub class: Class,
    /// The command.
    pub data: Bytes,
}

/// What a follower has admitted of its leader's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The group.
    pub group: GroupId,
    /// The follower.
    pub from: ReplicaId,
    /// The leader.
    pub to: ReplicaId,
    /// How far.
    pub admitted: Admitted,
}

/// Bit of [`Inbound::features`]: the store reports what its replicas admit.
pub const FEATURE_REPORTS: u64 = 1;
/// Bit of [`Inbound::features`]: the store takes the heartbeats of many groups as one message.
pub const FEATURE_BEATS: u64 = 1 << 1;
/// Bit of [`Inbound::features`]: the store keeps to credits on the log lane, and grants them.
pub const FEATURE_CREDITS: u64 = 1 << 2;
/// Bit of [`Inbound::features`]: the store takes large messages in pieces on the log lane.
pub const FEATURE_PIECES: u64 = 1 << 3;
/// What this version can.
pub(crate) const FEATURES: u64 = FEATURE_REPORTS | FEATURE_BEATS | FEATURE_CREDITS | FEATURE_PIECES;

/// What became of a [`RelayedProposal`] at the store it was sent to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProposalReply {
    /// The proposal's group.
    pub group: GroupId,
    /// The proposal's id.
    pub id: EntryId,
    /// The proposal's term: says which attempt this answers, since a command may be relayed again in a later term.
    pub term: Term,
    /// The number of the attempt in [`RelayedProposal::at`].
    pub number: u64,
    /// What became of it.
    pub outcome: ProposalOutcome,
}

/// How a relayed proposal fared. No reply at all means *unknown*: it may have been appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProposalOutcome {
    /// The leader has it in its log; that it commits is not promised.
    Accepted {
        /// Where.
        index: LogIndex,
        /// The leader's term.
        term: Term,
    },
    /// The leader has taken it, and it is not lost. The answer to a question.
    InProgress,
    /// That store does not lead the group, or never saw the attempt. Nothing was appended, and nothing of this attempt will be:
    /// retry is safe.
    NotLeader {
        /// Who does, as far as that store knows.
        leader: Option<ReplicaId>,
    },
    /// The leader has too much uncommitted or waiting. Nothing was appended: retry is safe.
    Overloaded,
    /// The leader's disk has no room, and nobody else leads. Nothing was appended: retry is safe.
    NoSpace {
        /// Where, by which rule, and what to do.
        what: String,
    },
    /// Made by this store's own transport: the proposal never reached the wire. Retry is safe.
    NotSent,
    /// The leader's store refuses it for good.
    Failed {
        /// In words.
        reason: String,
    },
}

impl ProposalOutcome {
    /// How the command stands by that.
    pub fn status(&self) -> CommandStatus {
        match self {
            Self::Accepted { .. } | Self::InProgress => CommandStatus::InProgress,
            Self::NotLeader { .. } | Self::NotSent => CommandStatus::NotLeader,
            Self::Overloaded | Self::NoSpace { .. } => CommandStatus::Overloaded,
            Self::Failed { .. } => CommandStatus::Shutdown,
        }
    }
}

/// What the host does with what arrives. The transport calls it from its own tasks: nothing here may block, wait (the
/// exception is named) or panic.
pub trait Inbound: Send + Sync + 'static {
    /// Messages from replicas on `from` to replicas on this store, checked by the wire gate; in order per lane. Drop
    /// `permit` when they are processed: until then their bytes count against the store's receive budget.
    fn receive(&self, from: StoreId, messages: Vec<(GroupId, Message)>, permit: ReceivePermit);

    /// Proposals that `from` relays because it believes that this store leads their groups. Each is to be answered by
    /// `Transport::send_proposal_reply`.
    fn proposals(&self, from: StoreId, proposals: Vec<RelayedProposal>);

    /// What replicas on `from` have admitted of what leaders on this store sent them.
    fn reports(&self, from: StoreId, reports: Vec<Report>) {
        let _ = (from, reports);
    }

    /// The optional abilities of `store`, as it tells them whenever the control lane to it opens: before
    /// [`Inbound::link_up`]. Bits of [`FEATURE_REPORTS`], [`FEATURE_BEATS`], [`FEATURE_CREDITS`],
    /// [`FEATURE_PIECES`] and others that this version does not know.
    fn features(&self, store: StoreId, features: u64) {
        let _ = (store, features);
    }

    /// Answers to relayed proposals. `from` is the store they had been sent to, also for
    /// [`ProposalOutcome::NotSent`].
    fn proposal_replies(&self, from: StoreId, replies: Vec<ProposalReply>);

    /// Messages of these groups to `store` were or may have been lost. Each group is named at most once per lane and
    /// loss epoch; an epoch ends when a new stream opens, or when a queue that had overflowed has been sent whole.
    fn unreachable(&self, store: StoreId, groups: Vec<GroupId>);

    /// The control lane to `store` broke. `refused`: a dial right afterwards found nobody listening, so the process
    /// is gone rather than slow. A loss is told at once with `false`, and once more with `true` if that is found out.
    fn link_down(&self, store: StoreId, refused: bool);

    /// The control lane to `store` is open.
    fn link_up(&self, store: StoreId);

    /// A snapshot arrives from `from`; `meta` is its `InstallSnapshot`, checked. When the sink has finished, `meta` is
    /// delivered by [`Inbound::receive`]. Called from a thread that may block.
    ///
    /// # Errors
    /// The snapshot is not wanted, or cannot be taken now.
    fn snapshot_begin(
        &self,
        from: StoreId,
        group: GroupId,
        meta: Message,
    ) -> Result<Box<dyn SnapshotSink>, Refused>;

    /// The snapshot for `replica` of `group` on `to` ended: staged there whole (`ok`), or not.
    fn snapshot_sent(&self, to: StoreId, group: GroupId, replica: ReplicaId, ok: bool);

    /// `from` says which data directory it is, in a hello or in its answer to ours; `None` if it says nothing of it. May it
    /// be connected? It may still be waiting for the answers of others, so the question alone should not change what is
    /// known of a store, unless nothing is. Called from a thread that may block. Without an implementation everybody is
    /// taken.
    ///
    /// # Errors
    /// It must not act as that store, or cannot be taken now.
    fn meet(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        let _ = (from, claim);
        Ok(())
    }

    /// A process that was met begins to act as `from`: called before the first Raft message of each of its streams is
    /// delivered, and what is to be remembered of it must be durable when this returns. Called from a thread that may
    /// block.
    ///
    /// # Errors
    /// As [`Inbound::meet`]; the stream ends.
    fn admit(&self, from: StoreId, claim: Option<Claim>) -> Result<(), Unwelcome> {
        let _ = (from, claim);
        Ok(())
    }

    /// `from`, as admitted last, says that its log is durable up to this batch; told before the messages that came with
    /// it.
    fn reached(&self, from: StoreId, batch: u64) {
        let _ = (from, batch);
    }

    /// Why `store`, which is no peer, is none any more and will never be one again; `None` if it never was one, as far as is
    /// known.
    fn removed(&self, store: StoreId) -> Option<String> {
        let _ = store;
        None
    }

    /// A process of `from` that was met says where it wants to be dialled; it may say anything.
    fn advertised(&self, from: StoreId, address: &str) {
        let _ = (from, address);
    }

    /// `by` says that this store was removed from the cluster. The transport has shut itself down.
    fn removed_by(&self, by: StoreId, reason: String) {
        let _ = (by, reason);
    }

    /// `by` refuses this store for good, and says why. The transport has shut itself down: this process must not go on.
    fn fenced(&self, by: StoreId, reason: String) {
        let _ = (by, reason);
    }
}

/// Where the transport reads the entries that queued appends only describe.
pub trait EntrySource: Send + Sync + 'static {
    /// The entries `(prev, last]` of the group's log, in order; fewer from the front if they would pass `bytes_max`
    /// (the transport asks for the rest in the next frame), but at least one. `None` if the descriptor is stale: an
    /// entry of the interval is gone, or the one at `last` no longer has `last_term`. Called while a frame is built,
    /// so it should be answered from memory or the page cache.
    fn entries(
        &self,
        group: GroupId,
        prev: LogIndex,
        last: LogIndex,
        last_term: Term,
        bytes_max: u64,
    ) -> Option<Vec<Entry>>;

    /// The last batch of this store's log that is durable, in numbers that grow over all its starts; 0: not known. Peers
    /// remember it, and take no older copy of the log for this store ([`Inbound::meet`]).
    fn durable(&self) -> u64 {
        0
    }
}
