//! Multi-version state: what is written, what can be read, what is forgotten.

pub(crate) mod apply;
pub(crate) mod compaction;
pub(crate) mod control;
pub(crate) mod events;
pub(crate) mod frames;
pub(crate) mod hash;
pub(crate) mod hub;
pub(crate) mod image;
pub(crate) mod interest;
pub(crate) mod keys;
pub(crate) mod once;
pub(crate) mod overlay;
pub(crate) mod parts;
pub(crate) mod range;
pub(crate) mod records;
pub(crate) mod restore;
pub(crate) mod slot;
pub(crate) mod state;
pub(crate) mod txn;
pub(crate) mod view;
pub(crate) mod writer;

#[cfg(test)]
mod model_test;
