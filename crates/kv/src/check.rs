//! What is refused before anything is proposed: pure functions of the request, with etcd's rules in etcd's order.

use std::collections::HashSet;
use std::time::Duration;

use pontoon_proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use pontoon_proto::etcdserverpb::request_op::Request;
use pontoon_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest};

use crate::error::EtcdError;
use crate::mvcc::records::KEY_BYTES_MAX;

/// The bounds on requests and on what becomes of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest request, in bytes of its encoding. etcd's default is 1.5 MiB, and its clients are built around it.
    pub request_bytes_max: usize,
    /// The most operations (and compares) in one transaction, nested ones counted along the deepest path. etcd's
    /// default is 128.
    pub txn_ops_max: usize,
    /// Bytes that a keyspace may take ([`Keyspace::size_bytes`](crate::Keyspace::size_bytes)) before it takes no more
    /// puts; `None`: as many as there are. etcd's default is 2 GiB.
    pub quota_bytes: Option<u64>,
    /// How often a watcher that asked for it hears that nothing happened. Default 5 s. Shorter: more messages to idle
    /// watchers; longer: a watcher that comes back asks for more of the past.
    pub watch_progress_interval: Duration,
    /// How long a login is good for. Default one day. Shorter: clients that do not log in again by themselves are cut
    /// off; longer: a token that was stolen is of use for longer.
    pub auth_token_ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes_max: 3 * 512 * 1024,
            txn_ops_max: 128,
            quota_bytes: Some(2 << 30),
            watch_progress_interval: Duration::from_secs(5),
            auth_token_ttl: Duration::from_secs(24 * 3600),
        }
    }
}

impl Limits {
    /// Whether a keyspace of that size may grow by so much.
    pub(crate) fn has_room(&self, size: u64, more: u64) -> bool {
        self.quota_bytes.is_none_or(|quota| size.saturating_add(more) <= quota)
    }

    /// Whether a keyspace of that size is worth an alarm. Between this and the quota it may be that only a large request
    /// does not fit; and an alarm goes when the size is below this again, so that it does not come and go with each one.
    pub(crate) fn is_full(&self, size: u64) -> bool {
        self.quota_bytes.is_some_and(|quota| size > quota / 16 * 15)
    }

    /// # Errors
    /// The request is over the limit.
    pub(crate) fn check_size(&self, bytes: usize) -> Result<(), EtcdError> {
        if bytes > self.request_bytes_max { Err(EtcdError::RequestTooLarge) } else { Ok(()) }
    }
}

pub(crate) fn check_range(r: &RangeRequest) -> Result<(), EtcdError> {
    if r.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if SortOrder::try_from(r.sort_order).is_err() || SortTarget::try_from(r.sort_target).is_err() {
        return Err(EtcdError::InvalidSortOption);
    }
    Ok(())
}

/// etcd has no bound on keys beside the request's; our engine has one. Also checked when the command is applied.
pub(crate) fn check_key_len(key: &[u8]) -> Result<(), EtcdError> {
    if key.len() > KEY_BYTES_MAX { Err(EtcdError::RequestTooLarge) } else { Ok(()) }
}

pub(crate) fn check_put(r: &PutRequest) -> Result<(), EtcdError> {
    if r.key.is_empty() {
        return Err(EtcdError::EmptyKey);
    }
    if r.ignore_value && !r.value.is_empty() {
        return Err(EtcdError::ValueProvided);
    }
    if r.ignore_lease && r.lease != 0 {
        return Err(EtcdError::LeaseProvided);
    }
    check_key_len(&r.key)
}

pub(crate) fn check_delete_range(r: &DeleteRangeRequest) -> Result<(), EtcdError> {
    if r.key.is_empty() { Err(EtcdError::EmptyKey) } else { Ok(()) }
}

pub(crate) fn check_txn(r: &TxnRequest, ops_max: usize) -> Result<(), EtcdError> {
    check_ops(r, ops_max)?;
    written(&r.success)?;
    written(&r.failure)?;
    Ok(())
}

fn check_ops(r: &TxnRequest, ops_max: usize) -> Result<(), EtcdError> {
    let ops = r.compare.len().max(r.success.len()).max(r.failure.len());
    // What a nested transaction may hold is what this one leaves.
    let left = ops_max.checked_sub(ops).ok_or(EtcdError::TooManyOps)?;
    if r.compare.iter().any(|c| c.key.is_empty()) {
        return Err(EtcdError::EmptyKey);
    }
    for op in r.success.iter().chain(&r.failure) {
        match &op.request {
            Some(Request::RequestRange(r)) => check_range(r)?,
            Some(Request::RequestPut(r)) => check_put(r)?,
            Some(Request::RequestDeleteRange(r)) => check_delete_range(r)?,
            Some(Request::RequestTxn(r)) => check_ops(r, left)?,
            // Odd, but what clients know.
            None => return Err(EtcdError::KeyNotFound),
        }
    }
    Ok(())
}

/// What one branch writes.
#[derive(Default)]
struct Written<'a> {
    puts: HashSet<&'a [u8]>,
    /// Half-open; an empty end means "to the end". As in etcd, an end of one zero byte is taken literally here, so
    /// that a deletion of everything from a key on does not count as overlapping.
    deletions: Vec<(&'a [u8], Option<&'a [u8]>)>,
}

impl<'a> Written<'a> {
    fn put(&mut self, key: &'a [u8], may_repeat: &HashSet<&[u8]>) -> Result<(), EtcdError> {
        let repeats = self.puts.contains(key) && !may_repeat.contains(key);
        if repeats || self.deletions.iter().any(|d| overlaps(*d, key)) {
            return Err(EtcdError::DuplicateKey);
        }
        self.puts.insert(key);
        Ok(())
    }
}

fn overlaps((from, end): (&[u8], Option<&[u8]>), key: &[u8]) -> bool {
    match end {
        None => from == key,
        Some(end) => from <= key && key < end,
    }
}

/// Refuses a branch that writes a key twice: first its own deletions, then what nested transactions write, then its
/// own puts. The two branches of a nested transaction may write the same key, since only one of them happens.
fn written(ops: &[RequestOp]) -> Result<Written<'_>, EtcdError> {
    let mut all = Written::default();
    for op in ops {
        if let Some(Request::RequestDeleteRange(r)) = &op.request {
            all.deletions.push((&r.key, (!r.range_end.is_empty()).then_some(&r.range_end[..])));
        }
    }
    for op in ops {
        if let Some(Request::RequestTxn(r)) = &op.request {
            let success = written(&r.success)?;
            let failure = written(&r.failure)?;
            for key in &success.puts {
                all.put(key, &HashSet::new())?;
            }
            for key in &failure.puts {
                all.put(key, &success.puts)?;
            }
            all.deletions.extend(success.deletions);
            all.deletions.extend(failure.deletions);
        }
    }
    for op in ops {
        if let Some(Request::RequestPut(r)) = &op.request {
            all.put(&r.key, &HashSet::new())?;
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &'static str) -> RequestOp {
        RequestOp { request: Some(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() })) }
    }

    fn delete(key: &'static str, range_end: &'static str) -> RequestOp {
        let r = DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv: false };
        RequestOp { request: Some(Request::RequestDeleteRange(r)) }
    }

    fn nested(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { compare: vec![], success, failure })) }
    }

    fn check(success: Vec<RequestOp>) -> Result<(), EtcdError> {
        check_txn(&TxnRequest { compare: vec![], success, failure: vec![] }, 128)
    }

    #[test]
    fn the_quota_leaves_a_margin_to_the_alarm() {
        let limits = Limits { quota_bytes: Some(1600), ..Limits::default() };
        assert!(limits.has_room(1600, 0) && !limits.has_room(1600, 1) && !limits.has_room(1, u64::MAX));
        assert!(limits.is_full(1501) && !limits.is_full(1500));
        let none = Limits { quota_bytes: None, ..limits };
        assert!(none.has_room(u64::MAX, u64::MAX) && !none.is_full(u64::MAX));
    }

    #[test]
    fn duplicate_keys() {
        let duplicate = Err(EtcdError::DuplicateKey);
        assert_eq!(check(vec![put("a"), put("b")]), Ok(()));
        assert_eq!(check(vec![put("a"), put("a")]), duplicate);
        assert_eq!(check(vec![put("a"), delete("a", "")]), duplicate);
        assert_eq!(check(vec![put("a"), delete("b", "")]), Ok(()));
        assert_eq!(check(vec![put("b"), delete("a", "c")]), duplicate);
        assert_eq!(check(vec![put("c"), delete("a", "c")]), Ok(()));
        // Deletions may overlap each other.
        assert_eq!(check(vec![delete("a", "c"), delete("b", "d")]), Ok(()));
        // Literally: nothing lies between "a" and a zero byte.
        assert_eq!(check(vec![put("b"), delete("a", "\0")]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![put("a")])]), Ok(()));
        assert_eq!(check(vec![nested(vec![put("a")], vec![]), put("a")]), duplicate);
        assert_eq!(check(vec![nested(vec![], vec![delete("a", "c")]), put("b")]), duplicate);
        assert_eq!(check(vec![nested(vec![put("a")], vec![]), nested(vec![], vec![put("a")])]), duplicate);
    }

    #[test]
    fn operations_are_bounded_along_the_deepest_path() {
        assert_eq!(check(vec![delete("a", ""); 128]), Ok(()));
        assert_eq!(check(vec![delete("a", ""); 129]), Err(EtcdError::TooManyOps));
        assert_eq!(check(vec![nested(vec![delete("a", ""); 127], vec![])]), Ok(()));
        assert_eq!(check(vec![nested(vec![delete("a", ""); 128], vec![])]), Err(EtcdError::TooManyOps));
        assert_eq!(check(vec![RequestOp { request: None }]), Err(EtcdError::KeyNotFound));
        assert_eq!(check(vec![put("")]), Err(EtcdError::EmptyKey));
    }

    #[test]
    fn single_requests() {
        let r = PutRequest { key: "a".into(), value: "v".into(), ignore_value: true, ..Default::default() };
        assert_eq!(check_put(&r), Err(EtcdError::ValueProvided));
        let r = PutRequest { key: "a".into(), lease: 1, ignore_lease: true, ..Default::default() };
        assert_eq!(check_put(&r), Err(EtcdError::LeaseProvided));
        let r = PutRequest { key: vec![b'k'; KEY_BYTES_MAX + 1].into(), ..Default::default() };
        assert_eq!(check_put(&r), Err(EtcdError::RequestTooLarge));
        let r = RangeRequest { key: "a".into(), sort_order: 9, ..Default::default() };
        assert_eq!(check_range(&r), Err(EtcdError::InvalidSortOption));
        assert_eq!(check_delete_range(&DeleteRangeRequest::default()), Err(EtcdError::EmptyKey));
    }
}
