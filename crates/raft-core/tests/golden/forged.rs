//! Messages that nobody sent: `step` in the scripts.

use pontoon_raft_core::*;

use super::{link, number, replica};

/// The message in `words`: `step A>B TERM WHAT`.
pub(super) fn message(words: &[&str]) -> Message {
    let arg = |i: usize| number(words[i]);
    let (from, to) = link(words[1]);
    let body = match words[3] {
        "hb" => Body::Heartbeat(Heartbeat { round: arg(4), leader_commit: LogIndex(arg(5)), quiesce: false }),
        "acc" => Body::AppendReply(AppendReply::Accepted { match_index: LogIndex(arg(4)) }),
        "vote" => Body::RequestVote(VoteRequest {
            last_log_index: LogIndex(arg(4)),
            last_log_term: Term(arg(5)),
            leadership_transfer: false,
        }),
        "app" => {
            let entries = words[7..].iter().map(|word| {
                let (index, term) = word.split_once('@').unwrap();
                let id = EntryId(u128::from(number(index)) << 8 | u128::from(number(term)));
                let payload = Payload::Command("f".into());
                Entry { index: LogIndex(number(index)), term: Term(number(term)), id, payload }
            });
            Body::AppendEntries(AppendEntries {
                prev_log_index: LogIndex(arg(4)),
                prev_log_term: Term(arg(5)),
                leader_commit: LogIndex(arg(6)),
                entries: Entries::Inline(entries.collect()),
            })
        }
        other => panic!("unknown message {other}"),
    };
    Message { from: replica(from), to: replica(to), term: Term(arg(2)), doubt: None, body }
}
