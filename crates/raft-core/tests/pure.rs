//! The pure parts against naive second versions.

use std::collections::{BTreeMap, BTreeSet};

use pontoon_raft_core::quorum::{VoteResult, joint, majority};
use pontoon_raft_core::{Configuration, ReplicaId, StoreId};
use proptest::prelude::*;

fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}

fn voters() -> impl Strategy<Value = BTreeSet<ReplicaId>> {
    prop::collection::btree_set((0u64..12).prop_map(replica), 0..11)
}

/// The largest value for which more than half of the voters have at least that value.
fn naive_reached(voters: &BTreeSet<ReplicaId>, values: &BTreeMap<ReplicaId, u64>) -> u64 {
    let value = |id: &ReplicaId| values.get(id).copied().unwrap_or(0);
    let agreed = |v: u64| voters.iter().filter(|id| value(id) >= v).count() * 2 > voters.len();
    voters.iter().map(value).filter(|v| agreed(*v)).max().unwrap_or(0)
}

/// Tries all ways in which the missing answers may still come.
fn naive_vote(voters: &BTreeSet<ReplicaId>, answers: &BTreeMap<ReplicaId, bool>) -> VoteResult {
    let count = |missing: bool| {
        voters.iter().filter(|id| answers.get(id).copied().unwrap_or(missing)).count() * 2 > voters.len()
    };
    match (count(false), count(true)) {
        (true, _) => VoteResult::Won,
        (_, false) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}

proptest! {
    #[test]
    fn majority_reached(voters in voters(), values in prop::collection::btree_map((0u64..12).prop_map(replica), 0u64..9, 0..12)) {
        let got = majority::reached(&voters, |id| values.get(&id).copied().unwrap_or(0));
        prop_assert_eq!(got, naive_reached(&voters, &values));
    }

    #[test]
    fn majority_vote(voters in voters(), answers in prop::collection::btree_map((0u64..12).prop_map(replica), any::<bool>(), 0..12)) {
        prop_assert_eq!(majority::vote(&voters, |id| answers.get(&id).copied()), naive_vote(&voters, &answers));
    }

    #[test]
    fn joint_needs_both(
        incoming in voters(),
        outgoing in voters(),
        values in prop::collection::btree_map((0u64..12).prop_map(replica), 0u64..9, 0..12),
        answers in prop::collection::btree_map((0u64..12).prop_map(replica), any::<bool>(), 0..12),
    ) {
        let configuration = Configuration {
            voters: incoming.clone(),
            outgoing_voters: outgoing.clone(),
            ..Configuration::default()
        };
        let reached = joint::reached(&configuration, |id| values.get(&id).copied().unwrap_or(0));
        let vote = joint::vote(&configuration, |id| answers.get(&id).copied());
        if outgoing.is_empty() {
            prop_assert_eq!(reached, naive_reached(&incoming, &values));
            prop_assert_eq!(vote, naive_vote(&incoming, &answers));
        } else {
            let both = naive_reached(&incoming, &values).min(naive_reached(&outgoing, &values));
            prop_assert_eq!(reached, both);
            let expected = match (naive_vote(&incoming, &answers), naive_vote(&outgoing, &answers)) {
                (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
                (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
                _ => VoteResult::Pending,
            };
            prop_assert_eq!(vote, expected);
        }
    }
}
