//! More than half of one set of voters.

use std::collections::BTreeSet;

use super::VoteResult;
use crate::types::ReplicaId;

/// More voters than this are counted on the heap; groups have 1 to 7.
const ON_STACK: usize = 8;

/// The largest value that more than half of the voters have reached; 0 for an empty set, which can agree on nothing.
pub fn reached(voters: &BTreeSet<ReplicaId>, value: impl Fn(ReplicaId) -> u64) -> u64 {
    let n = voters.len();
    if n == 0 {
        return 0;
    }
    let mut stack = [0; ON_STACK];
    let mut heap = Vec::new();
    let values: &mut [u64] = if n <= ON_STACK {
        &mut stack[..n]
    } else {
        heap.resize(n, 0);
        &mut heap
    };
    for (slot, id) in values.iter_mut().zip(voters) {
        *slot = value(*id);
    }
    values.sort_unstable();
    // n/2 + 1 voters have at least the value at this place: itself and everything after it.
    values[n - (n / 2 + 1)]
}

/// How the vote stands among these voters; an empty set can elect nobody.
pub fn vote(voters: &BTreeSet<ReplicaId>, answer: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
    let quorum = voters.len() / 2 + 1;
    let (mut yes, mut no) = (0, 0);
    for id in voters {
        match answer(*id) {
            Some(true) => yes += 1,
            Some(false) => no += 1,
            None => {}
        }
    }
    if yes >= quorum {
        VoteResult::Won
    } else if voters.len() - no < quorum {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}
