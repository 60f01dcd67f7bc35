//! The smallest failing window of a history that failed.
//!
//! A history is made *weaker* by forgetting reads, and by letting writes happen at any time or never
//! ([`Model::forget`]): whatever explains the stronger history explains the weaker one too. So if a weaker history
//! fails, what is left of it proves the violation. The window is what is left when nothing more can be forgotten.

use std::fmt;

use super::history::Operation;
use super::model::Model;
use super::search::{Limits, Outcome, search};

/// One operation of a [`Window`].
#[derive(Clone, Debug)]
pub struct WindowEntry {
    /// Who called.
    pub client: u32,
    /// When the call began.
    pub call: u64,
    /// When the answer came; `None`: never, or its answer does not matter for the violation.
    pub at: Option<u64>,
    /// Call and answer.
    pub text: String,
    /// Whether there was an answer that does not matter.
    pub weakened: bool,
}

/// A few operations that cannot be brought into an order, by time of call.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// The operations.
    pub entries: Vec<WindowEntry>,
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.entries.iter().map(|entry| entry.call).min().unwrap_or(0);
        let ms = |time: u64| format!("{:.3}", (time - origin) as f64 / 1e6);
        write!(f, "{:>12} {:>12}  client  operation (times in ms)", "call", "answer")?;
        for entry in &self.entries {
            let at = entry.at.map_or_else(|| "-".to_owned(), ms);
            let note = match (entry.at, entry.weakened) {
                (Some(_), _) => "",
                (None, true) => "  (when it took effect does not matter)",
                (None, false) => "  (no answer)",
            };
            write!(f, "\n{:>12} {at:>12}  {:>6}  {}{note}", ms(entry.call), entry.client, entry.text)?;
        }
        Ok(())
    }
}

/// Searches of the last step; a window is read by people, it need not be perfect.
const TRIES_MAX: usize = 1_000;

/// A search that takes longer than this is taken for one that finds an order: the window is then a little larger than
/// it could be, but still proves the violation.
const STEPS_MAX: u64 = 2_000_000;
const CONFIGURATIONS_MAX: usize = 100_000;

type OperationOf<M> = Operation<<M as Model>::Input, <M as Model>::Output>;

/// A history in the making: positions stay, what is left out leaves a gap.
type Draft<M> = Vec<Option<OperationOf<M>>>;

/// Looks for the smallest part of a failing history of one key that fails by itself.
pub fn shrink<M: Model>(
    model: &M,
    operations: &[&Operation<M::Input, M::Output>],
    limits: &Limits,
) -> Window {
    let limits = &Limits {
        steps_max: limits.steps_max.min(STEPS_MAX),
        configurations_max: limits.configurations_max.min(CONFIGURATIONS_MAX),
    };
    let fails = |draft: &Draft<M>| {
        search(model, &draft.iter().flatten().collect::<Vec<_>>(), limits) == Outcome::NotLinearizable
    };
    let mut all: Vec<OperationOf<M>> = operations.iter().map(|&operation| operation.clone()).collect();
    all.sort_by_key(|operation| operation.call);

    // The first moment at which it is wrong.
    let mut times: Vec<u64> = all.iter().filter_map(|o| o.completion.as_ref().map(|c| c.at)).collect();
    times.sort_unstable();
    let end = first(times.len(), |index| fails(&until::<M>(&all, times[index])));
    let draft = until::<M>(&all, times.get(end).copied().unwrap_or(u64::MAX));

    // The longest beginning that can be forgotten.
    let forget = |draft: &Draft<M>, positions: &[usize]| {
        let mut draft = draft.clone();
        for &position in positions {
            draft[position] = draft[position].as_ref().and_then(|operation| model.forget(operation));
        }
        draft
    };
    let positions: Vec<usize> = (0..draft.len()).collect();
    let strict = first(draft.len(), |count| !fails(&forget(&draft, &positions[..=count])));
    let mut current = forget(&draft, &positions[..strict]);

    // Whatever else can be forgotten, in ever smaller pieces.
    let mut kept = positions[strict..].to_vec();
    let mut size = kept.len();
    let mut tries = 0;
    while size > 0 && tries < TRIES_MAX {
        let pieces: Vec<Vec<usize>> = kept.chunks(size).map(<[usize]>::to_vec).collect();
        kept.clear();
        for piece in pieces {
            tries += 1;
            let tried = forget(&current, &piece);
            if fails(&tried) {
                current = tried;
            } else {
                kept.extend(piece);
            }
        }
        size /= 2;
    }
    window(model, &all, &current)
}

/// The first index below `count` for which the (monotone) question is answered by yes, or `count`.
fn first(count: usize, yes: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        if yes(middle) { high = middle } else { low = middle + 1 }
    }
    low
}

/// What was known at that time.
fn until<M: Model>(operations: &[OperationOf<M>], time: u64) -> Draft<M> {
    let known = |operation: &OperationOf<M>| {
        let mut operation = operation.clone();
        operation.completion = operation.completion.filter(|completion| completion.at <= time);
        operation
    };
    operations.iter().map(|operation| (operation.call <= time).then(|| known(operation))).collect()
}

/// What is left of the draft: the answered operations, and the open ones that somebody among them could have seen.
fn window<M: Model>(model: &M, original: &[OperationOf<M>], draft: &Draft<M>) -> Window {
    let answered: Vec<_> =
        draft.iter().flatten().filter(|operation| operation.completion.is_some()).collect();
    let shown = |operation: &OperationOf<M>| {
        operation.completion.is_some()
            || answered.iter().any(|observer| model.observes(observer, &operation.input))
    };
    let entries = original
        .iter()
        .zip(draft)
        .filter_map(|(original, left)| Some((original, left.as_ref().filter(|left| shown(left))?)))
        .map(|(original, left)| WindowEntry {
            client: left.client,
            call: left.call,
            at: left.completion.as_ref().map(|completion| completion.at),
            text: model.describe(&original.input, original.output()),
            weakened: left.completion.is_none() && original.completion.is_some(),
        })
        .collect();
    Window { entries }
}
