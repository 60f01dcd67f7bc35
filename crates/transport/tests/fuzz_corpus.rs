//! The corpus of the fuzz target of the wire gate (`fuzz/`), replayed, and each of its inputs changed at random a number of
//! times. In a process of its own, whose memory tells whether a count or a length was believed.

#[path = "common/hostile.rs"]
mod hostile;

use std::path::{Path, PathBuf};

use pontoon_proto::peer::v1 as pb;
use prost::Message as _;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/gate")
}

fn inputs() -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<_> = std::fs::read_dir(corpus())
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap()))
        .collect();
    found.sort();
    found
}

fn message(body: pb::raft_message::Body) -> pb::RaftMessage {
    pb::RaftMessage { group: 7, from_number: 1, to_number: 1, term: 5, doubt: 0, body: Some(body) }
}

fn frame(messages: Vec<pb::RaftMessage>) -> pb::LaneFrame {
    pb::LaneFrame { messages, ..Default::default() }
}

/// Good frames of each kind, and some that are made to cost more than they are.
fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use pb::raft_message::Body;
    let vote = pb::VoteRequest { last_log_index: 3, last_log_term: 2, leadership_transfer: true };
    let entry = |payload| pb::Entry { term: 5, id_high: 1, id_low: 2, payload: Some(payload) };
    let configuration = pb::Configuration {
        voters: vec![10, 1, 11, 1],
        learners: vec![12, 1],
        auto_leave: true,
        ..Default::default()
    };
    let append = pb::AppendEntries {
        prev_log_index: 9,
        prev_log_term: 4,
        leader_commit: 8,
        entries: vec![
            entry(pb::entry::Payload::Noop(true)),
            entry(pb::entry::Payload::Command(b"data".to_vec().into())),
            entry(pb::entry::Payload::Configuration(configuration.clone())),
            entry(pb::entry::Payload::ElectionTimer(1000)),
        ],
    };
    let snapshot =
        pb::SnapshotMeta { index: 9, term: 4, configuration: Some(configuration), election_timer: 1000 };
    let control = vec![
        message(Body::PreVote(vote)),
        message(Body::RequestVoteReply(true)),
        message(Body::AppendAccepted(pb::AppendAccepted { match_index: 9 })),
        message(Body::AppendRejected(pb::AppendRejected { prev_log_index: 9, hint_index: 4, hint_term: 2 })),
        message(Body::Heartbeat(pb::Heartbeat { leader_commit: 9, round: 3, quiesce: true })),
        message(Body::HeartbeatReply(3)),
        message(Body::TimeoutNow(true)),
        message(Body::ReadIndex(77)),
        message(Body::ReadIndexReply(pb::ReadIndexReply { context: 77, index: Some(9) })),
        message(Body::DoubtCheck(pb::DoubtCheck { doubt: 1, settled: true })),
        message(Body::DoubtSettled(1)),
    ];
    let beats = pb::Beats {
        after: 0,
        groups: vec![1, 2, 300],
        terms: vec![5, 6, 7],
        rounds: vec![1000, 1001, 1002],
        kinds: vec![0, 1, 2],
        commits: vec![100_000, 100_001],
        from_numbers: vec![],
        to_numbers: vec![1, 2, 1],
    };
    let relayed = pb::LaneFrame {
        ping: Some(9),
        reached: 88,
        proposals: vec![pb::RelayedProposal {
            group: 7,
            id_low: 1,
            data: b"put".to_vec().into(),
            ..Default::default()
        }],
        proposal_replies: vec![pb::ProposalReply {
            group: 7,
            id_low: 1,
            outcome: Some(pb::proposal_reply::Outcome::NoSpace("no room".to_owned())),
            ..Default::default()
        }],
        admitted: vec![pb::Admitted { group: 7, term: 5, regular: 9, elastic: 8, ..Default::default() }],
        ..Default::default()
    };
    // A message in two pieces, and the beginning of another one.
    let encoded = message(Body::Append(append.clone())).encode_to_vec();
    let piece = |message, offset: usize, data: &[u8]| pb::Piece {
        message,
        offset: offset as u64,
        data: data.to_vec().into(),
        ..Default::default()
    };
    let first = |message, data: &[u8]| pb::Piece {
        total: encoded.len() as u64,
        of: pb::PieceOf::Append.into(),
        charge: 1000,
        ..piece(message, 0, data)
    };
    let pieces = vec![first(1, &encoded[..10]), first(2, &encoded[..20]), piece(1, 10, &encoded[10..])];
    let pieces = pb::LaneFrame { pieces, ..pb::LaneFrame::default() }.encode_to_vec();
    vec![
        ("pieces", pieces),
        ("append", frame(vec![message(Body::Append(append))]).encode_to_vec()),
        ("snapshot", frame(vec![message(Body::InstallSnapshot(snapshot))]).encode_to_vec()),
        ("beats", pb::LaneFrame { beats: vec![beats], ..frame(control.clone()) }.encode_to_vec()),
        ("control", frame(control).encode_to_vec()),
        ("relayed", relayed.encode_to_vec()),
        // Messages of two bytes, as many as are not let in.
        ("empty-messages", [0x1a, 0x00].repeat(20_000)),
        // A message whose length is that of everything, and is not there.
        ("claims", vec![0x1a, 0xff, 0xff, 0xff, 0xff, 0x7f]),
    ]
}

#[test]
#[ignore = "writes the first inputs of the corpus"]
fn write_seeds() {
    std::fs::create_dir_all(corpus()).unwrap();
    for (name, bytes) in seeds() {
        std::fs::write(corpus().join(name), bytes).unwrap();
    }
}

/// The most memory this process has had, in bytes.
fn memory_max() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n.max(1)
    }
}

#[test]
fn no_input_panics_or_takes_memory_that_it_claims() {
    let inputs = inputs();
    // The seeds are what this version says.
    for (name, bytes) in seeds() {
        assert!(
            inputs.iter().any(|(known, old)| known == name && *old == bytes),
            "{name} is not in the corpus"
        );
    }
    let good = ["pieces", "append", "snapshot", "beats", "control", "relayed"];
    for (name, bytes) in &inputs {
        let passes = hostile::exercise(bytes);
        assert!(passes || !good.contains(&name.as_str()), "{name} must pass");
    }
    let before = memory_max();
    let mut random = Random(1);
    let (mut passed, mut runs) = (0, 0);
    let changes = (6_000 / inputs.len()).max(1);
    for (name, bytes) in &inputs {
        for _ in 0..changes {
            let mut bytes = bytes.clone();
            for _ in 0..=random.below(4) {
                let Some(last) = bytes.len().checked_sub(1) else { break };
                let at = random.below(last + 1);
                match random.below(6) {
                    0 => bytes[at] ^= 1 << random.below(8),
                    1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)],
                    2 => bytes.truncate(at),
                    3 => bytes.insert(at, random.below(256) as u8),
                    // Something once more.
                    4 => {
                        let end = at + random.below(bytes.len() - at + 1);
                        let piece = bytes[at..end].to_vec();
                        bytes.extend(piece);
                    }
                    // A length that claims everything.
                    _ => bytes[at..].iter_mut().take(4).for_each(|b| *b = 0xff),
                }
            }
            runs += 1;
            passed += u64::from(hostile::exercise(&bytes));
            let grown = memory_max() - before;
            assert!(grown < 64 << 20, "{name}: {grown} bytes of memory were taken");
        }
    }
    eprintln!("{runs} inputs, {passed} passed, {} bytes of memory more", memory_max() - before);
    assert!(passed > 100 && passed < runs);
}
