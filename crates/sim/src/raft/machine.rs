//! A tiny replicated state machine: a few registers, and the memory of which commands it has executed, in order.

use std::collections::BTreeMap;

use pontoon_raft_core::{Entry, EntryId, LogIndex, Payload};

/// What a command does. Values are never written twice, so that a read tells which write it saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Writes a register.
    Put {
        /// Which one.
        key: u8,
        /// What.
        value: u64,
    },
    /// Writes a register if it holds `expected`.
    Swap {
        /// Which one.
        key: u8,
        /// What it must hold.
        expected: u64,
        /// What.
        value: u64,
    },
}

/// What a command found in its register before, and whether it wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What was there.
    pub before: Option<u64>,
    /// Whether the command wrote.
    pub wrote: bool,
    /// The state's revision after it.
    pub revision: u64,
}

impl Command {
    /// As bytes, with `padding` more of them.
    pub fn encode(self, padding: usize) -> Vec<u8> {
        let (kind, key, expected, value) = match self {
            Self::Put { key, value } => (0, key, 0, value),
            Self::Swap { key, expected, value } => (1, key, expected, value),
        };
        let mut bytes = vec![kind, key];
        bytes.extend_from_slice(&expected.to_le_bytes());
        bytes.extend_from_slice(&value.to_le_bytes());
        bytes.resize(bytes.len() + padding, 0);
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
        let (kind, key, expected, value) = (*bytes.first()?, *bytes.get(1)?, number(2)?, number(10)?);
        Some(if kind == 0 { Self::Put { key, value } } else { Self::Swap { key, expected, value } })
    }
}

/// The state. It refuses nothing and forgets nothing, so that every double and every gap shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Machine {
    /// The last entry it contains.
    pub applied: LogIndex,
    /// The commands, in the order of execution.
    pub executed: Vec<EntryId>,
    /// The registers.
    pub registers: BTreeMap<u8, u64>,
    /// Counts what was written, as etcd does.
    pub revision: u64,
}

impl Machine {
    /// Executes an entry. Returns the command's id and outcome, if it is one.
    pub fn apply(&mut self, entry: &Entry) -> Option<(EntryId, Outcome)> {
        self.applied = entry.index;
        let Payload::Command(data) = &entry.payload else { return None };
        self.executed.push(entry.id);
        let nothing = Outcome { before: None, wrote: false, revision: self.revision };
        let Some(command) = Command::decode(data) else { return Some((entry.id, nothing)) };
        let (key, value) = match command {
            Command::Put { key, value } | Command::Swap { key, value, .. } => (key, value),
        };
        let before = self.registers.get(&key).copied();
        let wrote = match command {
            Command::Put { .. } => true,
            Command::Swap { expected, .. } => before == Some(expected),
        };
        if wrote {
            self.registers.insert(key, value);
            self.revision += 1;
        }
        Some((entry.id, Outcome { before, wrote, revision: self.revision }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_survive_their_bytes() {
        let swap = Command::Swap { key: 1, expected: 7, value: 8 };
        for command in [Command::Put { key: 3, value: u64::MAX }, swap] {
            assert_eq!(Command::decode(&command.encode(5)), Some(command));
        }
        assert_eq!(Command::decode(&[0; 8]), None);
    }
}
