//! The frames of a stream, one after the other, without a connection.

use std::collections::HashMap;
use std::sync::Mutex;
use std::task::Waker;

use pontoon_raft_core::types::{EntryId, LogIndex, Payload, ReplicaId, Term};
use prost::Message as _;

use super::*;
use crate::api::FEATURES;
use crate::send_queue::QueueLimits;
use crate::wire::pieces::{Whole, whole};

const KIB: usize = 1 << 10;
const LIMITS: FrameLimits = FrameLimits { target: 256 * KIB, several: 1024 * KIB, single: 64 << 20 };

/// Each group's log has entries of one size.
struct Source(Mutex<HashMap<GroupId, usize>>);

impl EntrySource for Source {
    fn entries(
        &self,
        group: GroupId,
        prev: LogIndex,
        last: LogIndex,
        term: Term,
        max: u64,
    ) -> Option<Vec<Entry>> {
        let size = *self.0.lock().unwrap().get(&group)?;
        let command = Bytes::from(vec![group.0 as u8; size]);
        let entry = |index| Entry {
            index: LogIndex(index),
            term,
            id: EntryId(u128::from(index)),
            payload: Payload::Command(command.clone()),
        };
        let n = (max as usize / size).max(1);
        Some((prev.0 + 1..=last.0).take(n).map(entry).collect())
    }
}

struct Scene {
    queue: Arc<SendQueue>,
    source: Arc<Source>,
    stream: FrameStream,
    frames: u64,
}

impl Scene {
    fn new(features: u64, sizes: &[(u64, usize)]) -> Self {
        let limits = QueueLimits { messages: 10_000.into(), bytes: (8 << 20).into() };
        let queue = Arc::new(SendQueue::new(Arc::new(limits), Arc::default()));
        let source = Arc::new(Source(Mutex::default()));
        source.0.lock().unwrap().extend(sizes.iter().map(|(group, size)| (GroupId(*group), *size)));
        let epoch = queue.begin(pb::Hello::default());
        let entries: Arc<dyn EntrySource> = Arc::<Source>::clone(&source);
        let mut scene = Self {
            stream: FrameStream::new(Arc::clone(&queue), epoch, entries, LIMITS),
            queue,
            source,
            frames: 0,
        };
        assert!(scene.next().is_some_and(|frame| frame.hello.is_some()));
        scene.queue.opened(features, None);
        scene
    }

    /// The next frame, which the peer acknowledges at once; `None`: there is nothing to send.
    fn next(&mut self) -> Option<pb::LaneFrame> {
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(Some(frame)) = Pin::new(&mut self.stream).poll_next(&mut cx) else { return None };
        let frame = as_read(frame);
        self.frames += 1;
        self.queue.acknowledged(self.frames);
        assert!(frame.encoded_len() <= LIMITS.several + LIMITS.target, "{}", frame.encoded_len());
        Some(frame)
    }

    fn push(&self, group: u64, prev: u64, last: u64) {
        let id = ReplicaId::default();
        let append = AppendEntries {
            prev_log_index: LogIndex(prev),
            prev_log_term: Term(1),
            leader_commit: LogIndex(0),
            entries: Entries::Interval { last: LogIndex(last), last_term: Term(1) },
        };
        let body = Body::AppendEntries(append);
        self.queue
            .push([Item::Raft(
                GroupId(group),
                Message { from: id, to: id, term: Term(1), doubt: None, body },
            )])
            .unwrap();
    }

    fn groups(&self) -> Vec<u64> {
        let mut groups: Vec<u64> = self.queue.events().unreachable.iter().map(|g| g.0).collect();
        groups.sort_unstable();
        groups
    }
}

/// A frame as whoever knows only the `.proto` file reads it.
fn as_read(frame: Outgoing) -> pb::LaneFrame {
    let (len, mut encoded) = (frame.encoded_len(), Vec::new());
    frame.encode(&mut encoded);
    assert_eq!(encoded.len(), len);
    pb::LaneFrame::decode(&encoded[..]).unwrap()
}

/// What a peer makes of frames: groups and indexes, in order.
#[derive(Default)]
struct Peer {
    partial: HashMap<u64, Vec<u8>>,
    totals: HashMap<u64, usize>,
    come: Vec<(u64, u64)>,
}

impl Peer {
    fn take(&mut self, frame: &pb::LaneFrame) {
        for message in &frame.messages {
            self.append(message);
        }
        for piece in &frame.pieces {
            assert!(piece.data.len() <= PIECE_BYTES && !piece.data.is_empty());
            let partial = self.partial.entry(piece.message).or_default();
            assert_eq!(partial.len() as u64, piece.offset);
            partial.extend_from_slice(&piece.data);
            if piece.offset == 0 {
                self.totals.insert(piece.message, piece.total as usize);
            }
            if partial.len() == self.totals[&piece.message] {
                let encoded = self.partial.remove(&piece.message).unwrap();
                let message = pb::RaftMessage::decode(&encoded[..]).unwrap();
                self.append(&message);
                let ends = wire::Ends { from: StoreId(1), to: StoreId(2) };
                assert!(matches!(whole(pb::PieceOf::Append, encoded.into(), ends), Ok(Whole::Append(..))));
            }
        }
    }

    fn append(&mut self, message: &pb::RaftMessage) {
        let Some(pb::raft_message::Body::Append(append)) = &message.body else { panic!("appends only") };
        let entries = append.entries.len() as u64;
        self.come.extend((0..entries).map(|n| (message.group, append.prev_log_index + 1 + n)));
    }

    fn of(&self, group: u64) -> Vec<u64> {
        self.come.iter().filter(|(g, _)| *g == group).map(|(_, index)| *index).collect()
    }
}

#[test]
fn what_is_small_overtakes_a_giant_of_another_group() {
    let mut scene = Scene::new(FEATURES, &[(1, 32 << 20), (2, 1000)]);
    scene.push(1, 0, 1);
    scene.push(1, 1, 2);
    for n in 0..200 {
        scene.push(2, n, n + 1);
    }
    let mut peer = Peer::default();
    for frame in 0.. {
        peer.take(&scene.next().expect("there is more"));
        if peer.of(2).len() == 200 {
            assert!(frame < 3, "{frame} frames for 200 KB");
            break;
        }
    }
    // One at a time while the giants are under way, and each is in the next or the one after that.
    let mut next = 200;
    while peer.of(1).len() < 2 {
        scene.push(2, next, next + 1);
        next += 1;
        for _ in 0..2 {
            if let Some(frame) = scene.next() {
                peer.take(&frame);
            }
        }
        assert_eq!(peer.of(2).last(), Some(&next));
    }
    assert_eq!((peer.of(1), scene.next().is_none()), (vec![1, 2], true));
    assert!(next > 400, "the giants took {next} turns");
    assert_eq!(scene.queue.status().messages, 0);
}

#[test]
fn a_giant_moves_on_beside_a_flood() {
    let mut scene = Scene::new(FEATURES, &[(1, 4 << 20), (2, 1000)]);
    scene.push(1, 0, 1);
    let (mut peer, mut prev, mut frames) = (Peer::default(), 0, 0);
    while peer.of(1).is_empty() {
        while scene.queue.status().messages < 1000 {
            scene.push(2, prev, prev + 1);
            prev += 1;
        }
        peer.take(&scene.next().expect("a flood has no end"));
        frames += 1;
    }
    // 64 pieces, each in every other frame.
    assert!((64..=140).contains(&frames), "{frames}");
}

#[test]
fn several_giants_take_turns_and_all_end() {
    let mut scene =
        Scene::new(FEATURES, &[(1, 20 << 20), (2, 3 << 20), (3, 3 << 20), (4, 9 << 20), (5, 2 << 20)]);
    for group in 1..=5 {
        scene.push(group, 0, 1);
        scene.push(group, 1, 2);
    }
    // One becomes stale while it waits for its place; it must not keep the others from theirs.
    let mut peer = Peer::default();
    while let Some(frame) = scene.next() {
        peer.take(&frame);
        let under_way = peer.partial.values().map(Vec::len).sum::<usize>();
        assert!(under_way <= 28 << 20, "{under_way}: one of any size, and the queue's bound");
        if peer.of(1).len() == 1 {
            scene.source.0.lock().unwrap().remove(&GroupId(4));
        }
    }
    for group in [1, 2, 3, 5] {
        assert_eq!(peer.of(group), [1, 2], "group {group}");
    }
    let held = scene.queue.status();
    assert_eq!((held.messages, held.bytes, held.large_bytes), (0, 0, 0));
    let small = peer.come.iter().position(|come| *come == (5, 1)).unwrap();
    assert!(small < peer.come.iter().position(|come| *come == (1, 1)).unwrap(), "{:?}", peer.come);
}

/// Each message ends as exactly one of sent and reported, wherever the stream breaks.
#[test]
fn a_stream_that_breaks_anywhere_reports_what_was_not_whole() {
    for frames in 0..60 {
        let mut scene = Scene::new(FEATURES, &[(1, 2 << 20), (2, 3 << 20), (3, 1000)]);
        for group in 1..=3 {
            scene.push(group, 0, 1);
        }
        let mut peer = Peer::default();
        for _ in 0..frames {
            if let Some(frame) = scene.next() {
                peer.take(&frame);
            }
        }
        scene.queue.close();
        let lost: Vec<u64> = (1..=3).filter(|group| peer.of(*group).is_empty()).collect();
        // (What was acknowledged has arrived; nothing else was sent here.)
        assert_eq!(scene.groups(), lost, "after {frames} frames");
        assert!(scene.next().is_none());
        let held = scene.queue.status();
        assert_eq!((held.messages, held.bytes, held.large_bytes, held.waits_for), (0, 0, 0, None));
    }
}

#[test]
fn a_peer_without_pieces_gets_none() {
    let mut scene = Scene::new(FEATURES & !FEATURE_PIECES, &[(1, 2 << 20), (2, 1000)]);
    scene.push(1, 0, 1);
    scene.push(2, 0, 1);
    let mut cx = Context::from_waker(Waker::noop());
    let mut come = Vec::new();
    while let Poll::Ready(Some(frame)) = Pin::new(&mut scene.stream).poll_next(&mut cx) {
        let frame = as_read(frame);
        assert!(frame.pieces.is_empty());
        scene.frames += 1;
        scene.queue.acknowledged(scene.frames);
        come.extend(frame.messages.iter().map(|message| message.group));
    }
    assert_eq!(come, [1, 2]);
}

/// One group has a hundred times as much as each of nine others: all are done after a few of its shares.
#[test]
fn groups_take_turns() {
    let sizes: Vec<_> = (1..=10).map(|group| (group, 10_000)).collect();
    let mut scene = Scene::new(FEATURES, &sizes);
    // As one long interval, and as many short ones.
    scene.push(1, 0, 1000);
    for n in 1000..2000 {
        scene.push(1, n, n + 1);
    }
    for n in 0..20 {
        for group in 2..=10 {
            scene.push(group, n, n + 1);
        }
    }
    let mut peer = Peer::default();
    while (2..=10).any(|group| peer.of(group).len() < 20) {
        peer.take(&scene.next().expect("there is more"));
    }
    let hot = peer.of(1).len();
    assert!(hot <= 3 * 26, "{hot} of the hot group went before the others were done");
    while let Some(frame) = scene.next() {
        peer.take(&frame);
    }
    for group in 1..=10 {
        assert!(peer.of(group).iter().copied().eq(1..=if group == 1 { 2000 } else { 20 }), "group {group}");
    }
}
