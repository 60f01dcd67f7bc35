//! Pure: an old configuration and a change give the new configuration (thesis chapter 4).

use crate::types::{Configuration, ReplicaId};

/// One change of one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A new voter, or a learner's promotion.
    AddVoter(ReplicaId),
    /// A new learner, or a voter's demotion.
    AddLearner(ReplicaId),
    /// No longer a member.
    Remove(ReplicaId),
}

impl MemberChange {
    /// The member that changes.
    #[must_use]
    pub fn replica(self) -> ReplicaId {
        match self {
            Self::AddVoter(id) | Self::AddLearner(id) | Self::Remove(id) => id,
        }
    }
}

/// A change of the group's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigurationChange {
    /// These changes at once. If at most one voter changes it is a single step (thesis 4.2); else it goes through a
    /// joint configuration that the leader leaves by itself (thesis 4.3).
    Change(Vec<MemberChange>),
    /// These changes through a joint configuration that stays until [`ConfigurationChange::Leave`].
    EnterJoint(Vec<MemberChange>),
    /// Leaves a joint configuration.
    Leave,
}

/// A change that makes no sense for the configuration it meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChange {
    /// No voter would be left.
    #[error("the change would leave the group without a voter")]
    NoVoters,
    /// Nothing would change.
    #[error("the change changes nothing")]
    NoChange,
    /// One replica appears twice.
    #[error("replica {0} appears twice in the change")]
    Twice(ReplicaId),
    /// Only [`ConfigurationChange::Leave`] is possible now.
    #[error("the configuration is joint: leave it first")]
    Joint,
    /// There is nothing to leave.
    #[error("the configuration is not joint")]
    NotJoint,
}

/// The configuration after `change`.
///
/// # Errors
/// The change makes no sense for `old`.
pub fn apply(old: &Configuration, change: &ConfigurationChange) -> Result<Configuration, InvalidChange> {
    match change {
        ConfigurationChange::Leave => leave(old),
        ConfigurationChange::Change(changes) => {
            let target = target(old, changes)?;
            if target.voters.symmetric_difference(&old.voters).count() <= 1 {
                return Ok(target);
            }
            Ok(joint(old, target, true))
        }
        ConfigurationChange::EnterJoint(changes) => Ok(joint(old, target(old, changes)?, false)),
    }
}

fn leave(old: &Configuration) -> Result<Configuration, InvalidChange> {
    if !old.is_joint() {
        return Err(InvalidChange::NotJoint);
    }
    Ok(Configuration {
        voters: old.voters.clone(),
        learners: old.learners.union(&old.next_learners).copied().collect(),
        ..Configuration::default()
    })
}

/// Where the changes lead in the end.
fn target(old: &Configuration, changes: &[MemberChange]) -> Result<Configuration, InvalidChange> {
    if old.is_joint() {
        return Err(InvalidChange::Joint);
    }
    let mut new = old.clone();
    for (i, change) in changes.iter().enumerate() {
        let id = change.replica();
        if changes.iter().take(i).any(|earlier| earlier.replica() == id) {
            return Err(InvalidChange::Twice(id));
        }
        new.voters.remove(&id);
        new.learners.remove(&id);
        match change {
            MemberChange::AddVoter(_) => {
                new.voters.insert(id);
            }
            MemberChange::AddLearner(_) => {
                new.learners.insert(id);
            }
            MemberChange::Remove(_) => {}
        }
    }
    if new.voters.is_empty() {
        return Err(InvalidChange::NoVoters);
    }
    if new == *old {
        return Err(InvalidChange::NoChange);
    }
    Ok(new)
}

fn joint(old: &Configuration, target: Configuration, auto_leave: bool) -> Configuration {
    // A voter that becomes a learner still votes in the outgoing half; it must not be both until the joint state ends.
    let next_learners = target.learners.intersection(&old.voters).copied().collect();
    Configuration {
        learners: target.learners.difference(&old.voters).copied().collect(),
        voters: target.voters,
        outgoing_voters: old.voters.clone(),
        next_learners,
        auto_leave,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::StoreId;

    fn id(n: u64) -> ReplicaId {
        ReplicaId { store: StoreId(n), number: 1 }
    }

    #[test]
    fn one_voter_is_a_single_step() {
        let old = Configuration::of_voters([id(1), id(2)]);
        let new = apply(&old, &ConfigurationChange::Change(vec![MemberChange::AddVoter(id(3))])).unwrap();
        assert_eq!(new, Configuration::of_voters([id(1), id(2), id(3)]));
    }

    #[test]
    fn two_voters_go_through_a_joint_configuration_and_back() {
        let old = Configuration::of_voters([id(1), id(2), id(3)]);
        let change =
            vec![MemberChange::AddVoter(id(4)), MemberChange::AddLearner(id(1)), MemberChange::Remove(id(2))];
        let joint = apply(&old, &ConfigurationChange::Change(change)).unwrap();
        assert!(joint.is_joint() && joint.auto_leave);
        assert_eq!(joint.outgoing_voters, old.voters);
        assert!(joint.learners.is_empty());
        assert_eq!(joint.members().len(), 4);
        assert_eq!(
            apply(&joint, &ConfigurationChange::Change(vec![MemberChange::Remove(id(4))])),
            Err(InvalidChange::Joint)
        );
        let new = apply(&joint, &ConfigurationChange::Leave).unwrap();
        assert_eq!(new.voters, [id(3), id(4)].into());
        assert_eq!(new.learners, [id(1)].into());
        assert!(!new.is_joint() && !new.auto_leave);
        assert_eq!(apply(&new, &ConfigurationChange::Leave), Err(InvalidChange::NotJoint));
    }

    #[test]
    fn refuses_nonsense() {
        let old = Configuration::of_voters([id(1)]);
        let change = |c| apply(&old, &ConfigurationChange::Change(c));
        assert_eq!(change(vec![MemberChange::Remove(id(1))]), Err(InvalidChange::NoVoters));
        assert_eq!(change(vec![MemberChange::AddVoter(id(1))]), Err(InvalidChange::NoChange));
        assert_eq!(change(vec![]), Err(InvalidChange::NoChange));
        assert_eq!(
            change(vec![MemberChange::AddVoter(id(2)), MemberChange::Remove(id(2))]),
            Err(InvalidChange::Twice(id(2)))
        );
    }
}
