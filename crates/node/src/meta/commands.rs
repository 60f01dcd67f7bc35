//! The changes of the registry, as they stand in the meta group's log, and what came of them.

use prost::Message as _;

use super::records::{RecoveryRecord, StoreRecord, VouchSecret};

/// A change of the registry.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetaCommand {
    /// Which change.
    #[prost(oneof = "meta_command::Change", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14")]
    pub change: Option<meta_command::Change>,
}

/// The changes.
pub mod meta_command {
    /// One change of the registry. Each may be asked for twice.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Change {
        /// A store tells its name and addresses.
        #[prost(message, tag = "1")]
        AnnounceStore(super::StoreRecord),
        /// Creates a group.
        #[prost(message, tag = "2")]
        CreateGroup(CreateGroup),
        /// Deletes a group, by name and id, so that no recreated namesake is hit.
        #[prost(message, tag = "3")]
        DeleteGroup(DeleteGroup),
        /// A new store asks to be let in. Of the record, the id is a proposal: the reply has the one that it gets.
        #[prost(message, tag = "4")]
        AddStore(super::StoreRecord),
        /// A store wishes to leave, or somebody removes it.
        #[prost(message, tag = "5")]
        RemoveStore(RemoveStore),
        /// A store that goes has no replica any more, and is gone.
        #[prost(message, tag = "6")]
        ForgetStore(ForgetStore),
        /// Keeps a place for a store that will come with this peer address.
        #[prost(message, tag = "7")]
        ReserveStore(super::StoreRecord),
        /// A store that was let in without a vote may have one.
        #[prost(message, tag = "8")]
        PromoteStore(PromoteStore),
        /// A step of a group's replica.
        #[prost(message, tag = "9")]
        MoveReplica(MoveReplica),
        /// Another peer address for a store that does not run.
        #[prost(message, tag = "10")]
        ReaddressStore(ReaddressStore),
        /// A recovery without a quorum was done: the record of it.
        #[prost(message, tag = "11")]
        RecordRecovery(super::RecoveryRecord),
        /// A new secret by which stores vouch to each other. It replaces what is there, so that a store which has missed an
        /// earlier one (of a version that did not know the command) has the same as all others afterwards.
        #[prost(message, tag = "14")]
        ReplaceVouchSecret(super::VouchSecret),
    }

    /// Creates a group.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct CreateGroup {
        /// Its name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// What it replicates.
        #[prost(enumeration = "super::super::GroupKind", tag = "2")]
        pub kind: i32,
        /// How many voters; 0: as `wished` says.
        #[prost(uint32, tag = "3")]
        pub replicas: u32,
        /// How many voters it is to have as soon as there are so many stores; 0: as many as there are stores now.
        #[prost(uint32, tag = "4")]
        pub wished: u32,
    }

    /// Deletes a group.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct DeleteGroup {
        /// Its name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// Its id.
        #[prost(uint64, tag = "2")]
        pub group: u64,
    }

    /// A store wishes to leave, or somebody removes it.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct RemoveStore {
        /// The store.
        #[prost(fixed64, tag = "1")]
        pub store: u64,
        /// Somebody removes it.
        #[prost(bool, tag = "2")]
        pub kick: bool,
    }

    /// A store is gone.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct ForgetStore {
        /// The store.
        #[prost(fixed64, tag = "1")]
        pub store: u64,
    }

    /// A store may vote.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct PromoteStore {
        /// The store.
        #[prost(fixed64, tag = "1")]
        pub store: u64,
    }

    /// Another peer address.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct ReaddressStore {
        /// The store.
        #[prost(fixed64, tag = "1")]
        pub store: u64,
        /// Where other stores reach it.
        #[prost(string, tag = "2")]
        pub peer_address: String,
    }

    /// A step of a group's replica.
    #[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
    pub struct MoveReplica {
        /// The group.
        #[prost(uint64, tag = "1")]
        pub group: u64,
        /// The replica's store.
        #[prost(fixed64, tag = "2")]
        pub store: u64,
        /// The replica's number; of a new one the number that the group gives next, so that a repeated or late wish places
        /// nothing.
        #[prost(uint64, tag = "3")]
        pub number: u64,
        /// Which step.
        #[prost(enumeration = "Step", tag = "4")]
        pub step: i32,
        /// Of a wish: the version of the group's record that it was made for. Two that plan at once, or one that is late,
        /// cannot take more away together than each of them would.
        #[prost(uint64, tag = "5")]
        pub version: u64,
    }

    /// The steps of a replica.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
    #[repr(i32)]
    pub enum Step {
        /// A step of a newer version.
        Unknown = 0,
        /// There is to be a new replica, which becomes a voter.
        Place = 1,
        /// The group's leader has committed it as what it was to become.
        Placed = 2,
        /// It is to be removed.
        Remove = 3,
        /// The group's leader has committed a configuration without it.
        Removed = 4,
        /// A learner is to become a voter.
        Promote = 5,
    }
}

impl MetaCommand {
    /// The command's bytes in the log.
    #[must_use]
    pub fn to_bytes(&self) -> bytes::Bytes {
        self.encode_to_vec().into()
    }
}

/// What a change came to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetaReply {
    /// Empty if it was done; else what is wrong, which rule, and what to do.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The group that was created, deleted or found in the way.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// Whether the error is a name or an address that exists already.
    #[prost(bool, tag = "3")]
    pub exists: bool,
    /// Whether the error is a name or a store that does not exist.
    #[prost(bool, tag = "4")]
    pub missing: bool,
    /// The store that was let in or for which a place is kept.
    #[prost(fixed64, tag = "5")]
    pub store: u64,
    /// The number of its replica of the meta group.
    #[prost(uint64, tag = "6")]
    pub number: u64,
    /// Whether the error is that the store is gone for ever.
    #[prost(bool, tag = "7")]
    pub removed: bool,
}

impl MetaReply {
    pub(super) fn refused(error: impl Into<String>) -> Self {
        Self { error: error.into(), ..Self::default() }
    }

    pub(super) fn missing(error: impl Into<String>) -> Self {
        Self { missing: true, ..Self::refused(error) }
    }

    pub(super) fn exists(error: impl Into<String>) -> Self {
        Self { exists: true, ..Self::refused(error) }
    }

    /// Whether it was done.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.error.is_empty()
    }
}
