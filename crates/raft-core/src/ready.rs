//! What the host must do after a mutation, in the order of the fields.

use std::ops::Range;

use crate::command_status::CommandStatus;
use crate::message::Message;
use crate::server_change::ServerChangeDone;
use crate::types::{
    Configuration, Entry, EntryId, HardState, LogIndex, ReplicaId, Role, SnapshotMeta, Term, Ticket,
};

/// Everything that a group asks of its host. Take it with `Group::ready` after each mutation, or after several.
#[derive(Clone, Debug, Default)]
#[must_use = "a Ready that is not carried out stops the group"]
pub struct Ready {
    /// 1. Write this, in the order of tickets; answer with `Group::persisted` when it is durable.
    pub persist: Option<Persist>,
    /// 2. Send these, in parallel with the write: the core has already held back what is not durable.
    pub messages: Vec<Message>,
    /// 3. Apply these entries, in order; answer with `Group::applied`. They are durable here.
    pub committed: Option<Range<LogIndex>>,
    /// 4. Reads whose index is known, or that must be asked again.
    pub reads: Vec<ReadOutcome>,
    /// 5. Commands that were in this replica's log and certainly will not be executed from there.
    pub dropped: Vec<Dropped>,
    /// 6. Servers whose adding or removing ended; see `Group::add_server`.
    pub server_changes: Vec<ServerChangeDone>,
    /// 7. The role, the term, the leader or the configuration is new.
    pub state_change: Option<StateChange>,
}

/// State to be made durable together: all or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persist {
    /// Names it; grows by one each time.
    pub ticket: Ticket,
    /// The new term and vote, if they changed.
    pub hard_state: Option<HardState>,
    /// Replaces the whole log: it now begins after this snapshot, which the host has to restore *before* it writes
    /// this. Comes before `entries`.
    pub snapshot: Option<SnapshotMeta>,
    /// Cuts the log: entries at and after this index are void. Comes before `entries`.
    pub truncate_from: Option<LogIndex>,
    /// New entries, contiguous.
    pub entries: Vec<Entry>,
    /// The commit index: a note that need not be synced by itself, of use after a restart and to offline checks.
    pub commit: LogIndex,
}

/// How a call of `Group::read_index` ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// The caller's name for the read.
    pub context: u64,
    /// The read may be served from the state machine once this index is applied. `None`: leadership was lost or no
    /// leader is known; ask again.
    pub index: Option<LogIndex>,
}

/// A command that was in this replica's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The command.
    pub id: EntryId,
    /// [`CommandStatus::LostLeadership`]: another entry is committed in its place, so it was not executed from there, and never
    /// will be.
    pub status: CommandStatus,
}

/// The part of the state that a host shows and routes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateChange {
    /// The role now.
    pub role: Role,
    /// The term now.
    pub term: Term,
    /// The leader, if known.
    pub leader: Option<ReplicaId>,
    /// The configuration in force.
    pub configuration: Configuration,
}
