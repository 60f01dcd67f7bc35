//! Operations and their outcomes.

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion<O> {
    /// When the client had the answer, in the same unit and from the same origin as [`Operation::call`].
    pub at: u64,
    /// What it was.
    pub output: O,
}

/// One operation of one client.
///
/// An operation that certainly had no effect (refused before it was sent) does not belong into a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation<I, O> {
    /// Who called; only for reports. A client whose call got no answer may go on with another call.
    pub client: u32,
    /// When the call began; nanoseconds from an arbitrary origin, on one monotonic clock for all clients.
    pub call: u64,
    /// What was asked.
    pub input: I,
    /// `None`: the outcome is unknown; the operation stays open for ever.
    pub completion: Option<Completion<O>>,
}

impl<I, O> Operation<I, O> {
    /// An operation that was answered.
    pub fn answered(client: u32, call: u64, input: I, at: u64, output: O) -> Self {
        Self { client, call, input, completion: Some(Completion { at, output }) }
    }

    /// An operation that was never answered.
    pub fn unknown(client: u32, call: u64, input: I) -> Self {
        Self { client, call, input, completion: None }
    }

    /// The answer, if there was one.
    pub fn output(&self) -> Option<&O> {
        self.completion.as_ref().map(|completion| &completion.output)
    }
}
