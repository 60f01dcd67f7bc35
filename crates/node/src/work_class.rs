//! The class of the work that a task does: a part of a request's context, like its deadline, that the layers between the
//! client and the group need not pass on.

use pontoon_flow::Class;

tokio::task_local! {
    static CLASS: Class;
}

/// Runs `work` as work of `class`: what it proposes by [`Node::propose`](crate::Node::propose) is of that class. Tasks that it
/// spawns are not.
pub async fn with_class<F: Future>(class: Class, work: F) -> F::Output {
    CLASS.scope(class, work).await
}

/// The class of the running task's work: regular unless said otherwise.
pub(crate) fn current() -> Class {
    CLASS.try_with(|class| *class).unwrap_or_default()
}
