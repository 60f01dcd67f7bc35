//! The steps of what is driven from outside of a group: stores that come and go, groups that are made and deleted, replicas
//! that move, recoveries and restores. Whoever drives one of these may die at any step; so that tests can see to that, each
//! step has a name, and a process can be told to die right before or right after it.
//!
//! A change of the registry, or a step of one, cannot be added without a name: [`DriverStep::of`] has to say which. What is
//! done locally is wrapped by hand, where it is done.

use std::fmt;
use std::str::FromStr;

use crate::meta::meta_command::{Change, MoveReplica, RemoveStore, Step};

macro_rules! steps {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A step of something that takes several.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DriverStep {
            $($(#[$doc])* $variant,)*
        }

        impl DriverStep {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it is called.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

steps! {
    /// The registry: a store tells its addresses.
    AnnounceStore = "announce-store",
    /// The registry: a new store is let in.
    AddStore = "add-store",
    /// The registry: a place is kept for a store that will come (etcd's `MemberAdd`).
    ReserveStore = "reserve-store",
    /// The registry: a store without a vote may have one (etcd's `MemberPromote`).
    PromoteStore = "promote-store",
    /// The registry: another address for a store that does not run (etcd's `MemberUpdate`).
    ReaddressStore = "readdress-store",
    /// The registry: a store wishes to leave.
    LeaveStore = "leave-store",
    /// The registry: somebody removes a store.
    KickStore = "kick-store",
    /// The registry: a store that has no replica any more is gone.
    ForgetStore = "forget-store",
    /// The registry: a group is made.
    CreateGroup = "create-group",
    /// The registry: a group is deleted.
    DeleteGroup = "delete-group",
    /// The registry: a replica is wished.
    PlaceReplica = "place-replica",
    /// The registry: a replica has become what was wished.
    ReplicaPlaced = "replica-placed",
    /// The registry: a learner is to vote.
    PromoteReplica = "promote-replica",
    /// The registry: a replica is to go.
    RemoveReplica = "remove-replica",
    /// The registry: a replica is out of its group.
    ReplicaRemoved = "replica-removed",
    /// The registry: the record of a recovery.
    RecordRecovery = "record-recovery",
    /// The registry: the secret by which stores vouch for users.
    ReplaceVouchSecret = "replace-vouch-secret",
    /// A group's leader is asked to take a replica in.
    AskToAdd = "ask-to-add",
    /// A group's leader is asked to take a replica out.
    AskToRemove = "ask-to-remove",
    /// A store that goes hands a group over.
    HandOver = "hand-over",
    /// A group's leader appends the configuration with a new learner; after: it is committed.
    LearnerEntry = "learner-entry",
    /// A group's leader appends the configuration in which the learner votes; after: it is committed.
    VoterEntry = "voter-entry",
    /// A group's leader appends the configuration without a replica; after: it is committed.
    RemovalEntry = "removal-entry",
    /// A store opens its replica of a group; after: its log and its state are there.
    OpenReplica = "open-replica",
    /// A store destroys a replica's log.
    DestroyLog = "destroy-log",
    /// A store destroys a replica's state, after its log.
    DestroyState = "destroy-state",
    /// A joiner writes down who it wants to be, before anybody hears of it.
    NoteJoin = "note-join",
    /// A joiner writes down that it was let in.
    NoteGranted = "note-granted",
    /// A joiner makes its directory that of a store.
    Establish = "establish",
    /// A store that has become a member takes the note of its joining away.
    ForgetJoin = "forget-join",
    /// A store that is gone leaves the sign of it.
    NoteGone = "note-gone",
    /// A recovery: a survivor writes down which stores are given up.
    GiveUpStores = "give-up-stores",
    /// A recovery: a survivor's groups get their new configurations.
    RecoverGroups = "recover-groups",
    /// A recovery: the survivor whose registry is best gets its groups, and the record.
    RecoverRegistry = "recover-registry",
    /// A recovery: a survivor's directory gets its line of the audit.
    NoteRecovery = "note-recovery",
    /// A restore has made its keyspace, or has taken one over, and sends nothing yet.
    ClaimKeyspace = "claim-keyspace",
    /// A restore fills its keyspace; after: it serves.
    FillKeyspace = "fill-keyspace",
    /// A backup saves a group; after: that is noted.
    SaveGroup = "save-group",
    /// A backup becomes whole.
    WriteManifest = "write-manifest",
    /// A restore of a cluster makes and fills a group.
    RestoreGroup = "restore-group",
    /// A restore ends one that was broken off.
    GiveUpRestore = "give-up-restore",
    /// A restore deletes what one that was broken off has left.
    DeleteUnfinished = "delete-unfinished",
}

impl DriverStep {
    /// Which step a change of the registry is.
    #[must_use]
    pub fn of(change: &Change) -> Option<Self> {
        Some(match change {
            Change::AnnounceStore(_) => Self::AnnounceStore,
            Change::CreateGroup(_) => Self::CreateGroup,
            Change::DeleteGroup(_) => Self::DeleteGroup,
            Change::AddStore(_) => Self::AddStore,
            Change::RemoveStore(RemoveStore { kick: true, .. }) => Self::KickStore,
            Change::RemoveStore(RemoveStore { kick: false, .. }) => Self::LeaveStore,
            Change::ForgetStore(_) => Self::ForgetStore,
            Change::ReserveStore(_) => Self::ReserveStore,
            Change::PromoteStore(_) => Self::PromoteStore,
            Change::ReaddressStore(_) => Self::ReaddressStore,
            Change::RecordRecovery(_) => Self::RecordRecovery,
            Change::ReplaceVouchSecret(_) => Self::ReplaceVouchSecret,
            Change::MoveReplica(step) => return Self::of_replica(*step),
        })
    }

    fn of_replica(change: MoveReplica) -> Option<Self> {
        match change.step() {
            Step::Unknown => None,
            Step::Place => Some(Self::PlaceReplica),
            Step::Placed => Some(Self::ReplicaPlaced),
            Step::Remove => Some(Self::RemoveReplica),
            Step::Removed => Some(Self::ReplicaRemoved),
            Step::Promote => Some(Self::PromoteReplica),
        }
    }

    /// Right before it.
    #[must_use]
    pub const fn before(self) -> CrashPoint {
        CrashPoint { step: self, after: false }
    }

    /// Right after it.
    #[must_use]
    pub const fn after(self) -> CrashPoint {
        CrashPoint { step: self, after: true }
    }
}

/// Where a driver is to die.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CrashPoint {
    /// The step.
    pub step: DriverStep,
    /// When it is done; else when it would be next.
    pub after: bool,
}

impl CrashPoint {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        DriverStep::ALL.iter().flat_map(|step| [step.before(), step.after()])
    }
}

impl fmt::Display for CrashPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "crash-{}-{}", if self.after { "after" } else { "before" }, self.step.name())
    }
}

/// No point is called so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownCrashPoint;

impl FromStr for CrashPoint {
    type Err = UnknownCrashPoint;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::all().find(|point| point.to_string() == text).ok_or(UnknownCrashPoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FailureTest;

    #[test]
    fn each_step_has_two_points_with_names_of_their_own() {
        let mut names: Vec<_> = CrashPoint::all().map(|point| point.to_string()).collect();
        for (point, name) in CrashPoint::all().zip(&names) {
            assert_eq!(name.parse(), Ok(point));
        }
        names.extend(FailureTest::ALL.iter().map(|test| test.name().to_owned()));
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all);
        assert_eq!("crash-during-add-store".parse::<CrashPoint>(), Err(UnknownCrashPoint));
    }
}
