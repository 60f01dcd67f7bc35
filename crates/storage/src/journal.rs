//! The hot tier: records in preallocated, recycled segment files. The layout is in `docs/src/journal-format.md`.

pub(crate) mod blocks;
pub(crate) mod record;
pub(crate) mod segment;
