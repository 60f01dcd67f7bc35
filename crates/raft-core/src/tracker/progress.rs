//! One follower, as the leader sees it.

use super::inflights::Inflights;
use crate::doubt::FollowerDoubt;
use crate::types::{DoubtId, LogIndex};

/// How appends are sent to a follower.
///
/// ```text
///            accepted                    refused, unreachable
///   Probe ------------> Replicate ---------------------------> Probe
///     |  log compacted                                           ^
///     +----------------> Snapshot -------------------------------+
///                          sent, failed (or accepted: Replicate)
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SendState {
    /// Where the logs part is not known: one append at a time.
    Probe {
        /// When the probe went out that waits for its answer.
        sent_at: Option<u64>,
        /// The next probe carries no entries, because the one before it got lost or the follower is slow.
        retry: bool,
        /// The link lost messages: only an answer to the next probe counts, not one that was under way before.
        paced: bool,
    },
    /// Optimistic: appends are pipelined within the window.
    Replicate,
    /// The host streams a snapshot; no appends.
    Snapshot {
        /// What the snapshot contains at least.
        index: LogIndex,
    },
}

/// What the leader knows of one follower. Only the leader's own handlers change it.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    /// The follower's log equals ours up to here, durably. Never falls, but when the follower says that it may have lost what it
    /// had.
    pub(crate) match_index: LogIndex,
    /// The next entry to send; always above `match_index`.
    pub(crate) next_index: LogIndex,
    /// The highest commit index that an append has told it (it may have been lost; heartbeats repeat it).
    pub(crate) sent_commit: LogIndex,
    pub(crate) state: SendState,
    /// The window; empty outside [`SendState::Replicate`].
    pub(crate) inflights: Inflights,
    /// When it last said anything in this term.
    pub(crate) heard_at: Option<u64>,
    /// When `match_index` last grew, or the window was last empty: a window without movement is suspicious.
    pub(crate) moved_at: u64,
    /// It should be asked whether it has everything that was sent.
    pub(crate) asks: bool,
    /// The newest heartbeat round it answered.
    pub(crate) acked_round: u64,
    /// When the newest heartbeat round was built whose answer binds this follower (`lease.rs`); 0: never.
    pub(crate) lease_from: u64,
    /// The first round whose answer binds it.
    pub(crate) lease_round: Option<u64>,
    /// The snapshot it was last sent, until it has acknowledged it: what follows is what it needs next.
    pub(crate) restoring: Option<LogIndex>,
    /// When a refusal last moved `next_index` back out of the pipeline. Refusals come in bursts, and late ones say
    /// nothing new: each would cost a whole window sent again.
    pub(crate) rewound_at: Option<u64>,
    /// It refused what it had acknowledged: its disk lost something.
    pub(crate) lost_acknowledged: bool,
    /// It may have lost what it acknowledged before: it does not count (`doubt.rs`).
    pub(crate) doubt: Option<FollowerDoubt>,
    /// The doubt that was settled last: messages that still tell of it are old.
    pub(crate) settled_doubt: Option<DoubtId>,
}

impl Progress {
    pub(crate) fn new(next_index: LogIndex, now: u64) -> Self {
        Self {
            match_index: LogIndex::ZERO,
            next_index,
            sent_commit: LogIndex::ZERO,
            state: SendState::Probe { sent_at: None, retry: false, paced: false },
            inflights: Inflights::default(),
            heard_at: None,
            moved_at: now,
            asks: false,
            acked_round: 0,
            lease_from: 0,
            lease_round: None,
            restoring: None,
            rewound_at: None,
            lost_acknowledged: false,
            doubt: None,
            settled_doubt: None,
        }
    }

    /// How far it counts for commit.
    pub(crate) fn counted_match(&self) -> LogIndex {
        if self.doubt.is_some() { LogIndex::ZERO } else { self.match_index }
    }

    /// It has started anew and does not know what it has lost: everything that it said before is void.
    pub(crate) fn opened_in_doubt(&mut self, doubt: FollowerDoubt, next_index: LogIndex, now: u64) {
        let heard_at = self.heard_at;
        let settled_doubt = self.settled_doubt;
        *self = Self { heard_at, settled_doubt, doubt: Some(doubt), ..Self::new(next_index, now) };
    }

    /// The follower has everything up to `index`. Returns whether that is news.
    pub(crate) fn accepted(&mut self, index: LogIndex, now: u64) -> bool {
        let news = index > self.match_index;
        if news {
            self.match_index = index;
            self.moved_at = now;
        }
        self.restoring = self.restoring.filter(|snapshot| *snapshot > index);
        let reaches_probe = index >= self.next_index.prev();
        self.next_index = self.next_index.max(index.next());
        match self.state {
            SendState::Replicate => self.inflights.free_to(index),
            // The answer to the probe; a lower one was under way before it.
            SendState::Probe { paced, .. } => {
                if reaches_probe && !paced {
                    self.become_replicate();
                }
            }
            SendState::Snapshot { index: awaited } => {
                if index >= awaited {
                    self.become_replicate();
                }
            }
        }
        news
    }

    pub(crate) fn become_replicate(&mut self) {
        self.state = SendState::Replicate;
        self.next_index = self.match_index.next();
        self.inflights.clear();
    }

    pub(crate) fn become_probe(&mut self, next_index: LogIndex) {
        self.state = SendState::Probe { sent_at: None, retry: false, paced: false };
        self.next_index = next_index.max(self.match_index.next());
        self.inflights.clear();
        // What was told of the commit index may be among what was lost.
        self.sent_commit = self.sent_commit.min(self.match_index);
    }

    /// A probe, but only after the follower's next sign of life. `paced`: and what was under way does not count.
    pub(crate) fn become_paced_probe(&mut self, next_index: LogIndex, now: u64, paced: bool) {
        self.become_probe(next_index);
        self.state = SendState::Probe { sent_at: Some(now), retry: false, paced };
    }

    pub(crate) fn become_snapshot(&mut self, index: LogIndex) {
        self.state = SendState::Snapshot { index };
        self.restoring = Some(index);
        self.inflights.clear();
    }
}
