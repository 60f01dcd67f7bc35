//! Transactions: first every comparison, then every objection, then every operation.
//!
//! As in etcd, all comparisons (of nested transactions too) see the state before the transaction. Unlike etcd 3.4, an
//! operation that cannot be done (a read at a compacted revision, say) refuses the whole transaction on every store
//! before any of it is applied.

use std::cmp::Ordering;

use pontoon_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use pontoon_proto::etcdserverpb::request_op::Request;
use pontoon_proto::etcdserverpb::response_op::Response;
use pontoon_proto::etcdserverpb::{
    Compare, RangeRequest, RangeResponse, RequestOp, ResponseHeader, ResponseOp, TxnRequest, TxnResponse,
};
use pontoon_proto::mvccpb::KeyValue;

use crate::answers::Meter;
use crate::error::{EtcdError, Fault, StoreError};
use crate::mvcc::apply::{delete_range, header, judge_put, put_judged};
use crate::mvcc::range::{self, Ranged};
use crate::mvcc::records::KeyRange;
use crate::mvcc::slot::SlotMeta;
use crate::mvcc::state::Picture;
use crate::mvcc::view::{Committed, Now, Past, View};
use crate::mvcc::writer::Writer;

/// The branches that will be taken.
struct Plan<'a> {
    succeeded: bool,
    ops: &'a [RequestOp],
    /// One for each transaction among `ops`, in order.
    nested: Vec<Self>,
}

fn plan<'a>(view: &impl View, r: &'a TxnRequest) -> Result<Plan<'a>, StoreError> {
    let mut succeeded = true;
    for compare in &r.compare {
        if !holds(view, compare)? {
            succeeded = false;
            break;
        }
    }
    let ops = if succeeded { &r.success } else { &r.failure };
    let mut nested = Vec::new();
    for op in ops {
        if let Some(Request::RequestTxn(r)) = &op.request {
            nested.push(plan(view, r)?);
        }
    }
    Ok(Plan { succeeded, ops, nested })
}

/// Calls `judge` for every operation that will be done, until it objects.
fn judge_all<E>(plan: &Plan<'_>, judge: &mut impl FnMut(&Request) -> Result<(), E>) -> Result<(), E>
where
    E: From<EtcdError>,
{
    let mut nested = plan.nested.iter();
    for op in plan.ops {
        match &op.request {
            Some(Request::RequestTxn(_)) => {
                if let Some(plan) = nested.next() {
                    judge_all(plan, judge)?;
                }
            }
            Some(request) => judge(request)?,
            None => return Err(EtcdError::KeyNotFound.into()),
        }
    }
    Ok(())
}

fn judge_range(meta: &SlotMeta, request: &Request) -> Result<(), EtcdError> {
    match request {
        Request::RequestRange(r) if r.revision == 0 => Ok(()),
        Request::RequestRange(r) if r.revision > meta.revision => Err(EtcdError::FutureRevision),
        // Negative revisions are "newest" alone, and compacted in a transaction; so it is in etcd.
        Request::RequestRange(r) if r.revision < meta.compact_revision => Err(EtcdError::Compacted),
        _ => Ok(()),
    }
}

/// A transaction in which every operation is a read.
pub(crate) fn is_read_only(r: &TxnRequest) -> bool {
    let reads = |op: &RequestOp| matches!(&op.request, Some(Request::RequestRange(_)));
    r.success.iter().chain(&r.failure).all(reads)
}

/// A transaction that may write a value, in whichever branch.
pub(crate) fn puts(r: &TxnRequest) -> bool {
    r.success.iter().chain(&r.failure).any(|op| match &op.request {
        Some(Request::RequestPut(_)) => true,
        Some(Request::RequestTxn(nested)) => puts(nested),
        _ => false,
    })
}

/// A transaction in which every operation is a read that may be stale.
pub(crate) fn is_serializable(r: &TxnRequest) -> bool {
    let serializable =
        |op: &RequestOp| matches!(&op.request, Some(Request::RequestRange(r)) if r.serializable);
    r.success.iter().chain(&r.failure).all(serializable)
}

pub(crate) fn execute(w: &mut Writer, r: &TxnRequest) -> Result<TxnResponse, Fault> {
    let plan = plan(&w.working(), r)?;
    judge_all(&plan, &mut |request| match request {
        Request::RequestPut(r) => judge_put(w, r),
        Request::RequestDeleteRange(r) if r.key.is_empty() => Err(EtcdError::EmptyKey.into()),
        _ => Ok(()),
    })?;
    let mut past = false;
    judge_all(&plan, &mut |request| {
        past |= matches!(request, Request::RequestRange(r) if r.revision > 0);
        judge_range(&w.meta, request)
    })?;
    if past {
        // A read at a revision sees nothing of this transaction, and all before it.
        w.commit()?;
    }
    let responses = run(w, &plan)?;
    Ok(TxnResponse { header: header(w.revision()), succeeded: plan.succeeded, responses })
}

fn run(w: &mut Writer, plan: &Plan<'_>) -> Result<Vec<ResponseOp>, Fault> {
    let mut responses = Vec::with_capacity(plan.ops.len());
    let mut nested = plan.nested.iter();
    for op in plan.ops {
        let response = match &op.request {
            Some(Request::RequestRange(r)) if w.wants_reply => {
                let ranged = w.replying(|w, meter| match r.revision {
                    1.. => {
                        let view = Past { committed: w.committed(), revision: r.revision };
                        range::evaluate(&view, r, meter)
                    }
                    _ => range::evaluate(&w.working(), r, meter),
                })?;
                ranged.map(|ranged| Response::ResponseRange(range_response(ranged, w.revision())))
            }
            // Nobody will look at what was read.
            Some(Request::RequestRange(_)) | None => None,
            Some(Request::RequestPut(r)) => Some(Response::ResponsePut(put_judged(w, r)?)),
            Some(Request::RequestDeleteRange(r)) => Some(Response::ResponseDeleteRange(delete_range(w, r)?)),
            Some(Request::RequestTxn(_)) => match nested.next() {
                Some(plan) => Some(Response::ResponseTxn(nested_response(plan, run(w, plan)?))),
                None => None,
            },
        };
        responses.push(ResponseOp { response });
    }
    Ok(responses)
}

fn range_response(Ranged { kvs, more, count }: Ranged, revision: i64) -> RangeResponse {
    RangeResponse { header: header(revision), kvs, more, count }
}

/// The header of a nested transaction's response is there and empty, as in etcd.
fn nested_response(plan: &Plan<'_>, responses: Vec<ResponseOp>) -> TxnResponse {
    TxnResponse { header: Some(ResponseHeader::default()), succeeded: plan.succeeded, responses }
}

/// Executes a transaction of reads on a picture of the state.
pub(crate) fn read_only(
    picture: &Picture<'_>,
    r: &TxnRequest,
    meter: &mut Meter,
) -> Result<TxnResponse, Fault> {
    let plan = plan(&Now(picture.committed()), r)?;
    judge_all(&plan, &mut |request| judge_range(&picture.meta, request))?;
    let mut responses = Vec::with_capacity(plan.ops.len());
    for op in plan.ops {
        if let Some(Request::RequestRange(r)) = &op.request {
            let ranged = evaluate(picture.committed(), r, meter)?;
            let response = Response::ResponseRange(range_response(ranged, picture.meta.revision));
            responses.push(ResponseOp { response: Some(response) });
        }
    }
    Ok(TxnResponse { header: header(picture.meta.revision), succeeded: plan.succeeded, responses })
}

fn evaluate(committed: Committed<'_>, r: &RangeRequest, meter: &mut Meter) -> Result<Ranged, Fault> {
    if r.revision > 0 {
        range::evaluate(&Past { committed, revision: r.revision }, r, meter)
    } else {
        range::evaluate(&Now(committed), r, meter)
    }
}

/// Whether a comparison holds for every key that it names; for none, it is made with an empty one.
fn holds(view: &impl View, c: &Compare) -> Result<bool, StoreError> {
    let with_value = c.target == CompareTarget::Value as i32;
    let mut any = false;
    let mut all = true;
    let range = KeyRange::new(&c.key, &c.range_end);
    let mut visit = |found: crate::mvcc::view::Found| {
        any = true;
        let kv = match found.current {
            Some(current) if !with_value => KeyValue {
                create_revision: current.create,
                mod_revision: current.revision.main,
                version: current.version,
                lease: current.lease,
                ..KeyValue::default()
            },
            _ => range::fetch(view, found, with_value)?,
        };
        all = holds_for(c, &kv);
        Ok(all)
    };
    if let KeyRange::One(key) = range {
        if let Some(found) = view.find(key)? {
            visit(found)?;
        }
    } else {
        view.walk(range, &mut |_, found| visit(found))?;
    }
    if any {
        return Ok(all);
    }
    // A value that is not there equals nothing, not even an empty one.
    Ok(!with_value && holds_for(c, &KeyValue::default()))
}

fn holds_for(c: &Compare, kv: &KeyValue) -> bool {
    let union = c.target_union.as_ref();
    let number = |actual: i64, wanted: Option<i64>| actual.cmp(&wanted.unwrap_or(0));
    let order = match CompareTarget::try_from(c.target) {
        Ok(CompareTarget::Version) => number(
            kv.version,
            union.and_then(|u| if let TargetUnion::Version(n) = u { Some(*n) } else { None }),
        ),
        Ok(CompareTarget::Create) => number(
            kv.create_revision,
            union.and_then(|u| if let TargetUnion::CreateRevision(n) = u { Some(*n) } else { None }),
        ),
        Ok(CompareTarget::Mod) => number(
            kv.mod_revision,
            union.and_then(|u| if let TargetUnion::ModRevision(n) = u { Some(*n) } else { None }),
        ),
        Ok(CompareTarget::Lease) => {
            number(kv.lease, union.and_then(|u| if let TargetUnion::Lease(n) = u { Some(*n) } else { None }))
        }
        Ok(CompareTarget::Value) => {
            let wanted = match union {
                Some(TargetUnion::Value(v)) => &v[..],
                _ => &[],
            };
            kv.value[..].cmp(wanted)
        }
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(c.result) {
        Ok(CompareResult::Equal) => order.is_eq(),
        Ok(CompareResult::NotEqual) => order.is_ne(),
        Ok(CompareResult::Greater) => order.is_gt(),
        Ok(CompareResult::Less) => order.is_lt(),
        Err(_) => true,
    }
}
