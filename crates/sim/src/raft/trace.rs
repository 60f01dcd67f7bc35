//! A fingerprint of everything that happened: one seed gives one fingerprint, or something is not deterministic.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

/// FNV-1a over the events of a run, and the events themselves if they are wanted.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    /// Lines for people; kept only when asked for.
    lines: Option<Vec<String>>,
    /// How often each kind of thing happened, to see that the weather was as bad as it should be.
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// An empty trace; `keep` also keeps the lines.
    pub fn new(keep: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, lines: keep.then(Vec::new), counts: BTreeMap::new() }
    }

    /// Notes a value.
    pub fn note(&mut self, value: &impl Hash) {
        value.hash(self);
    }

    /// Notes a line for people.
    pub fn line(&mut self, line: impl FnOnce() -> String) {
        if let Some(lines) = &mut self.lines {
            lines.push(line());
        }
    }

    /// One more of its kind.
    pub fn count(&mut self, kind: &'static str) {
        *self.counts.entry(kind).or_default() += 1;
    }

    /// How often each kind of thing happened.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }

    /// The fingerprint so far.
    pub fn fingerprint(&self) -> u64 {
        self.hash
    }

    /// The lines, if they were kept.
    pub fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}

impl Hasher for Trace {
    fn finish(&self) -> u64 {
        self.hash
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.hash = (self.hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}
