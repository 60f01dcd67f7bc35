//! A range in parts: each is read from a picture of its own, so that a slow reader holds none.

use bytes::{BufMut as _, Bytes, BytesMut};
use pontoon_proto::etcdserverpb::RangeRequest;
use pontoon_proto::mvccpb::KeyValue;

use crate::error::Fault;
use crate::mvcc::range;
use crate::mvcc::records::KeyRange;
use crate::mvcc::state::{Keyspace, judge_revision};
use crate::mvcc::view::{Now, Past};

/// Where the reading of a range stands.
#[derive(Debug)]
pub(crate) struct Parts {
    /// What comes next begins here.
    key: Bytes,
    range_end: Bytes,
    keys_only: bool,
    /// The revision that all parts are read at; 0 before the first one, if the client has named none.
    at: i64,
    /// The keyspace's revision when the first part was read.
    revision: i64,
    /// Keys that may still come.
    left: usize,
    /// Keys that have come.
    count: i64,
}

/// Some keys.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) kvs: Vec<KeyValue>,
    /// Of the last one.
    pub(crate) end: Option<End>,
}

/// What the last part says of the whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// The keyspace's revision when the first part was read.
    pub(crate) revision: i64,
    /// The limit cut the list.
    pub(crate) more: bool,
    /// The keys in the range, whatever the limit.
    pub(crate) count: i64,
}

impl Parts {
    /// Of a request without filters and in the order of the keys.
    pub(crate) fn new(r: RangeRequest) -> Self {
        let left = match usize::try_from(r.limit) {
            _ if r.count_only => 0,
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let (key, range_end, keys_only, at) = (r.key, r.range_end, r.keys_only, r.revision.max(0));
        Self { key, range_end, keys_only, at, revision: 0, left, count: 0 }
    }

    /// Reads on: no further than the key with which the part takes `bytes_max`.
    ///
    /// # Errors
    /// The revision is in the future, or compacted, maybe since the part before; or the engine fails.
    pub(crate) fn next(&mut self, keyspace: &Keyspace, bytes_max: usize) -> Result<Part, Fault> {
        let picture = keyspace.picture()?;
        let committed = picture.committed();
        let past = judge_revision(&picture.meta, self.at)?;
        if self.revision == 0 {
            self.revision = picture.meta.revision;
        }
        if self.at == 0 {
            self.at = self.revision;
        }
        let range = KeyRange::new(&self.key, &self.range_end);
        let (kvs, more) = match past {
            None => range::part(&Now(committed), range, self.left, bytes_max, self.keys_only)?,
            Some(revision) => {
                let view = Past { committed, revision };
                range::part(&view, range, self.left, bytes_max, self.keys_only)?
            }
        };
        self.left -= kvs.len();
        self.count += i64::try_from(kvs.len()).unwrap_or(i64::MAX);
        if let Some(last) = kvs.last() {
            let mut next = BytesMut::with_capacity(last.key.len() + 1);
            next.put_slice(&last.key);
            next.put_u8(0);
            self.key = next.freeze();
        }
        if more && self.left > 0 {
            return Ok(Part { kvs, end: None });
        }
        let mut count = self.count;
        if more {
            let rest = KeyRange::new(&self.key, &self.range_end);
            count += match past {
                None => range::count(&Now(committed), rest)?,
                Some(revision) => range::count(&Past { committed, revision }, rest)?,
            };
        }
        // Who only counts hears of no limit.
        let more = more && self.count > 0;
        Ok(Part { kvs, end: Some(End { revision: self.revision, more, count }) })
    }
}

#[cfg(test)]
#[path = "parts_test.rs"]
mod tests;
