//! What waits in a queue, and what the queue and the stream say to each other.

use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{Body, Entries, Message};
use pontoon_raft_core::types::{EntryId, GroupId, Term};

use crate::api::{ProposalReply, RelayedProposal, Report};
use crate::beats::Beat;

/// What a message is charged beyond its payload: about what it takes in memory.
const ITEM_CHARGE_BYTES: usize = 160;

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
    pub(super) fn charge_bytes(&self) -> usize {
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

    /// Whose order it keeps: what belongs to one group arrives as it was pushed. Beats, replies and reports are of many groups or
    /// of none, and travel on the control lane, where nothing overtakes.
    pub(crate) fn group(&self) -> Option<GroupId> {
        match self {
            Self::Raft(group, _) => Some(*group),
            Self::Proposal(proposal) => Some(proposal.group),
            Self::Beats(_) | Self::Reply(_) | Self::Report(_) => None,
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

/// Some of what waits, in order.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) items: Vec<Item>,
    /// In each round every group has its turn once: what it may send begins anew with each.
    pub(crate) round: u64,
}

/// What goes into the next frame.
#[derive(Debug)]
pub(crate) enum Helping {
    /// The first frame of a stream.
    Hello(Box<pb::Hello>),
    /// A ping, items, parts of large messages, or any of them.
    Items(Content),
}

/// See [`Helping::Items`].
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) ping: Option<u64>,
    pub(crate) wants: Option<u64>,
    pub(crate) batch: Batch,
    /// At most so many bytes of large messages that are under way belong into the frame.
    pub(crate) pieces_bytes_max: usize,
    /// What the frame may take; one message more if nothing is in flight.
    pub(crate) room: Room,
    /// What the peer can.
    pub(crate) features: u64,
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

impl Room {
    /// Whether anything may go.
    pub(crate) fn any(self) -> bool {
        self.bytes > 0 || self.any_one
    }
}

/// What a finished frame held, and what became of the rest of its items.
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
    /// What is for the next round: its groups have had their turn in this one.
    pub(crate) later: Vec<Item>,
}

impl Sent {
    /// For the next frame; keeps its memory.
    pub(crate) fn clear(&mut self) {
        (self.messages, self.bytes, self.cancelled, self.charge) = (0, 0, 0, 0);
        self.starved = None;
        self.lost.clear();
        self.appends.clear();
        self.later.clear();
    }

    /// Keeps memory for so many of each kind.
    pub(crate) fn shrink(&mut self, capacity: usize) {
        self.lost.shrink_to(capacity);
        self.appends.shrink_to(capacity);
        self.later.shrink_to(capacity);
    }
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
    /// Of large messages that are being sent in pieces: what is not given to the stream yet.
    pub(crate) large_bytes: usize,
    /// What the peer lets us send yet.
    pub(crate) credit_bytes: Option<u64>,
    /// Why the first of what waits is not sent.
    pub(crate) waits_for: Option<crate::status::WaitsFor>,
    pub(crate) counters: Counters,
}
