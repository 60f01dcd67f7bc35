//! Nothing that a peer says may panic a replica, overflow it, or make it forget what it has committed.

use pontoon_raft_core::*;
use proptest::prelude::*;

fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

/// Small numbers, so that they mean something, and absurd ones.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0u64..8, 1 => Just(u64::MAX), 1 => Just(u64::MAX - 1), 1 => Just(u64::MAX >> 1), 1 => any::<u64>()]
}

fn vote_request() -> impl Strategy<Value = VoteRequest> {
    (number(), number(), any::<bool>()).prop_map(|(index, term, leadership_transfer)| VoteRequest {
        last_log_index: LogIndex(index),
        last_log_term: Term(term),
        leadership_transfer,
    })
}

fn configuration() -> impl Strategy<Value = Configuration> {
    let ids = || prop::collection::btree_set((0u64..5).prop_map(replica), 0..4);
    (ids(), ids(), ids(), ids(), any::<bool>()).prop_map(
        |(voters, outgoing_voters, learners, next_learners, auto_leave)| Configuration {
            voters,
            outgoing_voters,
            learners,
            next_learners,
            auto_leave,
        },
    )
}

fn entries() -> impl Strategy<Value = Entries> {
    let payload = prop_oneof![
        Just(Payload::Noop),
        Just(Payload::Command("x".into())),
        configuration().prop_map(Payload::Configuration),
        number().prop_map(|millis| Payload::ElectionTimer { millis }),
    ];
    let entry = (number(), number(), payload).prop_map(|(index, term, payload)| Entry {
        index: LogIndex(index),
        term: Term(term),
        id: EntryId(index.into()),
        payload,
    });
    prop_oneof![
        // Contiguous, so that they get further.
        (number(), number(), 0usize..4).prop_map(|(first, term, n)| Entries::Inline(
            (0..n as u64)
                .map(|i| Entry {
                    index: LogIndex(first.saturating_add(i)),
                    term: Term(term),
                    id: EntryId(i.into()),
                    payload: Payload::Noop,
                })
                .collect()
        )),
        prop::collection::vec(entry, 0..3).prop_map(Entries::Inline),
        (number(), number())
            .prop_map(|(last, term)| Entries::Interval { last: LogIndex(last), last_term: Term(term) }),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        vote_request().prop_map(Body::PreVote),
        any::<bool>().prop_map(|granted| Body::PreVoteReply { granted }),
        vote_request().prop_map(Body::RequestVote),
        any::<bool>().prop_map(|granted| Body::RequestVoteReply { granted }),
        (number(), number(), number(), entries()).prop_map(|(prev, term, commit, entries)| {
            Body::AppendEntries(AppendEntries {
                prev_log_index: LogIndex(prev),
                prev_log_term: Term(term),
                leader_commit: LogIndex(commit),
                entries,
            })
        }),
        number().prop_map(|n| Body::AppendReply(AppendReply::Accepted { match_index: LogIndex(n) })),
        (number(), number(), number()).prop_map(|(prev, hint, term)| {
            Body::AppendReply(AppendReply::Rejected {
                prev_log_index: LogIndex(prev),
                hint_index: LogIndex(hint),
                hint_term: Term(term),
            })
        }),
        (number(), number(), any::<bool>()).prop_map(|(commit, round, quiesce)| {
            Body::Heartbeat(Heartbeat { leader_commit: LogIndex(commit), round, quiesce })
        }),
        number().prop_map(|round| Body::HeartbeatReply { round }),
        (number(), number(), configuration(), number()).prop_map(|(index, term, configuration, millis)| {
            Body::InstallSnapshot(SnapshotMeta {
                index: LogIndex(index),
                term: Term(term),
                configuration,
                election_timer_ms: millis,
            })
        }),
        Just(Body::TimeoutNow),
        number().prop_map(|context| Body::ReadIndex { context }),
        (number(), prop::option::of(number()))
            .prop_map(|(context, index)| Body::ReadIndexReply { context, index: index.map(LogIndex) }),
    ]
}

fn message() -> impl Strategy<Value = Message> {
    (1u64..6, prop_oneof![9 => Just(1u64), 1 => Just(2)], number(), body()).prop_map(
        |(from, to, term, body)| Message {
            from: replica(from),
            to: replica(to),
            term: Term(term),
            doubt: None,
            body,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn survives_anything(voters in 1u64..4, lease in any::<bool>(), messages in prop::collection::vec((message(), 0u64..700, any::<bool>()), 1..60)) {
        let snapshot = SnapshotMeta {
            configuration: Configuration::of_voters((1..=voters).map(replica)),
            ..SnapshotMeta::default()
        };
        let lease_margin_ms = lease.then_some(50);
        let config =
            Config { id: replica(1), seed: 1, quiesce_after_ms: Some(500), lease_margin_ms, ..Config::default() };
        let log = MemLog::default();
        let initial = InitialState { snapshot, ..InitialState::default() };
        let mut group = Group::new(config, initial, log.clone(), 0).unwrap();
        let (mut now, mut tickets, mut commit, mut reads) = (0, Vec::new(), LogIndex::ZERO, (0, 0));
        for (i, (message, pause, sync)) in messages.into_iter().enumerate() {
            let _ = group.step(now, message);
            now += pause;
            group.tick(now);
            if i % 5 == 0 {
                group.read_index(now, i as u64);
                reads.0 += 1;
            }
            if i % 3 == 0 {
                let _ = group.propose(now, [Proposal::new(EntryId(1), "y")]);
            }
            // The host does what hosts do, at any time.
            let peer = replica(i as u64 % 6);
            match i % 11 {
                1 => drop(group.add_server(now, peer)),
                2 => drop(group.remove_server(now, peer)),
                4 => group.link_established(now, peer),
                5 => group.send_credit(now, peer, (i % 2 == 0).then_some(i as u64 * 10)),
                7 => group.unreachable(now, peer),
                8 => group.snapshot_sent(now, peer, i % 2 == 0),
                _ => {}
            }
            prop_assert!(group.compaction_limit(LogIndex(i as u64)) <= group.commit_index());
            while group.has_ready() {
                let ready = group.ready();
                if let Some(persist) = &ready.persist {
                    log.write(persist);
                    tickets.push(persist.ticket);
                }
                reads.1 += ready.reads.len();
                if let Some(range) = ready.committed {
                    group.applied(range.end.prev());
                }
            }
            if sync && let Some(ticket) = tickets.drain(..).next_back() {
                group.persisted(now, ticket);
            }
            prop_assert!(group.commit_index() >= commit);
            commit = group.commit_index();
        }
        group.persist_failed();
        let last = group.ready();
        prop_assert_eq!(reads.0, reads.1 + last.reads.len());
    }
}
