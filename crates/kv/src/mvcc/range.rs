//! Answers a range request from a view.

use bytes::Bytes;
use pontoon_proto::etcdserverpb::RangeRequest;
use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::mvccpb::KeyValue;
use prost::Message as _;

use crate::answers::{AnswerFault, KEY_OVERHEAD_BYTES, Meter};
use crate::error::{Fault, StoreError};
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

/// Fewer keys are never worth pruning.
const PRUNE_MIN: usize = 1024;

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

fn cost(kv: &KeyValue) -> usize {
    kv.key.len() + kv.value.len() + KEY_OVERHEAD_BYTES
}

/// One key of an answer, if there is room for it.
pub(crate) fn charged(kv: KeyValue, meter: &mut Meter) -> Result<KeyValue, AnswerFault> {
    meter.add(cost(&kv)).map(|()| kv)
}

/// All versions that a view shows of a range of more than one key.
pub(crate) fn all(view: &impl View, range: KeyRange<'_>, meter: &mut Meter) -> Result<Vec<KeyValue>, Fault> {
    let (mut kvs, mut full) = (Vec::new(), Ok(()));
    view.walk(range, &mut |_, found| {
        let kv = fetch(view, found, true)?;
        full = charged(kv, meter).map(|kv| kvs.push(kv));
        Ok(full.is_ok())
    })?;
    full?;
    Ok(kvs)
}

/// Brings keys in the order of what is sorted by; those that are equal stay in the order of their names.
fn sort(candidates: &mut [Candidate], target: SortTarget) {
    match target {
        SortTarget::Key => {}
        SortTarget::Version => candidates.sort_by_key(|c| c.kv.version),
        SortTarget::Create => candidates.sort_by_key(|c| c.kv.create_revision),
        SortTarget::Mod => candidates.sort_by_key(|c| c.kv.mod_revision),
        SortTarget::Value => candidates.sort_by(|a, b| a.kv.value.cmp(&b.kv.value)),
    }
}

/// Of what was found so far, forgets what a limit will cut off: a short list out of a long range takes little memory.
fn prune(
    candidates: &mut Vec<Candidate>,
    keep: usize,
    target: SortTarget,
    order: SortOrder,
    meter: &mut Meter,
) {
    sort(candidates, target);
    let surplus = candidates.len().saturating_sub(keep);
    let cut = if order == SortOrder::Descend { 0..surplus } else { keep..keep + surplus };
    let bytes = candidates.drain(cut).map(|c| cost(&c.kv)).sum();
    meter.remove(bytes);
}

fn passes(r: &RangeRequest, modified: i64, created: i64) -> bool {
    (r.max_mod_revision == 0 || modified <= r.max_mod_revision)
        && (r.min_mod_revision == 0 || modified >= r.min_mod_revision)
        && (r.max_create_revision == 0 || created <= r.max_create_revision)
        && (r.min_create_revision == 0 || created >= r.min_create_revision)
}

/// Evaluates a request whose revision has been judged; `view` is as of that revision.
///
/// # Errors
/// There is no memory for the answer, or the engine fails.
pub(crate) fn evaluate(view: &impl View, r: &RangeRequest, meter: &mut Meter) -> Result<Ranged, Fault> {
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
                answer.kvs.push(charged(kv, meter)?);
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
    // More than this are only found before a sort; twice as many, so that pruning costs little for each key.
    let prune_at =
        if limit == 0 { usize::MAX } else { limit.saturating_add(1).saturating_mul(2).max(PRUNE_MIN) };
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut full = Ok(());
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
        full = meter.add(cost(&candidate.kv));
        if full.is_err() {
            return Ok(false);
        }
        candidates.push(candidate);
        if candidates.len() >= prune_at {
            prune(&mut candidates, limit + 1, target, order, meter);
        }
        Ok(true)
    })?;
    full?;

    sort(&mut candidates, target);
    if order == SortOrder::Descend {
        candidates.reverse();
    }
    let more = limit > 0 && candidates.len() > limit;
    if more {
        candidates.truncate(limit);
    }
    let mut kvs = Vec::with_capacity(candidates.len());
    for c in candidates {
        let mut kv = if c.complete || r.keys_only {
            c.kv
        } else {
            let kv = fetch(view, c.found, true)?;
            meter.add(kv.value.len())?;
            kv
        };
        if r.keys_only {
            kv.value = Bytes::new();
        }
        kvs.push(kv);
    }
    Ok(Ranged { kvs, more, count })
}
