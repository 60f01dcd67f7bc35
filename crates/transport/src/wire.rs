//! Protobuf to core types and back: the one gate where foreign data is checked.
//!
//! Outwards everything is taken as it is (`outgoing`). Inwards nothing is believed: counts are checked before anything is decoded
//! (`scan`; `quick` for appends as we write them), numbers are capped so that the core's arithmetic cannot overflow, entries must follow each other with
//! terms that do not fall, and the stores of a message are those of the hello, because the wire has no place to claim
//! others. A frame that breaks a rule is refused as a whole.

mod keys;
pub(crate) mod outgoing;
pub(crate) mod pieces;
mod quick;
mod scan;

use std::collections::BTreeSet;

use bytes::Bytes;
use pontoon_flow::{Admitted, Class, PerClass};
use pontoon_proto::peer::v1 as pb;
use pontoon_raft_core::message::{
    AppendEntries, AppendReply, Body, Entries, Heartbeat, Message, VoteRequest,
};
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{
    Configuration, DoubtId, Entry, EntryId, GroupId, LogIndex, Payload, ReplicaId, SnapshotMeta, StoreId,
    Term,
};
use prost::Message as _;

use crate::api::{ProposalOutcome, ProposalReply, RelayedProposal, Report};
use crate::beats;
use crate::error::WireError;

/// No honest index, term or round gets there (a million a second for 146,000 years), and sums stay below `u64::MAX`.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;
/// Members of one configuration, all lists together.
const MEMBERS_MAX: usize = 1024;
/// An hour; the longest election timer anybody can set is ten minutes.
const ELECTION_TIMER_MS_MAX: u64 = 3_600_000;
/// Words from a peer that end in our log.
pub(crate) const WORDS_BYTES_MAX: usize = 512;

/// Who speaks and who listens on a stream, proven by the hello.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    pub(crate) from: StoreId,
    pub(crate) to: StoreId,
}

/// A frame after the hello, checked.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    pub(crate) ping: Option<u64>,
    /// How far the sender's log is durable; 0: not said.
    pub(crate) reached: u64,
    /// How far the sender's next message goes beyond its credit; 0: it does not.
    pub(crate) wants: u64,
    pub(crate) messages: Vec<(GroupId, Message)>,
    pub(crate) proposals: Vec<RelayedProposal>,
    pub(crate) replies: Vec<ProposalReply>,
    pub(crate) reports: Vec<Report>,
    /// Parts of large messages, not yet put together.
    pub(crate) pieces: Vec<pb::Piece>,
}

// ---- Outwards.

/// Encodes a message for the wire. `entries` are those of its append, already read.
pub(crate) fn message_to_wire(group: GroupId, message: Message, entries: Vec<Entry>) -> pb::RaftMessage {
    use pb::raft_message::Body as Wire;
    let body = match message.body {
        Body::PreVote(v) => Wire::PreVote(vote_to_wire(v)),
        Body::PreVoteReply { granted } => Wire::PreVoteReply(granted),
        Body::RequestVote(v) => Wire::RequestVote(vote_to_wire(v)),
        Body::RequestVoteReply { granted } => Wire::RequestVoteReply(granted),
        Body::AppendEntries(a) => Wire::Append(pb::AppendEntries {
            prev_log_index: a.prev_log_index.0,
            prev_log_term: a.prev_log_term.0,
            leader_commit: a.leader_commit.0,
            entries: entries.into_iter().map(entry_to_wire).collect(),
        }),
        Body::AppendReply(AppendReply::Accepted { match_index }) => {
            Wire::AppendAccepted(pb::AppendAccepted { match_index: match_index.0 })
        }
        Body::AppendReply(AppendReply::Rejected { prev_log_index, hint_index, hint_term }) => {
            Wire::AppendRejected(pb::AppendRejected {
                prev_log_index: prev_log_index.0,
                hint_index: hint_index.0,
                hint_term: hint_term.0,
            })
        }
        Body::Heartbeat(h) => Wire::Heartbeat(pb::Heartbeat {
            leader_commit: h.leader_commit.0,
            round: h.round,
            quiesce: h.quiesce,
        }),
        Body::HeartbeatReply { round } => Wire::HeartbeatReply(round),
        Body::InstallSnapshot(meta) => Wire::InstallSnapshot(pb::SnapshotMeta {
            index: meta.index.0,
            term: meta.term.0,
            configuration: Some(configuration_to_wire(&meta.configuration)),
            election_timer: meta.election_timer_ms,
        }),
        Body::TimeoutNow => Wire::TimeoutNow(true),
        Body::ReadIndex { context } => Wire::ReadIndex(context),
        Body::ReadIndexReply { context, index } => {
            Wire::ReadIndexReply(pb::ReadIndexReply { context, index: index.map(|i| i.0) })
        }
        Body::DoubtCheck { doubt, settled } => Wire::DoubtCheck(pb::DoubtCheck { doubt: doubt.0, settled }),
        Body::DoubtSettled { doubt } => Wire::DoubtSettled(doubt.0),
    };
    pb::RaftMessage {
        group: group.0,
        from_number: message.from.number,
        to_number: message.to.number,
        term: message.term.0,
        doubt: message.doubt.map_or(0, |doubt| doubt.0),
        body: Some(body),
    }
}

fn vote_to_wire(v: VoteRequest) -> pb::VoteRequest {
    pb::VoteRequest {
        last_log_index: v.last_log_index.0,
        last_log_term: v.last_log_term.0,
        leadership_transfer: v.leadership_transfer,
    }
}

fn entry_to_wire(entry: Entry) -> pb::Entry {
    use pb::entry::Payload as Wire;
    let (id_high, id_low) = id_to_wire(entry.id);
    let payload = match entry.payload {
        Payload::Noop => Wire::Noop(true),
        Payload::Command(data) => Wire::Command(data),
        Payload::Configuration(c) => Wire::Configuration(configuration_to_wire(&c)),
        Payload::ElectionTimer { millis } => Wire::ElectionTimer(millis),
    };
    pb::Entry { term: entry.term.0, id_high, id_low, payload: Some(payload) }
}

fn configuration_to_wire(c: &Configuration) -> pb::Configuration {
    let list = |set: &BTreeSet<ReplicaId>| set.iter().flat_map(|r| [r.store.0, r.number]).collect();
    pb::Configuration {
        voters: list(&c.voters),
        outgoing_voters: list(&c.outgoing_voters),
        learners: list(&c.learners),
        next_learners: list(&c.next_learners),
        auto_leave: c.auto_leave,
    }
}

pub(crate) fn proposal_to_wire(p: RelayedProposal) -> pb::RelayedProposal {
    let (id_high, id_low) = id_to_wire(p.id);
    pb::RelayedProposal {
        group: p.group.0,
        id_high,
        id_low,
        data: p.data,
        term: p.term.0,
        number: p.at.number,
        floor: p.at.floor,
        asks: p.asks,
        elastic: p.class == Class::Elastic,
    }
}

pub(crate) fn report_to_wire(r: Report) -> pb::Admitted {
    pb::Admitted {
        group: r.group.0,
        from_number: r.from.number,
        to_number: r.to.number,
        term: r.admitted.term.0,
        regular: r.admitted.upto.regular.0,
        elastic: r.admitted.upto.elastic.0,
    }
}

pub(crate) fn reply_to_wire(r: ProposalReply) -> pb::ProposalReply {
    use pb::proposal_reply::Outcome as Wire;
    let (id_high, id_low) = id_to_wire(r.id);
    let outcome = match r.outcome {
        ProposalOutcome::Accepted { index, term } => {
            Wire::Accepted(pb::LogPosition { index: index.0, term: term.0 })
        }
        ProposalOutcome::InProgress => Wire::InProgress(true),
        ProposalOutcome::NotLeader { leader } => {
            let leader = leader.unwrap_or_default();
            Wire::NotLeader(pb::NotLeader { store: leader.store.0, number: leader.number })
        }
        // "Not sent" is a store's word to itself; for others it means the same as "overloaded": safe to try again.
        ProposalOutcome::Overloaded | ProposalOutcome::NotSent => Wire::Overloaded(true),
        ProposalOutcome::NoSpace { what } => Wire::NoSpace(cut(what)),
        ProposalOutcome::Failed { reason } => Wire::Failed(cut(reason)),
    };
    pb::ProposalReply {
        group: r.group.0,
        id_high,
        id_low,
        outcome: Some(outcome),
        term: r.term.0,
        number: r.number,
    }
}

fn id_to_wire(id: EntryId) -> (u64, u64) {
    // Truncation is the point: the two halves.
    #[allow(clippy::cast_possible_truncation)]
    ((id.0 >> 64) as u64, id.0 as u64)
}

/// Shortens words to what a peer takes.
pub(crate) fn cut(mut words: String) -> String {
    let mut end = words.len().min(WORDS_BYTES_MAX);
    while !words.is_char_boundary(end) {
        end -= 1;
    }
    words.truncate(end);
    words
}

// ---- Inwards.

fn malformed(error: &prost::DecodeError) -> WireError {
    WireError::Malformed { reason: error.to_string() }
}

/// The hello in a stream's first frame. Nothing else in it counts.
pub(crate) fn hello(encoded: &Bytes) -> Option<pb::Hello> {
    scan::frame(encoded).and_then(|_| split(encoded, |_| Ok(()))).ok()?.hello
}

/// Passes a later frame through the gate.
pub(crate) fn open(encoded: &Bytes, ends: Ends) -> Result<Frame, WireError> {
    let keep = Keep { frame_bytes: encoded.len() };
    let (mut messages, mut entries) = (Vec::with_capacity(scan::frame(encoded)?), 0);
    let rest = split(encoded, |message| {
        messages.push(read_message(message, encoded, ends, keep, &mut entries)?);
        Ok(())
    })?;
    check(rest, messages, ends, keep)
}

/// Hands over each of a frame's messages, undecoded, and decodes the rest, of which `scan` has bounded the counts.
fn split(
    encoded: &Bytes,
    mut message: impl FnMut(&[u8]) -> Result<(), WireError>,
) -> Result<pb::LaneFrame, WireError> {
    let mut rest = pb::LaneFrame::default();
    let mut merge = |from, to| {
        if from == to { Ok(()) } else { rest.merge(encoded.slice(from..to)).map_err(|e| malformed(&e)) }
    };
    // Where the present run of other fields began.
    let mut run = 0;
    let mut fields = scan::Fields::new(encoded);
    loop {
        let at = encoded.len() - fields.left();
        let Some((number, value)) = fields.next()? else { break };
        if let (scan::FRAME_MESSAGES, scan::Value::Bytes(encoded_message)) = (number, value) {
            merge(run, at)?;
            run = encoded.len() - fields.left();
            message(encoded_message)?;
        }
    }
    merge(run, encoded.len())?;
    Ok(rest)
}

/// Reads a message that lies in `frame`, in which there were `entries` before it.
fn read_message(
    encoded: &[u8],
    frame: &Bytes,
    ends: Ends,
    keep: Keep,
    entries: &mut usize,
) -> Result<(GroupId, Message), WireError> {
    if let Some(read) = quick::append(encoded, frame, ends, keep, entries) {
        return Ok(read);
    }
    scan::message(encoded, entries)?;
    let message = pb::RaftMessage::decode(frame.slice_ref(encoded)).map_err(|e| malformed(&e))?;
    message_from_wire(message, ends, keep)
}

/// Checks what a frame holds beside its messages, and puts both together.
fn check(
    frame: pb::LaneFrame,
    messages: Vec<(GroupId, Message)>,
    ends: Ends,
    keep: Keep,
) -> Result<Frame, WireError> {
    if frame.hello.is_some() {
        return Err(WireError::Malformed { reason: "a second hello".to_owned() });
    }
    let reached = number("a durable batch", frame.reached)?;
    let wants = number("an offset", frame.wants)?;
    let messages = if frame.beats.is_empty() { messages } else { with_beats(messages, &frame.beats, ends)? };
    let proposals = frame.proposals.into_iter().map(|p| proposal_from_wire(p, keep));
    let replies = frame.proposal_replies.into_iter().map(reply_from_wire);
    let reports = frame.admitted.into_iter().map(|report| report_from_wire(&report, ends));
    Ok(Frame {
        ping: frame.ping,
        reached,
        wants,
        messages,
        proposals: proposals.collect::<Result<_, _>>()?,
        replies: replies.collect::<Result<_, _>>()?,
        reports: reports.collect::<Result<_, _>>()?,
        pieces: frame.pieces,
    })
}

/// Puts beats in their places among messages.
fn with_beats(
    listed: Vec<(GroupId, Message)>,
    beats: &[pb::Beats],
    ends: Ends,
) -> Result<Vec<(GroupId, Message)>, WireError> {
    // The lists exist, so their lengths are real.
    let last = listed.len() as u64;
    let mut messages = Vec::with_capacity(listed.len());
    let mut runs = beats.iter().peekable();
    for (before, message) in listed.into_iter().enumerate() {
        while let Some(beats) = runs.next_if(|beats| beats.after as usize <= before) {
            beats::from_wire(beats, ends, &mut messages)?;
        }
        messages.push(message);
    }
    for beats in runs {
        in_range("a place among messages", beats.after.into(), 0, last)?;
        beats::from_wire(beats, ends, &mut messages)?;
    }
    Ok(messages)
}

/// Decides whether a received command may stay a slice of its frame.
///
/// A slice pins the whole buffer it was received in, and a group's last entry may be kept for days. So only what
/// makes up a good part of its frame stays in place; small commands move to memory of their own.
#[derive(Clone, Copy)]
struct Keep {
    frame_bytes: usize,
}

impl Keep {
    fn in_place(self, data: &[u8]) -> bool {
        data.len() >= 4096 && data.len() >= self.frame_bytes / 4
    }

    fn data(self, data: Bytes) -> Bytes {
        if self.in_place(&data) { data } else { Bytes::copy_from_slice(&data) }
    }

    /// The same of a part of `frame`.
    fn part(self, data: &[u8], frame: &Bytes) -> Bytes {
        if self.in_place(data) { frame.slice_ref(data) } else { Bytes::copy_from_slice(data) }
    }
}

/// Checks a snapshot's message, which must be an `InstallSnapshot`.
pub(crate) fn install_snapshot(
    message: pb::RaftMessage,
    ends: Ends,
) -> Result<(GroupId, Message), WireError> {
    let (group, message) = message_from_wire(message, ends, Keep { frame_bytes: 0 })?;
    match message.body {
        Body::InstallSnapshot(_) => Ok((group, message)),
        _ => Err(WireError::Missing { what: "the snapshot header's install_snapshot" }),
    }
}

fn message_from_wire(
    message: pb::RaftMessage,
    ends: Ends,
    keep: Keep,
) -> Result<(GroupId, Message), WireError> {
    use pb::raft_message::Body as Wire;
    let group = GroupId(message.group);
    let term = Term(number("a term", message.term)?);
    let body = match message.body.ok_or(WireError::Missing { what: "a message's body" })? {
        Wire::PreVote(v) => Body::PreVote(vote_from_wire(v)?),
        Wire::PreVoteReply(granted) => Body::PreVoteReply { granted },
        Wire::RequestVote(v) => Body::RequestVote(vote_from_wire(v)?),
        Wire::RequestVoteReply(granted) => Body::RequestVoteReply { granted },
        Wire::Append(a) => Body::AppendEntries(append_from_wire(a, term, keep)?),
        Wire::AppendAccepted(a) => Body::AppendReply(AppendReply::Accepted {
            match_index: LogIndex(number("a match index", a.match_index)?),
        }),
        Wire::AppendRejected(a) => Body::AppendReply(AppendReply::Rejected {
            prev_log_index: LogIndex(number("a log index", a.prev_log_index)?),
            hint_index: LogIndex(number("a hint", a.hint_index)?),
            hint_term: Term(number("a hint's term", a.hint_term)?),
        }),
        Wire::Heartbeat(h) => Body::Heartbeat(Heartbeat {
            leader_commit: LogIndex(number("a commit index", h.leader_commit)?),
            round: number("a round", h.round)?,
            quiesce: h.quiesce,
        }),
        Wire::HeartbeatReply(round) => Body::HeartbeatReply { round: number("a round", round)? },
        Wire::InstallSnapshot(meta) => Body::InstallSnapshot(snapshot_from_wire(meta, term)?),
        Wire::TimeoutNow(_) => Body::TimeoutNow,
        Wire::ReadIndex(context) => Body::ReadIndex { context },
        Wire::ReadIndexReply(r) => Body::ReadIndexReply {
            context: r.context,
            index: r.index.map(|i| number("a read index", i)).transpose()?.map(LogIndex),
        },
        // Names of doubts are any numbers.
        Wire::DoubtCheck(c) => Body::DoubtCheck { doubt: DoubtId(c.doubt), settled: c.settled },
        Wire::DoubtSettled(doubt) => Body::DoubtSettled { doubt: DoubtId(doubt) },
    };
    let message = Message {
        from: ReplicaId { store: ends.from, number: message.from_number },
        to: ReplicaId { store: ends.to, number: message.to_number },
        term,
        doubt: Some(DoubtId(message.doubt)).filter(|doubt| doubt.0 != 0),
        body,
    };
    Ok((group, message))
}

fn vote_from_wire(v: pb::VoteRequest) -> Result<VoteRequest, WireError> {
    Ok(VoteRequest {
        last_log_index: LogIndex(number("a log index", v.last_log_index)?),
        last_log_term: Term(number("a log term", v.last_log_term)?),
        leadership_transfer: v.leadership_transfer,
    })
}

fn append_from_wire(a: pb::AppendEntries, term: Term, keep: Keep) -> Result<AppendEntries, WireError> {
    let prev = number("a log index", a.prev_log_index)?;
    // The count is capped by `scan`, so the last index cannot overflow.
    let mut before = in_range("a log term", a.prev_log_term, 0, term.0)?;
    let mut entries = Vec::with_capacity(a.entries.len());
    for (index, entry) in (prev + 1..).zip(a.entries) {
        if entry.term < before.max(1) || entry.term > term.0 {
            return Err(WireError::EntryTerm { index, found: entry.term, min: before.max(1), max: term.0 });
        }
        before = entry.term;
        entries.push(entry_from_wire(LogIndex(index), entry, keep)?);
    }
    Ok(AppendEntries {
        prev_log_index: LogIndex(prev),
        prev_log_term: Term(a.prev_log_term),
        leader_commit: LogIndex(number("a commit index", a.leader_commit)?),
        entries: Entries::Inline(entries),
    })
}

fn entry_from_wire(index: LogIndex, entry: pb::Entry, keep: Keep) -> Result<Entry, WireError> {
    use pb::entry::Payload as Wire;
    let payload = match entry.payload.ok_or(WireError::Missing { what: "an entry's payload" })? {
        Wire::Noop(_) => Payload::Noop,
        Wire::Command(data) => Payload::Command(keep.data(data)),
        Wire::Configuration(c) => Payload::Configuration(configuration_from_wire(&c)?),
        Wire::ElectionTimer(millis) => Payload::ElectionTimer {
            millis: in_range("an election timer", millis, 1, ELECTION_TIMER_MS_MAX)?,
        },
    };
    Ok(Entry { index, term: Term(entry.term), id: id_from_wire(entry.id_high, entry.id_low), payload })
}

fn snapshot_from_wire(meta: pb::SnapshotMeta, term: Term) -> Result<SnapshotMeta, WireError> {
    let configuration =
        meta.configuration.ok_or(WireError::Missing { what: "a snapshot's configuration" })?;
    Ok(SnapshotMeta {
        index: LogIndex(in_range("a snapshot's index", meta.index, 1, NUMBER_MAX)?),
        term: Term(in_range("a snapshot's term", meta.term, 1, term.0)?),
        configuration: configuration_from_wire(&configuration)?,
        election_timer_ms: in_range("an election timer", meta.election_timer, 0, ELECTION_TIMER_MS_MAX)?,
    })
}

fn configuration_from_wire(c: &pb::Configuration) -> Result<Configuration, WireError> {
    let lists = [&c.voters, &c.outgoing_voters, &c.learners, &c.next_learners];
    if lists.iter().map(|l| l.len()).sum::<usize>() > 2 * MEMBERS_MAX {
        return Err(WireError::TooMany { what: "members in a configuration", max: MEMBERS_MAX });
    }
    if c.voters.is_empty() {
        return Err(WireError::Configuration { why: "has no voters" });
    }
    let mut sets = lists.into_iter().map(|list| {
        let (pairs, rest) = list.as_chunks::<2>();
        let set: BTreeSet<ReplicaId> = pairs
            .iter()
            .map(|[store, number]| ReplicaId { store: StoreId(*store), number: *number })
            .collect();
        if !rest.is_empty() {
            return Err(WireError::Configuration { why: "names a replica by half" });
        }
        if set.len() < pairs.len() {
            return Err(WireError::Configuration { why: "names a replica twice" });
        }
        if set.iter().any(|r| r.store.0 == 0) {
            return Err(WireError::Configuration { why: "names store 0" });
        }
        Ok(set)
    });
    let mut next = || sets.next().unwrap_or_else(|| Ok(BTreeSet::new()));
    Ok(Configuration {
        voters: next()?,
        outgoing_voters: next()?,
        learners: next()?,
        next_learners: next()?,
        auto_leave: c.auto_leave,
    })
}

fn proposal_from_wire(p: pb::RelayedProposal, keep: Keep) -> Result<RelayedProposal, WireError> {
    let id = id_from_wire(p.id_high, p.id_low);
    if id == EntryId::NONE {
        return Err(WireError::Missing { what: "a proposal's id" });
    }
    let term = Term(number("a term", p.term)?);
    let at = RelayNumber {
        number: number("an attempt's number", p.number)?,
        floor: number("an attempt's floor", p.floor)?,
    };
    let class = if p.elastic { Class::Elastic } else { Class::Regular };
    Ok(RelayedProposal {
        group: GroupId(p.group),
        term,
        id,
        at,
        asks: p.asks,
        class,
        data: keep.data(p.data),
    })
}

fn report_from_wire(r: &pb::Admitted, ends: Ends) -> Result<Report, WireError> {
    let upto = PerClass {
        regular: LogIndex(number("an admitted index", r.regular)?),
        elastic: LogIndex(number("an admitted index", r.elastic)?),
    };
    Ok(Report {
        group: GroupId(r.group),
        from: ReplicaId { store: ends.from, number: r.from_number },
        to: ReplicaId { store: ends.to, number: r.to_number },
        admitted: Admitted { term: Term(number("a term", r.term)?), upto },
    })
}

fn reply_from_wire(r: pb::ProposalReply) -> Result<ProposalReply, WireError> {
    use pb::proposal_reply::Outcome as Wire;
    let outcome = match r.outcome.ok_or(WireError::Missing { what: "a proposal reply's outcome" })? {
        Wire::Accepted(at) => ProposalOutcome::Accepted {
            index: LogIndex(number("a log index", at.index)?),
            term: Term(number("a term", at.term)?),
        },
        Wire::InProgress(_) => ProposalOutcome::InProgress,
        Wire::NotLeader(l) => ProposalOutcome::NotLeader {
            leader: (l.store != 0).then_some(ReplicaId { store: StoreId(l.store), number: l.number }),
        },
        Wire::Overloaded(_) => ProposalOutcome::Overloaded,
        Wire::NoSpace(what) => ProposalOutcome::NoSpace { what: cut(what) },
        Wire::Failed(reason) => ProposalOutcome::Failed { reason: cut(reason) },
    };
    let term = Term(number("a term", r.term)?);
    Ok(ProposalReply {
        group: GroupId(r.group),
        id: id_from_wire(r.id_high, r.id_low),
        term,
        number: number("an attempt's number", r.number)?,
        outcome,
    })
}

fn id_from_wire(high: u64, low: u64) -> EntryId {
    EntryId((u128::from(high) << 64) | u128::from(low))
}

pub(crate) fn number(what: &'static str, found: u64) -> Result<u64, WireError> {
    in_range(what, found, 0, NUMBER_MAX)
}

fn in_range(what: &'static str, found: u64, min: u64, max: u64) -> Result<u64, WireError> {
    if (min..=max).contains(&found) {
        Ok(found)
    } else {
        Err(WireError::OutOfRange { what, found, min, max })
    }
}

#[cfg(test)]
mod tests;
