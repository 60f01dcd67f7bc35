//! Both halves of a joint configuration (thesis 4.3); an ordinary configuration is its simple case.

use super::{VoteResult, majority};
use crate::types::{Configuration, ReplicaId};

/// The largest value that a quorum of each half has reached.
pub fn reached(configuration: &Configuration, value: impl Fn(ReplicaId) -> u64) -> u64 {
    let incoming = majority::reached(&configuration.voters, &value);
    if configuration.is_joint() {
        incoming.min(majority::reached(&configuration.outgoing_voters, &value))
    } else {
        incoming
    }
}

/// How the vote stands: both halves must say yes.
pub fn vote(configuration: &Configuration, answer: impl Fn(ReplicaId) -> Option<bool>) -> VoteResult {
    let incoming = majority::vote(&configuration.voters, &answer);
    if !configuration.is_joint() {
        return incoming;
    }
    match (incoming, majority::vote(&configuration.outgoing_voters, &answer)) {
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}
