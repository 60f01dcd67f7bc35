//! Answers a range request from a view.

use bytes::Bytes;
use pontoon_proto::etcdserverpb::RangeRequest;
use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::mvccpb::KeyValue;
use prost::Message as _;

use crate::error::StoreError;
use crate::mvcc::records::{self, Current, KeyRange};
use crate::mvcc::view::{Found, View};

/// A range response without its header.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Ranged {
    pub(crate) kvs: Vec<KeyValue>,
    pub(crate) more: bool,
    pub(crate) count: i64,
}

/// A key that may be in the answer. The value is fetched last, for those that remain.
struct Candidate {
    found: Found,
    kv: KeyValue,
    complete: bool,
}

pub(crate) fn fetch(view: &impl View, found: Found, with_value: bool) -> Result<KeyValue, StoreError> {
    records::key_value(found.revision, &view.record(found.revision)?, with_value)
}

fn without_value(key: &[u8], current: &Current) -> KeyValue {
    KeyValue {
        key: Bytes::copy_from_slice(key),
        create_revision: current.create,
        mod_revision: current.revision.main,
        version: current.version,
        value: Bytes::new(),
        lease: current.lease,
    }
}

/// The first keys of a range, in order: no more than `keys_max`, and no further than the one with which they take
/// `bytes_max`. Nothing behind them is looked at, save whether there is more.
pub(crate) fn part(
    view: &impl View,
    range: KeyRange<'_>,
    keys_max: usize,
    bytes_max: usize,
    keys_only: bool,
) -> Result<(Vec<KeyValue>, bool), StoreError> {
    let (mut kvs, mut bytes, mut more) = (Vec::new(), 0, false);
    view.walk(range, &mut |key, found| {
        if kvs.len() >= keys_max || bytes >= bytes_max {
            more = true;
            return Ok(false);
        }
        let kv = match found.current {
            Some(current) if keys_only => without_value(key, &current),
            _ => fetch(view, found, !keys_only)?,
        };
        bytes += kv.encoded_len();
        kvs.push(kv);
        Ok(true)
    })?;
    Ok((kvs, more))
}

/// The keys of a range.
pub(crate) fn count(view: &impl View, range: KeyRange<'_>) -> Result<i64, StoreError> {
    let mut count = 0;
    view.walk(range, &mut |_, _| {
        count += 1;
        Ok(true)
    })?;
    Ok(count)
}

/// All versions that a view shows of a range.
pub(crate) fn all(view: &impl View, range: KeyRange<'_>) -> Result<Vec<KeyValue>, StoreError> {
    let mut kvs = Vec::new();
    if let KeyRange::One(key) = range {
        if let Some(found) = view.find(key)? {
            kvs.push(fetch(view, found, true)?);
        }
        return Ok(kvs);
    }
    view.walk(range, &mut |_, found| {
        kvs.push(fetch(view, found, true)?);
        Ok(true)
    })?;
    Ok(kvs)
}

fn passes(r: &RangeRequest, modified: i64, created: i64) -> bool {
    (r.max_mod_revision == 0 || modified <= r.max_mod_revision)
        && (r.min_mod_revision == 0 || modified >= r.min_mod_revision)
        && (r.max_create_revision == 0 || created <= r.max_create_revision)
        && (r.min_create_revision == 0 || created >= r.min_create_revision)
}

/// Evaluates a request whose revision has been judged; `view` is as of that revision.
pub(crate) fn evaluate(view: &impl View, r: &RangeRequest) -> Result<Ranged, StoreError> {
    let range = KeyRange::new(&r.key, &r.range_end);
    let filtered = r.min_mod_revision != 0
        || r.max_mod_revision != 0
        || r.min_create_revision != 0
        || r.max_create_revision != 0;

    if let KeyRange::One(key) = range {
        let Some(found) = view.find(key)? else { return Ok(Ranged::default()) };
        let mut answer = Ranged { count: 1, ..Ranged::default() };
        if !r.count_only {
            let kv = fetch(view, found, !r.keys_only)?;
            if passes(r, kv.mod_revision, kv.create_revision) {
                answer.kvs.push(kv);
            }
        }
        return Ok(answer);
    }

    if r.count_only {
        return Ok(Ranged { count: count(view, range)?, ..Ranged::default() });
    }
    let mut count = 0i64;

    let order = SortOrder::try_from(r.sort_order).unwrap_or(SortOrder::None);
    let target = SortTarget::try_from(r.sort_target).unwrap_or(SortTarget::Key);
    let limit = usize::try_from(r.limit).unwrap_or(0);
    // One more than the limit tells whether there is more. Sorting and filtering come before the limit, except that
    // etcd sorts by other things than the key even when no order is given, and then after the limit.
    let fetch_max = if filtered || order != SortOrder::None || limit == 0 { usize::MAX } else { limit + 1 };
    let by_value = target == SortTarget::Value;
    let mut candidates: Vec<Candidate> = Vec::new();
    view.walk(range, &mut |key, found| {
        count += 1;
        if candidates.len() >= fetch_max {
            return Ok(true);
        }
        let candidate = match found.current {
            Some(current) if !by_value => {
                if !passes(r, current.revision.main, current.create) {
                    return Ok(true);
                }
                Candidate { found, kv: without_value(key, &current), complete: false }
            }
            _ => {
                let kv = fetch(view, found, by_value || !r.keys_only)?;
                if !passes(r, kv.mod_revision, kv.create_revision) {
                    return Ok(true);
                }
                Candidate { found, kv, complete: true }
            }
        };
        candidates.push(candidate);
        Ok(true)
    })?;

    match target {
        SortTarget::Key => {}
        SortTarget::Version => candidates.sort_by_key(|c| c.kv.version),
        SortTarget::Create => candidates.sort_by_key(|c| c.kv.create_revision),
        SortTarget::Mod => candidates.sort_by_key(|c| c.kv.mod_revision),
        SortTarget::Value => candidates.sort_by(|a, b| a.kv.value.cmp(&b.kv.value)),
    }
    if order == SortOrder::Descend {
        candidates.reverse();
    }
    let more = limit > 0 && candidates.len() > limit;
    if more {
        candidates.truncate(limit);
    }
    let mut kvs = Vec::with_capacity(candidates.len());
    for c in candidates {
        let mut kv = if c.complete || r.keys_only { c.kv } else { fetch(view, c.found, true)? };
        if r.keys_only {
            kv.value = Bytes::new();
        }
        kvs.push(kv);
    }
    Ok(Ranged { kvs, more, count })
}
