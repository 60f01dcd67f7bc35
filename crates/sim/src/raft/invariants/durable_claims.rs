//! Every claim of a message is on the disk before anybody hears it: the term it is said in, and the entries that it
//! acknowledges (thesis 3.8, 10.2.1).

use pontoon_raft_core::{AppendReply, Body, Group, LogView, Message};

use super::{Violation, violated};
use crate::raft::disk::Content;

pub(super) fn sends<L: LogView>(
    message: &Message,
    group: &Group<L>,
    disk: &Content,
) -> Result<(), Violation> {
    let Message { from, term, body, .. } = message;
    let stored = disk.hard_state;
    // A pre-vote speaks of a term that does not exist yet.
    let hypothetical = matches!(body, Body::PreVote(_) | Body::PreVoteReply { granted: true });
    if !hypothetical && stored.term < *term {
        return violated(
            "term durability",
            format!("{from} says {body:?} in {term}, stored is {}", stored.term),
        );
    }
    let Body::AppendReply(AppendReply::Accepted { match_index }) = *body else { return Ok(()) };
    if disk.last() < match_index {
        let detail = format!("{from} acknowledges {match_index} in {term}, the disk ends at {}", disk.last());
        return violated("entry durability", detail);
    }
    // Within a term the log it speaks of is the one it has now. (Of what is compacted nothing is known.)
    if let (Some(stored), Some(meant)) = (disk.entry(match_index), group.entry_term(match_index))
        && group.term() == *term
        && stored.term != meant
    {
        let detail =
            format!("{from} acknowledges {match_index}@{meant}, the disk has {match_index}@{}", stored.term);
        return violated("entry durability", detail);
    }
    Ok(())
}
