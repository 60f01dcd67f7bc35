use std::path::Path;

use bytes::{Bytes, BytesMut};
use pontoon_node::state_machine::{Committed, StateMachine as _};
use pontoon_proto::authpb::{Permission, permission::Type};
use pontoon_proto::etcdserverpb::{
    AlarmRequest, AuthDisableResponse, AuthRoleAddRequest, AuthRoleGrantPermissionRequest,
    AuthUserAddRequest, AuthUserGrantRoleRequest, CompactionRequest, DeleteRangeRequest, LeaseGrantRequest,
    LeaseGrantResponse, PutRequest, RangeRequest,
};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};

use super::*;
use crate::auth::{AuthChange, Caller};
use crate::command::{Command, decode_reply, of_caller};
use crate::engine::{Engine, EngineOptions};
use crate::mvcc::apply::KeyspaceMachine;
use crate::mvcc::frames::Parser;
use crate::mvcc::state::Keyspace;
use crate::write_id::WriteId;

fn open(dir: &Path) -> (Engine, KeyspaceMachine) {
    let engine = Engine::open(dir, &EngineOptions::default()).unwrap();
    let machine = engine.open_keyspace(GroupId(3)).unwrap();
    (engine, machine)
}

/// Of every reply only the header is looked at.
fn apply_bytes(machine: &mut KeyspaceMachine, command: Bytes) -> Result<AuthDisableResponse, EtcdError> {
    let index = machine.applied().next();
    let id = EntryId(u128::from(index.0));
    let entry = Committed { index, term: Term(1), id, command: Some(command), wants_reply: true };
    let reply = machine.apply(&[entry]).unwrap().remove(0);
    decode_reply(reply).unwrap()
}

fn apply(machine: &mut KeyspaceMachine, command: &Command) -> Result<AuthDisableResponse, EtcdError> {
    apply_bytes(machine, command.encode())
}

fn put(key: &str, value: &str, lease: i64) -> Command {
    let (key, value) = (key.to_owned().into(), value.to_owned().into());
    Command::Put(PutRequest { key, value, lease, ..PutRequest::default() })
}

fn image(machine: &mut KeyspaceMachine) -> Vec<u8> {
    let mut reader = machine.snapshot().unwrap();
    std::iter::from_fn(|| reader.read().unwrap()).collect::<Vec<_>>().concat()
}

fn begin(revision: i64, compact_revision: i64, attempt: u64) -> RestoreStep {
    RestoreStep::Begin { revision, compact_revision, attempt }
}

/// The steps by which an image is restored, in pieces of so many records.
fn steps(image: &[u8], records: usize) -> Vec<RestoreStep> {
    let mut parser = Parser::default();
    parser.feed(image);
    let header = parser.header().unwrap().unwrap();
    let mut steps = vec![begin(header.revision, header.compact_revision, 1)];
    let mut frames = Vec::new();
    while let Some(frame) = parser.next().unwrap() {
        let wanted = matches!(frame.tag, TAG_VERSION | TAG_LEASE)
            || frame.tag == TAG_CONTROL && is_restored(frame.key());
        if wanted {
            frames.push(frame.bytes);
        }
    }
    assert!(parser.ended());
    let pieces = frames.chunks(records);
    let count = pieces.len() as u64;
    steps.extend(pieces.enumerate().map(|(number, frames)| RestoreStep::Piece {
        number: number as u64,
        frames: frames.concat().into(),
    }));
    steps.push(RestoreStep::End { pieces: count });
    steps
}

/// A keyspace with a past, a lease, users, an alarm and a named write.
fn saved() -> (tempfile::TempDir, Engine, KeyspaceMachine) {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = open(dir.path());
    apply(&mut machine, &Command::LeaseGrant(LeaseGrantRequest { ttl: 600, id: 7 })).unwrap();
    for n in 0..200 {
        let (key, value) = (format!("k{}", n % 20), format!("v{n}"));
        apply(&mut machine, &put(&key, &value, if n % 3 == 0 { 7 } else { 0 })).unwrap();
    }
    let delete = DeleteRangeRequest { key: "k1".into(), range_end: "k3".into(), ..Default::default() };
    apply(&mut machine, &Command::DeleteRange(delete)).unwrap();
    apply(&mut machine, &Command::Compact(CompactionRequest { revision: 90, physical: false })).unwrap();
    let named = WriteId { position: LogIndex(5), nonce: 9 }.name(&put("named", "x", 0).encode());
    apply_bytes(&mut machine, named).unwrap();
    apply(&mut machine, &Command::Alarm(AlarmRequest { action: 1, member_id: 3, alarm: 2 })).unwrap();
    apply(&mut machine, &Command::Alarm(AlarmRequest { action: 2, member_id: 3, alarm: 2 })).unwrap();
    apply(&mut machine, &Command::Alarm(AlarmRequest { action: 1, member_id: 3, alarm: 1 })).unwrap();
    let auth = |change| Command::Auth(change);
    let user = |name: &str| AuthUserAddRequest {
        name: name.into(),
        hashed_password: "hash".into(),
        ..Default::default()
    };
    apply(&mut machine, &auth(AuthChange::UserAdd(user("root")))).unwrap();
    apply(&mut machine, &auth(AuthChange::UserAdd(user("u")))).unwrap();
    apply(&mut machine, &auth(AuthChange::RoleAdd(AuthRoleAddRequest { name: "r".into() }))).unwrap();
    let perm = Permission { perm_type: Type::Read.into(), key: "k1".into(), range_end: "k2".into() };
    let grant = AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
    apply(&mut machine, &auth(AuthChange::RoleGrantPermission(grant))).unwrap();
    for (user, role) in [("root", "root"), ("u", "r")] {
        let grant = AuthUserGrantRoleRequest { user: user.into(), role: role.into() };
        apply(&mut machine, &auth(AuthChange::UserGrantRole(grant))).unwrap();
    }
    apply(&mut machine, &auth(AuthChange::Enable { secret: [5; 32] })).unwrap();
    (dir, engine, machine)
}

fn everything(machine: &KeyspaceMachine, revision: i64) -> Vec<(Bytes, Bytes, i64, i64, i64, i64)> {
    let range = RangeRequest { key: "\0".into(), range_end: "\0".into(), revision, ..Default::default() };
    let kvs = machine.keyspace().range(&range).unwrap().kvs;
    kvs.into_iter()
        .map(|kv| (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease))
        .collect()
}

fn assert_same(restored: &KeyspaceMachine, saved: &KeyspaceMachine) {
    let (new, old) = (restored.keyspace(), saved.keyspace());
    assert_eq!(new.revision(), old.revision());
    assert_eq!(new.hash_kv(0).unwrap(), old.hash_kv(0).unwrap());
    for revision in [90, 91, 150, 0] {
        assert_eq!(everything(restored, revision), everything(saved, revision), "at {revision}");
    }
    assert_eq!(new.leases().ids(), [7]);
    let keys = |k: &Keyspace| k.keys_of_lease(7, &mut k.answers().meter()).unwrap();
    assert_eq!(keys(&new), keys(&old));
    let auth = |control: &Control| format!("{:?}", (control.auth.users(), control.auth.permissions("r")));
    assert_eq!(auth(&new.control()), auth(&old.control()));
    assert!(new.control().auth.is_enabled());
    assert_eq!(new.control().alarms(0), [], "alarms are about the stores of then");
    assert_eq!(new.control().restore(), None);
}

#[test]
fn a_restored_keyspace_is_as_the_saved_one_with_its_past() {
    let (_dir, _engine, mut machine) = saved();
    let image = image(&mut machine);
    for records in [1, 7, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        let (engine, mut new) = open(dir.path());
        for step in steps(&image, records) {
            apply(&mut new, &Command::Restore(step)).unwrap();
        }
        assert_same(&new, &machine);
        drop((new, engine));
        let (_engine, mut new) = open(dir.path());
        assert_same(&new, &machine);
        // It goes on like any other.
        let root = Caller::User { name: "root".into(), revision: new.keyspace().control().auth.revision() };
        let done = apply_bytes(&mut new, of_caller(&root, put("k5", "more", 0).encode())).unwrap();
        assert_eq!(done.header.unwrap().revision, machine.keyspace().revision() + 1);
    }
}

#[test]
fn nobody_sees_a_keyspace_that_is_half_restored() {
    let (_dir, _engine, mut machine) = saved();
    let steps = steps(&image(&mut machine), 20);
    let dir = tempfile::tempdir().unwrap();
    let (mut engine, mut new) = open(dir.path());
    let last = steps.len() - 1;
    for (n, step) in steps.iter().enumerate() {
        apply(&mut new, &Command::Restore(step.clone())).unwrap();
        if n < last {
            assert_eq!(apply(&mut new, &put("a", "b", 0)), Err(EtcdError::Restoring));
            assert!(new.keyspace().control().restore().is_some());
        }
        // Who is not sure sends it again.
        if n == 0 || n == 3 {
            apply(&mut new, &Command::Restore(step.clone())).unwrap();
        }
        if n == 4 {
            // A restart in the midst of it.
            drop((new, engine));
            (engine, new) = open(dir.path());
        }
        if n == 6 {
            // A store that comes late gets an image of the half.
            let (at, half) = (new.applied(), image(&mut new));
            let mut sink = new.stage(at).unwrap();
            sink.write(half.into()).unwrap();
            sink.finish().unwrap();
            new.activate(at).unwrap();
        }
    }
    assert_same(&new, &machine);
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let (_dir, _engine, mut machine) = saved();
    let steps = steps(&image(&mut machine), 20);
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut new) = open(dir.path());
    let restore =
        |machine: &mut KeyspaceMachine, step: &RestoreStep| apply(machine, &Command::Restore(step.clone()));
    let refused = Err(EtcdError::RestorePiece);
    assert_eq!(restore(&mut new, &steps[1]), refused, "not begun");
    restore(&mut new, &steps[0]).unwrap();
    assert_eq!(restore(&mut new, &steps[2]), refused, "out of order");
    assert_eq!(restore(&mut new, &RestoreStep::End { pieces: 1 }), refused);
    restore(&mut new, &steps[1]).unwrap();
    let RestoreStep::Piece { frames, .. } = &steps[2] else { panic!() };
    let mut bad = vec![frames.slice(..frames.len() - 1)];
    // A version twice, an alarm, a lease's record that is none, an unknown kind.
    bad.push([&frames[..], frames].concat().into());
    for (tag, key, value) in [
        (TAG_CONTROL, &b"a\0\0\0\x01\0\0\0\0\0\0\0\x01"[..], &b"\x01"[..]),
        (TAG_LEASE, b"\0short", b""),
        (TAG_LEASE, b"\x09\0\0\0\0\0\0\0\x01", b"12345678"),
        (9, b"k", b"v"),
    ] {
        let mut out = BytesMut::new();
        frames::put_frame(&mut out, tag, key, value);
        bad.push(out.freeze());
    }
    for frames in bad {
        assert_eq!(restore(&mut new, &RestoreStep::Piece { number: 1, frames }), refused);
    }
    for step in &steps[2..] {
        restore(&mut new, step).unwrap();
    }
    assert_same(&new, &machine);
    assert_eq!(restore(&mut new, &steps[0]), Err(EtcdError::NotEmpty), "it has a past now");

    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut used) = open(dir.path());
    apply(&mut used, &put("a", "b", 0)).unwrap();
    assert_eq!(restore(&mut used, &steps[0]), Err(EtcdError::NotEmpty));
}

#[test]
fn a_restore_that_nobody_goes_on_with_is_given_up_for_good() {
    let (_dir, _engine, mut machine) = saved();
    let steps = steps(&image(&mut machine), 20);
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut new) = open(dir.path());
    let restore =
        |machine: &mut KeyspaceMachine, step: &RestoreStep| apply(machine, &Command::Restore(step.clone()));
    let give_up = |pieces| RestoreStep::GiveUp { attempt: 1, pieces };
    assert_eq!(restore(&mut new, &give_up(0)), Err(EtcdError::RestoreGoesOn), "there is none");
    for step in &steps[..3] {
        restore(&mut new, step).unwrap();
    }
    // Another attempt with a file that looks the same does not mix its pieces with these.
    let RestoreStep::Begin { revision, compact_revision, .. } = steps[0] else { panic!() };
    assert_eq!(restore(&mut new, &begin(revision, compact_revision, 2)), Err(EtcdError::NotEmpty));
    // Who has seen less than there is now, or another attempt, gives nothing up.
    assert_eq!(restore(&mut new, &give_up(1)), Err(EtcdError::RestoreGoesOn));
    let other = RestoreStep::GiveUp { attempt: 2, pieces: 2 };
    assert_eq!(restore(&mut new, &other), Err(EtcdError::RestoreGoesOn));
    restore(&mut new, &give_up(2)).unwrap();
    restore(&mut new, &give_up(2)).unwrap();
    drop((new, engine));
    let (_engine, mut new) = open(dir.path());
    for step in &steps[1..] {
        assert_eq!(restore(&mut new, step), Err(EtcdError::RestoreGivenUp));
    }
    assert_eq!(restore(&mut new, &steps[0]), Err(EtcdError::NotEmpty));
    assert_eq!(apply(&mut new, &put("a", "b", 0)), Err(EtcdError::Restoring));
    let unfinished = new.keyspace().control().restore().unwrap();
    assert!(unfinished.given_up && unfinished.pieces == 2, "{unfinished:?}");

    // One that is finished cannot be given up any more.
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut new) = open(dir.path());
    for step in &steps {
        restore(&mut new, step).unwrap();
    }
    let pieces = steps.len() as u64 - 2;
    assert_eq!(restore(&mut new, &give_up(pieces)), Err(EtcdError::RestoreGoesOn));
    assert_same(&new, &machine);
}

#[test]
fn a_keyspaces_leases_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    apply(&mut machine, &Command::Restore(begin(1, -1, 1))).unwrap();
    // All but one, without a command for each.
    let mut frames = BytesMut::new();
    let all = crate::mvcc::apply::LEASES_MAX as i64;
    for id in 2..=all {
        let mut key = vec![0];
        key.extend_from_slice(&id.to_be_bytes());
        frames::put_frame(&mut frames, TAG_LEASE, &key, &600i64.to_be_bytes());
    }
    let piece = RestoreStep::Piece { number: 0, frames: frames.freeze() };
    apply(&mut machine, &Command::Restore(piece)).unwrap();
    apply(&mut machine, &Command::Restore(RestoreStep::End { pieces: 1 })).unwrap();
    let mut grant = |id| {
        let command = Command::LeaseGrant(LeaseGrantRequest { ttl: 600, id }).encode();
        let index = machine.applied().next();
        let entry =
            Committed { index, term: Term(1), id: EntryId(1), command: Some(command), wants_reply: true };
        decode_reply::<LeaseGrantResponse>(machine.apply(&[entry]).unwrap().remove(0)).unwrap().map(|r| r.id)
    };
    assert_eq!(grant(1), Ok(1));
    assert_eq!(grant(all + 1), Err(EtcdError::TooManyLeases));
    assert_eq!(grant(5), Err(EtcdError::LeaseExists));
    let revoke = Command::LeaseRevoke(pontoon_proto::etcdserverpb::LeaseRevokeRequest { id: 9 });
    apply(&mut machine, &revoke).unwrap();
    let again = Command::LeaseGrant(LeaseGrantRequest { ttl: 600, id: all + 1 });
    apply(&mut machine, &again).unwrap();
}
