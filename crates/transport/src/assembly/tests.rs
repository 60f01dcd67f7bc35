//! Pieces of honest peers become what was sent, in any order of turns; those of others cost no more than they bring.

use std::collections::VecDeque;

use pontoon_raft_core::message::{AppendEntries, Body, Entries};
use pontoon_raft_core::relay::RelayNumber;
use pontoon_raft_core::types::{Entry, EntryId, LogIndex, Payload, ReplicaId, Term};
use prost::Message as _;

use super::*;
use crate::api::RelayedProposal;
use crate::credit_book::CreditBook;
use crate::receive_budget::charge;
use crate::wire::pieces;

const ENDS: Ends = Ends { from: StoreId(0xa), to: StoreId(0xb) };
const MAX: usize = 4 << 20;

struct Scene {
    budget: Arc<ReceiveBudget>,
    share: Arc<PeerShare>,
    book: Arc<CreditBook>,
    account: Option<Account>,
    assembler: Assembler,
}

impl Scene {
    fn new(credits: bool) -> Self {
        let book = CreditBook::new(8 << 20, MAX as u64);
        let account = credits.then(|| book.open().0);
        Self {
            budget: Arc::new(ReceiveBudget::new(8 << 20)),
            share: Arc::default(),
            book,
            account,
            assembler: Assembler::new(MAX),
        }
    }

    fn add(&mut self, piece: &pb::Piece) -> Result<Added, WireError> {
        let purse = Purse { budget: &self.budget, share: &self.share, account: self.account.as_ref() };
        self.assembler.add(piece, ENDS, purse)
    }
}

fn append(sizes: &[usize]) -> (Message, Vec<Entry>) {
    let entry = |(index, size): (u64, &usize)| Entry {
        index: LogIndex(index),
        term: Term(3),
        id: EntryId(u128::MAX - u128::from(index)),
        payload: if *size == 0 {
            Payload::Noop
        } else {
            Payload::Command(vec![u8::try_from(index % 251).unwrap(); *size].into())
        },
    };
    let entries: Vec<Entry> = (8..).zip(sizes).map(entry).collect();
    let append = AppendEntries {
        prev_log_index: LogIndex(7),
        prev_log_term: Term(2),
        leader_commit: LogIndex(7),
        entries: Entries::Inline(entries.clone()),
    };
    let (from, to) =
        (ReplicaId { store: ENDS.from, number: 4 }, ReplicaId { store: ENDS.to, number: u64::MAX });
    (Message { from, to, term: Term(1 << 62), doubt: None, body: Body::AppendEntries(append) }, entries)
}

fn proposal(bytes: usize) -> RelayedProposal {
    RelayedProposal {
        group: GroupId(3),
        term: Term(5),
        id: EntryId(77),
        at: RelayNumber { number: 9, floor: 2 },
        asks: false,
        class: pontoon_flow::Class::Elastic,
        data: vec![b'p'; bytes].into(),
    }
}

fn total(rope: &VecDeque<Bytes>) -> usize {
    rope.iter().map(Bytes::len).sum()
}

fn piece(message: u64, offset: usize, data: &[u8]) -> pb::Piece {
    pb::Piece { message, offset: offset as u64, data: Bytes::copy_from_slice(data), ..pb::Piece::default() }
}

fn first(message: u64, of: pb::PieceOf, total: usize, charge: u64, data: &[u8]) -> pb::Piece {
    pb::Piece { total: total as u64, of: of.into(), charge, ..piece(message, 0, data) }
}

/// A rope cut into pieces of `size` bytes, across its slices.
fn cut(message: u64, of: pb::PieceOf, rope: &VecDeque<Bytes>, charge: u64, size: usize) -> Vec<pb::Piece> {
    let all: Vec<u8> = rope.iter().flatten().copied().collect();
    let mut pieces: Vec<_> =
        all.chunks(size).enumerate().map(|(n, chunk)| piece(message, n * size, chunk)).collect();
    pieces[0] = first(message, of, all.len(), charge, &pieces[0].data.clone());
    pieces
}

#[test]
fn what_is_cut_becomes_what_it_was() {
    for sizes in [&[100][..], &[4095, 4096, 4097, 0, 1], &[1 << 20], &[0], &[70_000, 3, 70_000]] {
        let (message, entries) = append(sizes);
        let rope = pieces::append(GroupId(u64::MAX), message.clone(), &entries);
        let charge = charge(&entries);
        assert!(total(&rope) as u64 <= charge, "{} bytes are charged as {charge}", total(&rope));
        for size in [1000, 4096, 65_536, usize::MAX] {
            let mut scene = Scene::new(false);
            let mut pieces = cut(1, pb::PieceOf::Append, &rope, charge, size);
            let last = pieces.pop().unwrap();
            for piece in &pieces {
                assert!(matches!(scene.add(piece), Ok(Added::Part)));
                assert_eq!(scene.budget.used(), scene.assembler.bytes() as u64);
            }
            let Ok(Added::Whole(whole, permit)) = scene.add(&last) else { panic!("not whole") };
            let Whole::Append(group, come) = *whole else { panic!("no append") };
            assert_eq!((group, &come), (GroupId(u64::MAX), &message));
            assert_eq!((permit.bytes(), scene.budget.used()), (charge, charge));
            assert!(scene.assembler.is_empty());
        }
    }
    let rope = pieces::proposal(proposal(500_000));
    let mut scene = Scene::new(true);
    let mut come = None;
    for piece in cut(1, pb::PieceOf::Proposal, &rope, 0, 65_536) {
        if let Added::Whole(whole, _) = scene.add(&piece).unwrap()
            && let Whole::Proposal(proposal) = *whole
        {
            come = Some(proposal);
        }
    }
    assert_eq!(come, Some(proposal(500_000)));
    assert_eq!(scene.budget.used(), 0);
}

/// The data of a message is not copied to be cut, nor its encoding another one than that of whole messages.
#[test]
fn a_rope_holds_slices_of_what_is_sent() {
    let (message, entries) = append(&[1 << 20, 100]);
    let rope = pieces::append(GroupId(1), message.clone(), &entries);
    let Payload::Command(data) = &entries[0].payload else { panic!() };
    assert!(rope.iter().any(|slice| slice.as_ptr() == data.as_ptr() && slice.len() == data.len()));
    assert_eq!(rope.len(), 3);
    let encoded: Bytes = rope.iter().flatten().copied().collect::<Vec<u8>>().into();
    let whole = wire::message_to_wire(GroupId(1), message, entries);
    assert_eq!(pb::RaftMessage::decode(encoded).unwrap(), whole);
}

#[test]
fn messages_take_turns() {
    let mut scene = Scene::new(true);
    let ropes: Vec<_> = (1..=3u64)
        .map(|n| {
            let (message, entries) = append(&[40_000 * n as usize]);
            let rope = pieces::append(GroupId(n), message, &entries);
            cut(n, pb::PieceOf::Append, &rope, charge(&entries), 10_000)
        })
        .collect();
    let mut whole = Vec::new();
    for turn in 0..ropes.iter().map(Vec::len).max().unwrap() {
        for rope in &ropes {
            let Some(piece) = rope.get(turn) else { continue };
            if let Added::Whole(one, permit) = scene.add(piece).unwrap()
                && let Whole::Append(group, _) = *one
            {
                whole.push((group.0, permit));
            }
        }
    }
    assert_eq!(whole.iter().map(|(group, _)| *group).collect::<Vec<_>>(), [1, 2, 3]);
    drop(whole);
    assert_eq!(scene.budget.used(), 0);
}

#[test]
fn what_no_honest_peer_sends_is_refused() {
    use pb::PieceOf::Append;
    let refused = |what: &str, pieces: &[pb::Piece]| {
        for credits in [false, true] {
            let mut scene = Scene::new(credits);
            let (last, before) = pieces.split_last().unwrap();
            for piece in before {
                assert!(scene.add(piece).is_ok(), "{what}");
            }
            assert!(scene.add(last).is_err(), "{what}");
        }
    };
    let ok = |n| first(n, Append, 100, 228, &[0; 10]);
    refused("nothing in it", &[first(1, Append, 100, 228, &[])]);
    refused("nothing to come", &[first(1, Append, 0, 228, &[0])]);
    refused("too long", &[first(1, Append, MAX + 1, 228, &[0])]);
    refused("longer than it says", &[first(1, Append, 5, 228, &[0; 6])]);
    refused("longer than it says, later", &[ok(1), piece(1, 10, &[0; 91])]);
    refused("a gap", &[ok(1), piece(1, 11, &[0])]);
    refused("once more", &[ok(1), ok(1)]);
    refused("the middle of nothing", &[piece(1, 10, &[0])]);
    refused("an older one", &[ok(2), ok(1)]);
    refused("of no kind", &[first(1, pb::PieceOf::Unspecified, 1, 0, &[0])]);
    refused("no message", &[first(1, Append, 3, 200, &[0xff; 3])]);
    let many: Vec<_> = (1..=LARGE_MAX as u64 + 1).map(ok).collect();
    refused("too many", &many);
    // Of another kind than it says.
    let rope = pieces::proposal(proposal(10));
    refused("a proposal as an append", &cut(1, Append, &rope, 500, 1000));
    let (message, entries) = append(&[100]);
    let mut vote = wire::message_to_wire(GroupId(1), message, entries);
    vote.body = Some(pb::raft_message::Body::TimeoutNow(true));
    refused("a vote in pieces", &cut(1, Append, &[vote.encode_to_vec().into()].into(), 500, 1000));
}

#[test]
fn credit_counts_from_the_first_piece_and_must_be_there() {
    let (message, entries) = append(&[1 << 20]);
    let rope = pieces::append(GroupId(1), message, &entries);
    let charge = charge(&entries);
    // A stream begins with 256 KiB.
    let mut scene = Scene::new(true);
    let pieces = cut(1, pb::PieceOf::Append, &rope, charge, 65_536);
    assert!(scene.add(&pieces[0]).is_err(), "no credit for a mebibyte");
    let mut scene = Scene::new(true);
    scene.account.as_ref().unwrap().wants(charge);
    for piece in &pieces {
        scene.add(piece).unwrap();
    }
    // A charge that is a lie, either way.
    for lie in [charge - 1, charge + 1] {
        let mut scene = Scene::new(true);
        scene.account.as_ref().unwrap().wants(charge + 1);
        let pieces = cut(1, pb::PieceOf::Append, &rope, lie, 65_536);
        let (last, before) = pieces.split_last().unwrap();
        for piece in before {
            scene.add(piece).unwrap();
        }
        assert!(scene.add(last).is_err(), "charged {lie} for {charge}");
    }
    let mut scene = Scene::new(true);
    let small = first(1, pb::PieceOf::Append, 200_000, 1000, &[0; 10]);
    assert!(scene.add(&small).is_err(), "longer than its charge");
    drop(scene.book);
}

/// Messages that never end: memory is what came, within the share of the budget, and it is free when the stream ends.
#[test]
fn what_never_ends_costs_what_it_brought() {
    let mut scene = Scene::new(false);
    for n in 1..=LARGE_MAX as u64 {
        let piece = first(n, pb::PieceOf::Append, MAX, 0, &[7; 1000]);
        assert!(matches!(scene.add(&piece), Ok(Added::Part)));
    }
    assert_eq!(scene.budget.used(), 8 * 1000);
    let capacity: usize = scene.assembler.partial.iter().map(|partial| partial.data.capacity()).sum();
    assert!(capacity <= 8 * 2000, "{capacity}: a length was believed");
    let data = vec![7; 60_000];
    for n in 1..=LARGE_MAX as u64 {
        for at in 0..60 {
            assert!(matches!(scene.add(&piece(n, 1000 + at * data.len(), &data)), Ok(Added::Part)));
        }
    }
    // Two thirds of the budget at most; what found no room is thrown away and counted at its end.
    assert!(scene.budget.used() <= (8 << 20) / 3 * 2 + 60_000, "{}", scene.budget.used());
    let capacity: usize = scene.assembler.partial.iter().map(|partial| partial.data.capacity()).sum();
    assert!(capacity as u64 <= 2 * scene.budget.used(), "{capacity}");
    let dropped = scene.assembler.partial.iter().find(|partial| partial.dropped).map(|p| (p.number, p.come));
    let (number, come) = dropped.expect("not all found room");
    let rest = vec![0; MAX - come];
    assert!(matches!(scene.add(&piece(number, come, &rest)), Ok(Added::Dropped)));
    drop(scene.assembler);
    assert_eq!(scene.budget.used(), 0);
}
