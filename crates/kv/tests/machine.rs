//! The state machine as its host uses it: restarts, kills, images, compaction, leases.

use std::path::Path;
use std::process::{Command as Process, Stdio};
use std::time::Duration;

use bytes::Bytes;
use pontoon_kv::{Command, Engine, EngineOptions, EtcdError, Keyspace, KeyspaceMachine, decode_reply};
use pontoon_node::state_machine::{Committed, StateMachine};
use pontoon_proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest,
    LeaseRevokeResponse, PutRequest, PutResponse, RangeRequest,
};
use pontoon_raft_core::types::{EntryId, GroupId, LogIndex, Term};

const GROUP: GroupId = GroupId(3);

fn open(dir: &Path) -> (Engine, KeyspaceMachine) {
    // The smallest buffers: tables are flushed and merged during the tests.
    let options =
        EngineOptions { write_buffer_bytes: 0, background_step_records: 16, ..EngineOptions::default() };
    let engine = Engine::open(dir, &options).unwrap();
    let machine = engine.open_keyspace(GROUP).unwrap();
    (engine, machine)
}

fn put(key: String, value: Bytes, lease: i64) -> Command {
    Command::Put(PutRequest { key: key.into(), value, lease, ..Default::default() })
}

/// The n-th command of a workload that is always the same.
fn command(n: u64) -> Command {
    let r = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    let key = format!("key/{}", r % 300);
    match r % 16 {
        0 => Command::DeleteRange(DeleteRangeRequest { key: key.into(), ..Default::default() }),
        1 => {
            let (from, end) = (format!("key/{}", r % 30), format!("key/{}~", r % 30));
            Command::DeleteRange(DeleteRangeRequest {
                key: from.into(),
                range_end: end.into(),
                prev_kv: false,
            })
        }
        2 if n.is_multiple_of(32) => {
            // Most are refused: there are fewer revisions than commands.
            Command::Compact(CompactionRequest { revision: (n / 3) as i64, physical: false })
        }
        _ => put(key, vec![r as u8; (r % 2000) as usize].into(), 0),
    }
}

fn entry(index: u64, command: &Command) -> Committed {
    Committed {
        index: LogIndex(index),
        term: Term(1),
        id: EntryId(u128::from(index)),
        command: Some(command.encode()),
        wants_reply: true,
    }
}

/// Applies the workload's commands up to and including `last`, in batches.
fn apply_upto(machine: &mut KeyspaceMachine, last: u64) {
    let mut next = machine.applied().0 + 1;
    while next <= last {
        let end = last.min(next + next % 20);
        let batch: Vec<_> = (next..=end).map(|n| entry(n, &command(n))).collect();
        machine.apply(&batch).unwrap();
        next = end + 1;
    }
}

fn hashes(keyspace: &Keyspace) -> (u32, u32, i64) {
    (keyspace.hash().unwrap(), keyspace.hash_kv(0).unwrap().hash, keyspace.revision())
}

fn expected(upto: u64) -> (u32, u32, i64) {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    apply_upto(&mut machine, upto);
    hashes(&machine.keyspace())
}

#[test]
fn a_restart_keeps_the_state_and_entries_may_come_again() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = open(dir.path());
    apply_upto(&mut machine, 2000);
    assert_eq!(machine.sync().unwrap(), LogIndex(2000));
    let before = hashes(&machine.keyspace());
    drop((engine, machine));

    let (engine, mut machine) = open(dir.path());
    assert_eq!(machine.applied(), LogIndex(2000));
    assert_eq!(hashes(&machine.keyspace()), before);
    // The log may begin earlier.
    let again: Vec<_> = (1990..=2000).map(|n| entry(n, &command(n))).collect();
    machine.apply(&again).unwrap();
    assert_eq!(hashes(&machine.keyspace()), before);
    // Entries that mean nothing here only move the index.
    let noop = Committed { command: None, ..entry(2001, &command(1)) };
    assert_eq!(machine.apply(&[noop]).unwrap(), [Bytes::new()]);
    assert_eq!(machine.applied(), LogIndex(2001));
    // A gap would lose something.
    assert!(machine.apply(&[entry(2003, &command(1))]).is_err());
    assert!(machine.apply(&[entry(2002, &command(1))]).is_err(), "broken until it is opened again");
    drop((engine, machine));
    let (_engine, mut machine) = open(dir.path());
    machine.apply(&[entry(2002, &command(2))]).unwrap();
}

/// Not a test by itself: the process that [`kills_leave_a_state_that_was`] kills.
#[test]
fn victim() {
    let Ok(dir) = std::env::var("PONTOON_KV_VICTIM") else { return };
    let (_engine, mut machine) = open(Path::new(&dir));
    loop {
        let next = machine.applied().0 + 1;
        apply_upto(&mut machine, next + 200);
        if next % 7 == 0 {
            machine.sync().unwrap();
        }
    }
}

#[test]
fn kills_leave_a_state_that_was() {
    let dir = tempfile::tempdir().unwrap();
    let mut last = 0;
    for round in 0..6 {
        let mut victim = Process::new(std::env::current_exe().unwrap())
            .args(["--exact", "victim"])
            .env("PONTOON_KV_VICTIM", dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(400 + 150 * round));
        victim.kill().unwrap();
        victim.wait().unwrap();

        let (_engine, machine) = open(dir.path());
        let applied = machine.applied().0;
        assert!(applied >= last, "went back from {last} to {applied}");
        assert_eq!(hashes(&machine.keyspace()), expected(applied), "after {applied} entries");
        last = applied;
    }
    assert!(last > 0);
}

fn image(machine: &mut KeyspaceMachine) -> Vec<Bytes> {
    let mut reader = machine.snapshot().unwrap();
    std::iter::from_fn(|| reader.read().unwrap()).collect()
}

#[test]
fn an_image_is_of_its_moment_and_replaces_what_was_there() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_engine, mut machine) = open(from.path());
    apply_upto(&mut machine, 3000);
    let at = machine.applied();
    let before = hashes(&machine.keyspace());
    let mut reader = machine.snapshot().unwrap();
    apply_upto(&mut machine, 4000);

    let (engine, mut other) = open(to.path());
    apply_upto(&mut other, 50);
    let keyspace = other.keyspace();
    let mut sink = other.stage(at).unwrap();
    let mut chunks = 0;
    while let Some(chunk) = reader.read().unwrap() {
        assert!(chunk.len() <= 256 * 1024);
        sink.write(chunk).unwrap();
        chunks += 1;
    }
    assert!(chunks > 1);
    sink.finish().unwrap();
    assert_eq!(other.applied(), LogIndex(50), "not live yet");
    // A restart between the two.
    drop((keyspace, other, engine));
    let (_engine, mut other) = open(to.path());
    let keyspace = other.keyspace();
    assert_eq!(other.applied(), LogIndex(50));
    assert!(other.activate(LogIndex(2999)).is_err(), "no image as of that entry");
    drop((keyspace, other, _engine));
    let (engine, mut other) = open(to.path());
    let keyspace = other.keyspace();
    other.activate(at).unwrap();
    assert_eq!((other.applied(), keyspace.applied()), (at, at));
    assert_eq!(hashes(&keyspace), before, "the handle shows the new state");
    apply_upto(&mut other, 4000);
    assert_eq!(hashes(&keyspace), hashes(&machine.keyspace()));
    drop((keyspace, other, engine));
    let (_engine, other) = open(to.path());
    assert_eq!(hashes(&other.keyspace()), hashes(&machine.keyspace()));
}

#[test]
fn a_damaged_or_unfinished_image_never_becomes_live() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_engine, mut machine) = open(from.path());
    apply_upto(&mut machine, 300);
    let at = machine.applied();
    let chunks = image(&mut machine);
    let whole: Vec<u8> = chunks.concat();
    let (_other_engine, mut other) = open(to.path());

    let mut attempt = |bytes: &[u8]| {
        let mut sink = other.stage(at).unwrap();
        for chunk in bytes.chunks(1000) {
            sink.write(Bytes::copy_from_slice(chunk))?;
        }
        sink.finish()?;
        other.activate(at).map_err(std::io::Error::other)
    };
    assert!(attempt(&whole[..whole.len() - 1]).is_err());
    assert!(attempt(&[]).is_err());
    // Some places that matter, and others all over the image: `just damage-storage` takes 1,000.
    let more: usize = std::env::var("PONTOON_FLIPS").map_or(40, |n| n.parse().unwrap());
    let chosen = [0, 4, 6, 40, 60, whole.len() / 2, whole.len() - 1];
    // A step that has no factor in common with most lengths goes through the image without a pattern.
    let anywhere = (0..more).map(|n| n.wrapping_mul(7_919) % whole.len());
    for (n, flip) in chosen.into_iter().chain(anywhere).enumerate() {
        let mut bytes = whole.clone();
        bytes[flip] ^= 1 << (n % 8);
        assert!(attempt(&bytes).is_err(), "byte {flip}, bit {}", n % 8);
    }
    let mut longer = whole.clone();
    longer.push(0);
    assert!(attempt(&longer).is_err());
    attempt(&whole).unwrap();
    assert_eq!(hashes(&other.keyspace()), hashes(&machine.keyspace()));

    // A newer image takes the place of one that is under way.
    let mut first = other.stage(LogIndex(900)).unwrap();
    let _second = other.stage(LogIndex(901)).unwrap();
    assert!(first.write(chunks[0].clone()).is_err());
    // An image of another moment is not taken for the one that was announced.
    let mut wrong = other.stage(LogIndex(902)).unwrap();
    assert!(chunks.into_iter().any(|c| wrong.write(c).is_err()));
}

#[test]
fn an_image_that_waits_is_not_lost_to_the_next_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (_engine, mut machine) = open(from.path());
    let mut images = Vec::new();
    for upto in [300, 400, 500] {
        apply_upto(&mut machine, upto);
        images.push((machine.applied(), image(&mut machine), hashes(&machine.keyspace())));
    }
    for second_is_finished in [false, true] {
        let (engine, mut other) = open(to.path());
        for (at, chunks, _) in &images[..2] {
            let mut sink = other.stage(*at).unwrap();
            let whole = *at == images[0].0 || second_is_finished;
            let chunks = if whole { &chunks[..] } else { &chunks[..1] };
            chunks.iter().for_each(|chunk| sink.write(chunk.clone()).unwrap());
            if whole {
                sink.finish().unwrap();
            }
        }
        // The log begins behind the first by now: a crash and a restart must find it.
        let mut third = other.stage(images[2].0).unwrap();
        third.write(images[2].1[0].clone()).unwrap();
        drop((third, other, engine));
        let (engine, mut other) = open(to.path());
        other.activate(images[0].0).unwrap();
        assert_eq!(hashes(&other.keyspace()), images[0].2);
        if second_is_finished {
            other.activate(images[1].0).unwrap();
            assert_eq!(hashes(&other.keyspace()), images[1].2);
        }
        drop((other, engine));
        std::fs::remove_dir_all(to.path()).unwrap();
        std::fs::create_dir(to.path()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn physical_compaction_frees_what_the_logical_one_gave_up() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    let keyspace = machine.keyspace();
    for n in 1..=500 {
        machine.apply(&[entry(n, &put("one".into(), vec![b'v'; 1000].into(), 0))]).unwrap();
    }
    let before = keyspace.size_bytes();
    let compact = Command::Compact(CompactionRequest { revision: 501, physical: true });
    machine.apply(&[entry(501, &compact)]).unwrap();
    let hash = hashes(&keyspace);
    keyspace.compacted(501).await;
    assert_eq!(hashes(&keyspace), hash, "physical progress does not show in hashes");
    let after = keyspace.size_bytes();
    assert!(before > 500_000 && after < 2_000, "{before} {after}");
    let r = keyspace.range(&RangeRequest { key: "one".into(), ..Default::default() }).unwrap();
    assert_eq!((r.kvs[0].version, r.kvs[0].value.len()), (500, 1000));
}

#[test]
fn keys_of_a_lease_go_with_it_in_one_revision() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut machine) = open(dir.path());
    let mut index = 0;
    let mut apply = |machine: &mut KeyspaceMachine, commands: &[Command]| {
        let entries: Vec<_> = commands
            .iter()
            .map(|c| {
                index += 1;
                entry(index, c)
            })
            .collect();
        machine.apply(&entries).unwrap()
    };
    let grant = |id| Command::LeaseGrant(LeaseGrantRequest { ttl: 60, id });
    let value = || Bytes::from_static(b"v");
    let replies = apply(
        &mut machine,
        &[
            put("early".into(), value(), 5),
            grant(5),
            grant(5),
            put("a".into(), value(), 5),
            put("b".into(), value(), 5),
            put("c".into(), value(), 5),
            // Leaves the lease.
            put("b".into(), value(), 0),
        ],
    );
    let early = decode_reply::<PutResponse>(replies[0].clone()).unwrap();
    assert_eq!(early, Err(EtcdError::LeaseNotFound));
    assert_eq!(decode_reply::<LeaseGrantResponse>(replies[1].clone()).unwrap().unwrap().ttl, 60);
    assert_eq!(decode_reply::<LeaseGrantResponse>(replies[2].clone()).unwrap(), Err(EtcdError::LeaseExists));
    drop((engine, machine));

    let (_engine, mut machine) = open(dir.path());
    let keyspace = machine.keyspace();
    assert_eq!(keyspace.revision(), 5);
    // Leases travel with images.
    let other_dir = tempfile::tempdir().unwrap();
    let (_other_engine, mut other) = open(other_dir.path());
    let mut sink = other.stage(machine.applied()).unwrap();
    image(&mut machine).into_iter().for_each(|chunk| sink.write(chunk).unwrap());
    sink.finish().unwrap();
    other.activate(machine.applied()).unwrap();
    assert_eq!(hashes(&other.keyspace()), hashes(&keyspace));

    for machine in [&mut machine, &mut other] {
        let next = machine.applied().0 + 1;
        let revoke = Command::LeaseRevoke(LeaseRevokeRequest { id: 5 });
        let replies = machine.apply(&[entry(next, &revoke), entry(next + 1, &revoke)]).unwrap();
        let done = decode_reply::<LeaseRevokeResponse>(replies[0].clone()).unwrap().unwrap();
        assert_eq!(done.header.unwrap().revision, 6);
        let again = decode_reply::<LeaseRevokeResponse>(replies[1].clone()).unwrap();
        assert_eq!(again, Err(EtcdError::LeaseNotFound));
        let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
        let left = machine.keyspace().range(&all).unwrap();
        assert_eq!(left.kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"b"]);
        assert_eq!(machine.keyspace().revision(), 6);
    }
    assert_eq!(hashes(&other.keyspace()), hashes(&keyspace));
}

#[test]
fn a_lease_expires_only_by_the_word_of_the_leader_of_the_term() {
    let dir = tempfile::tempdir().unwrap();
    let (_engine, mut machine) = open(dir.path());
    let grant = Command::LeaseGrant(LeaseGrantRequest { ttl: 60, id: 5 });
    let entries = [entry(1, &grant), entry(2, &put("a".into(), Bytes::new(), 5))];
    let term = entries[0].term.0;
    machine.apply(&entries).unwrap();
    let hash = hashes(&machine.keyspace());
    // A leader of before, or one that speaks of the future, decides nothing.
    for (index, term) in [(3, term - 1), (4, term + 1)] {
        let replies = machine.apply(&[entry(index, &Command::LeaseExpire { id: 5, term })]).unwrap();
        let answer = decode_reply::<LeaseRevokeResponse>(replies[0].clone()).unwrap();
        assert_eq!(answer, Err(EtcdError::NotLeader));
        assert_eq!((machine.keyspace().revision(), hashes(&machine.keyspace())), (2, hash));
    }
    let expire = Command::LeaseExpire { id: 5, term };
    let replies = machine.apply(&[entry(5, &expire), entry(6, &expire)]).unwrap();
    assert!(decode_reply::<LeaseRevokeResponse>(replies[0].clone()).unwrap().is_ok());
    let again = decode_reply::<LeaseRevokeResponse>(replies[1].clone()).unwrap();
    assert_eq!(again, Err(EtcdError::LeaseNotFound));
    let gone = machine.keyspace().range(&RangeRequest { key: "a".into(), ..Default::default() }).unwrap();
    assert_eq!((gone.kvs.len(), machine.keyspace().revision()), (0, 3));
}

#[test]
fn keyspaces_of_one_engine_do_not_see_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let (engine, mut one) = open(dir.path());
    let mut two = engine.open_keyspace(GroupId(4)).unwrap();
    apply_upto(&mut one, 500);
    two.apply(&[entry(1, &put("x".into(), Bytes::new(), 0))]).unwrap();
    let all = RangeRequest { key: vec![0].into(), range_end: vec![0].into(), ..Default::default() };
    assert_eq!(two.keyspace().range(&all).unwrap().count, 1);
    assert_eq!(two.keyspace().revision(), 2);
    let before = hashes(&one.keyspace());
    drop(two);
    engine.destroy_keyspace(GroupId(4)).unwrap();
    assert_eq!(engine.groups().unwrap(), [GROUP]);
    assert_eq!(hashes(&one.keyspace()), before);
    let two = engine.open_keyspace(GroupId(4)).unwrap();
    assert_eq!((two.applied(), two.keyspace().revision()), (LogIndex::ZERO, 1));
}
