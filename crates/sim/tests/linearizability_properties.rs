//! The checker against a brute-force second version, over random histories.

use std::sync::Arc;

use pontoon_sim::linearizability::{
    Action, Compare, KvInput, KvModel, KvOperation, KvOutput, Limits, Model, Operation, Outcome, search,
    shrink,
};
use proptest::prelude::*;

/// What an operation of a generated history is made from.
#[derive(Clone, Debug)]
struct Step {
    kind: u8,
    /// Which earlier value or revision a transaction compares with.
    pick: u8,
    /// How far the call reaches back and the answer forward from the moment of effect.
    before: u64,
    after: u64,
    /// Unknown outcome: it took effect (1), it did not (2), or it was answered.
    fate: u8,
}

fn step() -> impl Strategy<Value = Step> {
    (0..8_u8, any::<u8>(), 0..50_u64, 0..50_u64, 0..10_u8)
        .prop_map(|(kind, pick, before, after, fate)| Step { kind, pick, before, after, fate })
}

/// Runs the steps one after the other and gives each a random time around its effect.
fn execute(steps: &[Step], with_revisions: bool) -> Vec<KvOperation> {
    let mut value: Option<(u64, u64)> = None;
    let mut revision = 1;
    let mut history = Vec::new();
    for (index, step) in (1_u64..).zip(steps) {
        let moment = index * 10 + 100;
        let action = match step.kind {
            0..=2 => Action::Put(index),
            3 => Action::Delete,
            4 => Action::Cas(Compare::Value(u64::from(step.pick) % index), index),
            5 => Action::Cas(Compare::ModRevision(u64::from(step.pick) % (revision + 1)), index),
            _ => Action::Get,
        };
        let input = KvInput { key: Arc::from("k"), action };
        let client = u32::from(step.pick);
        let call = moment - step.before;
        if step.fate == 2 {
            history.push(Operation::unknown(client, call, input));
            continue;
        }
        let record = |revision: u64| if with_revisions { revision } else { 0 };
        let before = value.map(|(value, at)| (value, record(at)));
        let now = value;
        let mut write = |new: Option<u64>| {
            revision += 1;
            value = new.map(|new| (new, revision));
            revision
        };
        let output = match action {
            Action::Get => KvOutput::Got { seen: before, revision: record(revision) },
            Action::Put(new) => KvOutput::Written { revision: record(write(Some(new))) },
            Action::Delete if before.is_none() => {
                KvOutput::Deleted { previous: None, revision: record(revision) }
            }
            Action::Delete => KvOutput::Deleted { previous: before, revision: record(write(None)) },
            Action::Cas(compare, new) => {
                let holds = match compare {
                    Compare::Value(old) => now.is_some_and(|(value, _)| value == old),
                    Compare::ModRevision(at) => now.map_or(0, |(_, at)| at) == at,
                };
                if holds {
                    KvOutput::Written { revision: record(write(Some(new))) }
                } else {
                    KvOutput::NotSwapped { seen: before, revision: record(revision) }
                }
            }
        };
        history.push(if step.fate == 1 {
            Operation::unknown(client, call, input)
        } else {
            Operation::answered(client, call, input, moment + step.after, output)
        });
    }
    history
}

/// Changes something that a client saw.
fn mutate(history: &mut [KvOperation], which: usize, change: u64) {
    let count = history.len();
    if count == 0 {
        return;
    }
    let operation = &mut history[which % count];
    if let Some(completion) = &mut operation.completion {
        match &mut completion.output {
            KvOutput::Got { seen, revision } | KvOutput::NotSwapped { seen, revision } => match change % 4 {
                0 => *seen = None,
                1 => *revision = (*revision + change / 4 % 5).saturating_sub(2),
                2 => *seen = seen.map(|(value, at)| (value, (at + change / 4 % 3).saturating_sub(1))),
                _ => *seen = Some((change / 4 % (count as u64 + 1), seen.map_or(0, |(_, at)| at))),
            },
            KvOutput::Written { revision } => *revision = (*revision + change % 5).saturating_sub(2),
            KvOutput::Deleted { previous, .. } => {
                *previous =
                    if change.is_multiple_of(2) { None } else { Some((change / 2 % count as u64, 0)) };
            }
        }
    }
}

/// Tries every order: no memory, no ranks, no shortcuts.
fn brute_force<M: Model>(model: &M, operations: &[&Operation<M::Input, M::Output>]) -> bool {
    fn go<M: Model>(model: &M, left: &[&Operation<M::Input, M::Output>], state: &M::State) -> bool {
        if left.iter().all(|operation| operation.completion.is_none()) {
            return true;
        }
        let first_return = left.iter().filter_map(|o| Some(o.completion.as_ref()?.at)).min();
        (0..left.len()).any(|index| {
            let operation = left[index];
            if first_return.is_some_and(|at| operation.call > at) {
                return false;
            }
            let mut rest = left.to_vec();
            rest.remove(index);
            model
                .step(state, &operation.input, operation.output())
                .is_some_and(|state| go(model, &rest, &state))
        })
    }
    go(model, operations, &model.initial())
}

/// Whether the order the search gives is one: respects time, and the model accepts it.
fn witness_holds<M: Model>(
    model: &M,
    operations: &[&Operation<M::Input, M::Output>],
    order: &[usize],
) -> bool {
    let mut state = model.initial();
    for (place, &index) in order.iter().enumerate() {
        let operation = operations[index];
        let late = order[place..]
            .iter()
            .any(|&later| operations[later].completion.as_ref().is_some_and(|c| c.at < operation.call));
        match model.step(&state, &operation.input, operation.output()) {
            Some(next) if !late => state = next,
            _ => return false,
        }
    }
    (0..operations.len()).all(|index| operations[index].completion.is_none() || order.contains(&index))
}

fn models() -> [KvModel; 2] {
    [KvModel::VALUES, KvModel::CHECK_REVISIONS]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// What one execution produced is accepted, however the calls overlap, and the witness is an order.
    #[test]
    fn real_executions_are_accepted(steps in prop::collection::vec(step(), 0..60), with_revisions: bool) {
        let history = execute(&steps, with_revisions);
        let operations: Vec<_> = history.iter().collect();
        for model in models() {
            match search(&model, &operations, &Limits::default()) {
                Outcome::Linearizable(order) => prop_assert!(witness_holds(&model, &operations, &order)),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    /// Whatever is changed in a small history, the search says what brute force says.
    #[test]
    fn agrees_with_brute_force(
        steps in prop::collection::vec(step(), 0..8),
        with_revisions: bool,
        changes in prop::collection::vec((any::<usize>(), any::<u64>()), 0..3),
    ) {
        let mut history = execute(&steps, with_revisions);
        for (which, change) in changes {
            mutate(&mut history, which, change);
        }
        let operations: Vec<_> = history.iter().collect();
        for model in models() {
            let expected = brute_force(&model, &operations);
            match search(&model, &operations, &Limits::default()) {
                Outcome::Linearizable(order) => {
                    prop_assert!(expected);
                    prop_assert!(witness_holds(&model, &operations, &order));
                }
                Outcome::NotLinearizable => {
                    prop_assert!(!expected);
                    let window = shrink(&model, &operations, &Limits::default());
                    prop_assert!(!window.entries.is_empty());
                }
                Outcome::Undecided => prop_assert!(false),
            }
        }
    }
}
