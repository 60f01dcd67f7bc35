//! What a command or a transaction needs of its caller.

use bytes::Bytes;
use pontoon_proto::etcdserverpb::request_op::Request;
use pontoon_proto::etcdserverpb::{DeleteRangeRequest, PutRequest, RequestOp, TxnRequest};

use super::{Access, AuthStore, Caller};
use crate::command::Command;
use crate::error::{EtcdError, Fault, StoreError};

/// The keys attached to a lease: who writes to a lease decides over all of them.
type KeysOf<'a> = &'a mut dyn FnMut(i64) -> Result<Vec<Bytes>, StoreError>;

/// Judges a command when it is applied.
pub(crate) fn judge_command(
    auth: &AuthStore,
    caller: &Caller,
    command: &Command,
    keys_of: KeysOf<'_>,
) -> Result<(), Fault> {
    if !auth.is_enabled() {
        return Ok(());
    }
    match command {
        Command::Put(r) => put(auth, caller, r, keys_of),
        Command::DeleteRange(r) => Ok(delete_range(auth, caller, r)?),
        Command::Txn(r) => judge_txn(auth, caller, r, keys_of),
        Command::LeaseRevoke(r) => lease_keys(auth, caller, r.id, keys_of),
        Command::Auth(_) => Ok(auth.permit_admin(caller)?),
        // etcd takes these from anybody who can reach it, and alarms and compactions end others' work.
        Command::Compact(_) | Command::LeaseGrant(_) => Ok(auth.permit_user(caller)?),
        Command::Alarm(_) => Ok(auth.permit_admin(caller)?),
        // Said by stores, not by clients.
        Command::LeaseExpire { .. }
        | Command::Quota { .. }
        | Command::AutoCompact { .. }
        | Command::Restore(_) => Ok(()),
    }
}

fn put(auth: &AuthStore, caller: &Caller, r: &PutRequest, keys_of: KeysOf<'_>) -> Result<(), Fault> {
    auth.permit(caller, Access::Write, &r.key, &[])?;
    if r.lease != 0 {
        // Who ends the lease deletes its keys: attaching one must not give that power over others' keys.
        lease_keys(auth, caller, r.lease, keys_of)?;
    }
    if r.prev_kv {
        auth.permit(caller, Access::Read, &r.key, &[])?;
    }
    Ok(())
}

fn delete_range(auth: &AuthStore, caller: &Caller, r: &DeleteRangeRequest) -> Result<(), EtcdError> {
    auth.permit(caller, Access::Write, &r.key, &r.range_end)?;
    if r.prev_kv {
        auth.permit(caller, Access::Read, &r.key, &r.range_end)?;
    }
    Ok(())
}

fn lease_keys(auth: &AuthStore, caller: &Caller, lease: i64, keys_of: KeysOf<'_>) -> Result<(), Fault> {
    auth.permit_user(caller)?;
    for key in keys_of(lease)? {
        auth.permit(caller, Access::Write, &key, &[])?;
    }
    Ok(())
}

/// Judges a transaction: all that it compares, and both branches, whichever will be taken.
pub(crate) fn judge_txn(
    auth: &AuthStore,
    caller: &Caller,
    r: &TxnRequest,
    keys_of: KeysOf<'_>,
) -> Result<(), Fault> {
    if !auth.is_enabled() {
        return Ok(());
    }
    for compare in &r.compare {
        auth.permit(caller, Access::Read, &compare.key, &compare.range_end)?;
    }
    for RequestOp { request } in r.success.iter().chain(&r.failure) {
        match request {
            Some(Request::RequestRange(r)) => auth.permit(caller, Access::Read, &r.key, &r.range_end)?,
            Some(Request::RequestPut(r)) => put(auth, caller, r, keys_of)?,
            Some(Request::RequestDeleteRange(r)) => delete_range(auth, caller, r)?,
            Some(Request::RequestTxn(r)) => judge_txn(auth, caller, r, keys_of)?,
            None => {}
        }
    }
    // An empty transaction is no way round the question who asks.
    Ok(auth.permit_user(caller)?)
}
