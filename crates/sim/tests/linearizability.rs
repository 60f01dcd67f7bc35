//! The checker against histories that are known to be right or wrong.

use std::sync::Arc;

use pontoon_sim::linearizability::{
    Action, Compare, KvInput, KvModel, KvOperation, KvOutput, Limits, Operation, RevisionViolation, Verdict,
    check, check_revisions, html,
};

fn input(action: Action) -> KvInput {
    KvInput { key: Arc::from("k"), action }
}

fn on(key: &str, operation: KvOperation) -> KvOperation {
    let input = KvInput { key: Arc::from(key), ..operation.input };
    Operation { input, ..operation }
}

fn put(client: u32, call: u64, at: u64, value: u64) -> KvOperation {
    put_at(client, call, at, value, 0)
}

fn put_at(client: u32, call: u64, at: u64, value: u64, revision: u64) -> KvOperation {
    Operation::answered(client, call, input(Action::Put(value)), at, KvOutput::Written { revision })
}

fn get(client: u32, call: u64, at: u64, value: Option<u64>) -> KvOperation {
    get_at(client, call, at, value.map(|value| (value, 0)), 0)
}

fn get_at(client: u32, call: u64, at: u64, seen: Option<(u64, u64)>, revision: u64) -> KvOperation {
    Operation::answered(client, call, input(Action::Get), at, KvOutput::Got { seen, revision })
}

fn delete(client: u32, call: u64, at: u64, previous: Option<u64>) -> KvOperation {
    let output = KvOutput::Deleted { previous: previous.map(|value| (value, 0)), revision: 0 };
    Operation::answered(client, call, input(Action::Delete), at, output)
}

fn swapped(client: u32, call: u64, at: u64, old: u64, new: u64) -> KvOperation {
    let action = Action::Cas(Compare::Value(old), new);
    Operation::answered(client, call, input(action), at, KvOutput::Written { revision: 0 })
}

fn not_swapped(client: u32, call: u64, at: u64, old: u64, new: u64, seen: Option<u64>) -> KvOperation {
    let action = Action::Cas(Compare::Value(old), new);
    let output = KvOutput::NotSwapped { seen: seen.map(|value| (value, 0)), revision: 0 };
    Operation::answered(client, call, input(action), at, output)
}

fn unknown(client: u32, call: u64, action: Action) -> KvOperation {
    Operation::unknown(client, call, input(action))
}

fn is_linearizable(history: &[KvOperation]) -> bool {
    let values = check(&KvModel::VALUES, history, &Limits::default()).verdict;
    let revisions = check(&KvModel::CHECK_REVISIONS, history, &Limits::default()).verdict;
    assert!(!matches!(values, Verdict::Undecided(_)));
    if !values.is_linearizable() {
        assert!(!revisions.is_linearizable(), "the stricter model cannot accept more");
    }
    revisions.is_linearizable()
}

#[track_caller]
fn accepts(history: &[KvOperation]) {
    assert!(is_linearizable(history), "{}", check(&KvModel::CHECK_REVISIONS, history, &Limits::default()));
}

#[track_caller]
fn rejects(history: &[KvOperation]) {
    assert!(!is_linearizable(history));
}

#[test]
fn empty_and_sequential_histories_are_accepted() {
    accepts(&[]);
    accepts(&[get(1, 0, 1, None), put(1, 2, 3, 7), get(2, 4, 5, Some(7)), delete(1, 6, 7, Some(7))]);
    accepts(&[unknown(1, 0, Action::Put(1))]);
}

#[test]
fn concurrent_read_may_see_either_value() {
    accepts(&[put(1, 0, 1, 1), put(1, 10, 20, 2), get(2, 11, 12, Some(1)), get(3, 13, 14, Some(2))]);
    accepts(&[put(1, 0, 1, 1), put(1, 10, 20, 2), get(2, 11, 12, Some(2)), get(3, 13, 14, Some(2))]);
    accepts(&[put(1, 0, 1, 1), put(1, 10, 20, 2), get(2, 11, 12, Some(1)), get(3, 13, 14, Some(1))]);
}

#[test]
fn a_call_at_the_time_of_an_answer_overlaps_it() {
    accepts(&[put(1, 0, 5, 1), get(2, 5, 6, None)]);
    rejects(&[put(1, 0, 5, 1), get(2, 6, 7, None)]);
}

#[test]
fn stale_read_is_rejected() {
    rejects(&[put(1, 0, 1, 1), put(1, 2, 3, 2), get(2, 4, 5, Some(1))]);
    rejects(&[put(1, 0, 1, 1), get(2, 4, 5, None)]);
}

#[test]
fn reads_that_run_backwards_are_rejected() {
    // The write is still open, so each read alone would be fine.
    rejects(&[put(1, 0, 1, 1), put(1, 10, 20, 2), get(2, 11, 12, Some(2)), get(3, 13, 14, Some(1))]);
}

#[test]
fn lost_update_is_rejected() {
    // Two transactions swap the same old value.
    rejects(&[put(1, 0, 1, 1), swapped(2, 2, 6, 1, 2), swapped(3, 3, 7, 1, 3)]);
    accepts(&[put(1, 0, 1, 1), swapped(2, 2, 6, 1, 2), not_swapped(3, 3, 7, 1, 3, Some(2))]);
    // An acknowledged write that no later read shows, and that nothing overwrote.
    rejects(&[put(1, 0, 1, 1), put(2, 2, 9, 2), put(3, 3, 8, 3), get(1, 10, 11, Some(1))]);
}

#[test]
fn value_that_nobody_wrote_is_rejected() {
    rejects(&[put(1, 0, 1, 1), get(2, 2, 3, Some(9))]);
    rejects(&[get(2, 2, 3, Some(9)), put(1, 4, 5, 9)]);
}

#[test]
fn transactions_tell_the_truth() {
    rejects(&[put(1, 0, 1, 1), not_swapped(2, 2, 3, 1, 2, Some(1))]);
    rejects(&[put(1, 0, 1, 1), not_swapped(2, 2, 3, 5, 2, None)]);
    rejects(&[swapped(2, 2, 3, 1, 2)]);
    rejects(&[put(1, 0, 1, 1), swapped(2, 2, 3, 1, 2), swapped(2, 4, 5, 1, 3)]);
    accepts(&[put(1, 0, 1, 1), swapped(2, 2, 3, 1, 2), swapped(2, 4, 5, 2, 1), swapped(3, 6, 7, 1, 3)]);
}

#[test]
fn deletes_tell_the_truth() {
    rejects(&[put(1, 0, 1, 1), delete(2, 2, 3, None)]);
    rejects(&[put(1, 0, 1, 1), delete(2, 2, 3, Some(1)), get(1, 4, 5, Some(1))]);
    rejects(&[put(1, 0, 1, 1), delete(2, 2, 9, Some(1)), delete(3, 3, 8, Some(1))]);
    accepts(&[put(1, 0, 1, 1), delete(2, 2, 9, Some(1)), delete(3, 3, 8, None), get(1, 10, 11, None)]);
}

#[test]
fn unknown_write_may_take_effect_late_or_never() {
    let lost = unknown(1, 2, Action::Put(2));
    accepts(&[put(1, 0, 1, 1), lost.clone(), get(2, 4, 5, Some(1)), get(2, 100, 101, Some(1))]);
    accepts(&[put(1, 0, 1, 1), lost.clone(), get(2, 4, 5, Some(1)), get(2, 100, 101, Some(2))]);
    accepts(&[put(1, 0, 1, 1), lost.clone(), put(2, 4, 5, 3), get(2, 6, 7, Some(2))]);
    // But not twice, and not before it was called.
    rejects(&[put(1, 0, 1, 1), lost.clone(), get(2, 4, 5, Some(2)), put(2, 6, 7, 3), get(2, 8, 9, Some(2))]);
    rejects(&[put(1, 0, 1, 1), get(2, 2, 3, Some(2)), unknown(1, 4, Action::Put(2))]);
}

#[test]
fn unknown_delete_and_unknown_transaction() {
    let deleted = unknown(1, 2, Action::Delete);
    accepts(&[put(1, 0, 1, 1), deleted.clone(), get(2, 3, 4, Some(1)), get(2, 5, 6, None)]);
    rejects(&[put(1, 0, 1, 1), deleted, get(2, 3, 4, None), get(2, 5, 6, Some(1))]);
    let swap = unknown(1, 2, Action::Cas(Compare::Value(1), 2));
    accepts(&[put(1, 0, 1, 1), swap.clone(), get(2, 3, 4, Some(2))]);
    rejects(&[put(1, 0, 1, 5), swap.clone(), get(2, 3, 4, Some(2))]);
    // A chain of unknown operations, of which only the last is seen.
    let second = unknown(3, 2, Action::Cas(Compare::Value(2), 3));
    accepts(&[put(1, 0, 1, 1), swap.clone(), second.clone(), get(2, 3, 4, Some(3))]);
    rejects(&[put(1, 0, 1, 1), second, get(2, 3, 4, Some(3))]);
}

#[test]
fn swap_on_the_revision_of_an_unknown_write() {
    let lost = unknown(1, 2, Action::Put(2));
    let swap = |at, output| {
        let action = Action::Cas(Compare::ModRevision(at), 9);
        Operation::answered(3, 6, input(action), 7, output)
    };
    let seen = |seen| KvOutput::NotSwapped { seen, revision: 0 };
    let first = put_at(1, 0, 1, 1, 10);
    let read = get_at(2, 4, 5, Some((2, 12)), 12);
    let written = KvOutput::Written { revision: 13 };
    accepts(&[first.clone(), lost.clone(), read.clone(), swap(12, written)]);
    rejects(&[first.clone(), lost.clone(), read.clone(), swap(11, written)]);
    rejects(&[first.clone(), lost.clone(), read, swap(12, seen(Some((2, 12))))]);
    // Nobody read it before: any revision after the first write may be its own.
    accepts(&[first.clone(), lost.clone(), swap(11, written)]);
    accepts(&[first.clone(), lost.clone(), swap(11, seen(Some((2, 12))))]);
    rejects(&[first, lost, swap(10, seen(Some((1, 10))))]);
}

#[test]
fn revisions_must_follow_the_order() {
    let values = |history: &[KvOperation]| {
        check(&KvModel::VALUES, history, &Limits::default()).verdict.is_linearizable()
    };
    let swapped_revisions = [put_at(1, 0, 1, 1, 11), put_at(1, 2, 3, 2, 10)];
    assert!(values(&swapped_revisions));
    rejects(&swapped_revisions);
    let old_header = [put_at(1, 0, 1, 1, 10), get_at(2, 2, 3, Some((1, 10)), 9)];
    assert!(values(&old_header));
    rejects(&old_header);
    let wrong_mod = [put_at(1, 0, 1, 1, 10), get_at(2, 2, 3, Some((1, 9)), 12)];
    rejects(&wrong_mod);
}

#[test]
fn keys_are_independent() {
    let history = [
        on("a", put(1, 0, 1, 1)),
        on("b", put(1, 2, 3, 2)),
        on("a", get(2, 4, 5, Some(1))),
        on("b", get(2, 6, 7, Some(1))),
    ];
    let report = check(&KvModel::VALUES, &history, &Limits::default());
    let Verdict::NotLinearizable(violations) = &report.verdict else { panic!("{report}") };
    assert_eq!(violations.len(), 1);
    assert_eq!(&*violations[0].key, "b");
    assert_eq!(report.keys, 2);
}

#[test]
fn limits_give_undecided() {
    let mut history = Vec::new();
    for client in 0..20 {
        history.push(put(client, 0, 1_000, u64::from(client) + 1));
    }
    history.push(get(30, 2_000, 2_001, Some(99)));
    let limits = Limits { steps_max: 1_000, configurations_max: 1_000_000 };
    let report = check(&KvModel::VALUES, &history, &limits);
    assert!(matches!(report.verdict, Verdict::Undecided(_)), "{report}");
}

/// A long history of overlapping operations with one stale read in it: the window shows the two writes and the read.
#[test]
fn window_of_a_stale_read_is_small() {
    let mut history = Vec::new();
    for round in 0..500 {
        let time = round * 100;
        history.push(put_at(1, time, time + 30, round + 1, round * 2 + 2));
        history.push(get_at(2, time + 40, time + 60, Some((round + 1, round * 2 + 2)), round * 2 + 3));
        history.push(get(3, time + 41, time + 61, Some(round + 1)));
    }
    history.push(get(4, 30_095, 30_099, Some(300)));
    let report = check(&KvModel::VALUES, &history, &Limits::default());
    let Verdict::NotLinearizable(violations) = &report.verdict else { panic!("{report}") };
    let entries = &violations[0].window.entries;
    assert!((2..=4).contains(&entries.len()), "{report}");
    assert!(entries.iter().any(|entry| entry.client == 4 && entry.text.contains("get -> 300")), "{report}");
    assert!(report.to_string().contains("NOT LINEARIZABLE"), "{report}");
    let page = html(&report);
    assert!(page.contains("client 4: get -&gt; 300"), "{page}");
}

#[test]
fn revision_rules() {
    let good = [
        on("a", put_at(1, 0, 10, 1, 2)),
        on("b", put_at(2, 1, 9, 2, 3)),
        on("a", get_at(3, 11, 12, Some((1, 2)), 3)),
        on("b", unknown(1, 13, Action::Put(3))),
        on("b", get_at(3, 14, 15, Some((3, 4)), 4)),
    ];
    assert_eq!(check_revisions(&good, &[on("b", get_at(9, 50, 51, Some((2, 3)), 3))]), []);
    let only = |history: &[KvOperation], serializable: &[KvOperation]| {
        let mut violations = check_revisions(history, serializable);
        assert_eq!(violations.len(), 1, "{violations:?}");
        violations.remove(0)
    };
    let shared = [on("a", put_at(1, 0, 10, 1, 2)), on("b", put_at(2, 1, 9, 2, 2))];
    assert!(matches!(only(&shared, &[]), RevisionViolation::Shared { revision: 2, .. }));
    let backwards = [on("a", put_at(1, 0, 1, 1, 5)), on("b", put_at(2, 2, 3, 2, 4))];
    assert!(matches!(only(&backwards, &[]), RevisionViolation::Backwards { .. }));
    let old_read = [on("a", put_at(1, 0, 1, 1, 5)), on("b", get_at(2, 2, 3, None, 4))];
    assert!(matches!(only(&old_read, &[]), RevisionViolation::Backwards { .. }));
    // A serializable read may be old, but at its revision it must be whole.
    let missed = on("a", get_at(9, 20, 21, None, 3));
    assert!(matches!(only(&good, &[missed]), RevisionViolation::Missed { write: Some(_), .. }));
    let invented = on("c", get_at(9, 20, 21, Some((77, 3)), 3));
    assert!(matches!(only(&good, &[invented]), RevisionViolation::Missed { write: None, .. }));
    let lost = [on("b", unknown(1, 0, Action::Put(3))), on("b", unknown(1, 0, Action::Put(4)))];
    let two = [on("b", get_at(9, 20, 21, Some((3, 3)), 3)), on("b", get_at(9, 22, 23, Some((4, 3)), 3))];
    assert!(matches!(only(&lost, &two), RevisionViolation::TwoValues { revision: 3, .. }));
}

/// 200,000 operations of 64 clients over 500 keys, with operations that never were answered.
#[test]
fn long_histories_are_quick() {
    let mut history = Vec::new();
    let mut state = vec![None; 500];
    let mut revision = 1;
    let mut random = 1_u64;
    for step in 0..200_000_u64 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = (random >> 33) as usize % state.len();
        let name = format!("k{key}");
        let client = u32::try_from(step % 64).unwrap();
        // All 64 clients overlap, and each operation takes effect in the middle of its time.
        let (call, at) = (step * 10, step * 10 + 640);
        let operation = if random >> 63 == 0 {
            revision += 1;
            state[key] = Some((step, revision));
            if (random >> 20).is_multiple_of(300) {
                unknown(client, call, Action::Put(step))
            } else {
                put_at(client, call, at, step, revision)
            }
        } else {
            get_at(client, call, at, state[key], revision)
        };
        history.push(on(&name, operation));
    }
    for model in [KvModel::VALUES, KvModel::CHECK_REVISIONS] {
        let report = check(&model, &history, &Limits::default());
        assert!(report.verdict.is_linearizable(), "{report}");
    }
    assert_eq!(check_revisions(&history, &[]), []);
}
