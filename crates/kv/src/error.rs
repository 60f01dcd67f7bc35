//! What a client may be told, and what can be wrong with the store below.

use tonic::{Code, Status};

use crate::answers::AnswerFault;

/// What a refusal says of the attempt, in the metadata `pontoon-outcome`: clients decide by it what they may repeat.
pub mod outcome {
    use tonic::Status;
    use tonic::metadata::MetadataValue;

    /// The name of the metadata.
    pub const METADATA: &str = "pontoon-outcome";
    /// This attempt had no effect and will have none; another one may succeed.
    pub const NOT_EXECUTED: &str = "not-executed";
    /// As [`NOT_EXECUTED`], because the write's `pontoon-eid` is not one that the keyspace can judge. Earlier attempts
    /// with it may have been executed; if there were none, begin anew with another name.
    pub const EXPIRED: &str = "expired";
    /// The keyspace refuses the write, and that is what became of all attempts with this `pontoon-eid`.
    pub const REFUSED: &str = "refused";
    /// An earlier attempt with the same `pontoon-eid` was executed, and its answer is not kept.
    pub const EXECUTED: &str = "executed";

    /// Adds the metadata to a status.
    #[must_use]
    pub fn mark(mut status: Status, outcome: &'static str) -> Status {
        status.metadata_mut().insert(METADATA, MetadataValue::from_static(outcome));
        status
    }

    /// The metadata by which gRPC servers say when the next attempt should come, in milliseconds.
    pub const RETRY_AFTER: &str = "grpc-retry-pushback-ms";

    /// A bound was met: RESOURCE_EXHAUSTED in etcd's words, and when to try again. What holds commands up takes about half a
    /// second to change.
    #[must_use]
    pub fn too_many_requests() -> Status {
        let mut status = Status::resource_exhausted("etcdserver: too many requests");
        status.metadata_mut().insert(RETRY_AFTER, MetadataValue::from_static("500"));
        status
    }
}

/// A request that makes no sense in the present state: the code and the message that etcd's clients match on.
///
/// The number of each variant is part of the reply format (`command.rs`): never reuse one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EtcdError {
    /// A request without a key.
    EmptyKey = 1,
    /// `ignore_value` or `ignore_lease` for a key that is not there, and operations of no kind.
    KeyNotFound = 2,
    /// `ignore_value` beside a value.
    ValueProvided = 3,
    /// `ignore_lease` beside a lease.
    LeaseProvided = 4,
    /// More operations in a transaction than the limit.
    TooManyOps = 5,
    /// A transaction writes one key twice.
    DuplicateKey = 6,
    /// Reads or compacts at a revision that is already compacted.
    Compacted = 7,
    /// Reads or compacts at a revision that does not exist yet.
    FutureRevision = 8,
    /// A put names a lease that does not exist.
    LeaseNotFound = 9,
    /// The request, or one of its keys, is over the limit.
    RequestTooLarge = 10,
    /// A sort order or target that does not exist.
    InvalidSortOption = 11,
    /// A command of a kind or version that this build does not know.
    UnknownCommand = 12,
    /// A member id that does not exist.
    MemberNotFound = 13,
    /// The operation has to be asked of the leader.
    NotLeader = 14,
    /// The chosen new leader cannot be one.
    BadLeaderTransferee = 15,
    /// A lease with this id exists.
    LeaseExists = 16,
    /// A time to live beyond all reason.
    LeaseTtlTooLarge = 17,
    /// The keyspace is full: its quota is exceeded, or the alarm says so.
    NoSpace = 18,
    /// The alarm says that the stores differ.
    Corrupt = 19,
    /// The keyspace has as many leases as it may.
    TooManyLeases = 20,
    /// More alarms than there is reason for.
    TooManyAlarms = 21,
    /// A write's name (`pontoon-eid`) is older than what the keyspace remembers: whether an earlier attempt was
    /// executed cannot be told. This one was not.
    WriteIdExpired = 32,
    /// A write's name carries a position that the keyspace has not reached.
    WriteIdAhead = 33,
    /// An earlier attempt at the write was executed; its answer was too large to be kept.
    AnswerNotKept = 34,
    /// The command was executed; its answer was too large for the memory that there is for answers.
    AnswerTooLarge = 35,
    /// Authentication is to be enabled, and there is no user `root`.
    RootUserNotExist = 40,
    /// Authentication is to be enabled, and `root` is nothing special.
    RootRoleNotExist = 41,
    /// A user of that name exists.
    UserAlreadyExists = 42,
    /// No user is named, or a request that needs one came without a token.
    UserEmpty = 43,
    /// There is no user of that name.
    UserNotFound = 44,
    /// A role of that name exists.
    RoleAlreadyExists = 45,
    /// There is no role of that name.
    RoleNotFound = 46,
    /// A role needs a name.
    RoleEmpty = 47,
    /// Wrong name or password.
    AuthFailed = 48,
    /// A grant without a permission.
    PermissionNotGiven = 49,
    /// The user may not do this.
    PermissionDenied = 50,
    /// A role is revoked that the user does not have.
    RoleNotGranted = 51,
    /// A permission is revoked that the role does not have.
    PermissionNotGranted = 52,
    /// A login where nobody has to log in.
    AuthNotEnabled = 53,
    /// The token is none, or is void by now.
    InvalidAuthToken = 54,
    /// `root` cannot be taken away while authentication is enabled.
    InvalidAuthManagement = 55,
    /// Users or roles changed while the request was on its way.
    AuthOldRevision = 56,
    /// Users and roles take more than their bound.
    AuthTooLarge = 57,
    /// More than the hash looks at.
    PasswordTooLong = 58,
    /// A hash that cannot be checked.
    BadPasswordHash = 59,
    /// A restore is not finished.
    Restoring = 60,
    /// A restore into a keyspace that has a past.
    NotEmpty = 61,
    /// Pieces of a restore are not as they should be.
    RestorePiece = 62,
    /// A restore was to be given up that is finished, or has gone on.
    RestoreGoesOn = 63,
    /// A restore goes on that somebody has given up.
    RestoreGivenUp = 64,
}

impl EtcdError {
    const ALL: [Self; 50] = [
        Self::EmptyKey,
        Self::KeyNotFound,
        Self::ValueProvided,
        Self::LeaseProvided,
        Self::TooManyOps,
        Self::DuplicateKey,
        Self::Compacted,
        Self::FutureRevision,
        Self::LeaseNotFound,
        Self::RequestTooLarge,
        Self::InvalidSortOption,
        Self::UnknownCommand,
        Self::MemberNotFound,
        Self::NotLeader,
        Self::BadLeaderTransferee,
        Self::LeaseExists,
        Self::LeaseTtlTooLarge,
        Self::WriteIdExpired,
        Self::WriteIdAhead,
        Self::AnswerNotKept,
        Self::AnswerTooLarge,
        Self::NoSpace,
        Self::Corrupt,
        Self::TooManyLeases,
        Self::TooManyAlarms,
        Self::RootUserNotExist,
        Self::RootRoleNotExist,
        Self::UserAlreadyExists,
        Self::UserEmpty,
        Self::UserNotFound,
        Self::RoleAlreadyExists,
        Self::RoleNotFound,
        Self::RoleEmpty,
        Self::AuthFailed,
        Self::PermissionNotGiven,
        Self::PermissionDenied,
        Self::RoleNotGranted,
        Self::PermissionNotGranted,
        Self::AuthNotEnabled,
        Self::InvalidAuthToken,
        Self::InvalidAuthManagement,
        Self::AuthOldRevision,
        Self::AuthTooLarge,
        Self::PasswordTooLong,
        Self::BadPasswordHash,
        Self::Restoring,
        Self::NotEmpty,
        Self::RestorePiece,
        Self::RestoreGoesOn,
        Self::RestoreGivenUp,
    ];

    /// The gRPC code that etcd uses for it.
    #[must_use]
    pub fn code(self) -> Code {
        match self {
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::WriteIdExpired | Self::WriteIdAhead => Code::OutOfRange,
            Self::AnswerNotKept => Code::AlreadyExists,
            Self::LeaseNotFound | Self::MemberNotFound => Code::NotFound,
            Self::NotLeader | Self::BadLeaderTransferee | Self::LeaseExists => Code::FailedPrecondition,
            Self::UnknownCommand => Code::Unimplemented,
            Self::AnswerTooLarge
            | Self::NoSpace
            | Self::TooManyLeases
            | Self::TooManyAlarms
            | Self::AuthTooLarge => Code::ResourceExhausted,
            Self::Corrupt => Code::DataLoss,
            Self::RootUserNotExist
            | Self::RootRoleNotExist
            | Self::UserAlreadyExists
            | Self::UserNotFound
            | Self::RoleAlreadyExists
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::PermissionNotGranted
            | Self::AuthNotEnabled
            | Self::Restoring
            | Self::NotEmpty
            | Self::RestorePiece
            | Self::RestoreGoesOn
            | Self::RestoreGivenUp => Code::FailedPrecondition,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::InvalidAuthToken => Code::Unauthenticated,
            _ => Code::InvalidArgument,
        }
    }

    /// The message; clients compare it.
    #[must_use]
    pub fn message(self) -> &'static str {
        match self {
            Self::EmptyKey => "etcdserver: key is not provided",
            Self::KeyNotFound => "etcdserver: key not found",
            Self::ValueProvided => "etcdserver: value is provided",
            Self::LeaseProvided => "etcdserver: lease is provided",
            Self::TooManyOps => "etcdserver: too many operations in txn request",
            Self::DuplicateKey => "etcdserver: duplicate key given in txn request",
            Self::Compacted => "etcdserver: mvcc: required revision has been compacted",
            Self::FutureRevision => "etcdserver: mvcc: required revision is a future revision",
            Self::LeaseNotFound => "etcdserver: requested lease not found",
            Self::RequestTooLarge => "etcdserver: request is too large",
            Self::InvalidSortOption => "etcdserver: invalid sort option",
            Self::UnknownCommand => {
                "pontoon: the command is of a kind that this version does not know; upgrade every store first"
            }
            Self::MemberNotFound => "etcdserver: member not found",
            Self::NotLeader => "etcdserver: not leader",
            Self::BadLeaderTransferee => "etcdserver: bad leader transferee",
            Self::LeaseExists => "etcdserver: lease already exists",
            Self::LeaseTtlTooLarge => "etcdserver: too large lease TTL",
            Self::WriteIdExpired => {
                "pontoon: the write's pontoon-eid is older than what the keyspace remembers; this attempt was not \
                 executed, an earlier one may have been"
            }
            Self::WriteIdAhead => {
                "pontoon: the position in the write's pontoon-eid lies ahead of the keyspace; begin with the one in \
                 pontoon-position"
            }
            Self::NoSpace => "etcdserver: mvcc: database space exceeded",
            Self::Corrupt => "etcdserver: corrupt cluster",
            Self::TooManyLeases => {
                "pontoon: the keyspace has as many leases as it may (262144); revoke some, or let them expire"
            }
            Self::TooManyAlarms => "pontoon: the keyspace has as many alarms as it may; disarm some",
            Self::RootUserNotExist => "etcdserver: root user does not exist",
            Self::RootRoleNotExist => "etcdserver: root user does not have root role",
            Self::UserAlreadyExists => "etcdserver: user name already exists",
            Self::UserEmpty => "etcdserver: user name is empty",
            Self::UserNotFound => "etcdserver: user name not found",
            Self::RoleAlreadyExists => "etcdserver: role name already exists",
            Self::RoleNotFound => "etcdserver: role name not found",
            Self::RoleEmpty => "etcdserver: role name is empty",
            Self::AuthFailed => "etcdserver: authentication failed, invalid user ID or password",
            Self::PermissionNotGiven => "etcdserver: permission not given",
            Self::PermissionDenied => "etcdserver: permission denied",
            Self::RoleNotGranted => "etcdserver: role is not granted to the user",
            Self::PermissionNotGranted => "etcdserver: permission is not granted to the role",
            Self::AuthNotEnabled => "etcdserver: authentication is not enabled",
            Self::InvalidAuthToken => "etcdserver: invalid auth token",
            Self::InvalidAuthManagement => "etcdserver: invalid auth management",
            Self::AuthOldRevision => "etcdserver: revision of auth store is old",
            Self::AuthTooLarge => {
                "pontoon: users and roles of a keyspace take at most 8 MiB, and a name 1024 bytes"
            }
            Self::PasswordTooLong => "pontoon: a password has at most 72 bytes",
            Self::BadPasswordHash => {
                "pontoon: a hashed password must be a bcrypt hash of a cost from 4 to 14"
            }
            Self::Restoring => {
                "pontoon: the keyspace is being restored and cannot be used before that is finished; if the restore was broken \
                 off, run `pontoon keyspace restore` again"
            }
            Self::NotEmpty => {
                "pontoon: only a new keyspace can be restored into, and this one has been written to; name another"
            }
            Self::RestorePiece => {
                "pontoon: a piece of the restore is missing or out of order; run `pontoon keyspace restore` again"
            }
            Self::RestoreGoesOn => {
                "pontoon: the restore that was to be given up is finished, or has gone on; look at it again"
            }
            Self::RestoreGivenUp => {
                "pontoon: the restore was given up by somebody who restores the same keyspace; look at what they do"
            }
            Self::AnswerNotKept => {
                "pontoon: the write was executed by an earlier attempt, whose answer was too large to be kept"
            }
            Self::AnswerTooLarge => {
                "pontoon: the request was executed, and its answer takes more memory than the store has for answers \
                 (--answers-bytes-max); do not repeat it: read what it was to return, less at a time"
            }
        }
    }

    pub(crate) fn number(self) -> u8 {
        self as u8
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|e| e.number() == number)
    }

    /// The status that a client gets.
    #[must_use]
    pub fn status(self) -> Status {
        Status::new(self.code(), self.message())
    }

    /// The status that a client gets whose write has a name: with what is certain about it.
    pub(crate) fn status_of_named(self) -> Status {
        let outcome = match self {
            Self::WriteIdExpired | Self::WriteIdAhead => outcome::EXPIRED,
            Self::AnswerNotKept | Self::AnswerTooLarge => outcome::EXECUTED,
            _ => outcome::REFUSED,
        };
        outcome::mark(self.status(), outcome)
    }
}

/// The engine below cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The embedded database refuses: its disk failed or is full.
    #[error("the key-value engine failed: {0}")]
    Engine(#[from] fjall::Error),
    /// A record does not decode.
    #[error("a record of the key-value engine is damaged: {what}; remove this replica and let it be rebuilt")]
    Damaged {
        /// Which record, and what is wrong with it.
        what: String,
    },
}

impl StoreError {
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self::Damaged { what: what.into() }
    }
}

/// Why a read or a command has no result: the request's fault or the store's.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The client hears of it.
    Request(EtcdError),
    /// There is no memory for the answer.
    Answer(AnswerFault),
    /// The replica is broken.
    Store(StoreError),
}

impl From<EtcdError> for Fault {
    fn from(e: EtcdError) -> Self {
        Self::Request(e)
    }
}

impl From<AnswerFault> for Fault {
    fn from(fault: AnswerFault) -> Self {
        Self::Answer(fault)
    }
}

impl From<StoreError> for Fault {
    fn from(e: StoreError) -> Self {
        Self::Store(e)
    }
}

impl From<fjall::Error> for Fault {
    fn from(e: fjall::Error) -> Self {
        Self::Store(StoreError::Engine(e))
    }
}

impl Fault {
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Request(e) => e.status(),
            Self::Answer(fault) => fault.status(),
            Self::Store(e) => Status::unavailable(format!("etcdserver: server stopped: {e}")),
        }
    }
}
