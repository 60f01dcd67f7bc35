//! Pure: what sets of voters have agreed on.

pub mod joint;
pub mod majority;

/// How a vote stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VoteResult {
    /// A quorum said yes.
    Won,
    /// A quorum can no longer say yes.
    Lost,
    /// Too few answers yet.
    Pending,
}
