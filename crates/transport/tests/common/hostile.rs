//! Bytes that a peer could have sent, and what must hold of whatever the wire gate lets through: what the fuzz target and the
//! replay of its corpus do.

use bytes::Bytes;
use pontoon_raft_core::message::{Body, Entries, Message};
use pontoon_raft_core::types::{GroupId, StoreId};
use pontoon_transport::pass_gate;

const FROM: StoreId = StoreId(0xa);
const TO: StoreId = StoreId(0xb);
/// No number above it passes.
const NUMBER_MAX: u64 = 1 << 62;

/// Passes `data` through the gate. Returns whether it was let in.
pub(crate) fn exercise(data: &[u8]) -> bool {
    let Ok(messages) = pass_gate(Bytes::copy_from_slice(data), FROM, TO) else { return false };
    for (_, message) in &messages {
        assert_sound(message);
    }
    // The gate is a function of the bytes.
    assert_eq!(pass_gate(Bytes::copy_from_slice(data), FROM, TO), Ok::<Vec<(GroupId, Message)>, _>(messages));
    true
}

fn assert_sound(message: &Message) {
    assert_eq!((message.from.store, message.to.store), (FROM, TO), "nobody speaks for others");
    assert!(message.term.0 <= NUMBER_MAX);
    match &message.body {
        Body::AppendEntries(append) => {
            let Entries::Inline(entries) = &append.entries else { panic!("an interval off the wire") };
            let (mut index, mut term) = (append.prev_log_index, append.prev_log_term);
            for entry in entries {
                assert_eq!(entry.index, index.next());
                assert!(entry.term >= term && entry.term <= message.term && entry.term.0 > 0);
                (index, term) = (entry.index, entry.term);
            }
        }
        Body::Heartbeat(heartbeat) => {
            assert!(heartbeat.leader_commit.0 <= NUMBER_MAX && heartbeat.round <= NUMBER_MAX);
        }
        Body::HeartbeatReply { round } => assert!(*round <= NUMBER_MAX),
        Body::InstallSnapshot(meta) => assert!(!meta.configuration.voters.is_empty()),
        _ => {}
    }
}
