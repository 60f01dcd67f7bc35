//! The gate against everything: what is said arrives unchanged, what is broken is refused, nothing panics.

use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::*;
use crate::beats::Beat;

const ENDS: Ends = Ends { from: StoreId(0xa), to: StoreId(0xb) };

fn replica(store: impl Strategy<Value = u64>) -> impl Strategy<Value = ReplicaId> {
    (store, 0..5u64).prop_map(|(store, number)| ReplicaId { store: StoreId(store), number })
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let set = |min| btree_set(replica(1..9u64), min..4);
    (set(1), set(0), set(0), set(0), any::<bool>()).prop_map(
        |(voters, outgoing_voters, learners, next_learners, auto_leave)| Configuration {
            voters,
            outgoing_voters,
            learners,
            next_learners,
            auto_leave,
        },
    )
}

fn payload() -> impl Strategy<Value = Payload> {
    prop_oneof![
        Just(Payload::Noop),
        vec(any::<u8>(), 0..6000).prop_map(|d| Payload::Command(Bytes::from(d))),
        configuration().prop_map(Payload::Configuration),
        (1..600_000u64).prop_map(|millis| Payload::ElectionTimer { millis }),
    ]
}

/// Entries after `prev` whose terms grow from `term` by small steps.
fn append(prev: u64, prev_term: u64) -> impl Strategy<Value = (AppendEntries, u64)> {
    (vec((0..3u64, any::<u128>(), payload()), 0..6), 0..100u64).prop_map(move |(parts, commit)| {
        let mut term = prev_term;
        let entries: Vec<Entry> = (prev + 1..)
            .zip(parts)
            .map(|(index, (step, id, payload))| {
                term = (term + step).max(1);
                Entry { index: LogIndex(index), term: Term(term), id: EntryId(id), payload }
            })
            .collect();
        let append = AppendEntries {
            prev_log_index: LogIndex(prev),
            prev_log_term: Term(prev_term),
            leader_commit: LogIndex(commit),
            entries: Entries::Inline(entries),
        };
        (append, term)
    })
}

fn body() -> impl Strategy<Value = (Body, u64)> {
    let n = || 0..=NUMBER_MAX;
    let vote = (n(), n(), any::<bool>()).prop_map(|(index, term, leadership_transfer)| VoteRequest {
        last_log_index: LogIndex(index),
        last_log_term: Term(term),
        leadership_transfer,
    });
    let meta = (1..=NUMBER_MAX, 1..50u64, configuration(), 0..600_000u64).prop_map(
        |(index, term, configuration, election_timer_ms)| SnapshotMeta {
            index: LogIndex(index),
            term: Term(term),
            configuration,
            election_timer_ms,
        },
    );
    let any_term = prop_oneof![
        vote.clone().prop_map(Body::PreVote),
        any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
        vote.prop_map(Body::RequestVote),
        any::<bool>().prop_map(|granted| Body::RequestVoteReply { granted }),
        n().prop_map(|i| Body::AppendReply(AppendReply::Accepted { match_index: LogIndex(i) })),
        (n(), n(), n()).prop_map(|(p, i, t)| Body::AppendReply(AppendReply::Rejected {
            prev_log_index: LogIndex(p),
            hint_index: LogIndex(i),
            hint_term: Term(t),
        })),
        (n(), n(), any::<bool>()).prop_map(|(c, round, quiesce)| Body::Heartbeat(Heartbeat {
            leader_commit: LogIndex(c),
            round,
            quiesce,
        })),
        n().prop_map(|round| Body::HeartbeatReply { round }),
        Just(Body::TimeoutNow),
        (any::<u64>(), any::<bool>())
            .prop_map(|(doubt, settled)| Body::DoubtCheck { doubt: DoubtId(doubt), settled }),
        any::<u64>().prop_map(|doubt| Body::DoubtSettled { doubt: DoubtId(doubt) }),
        any::<u64>().prop_map(|context| Body::ReadIndex { context }),
        (any::<u64>(), proptest::option::of(n()))
            .prop_map(|(context, index)| Body::ReadIndexReply { context, index: index.map(LogIndex) }),
    ];
    prop_oneof![
        any_term.prop_map(|b| (b, 0)),
        meta.prop_map(|m| (Body::InstallSnapshot(m), 50)),
        (0..1000u64, 0..9u64)
            .prop_flat_map(|(prev, term)| append(prev, term))
            .prop_map(|(a, term)| (Body::AppendEntries(a), term)),
    ]
}

fn message() -> impl Strategy<Value = (GroupId, Message)> {
    (any::<u64>(), any::<u64>(), any::<u64>(), 0..1000u64, any::<u64>(), body()).prop_map(
        |(group, from, to, more, doubt, (body, term_min))| {
            let message = Message {
                from: ReplicaId { store: ENDS.from, number: from },
                to: ReplicaId { store: ENDS.to, number: to },
                term: Term(term_min + more),
                doubt: (doubt % 2 == 1).then_some(DoubtId(doubt)),
                body,
            };
            (GroupId(group), message)
        },
    )
}

fn proposal() -> impl Strategy<Value = RelayedProposal> {
    let at = (0..=NUMBER_MAX, 0..=NUMBER_MAX).prop_map(|(number, floor)| RelayNumber { number, floor });
    (any::<u64>(), 0..=NUMBER_MAX, 1..u128::MAX, at, any::<bool>(), vec(any::<u8>(), 0..100)).prop_map(
        |(group, term, id, at, asks, data)| RelayedProposal {
            group: GroupId(group),
            term: Term(term),
            id: EntryId(id),
            at,
            asks,
            class: if term % 2 == 0 { Class::Elastic } else { Class::Regular },
            data: data.into(),
        },
    )
}

fn reply() -> impl Strategy<Value = ProposalReply> {
    let outcome = prop_oneof![
        (0..=NUMBER_MAX, 0..=NUMBER_MAX)
            .prop_map(|(i, t)| ProposalOutcome::Accepted { index: LogIndex(i), term: Term(t) }),
        proptest::option::of(replica(1..9u64)).prop_map(|leader| ProposalOutcome::NotLeader { leader }),
        Just(ProposalOutcome::Overloaded),
        Just(ProposalOutcome::InProgress),
        "[a-zé]{0,300}".prop_map(|what| ProposalOutcome::NoSpace { what: cut(what) }),
        "[a-zé]{0,300}".prop_map(|reason| ProposalOutcome::Failed { reason: cut(reason) }),
    ];
    (any::<u64>(), any::<u128>(), 0..=NUMBER_MAX, 0..=NUMBER_MAX, outcome).prop_map(
        |(group, id, term, number, outcome)| ProposalReply {
            group: GroupId(group),
            id: EntryId(id),
            term: Term(term),
            number,
            outcome,
        },
    )
}

fn report() -> impl Strategy<Value = Report> {
    (any::<[u64; 3]>(), 0..=NUMBER_MAX, 0..=NUMBER_MAX, 0..=NUMBER_MAX).prop_map(
        |([group, from, to], term, regular, elastic)| Report {
            group: GroupId(group),
            from: ReplicaId { store: ENDS.from, number: from },
            to: ReplicaId { store: ENDS.to, number: to },
            admitted: Admitted {
                term: Term(term),
                upto: PerClass { regular: LogIndex(regular), elastic: LogIndex(elastic) },
            },
        },
    )
}

/// A heartbeat, or the answer to one.
fn beat() -> impl Strategy<Value = (GroupId, Message)> {
    let numbers = (1..3u64, 1..3u64);
    (any::<u64>(), numbers, [0..=NUMBER_MAX, 0..=NUMBER_MAX, 0..=NUMBER_MAX], 0..3u8).prop_map(
        |(group, (from, to), [term, round, commit], kind)| {
            let leader_commit = LogIndex(commit);
            let body = match kind {
                2 => Body::HeartbeatReply { round },
                _ => Body::Heartbeat(Heartbeat { leader_commit, round, quiesce: kind == 1 }),
            };
            let from = ReplicaId { store: ENDS.from, number: from };
            let to = ReplicaId { store: ENDS.to, number: to };
            (GroupId(group), Message { from, to, term: Term(term), doubt: None, body })
        },
    )
}

type Parts = (Vec<(GroupId, Message)>, Vec<RelayedProposal>, Vec<ProposalReply>, Vec<Report>, Option<u64>);

fn parts() -> impl Strategy<Value = Parts> {
    let reports = vec(report(), 0..3);
    let messages = vec(prop_oneof![message(), beat(), beat()], 0..12);
    (messages, vec(proposal(), 0..3), vec(reply(), 0..3), reports, any::<Option<u64>>())
}

fn encode((messages, proposals, replies, reports, ping): Parts) -> Vec<u8> {
    let (mut listed, mut beats): (Vec<_>, Vec<pb::Beats>) = (Vec::new(), Vec::new());
    let mut run = Vec::new();
    for (group, mut message) in messages {
        if let Some(beat) = Beat::of(group, &message) {
            run.push(beat);
            continue;
        }
        if !run.is_empty() {
            beats.push(beats::to_wire(listed.len(), &std::mem::take(&mut run)));
        }
        let entries = match &mut message.body {
            Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) => {
                std::mem::take(entries)
            }
            _ => Vec::new(),
        };
        listed.push(message_to_wire(group, message, entries));
    }
    if !run.is_empty() {
        beats.push(beats::to_wire(listed.len(), &run));
    }
    pb::LaneFrame {
        reached: 77,
        wants: 78,
        hello: None,
        ping,
        messages: listed,
        beats,
        proposals: proposals.into_iter().map(proposal_to_wire).collect(),
        proposal_replies: replies.into_iter().map(reply_to_wire).collect(),
        admitted: reports.into_iter().map(report_to_wire).collect(),
        pieces: Vec::new(),
    }
    .encode_to_vec()
}

fn gate(encoded: Vec<u8>) -> Result<Frame, WireError> {
    open(&encoded.into(), ENDS)
}

/// What the way that knows all of protobuf makes of an encoded message, and how many entries it has.
fn slowly(encoded: &Bytes, keep: Keep) -> Result<((GroupId, Message), usize), WireError> {
    let mut entries = 0;
    scan::message(encoded, &mut entries)?;
    let message = pb::RaftMessage::decode(encoded.clone()).map_err(|e| malformed(&e))?;
    Ok((message_from_wire(message, ENDS, keep)?, entries))
}

/// Each message of an encoded frame, as bytes.
fn messages_of(encoded: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    let frame = Bytes::copy_from_slice(encoded);
    let _ = split(&frame, |message| {
        messages.push(Bytes::copy_from_slice(message));
        Ok(())
    });
    messages
}

/// Changes some bytes of an encoding.
fn change(encoded: &mut Vec<u8>, changes: Vec<(prop::sample::Index, u8, u8)>) {
    for (at, byte, how) in changes {
        if encoded.is_empty() {
            break;
        }
        let at = at.index(encoded.len());
        match how {
            0 => encoded[at] = byte,
            1 => encoded[at] ^= 1 << (byte % 8),
            2 => encoded.truncate(at),
            _ => encoded.insert(at, byte),
        }
    }
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    vec((any::<prop::sample::Index>(), any::<u8>(), 0..4u8), 1..8)
}

/// What must hold of whatever passes, however it came about.
fn assert_sound(frame: &Frame) {
    for (_, message) in &frame.messages {
        assert_eq!((message.from.store, message.to.store), (ENDS.from, ENDS.to));
        assert!(message.term.0 <= NUMBER_MAX);
        if let Body::AppendEntries(append) = &message.body {
            let Entries::Inline(entries) = &append.entries else { panic!("an interval off the wire") };
            let (mut index, mut term) = (append.prev_log_index, append.prev_log_term);
            for entry in entries {
                assert_eq!(entry.index, index.next());
                assert!(entry.term >= term && entry.term <= message.term && entry.term.0 > 0);
                (index, term) = (entry.index, entry.term);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn what_is_said_arrives(parts in parts()) {
        let frame = gate(encode(parts.clone())).unwrap();
        assert_sound(&frame);
        let (messages, proposals, replies, reports, ping) = parts;
        prop_assert_eq!(frame.reports, reports);
        prop_assert_eq!(frame.messages, messages);
        prop_assert_eq!(frame.proposals, proposals);
        prop_assert_eq!(frame.replies, replies);
        prop_assert_eq!(frame.ping, ping);
    }

    #[test]
    fn mutations_never_panic(parts in parts(), changes in changes()) {
        let mut encoded = encode(parts);
        change(&mut encoded, changes);
        if let Ok(frame) = gate(encoded) {
            assert_sound(&frame);
        }
    }

    /// What is written without the generated types is what they would say.
    #[test]
    fn frames_go_out_as_the_generated_types_would_write_them(
        messages in vec(message(), 0..12),
        parts in parts(),
    ) {
        let rest = pb::LaneFrame { messages: Vec::new(), ..pb::LaneFrame::decode(&encode(parts)[..]).unwrap() };
        let mut outgoing = outgoing::Outgoing::new(rest.clone(), 0);
        let mut listed = Vec::new();
        for (group, message) in messages {
            outgoing.push(group, message.clone());
            let entries = match &message.body {
                Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) => entries.clone(),
                _ => Vec::new(),
            };
            listed.push(message_to_wire(group, message, entries));
        }
        let (len, mut encoded) = (outgoing.encoded_len(), Vec::new());
        outgoing.encode(&mut encoded);
        prop_assert_eq!(encoded.len(), len);
        prop_assert_eq!(pb::LaneFrame::decode(&encoded[..]).unwrap(), pb::LaneFrame { messages: listed, ..rest });
    }

    /// The quick way takes nothing that the other one would not take, nor takes it for something else; and an append of commands
    /// goes the quick way.
    #[test]
    fn the_quick_way_is_the_same_way(messages in vec(message(), 0..12), changes in changes()) {
        let commands_only = |message: &Message| match &message.body {
            Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) => {
                entries.iter().all(|entry| matches!(entry.payload, Payload::Command(_)))
            }
            _ => false,
        };
        for (group, message) in messages {
            let quick = commands_only(&message);
            let mut outgoing = outgoing::Outgoing::default();
            outgoing.push(group, message);
            let mut encoded = Vec::new();
            outgoing.encode(&mut encoded);
            let good = encoded.clone();
            change(&mut encoded, changes.clone());
            let (good, changed) = (messages_of(&good), messages_of(&encoded));
            for (encoded, good) in good.iter().map(|m| (m, true)).chain(changed.iter().map(|m| (m, false))) {
                let keep = Keep { frame_bytes: encoded.len() };
                let (before, mut entries) = (7, 7);
                let read = quick::append(encoded, encoded, ENDS, keep, &mut entries);
                prop_assert!(read.is_some() || !(good && quick), "not the quick way: {encoded:?}");
                match read {
                    Some(read) => prop_assert_eq!(slowly(encoded, keep), Ok((read, entries - before))),
                    None => prop_assert_eq!(entries, before),
                }
            }
        }
    }

    #[test]
    fn noise_never_panics(encoded in vec(any::<u8>(), 0..300)) {
        if let Ok(frame) = gate(encoded) {
            assert_sound(&frame);
        }
    }
}

#[test]
fn counts_are_refused_before_they_are_decoded() {
    // Two bytes on the wire, a hundred in memory.
    let messages = [0x1a, 0x00].repeat(scan::ITEMS_MAX + 1);
    assert_eq!(gate(messages).unwrap_err(), WireError::TooMany { what: "messages", max: scan::ITEMS_MAX });
    let append = pb::raft_message::Body::Append(pb::AppendEntries {
        entries: vec![pb::Entry::default(); scan::ENTRIES_MAX + 1],
        ..Default::default()
    });
    let message = pb::RaftMessage { body: Some(append), ..Default::default() };
    let frame = pb::LaneFrame { messages: vec![message], ..Default::default() };
    assert_eq!(
        gate(frame.encode_to_vec()).unwrap_err(),
        WireError::TooMany { what: "entries", max: scan::ENTRIES_MAX }
    );
    // As many beats as there may be, and one more; and columns that belong to no beat.
    let beats = |n| pb::Beats { groups: vec![1; n], ..Default::default() };
    let frame = |beats| pb::LaneFrame { beats: vec![beats], ..Default::default() }.encode_to_vec();
    assert_eq!(
        gate(frame(beats(scan::ITEMS_MAX))).unwrap_err(),
        WireError::TooMany { what: "messages", max: scan::ITEMS_MAX }
    );
    assert_eq!(gate(frame(beats(scan::ITEMS_MAX - 1))).unwrap_err(), WireError::Columns { what: "terms" });
    let columns = pb::Beats { commits: vec![1; scan::COLUMNS_MAX + 1], ..Default::default() };
    assert!(matches!(gate(frame(columns)), Err(WireError::TooMany { what: "numbers in columns", .. })));
    // A place that is not in the frame.
    let nowhere = pb::Beats { after: 1, ..Default::default() };
    assert!(matches!(gate(frame(nowhere)), Err(WireError::OutOfRange { .. })));
    // A length that is claimed and not there.
    assert!(matches!(gate(vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f]), Err(WireError::Malformed { .. })));
}

#[test]
fn small_commands_do_not_pin_their_frame() {
    let frame = Bytes::from(vec![1u8; 100_000]);
    let keep = Keep { frame_bytes: frame.len() };
    let small = frame.slice(10..1010);
    assert_ne!(keep.data(small.clone()).as_ptr(), small.as_ptr());
    let large = frame.slice(10..60_000);
    assert_eq!(keep.data(large.clone()).as_ptr(), large.as_ptr());
}
