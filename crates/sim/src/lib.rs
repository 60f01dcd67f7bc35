//! Development only: every schedule of a small group, many seeds of large ones, and a linearizability checker.
//!
//! - [`explore`](mod@explore) visits all states of small groups of the real core.
//! - [`raft`] lets many groups on a few stores live through bad weather that comes from one seed.
//! - [`mutations`] are known mistakes that the explorer must find.
//! - [`linearizability`] decides whether what clients saw can be explained.
pub mod explore;
pub mod linearizability;
pub mod mutations;
pub mod raft;
