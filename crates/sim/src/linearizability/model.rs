//! What a sequential specification must tell.

use std::fmt::Debug;
use std::hash::Hash;

use super::history::Operation;

/// A sequential object: what each operation may answer in each state, and which state follows.
pub trait Model {
    /// What a client asks.
    type Input: Clone;
    /// What it is answered.
    type Output: Clone;
    /// The state of one key.
    type State: Clone + Eq + Hash + Debug;
    /// Operations with different keys do not touch each other.
    type Key: Clone + Ord + Debug;

    /// The key an operation is about.
    fn key(&self, input: &Self::Input) -> Self::Key;

    /// The state of every key before the first operation.
    fn initial(&self) -> Self::State;

    /// The state after the operation, or `None` if it cannot give this output in this state.
    ///
    /// With `output` `None` the outcome is unknown: the state that follows if the operation took effect.
    fn step(
        &self,
        state: &Self::State,
        input: &Self::Input,
        output: Option<&Self::Output>,
    ) -> Option<Self::State>;

    /// A number that says where the operation stands in every order that `step` accepts, as far as its output
    /// tells: an operation with a smaller rank is always before one with a greater rank.
    ///
    /// Only saves work; an operation without a rank may stand anywhere.
    fn rank(&self, _input: &Self::Input, _output: &Self::Output) -> Option<u64> {
        None
    }

    /// Whether everything that can happen after `special` can happen after `general` too.
    ///
    /// Only saves work; equality is always right.
    fn covers(&self, general: &Self::State, special: &Self::State) -> bool {
        general == special
    }

    /// The value that the output proves was there when the operation took effect, for models of one value.
    ///
    /// With [`provides`](Self::provides) and [`holds`](Self::holds) this saves work: no value is overwritten while
    /// somebody is still to see it and nobody is left to write it again.
    fn needs(&self, _input: &Self::Input, _output: &Self::Output) -> Option<u64> {
        None
    }

    /// The value that the operation can put into the state.
    fn provides(&self, _input: &Self::Input) -> Option<u64> {
        None
    }

    /// The value that is in the state.
    fn holds(&self, _state: &Self::State) -> Option<u64> {
        None
    }

    /// Whether the operation never does more to the state than to narrow down what is possible: without it, all
    /// later operations could answer the same.
    fn is_observation(&self, input: &Self::Input) -> bool;

    /// Whether there is a state in which it makes a difference for `operation` (its output, or the state after
    /// it) that `input` took effect just before.
    ///
    /// Only saves work; `true` is always right.
    fn observes(&self, _operation: &Operation<Self::Input, Self::Output>, _input: &Self::Input) -> bool {
        true
    }

    /// Something weaker to put in the place of the operation, with no answer: every order that explains a history also
    /// explains the one with this in it. `None`: it can be left out, for it changed nothing.
    ///
    /// Used to find the few operations that a violation is made of.
    fn forget(
        &self,
        operation: &Operation<Self::Input, Self::Output>,
    ) -> Option<Operation<Self::Input, Self::Output>>;

    /// One line for a report.
    fn describe(&self, input: &Self::Input, output: Option<&Self::Output>) -> String;
}
