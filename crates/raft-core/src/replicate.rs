//! A leader and its followers: what is sent to each, and what their answers mean (thesis 3.5, 10.2.1).

use crate::error::StepError;
use crate::log::Log;
use crate::log_view::LogView;
use crate::message::{AppendEntries, AppendReply, Body, Entries, Message};
use crate::raft::{Raft, RoleState};
use crate::tracker::{Progress, SendState};
use crate::types::{LogIndex, ReplicaId, SnapshotMeta, Term};

/// What a follower is sent next.
enum Next {
    Append(AppendEntries),
    Snapshot(SnapshotMeta),
}

/// The bounds that a follower's appends keep.
struct Limits {
    append_bytes_max: u64,
    inflight_messages_max: usize,
    inflight_bytes_max: u64,
}

impl Raft {
    /// Builds what goes to the followers: once for everything that happened since the last time.
    pub(crate) fn leader_round(&mut self, view: &dyn LogView) {
        self.advance_server_changes();
        self.start_read_round();
        let limits = Limits {
            append_bytes_max: self.config.append_bytes_max,
            inflight_messages_max: self.config.inflight_messages_max,
            inflight_bytes_max: self.config.inflight_bytes_max,
        };
        let needs = if self.hard_state_dirty { self.tickets.next() } else { self.tickets.hard_state() };
        let (from, term, now) = (self.id(), self.term(), self.now);
        let RoleState::Leader(leader) = &mut self.role else { return };
        if !std::mem::take(&mut leader.dirty) {
            return;
        }
        for (to, progress) in &mut leader.followers {
            let mut credit = self.credits.get_mut(to);
            while let Some(next) =
                next_message(progress, &self.log, view, &limits, credit.as_deref_mut(), now)
            {
                let body = match next {
                    Next::Append(append) => Body::AppendEntries(append),
                    Next::Snapshot(snapshot) => Body::InstallSnapshot(snapshot),
                };
                let message = Message { from, to: *to, term, doubt: None, body };
                self.outbox.push(message, needs, self.tickets.durable(), term);
            }
        }
        if leader.resigns {
            self.resign();
        }
    }

    /// The group goes on without this replica as its leader: the best follower need not wait for its timer.
    pub(crate) fn resign(&mut self) {
        if let Some(heir) = self.best_heir() {
            self.send(heir, Body::TimeoutNow);
        }
        self.become_follower(self.term(), None);
    }

    /// The follower's progress, which now was heard.
    fn heard(&mut self, from: ReplicaId) -> Result<Option<&mut Progress>, StepError> {
        let now = self.now;
        // Answers to an earlier role of the same term come late and mean nothing.
        let RoleState::Leader(leader) = &mut self.role else { return Ok(None) };
        let progress = leader.followers.get_mut(&from).ok_or(StepError::UnknownSender { from })?;
        progress.heard_at = Some(now);
        Ok(Some(progress))
    }

    pub(crate) fn handle_append_reply(
        &mut self,
        from: ReplicaId,
        reply: AppendReply,
    ) -> Result<(), StepError> {
        let (now, interval) = (self.now, self.heartbeat_ms());
        let last = self.log.last();
        match reply {
            AppendReply::Accepted { match_index } => {
                let commit = self.log.commit();
                let Some(progress) = self.heard(from)? else { return Ok(()) };
                if match_index > last {
                    return Err(StepError::NeverSent);
                }
                let was = progress.state.clone();
                let news = progress.accepted(match_index, now);
                let resumed = was != progress.state;
                if !news && !resumed {
                    return Ok(());
                }
                progress.lost_acknowledged = false;
                let caught_up = match_index == last;
                if let RoleState::Leader(leader) = &mut self.role {
                    leader.touched(now);
                }
                if match_index > commit {
                    self.maybe_commit();
                }
                if caught_up {
                    self.advance_transfer();
                }
            }
            AppendReply::Rejected { prev_log_index, hint_index, hint_term } => {
                if self.heard(from)?.is_none() {
                    return Ok(());
                }
                let RoleState::Leader(leader) = &mut self.role else { return Ok(()) };
                let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
                let refusal = Refusal { prev: prev_log_index, hint_index, hint_term, now, interval };
                if refused(progress, &self.log, &refusal) {
                    leader.touched(now);
                }
            }
        }
        Ok(())
    }

    pub(crate) fn handle_heartbeat_reply(&mut self, from: ReplicaId, round: u64) -> Result<(), StepError> {
        let (now, interval, timer) = (self.now, self.heartbeat_ms(), self.election_timer_ms);
        if self.heard(from)?.is_none() {
            return Ok(());
        }
        let RoleState::Leader(leader) = &mut self.role else { return Ok(()) };
        if round > leader.round {
            return Err(StepError::NeverSent);
        }
        let Some(progress) = leader.followers.get_mut(&from) else { return Ok(()) };
        let news = round > progress.acked_round;
        progress.acked_round = progress.acked_round.max(round);
        // It is alive: what it has not answered for longer than a heartbeat may be lost.
        if progress.chase(now, interval, timer) {
            leader.dirty = true;
        }
        if news {
            self.lease_answer(from, round);
            self.confirm_reads();
        }
        Ok(())
    }

    /// The link lost messages to `peer`.
    pub(crate) fn unreachable(&mut self, peer: ReplicaId) {
        let now = self.now;
        self.wake();
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.followers.get_mut(&peer)
            && progress.state == SendState::Replicate
        {
            let next = progress.match_index.next();
            progress.become_paced_probe(next, now, true);
        }
    }

    /// The link to `peer` is new: what was sent on the old one, a snapshot too, does not arrive any more.
    pub(crate) fn link_established(&mut self, peer: ReplicaId) {
        let now = self.now;
        let RoleState::Leader(leader) = &mut self.role else { return };
        let Some(progress) = leader.followers.get_mut(&peer) else { return };
        match &progress.state {
            SendState::Snapshot { .. } => {
                progress.restoring = None;
                progress.become_probe(progress.match_index.next());
            }
            SendState::Probe { .. } => {
                progress.state = SendState::Probe { sent_at: None, retry: false, paced: false };
            }
            // What is not answered may be lost: ask.
            SendState::Replicate => progress.asks = true,
        }
        if !self.quiesced {
            leader.touched(now);
        }
    }

    pub(crate) fn send_credit(&mut self, peer: ReplicaId, bytes: Option<u64>) {
        match bytes {
            Some(bytes) => self.credits.insert(peer, bytes),
            None => self.credits.remove(&peer),
        };
        if let RoleState::Leader(leader) = &mut self.role {
            leader.dirty = true;
        }
    }

    pub(crate) fn compaction_limit(&self, budget_floor: LogIndex) -> LogIndex {
        let own = self.log.commit().min(self.log.stable());
        let RoleState::Leader(leader) = &self.role else { return own };
        let heard =
            |at: Option<u64>| at.is_some_and(|at| at.saturating_add(self.election_timer_ms) > self.now);
        let needs = leader.followers.values().map(|p| match p.restoring {
            Some(snapshot) if heard(p.heard_at) => snapshot,
            _ => p.match_index.max(budget_floor),
        });
        needs.min().map_or(own, |needs| needs.min(own))
    }

    /// The host's stream of a snapshot to `to` ended.
    pub(crate) fn snapshot_sent(&mut self, to: ReplicaId, ok: bool) {
        let now = self.now;
        let RoleState::Leader(leader) = &mut self.role else { return };
        if let Some(progress) = leader.followers.get_mut(&to)
            && let SendState::Snapshot { index } = progress.state
        {
            let next = if ok { index.next() } else { progress.match_index.next() };
            progress.restoring = progress.restoring.filter(|_| ok);
            // Paced: the follower may still be busy restoring, and a failure must not be repeated at once.
            progress.become_paced_probe(next, now, false);
        }
    }
}

impl Progress {
    /// The follower showed life. Returns whether something should be sent for what it has not answered.
    fn chase(&mut self, now: u64, interval: u64, timer: u64) -> bool {
        let stalled = |since: u64, patience: u64| now >= since.saturating_add(patience);
        match &mut self.state {
            SendState::Probe { sent_at: Some(at), .. } if stalled(*at, interval) => {
                self.state = SendState::Probe { sent_at: None, retry: true, paced: false };
                true
            }
            SendState::Replicate if self.match_index.next() < self.next_index => {
                if stalled(self.moved_at, timer) {
                    // Not even questions are answered: start over from what is known.
                    self.become_probe(self.match_index.next());
                    self.state = SendState::Probe { sent_at: None, retry: true, paced: false };
                    self.moved_at = now;
                    true
                } else {
                    // "Do you have all of it?" costs no entries; a refusal says what is missing.
                    self.asks = stalled(self.moved_at, interval);
                    self.asks
                }
            }
            SendState::Probe { .. } | SendState::Replicate | SendState::Snapshot { .. } => false,
        }
    }
}

/// A follower's word that an append at `prev` does not fit.
struct Refusal {
    prev: LogIndex,
    hint_index: LogIndex,
    hint_term: Term,
    now: u64,
    interval: u64,
}

/// A follower refused an append. Returns whether that was news.
fn refused(progress: &mut Progress, log: &Log, refusal: &Refusal) -> bool {
    let &Refusal { prev, hint_index, hint_term, now, interval } = refusal;
    match progress.state {
        // Late: what was refused has been accepted since.
        SendState::Replicate if prev <= progress.match_index => return false,
        // Late: another place is being probed.
        SendState::Probe { .. } if prev.next() != progress.next_index => return false,
        // Late, or one of a burst. If it is neither, the next heartbeat asks, and the answer will tell.
        SendState::Replicate if progress.rewound_at.is_some_and(|at| now < at.saturating_add(interval)) => {
            return false;
        }
        SendState::Replicate => progress.rewound_at = Some(now),
        SendState::Snapshot { .. } => return false,
        SendState::Probe { .. } => {}
    }
    if prev <= progress.match_index {
        // It refuses the very place that it had acknowledged. Probing lower would not help: what it acknowledged may
        // be committed by its word. Heartbeats pace the further tries.
        progress.lost_acknowledged |= hint_index < progress.match_index;
        return false;
    }
    // Where our log may agree with what the follower told of its own: at most one round trip per term.
    let (agree, _) = log.terms.last_at_most(hint_index, hint_term);
    progress.become_probe(agree.next().min(prev));
    true
}

/// What goes to this follower next; `None`: nothing (more) for now.
fn next_message(
    progress: &mut Progress,
    log: &Log,
    view: &dyn LogView,
    limits: &Limits,
    credit: Option<&mut u64>,
    now: u64,
) -> Option<Next> {
    let broke = credit.as_ref().is_some_and(|left| **left == 0);
    let retry = match progress.state {
        SendState::Snapshot { .. } | SendState::Probe { sent_at: Some(_), .. } => return None,
        SendState::Probe { sent_at: None, retry, .. } => {
            if let Some(snapshot) = needs_snapshot(progress, log) {
                return Some(Next::Snapshot(snapshot));
            }
            progress.state = SendState::Probe { sent_at: Some(now), retry, paced: false };
            if retry || broke {
                return Some(Next::Append(empty_append(progress, log)));
            }
            true
        }
        SendState::Replicate => {
            let waits = broke && progress.next_index <= log.last();
            if waits || progress.inflights.full(limits.inflight_messages_max, limits.inflight_bytes_max) {
                progress.asks &= progress.next_index > progress.match_index.next();
                return std::mem::take(&mut progress.asks).then(|| Next::Append(empty_append(progress, log)));
            }
            if let Some(snapshot) = needs_snapshot(progress, log) {
                return Some(Next::Snapshot(snapshot));
            }
            false
        }
    };
    let probing = retry;
    let start = progress.next_index;
    if start > log.last() {
        let tells_commit = log.commit().min(start.prev()) > progress.sent_commit;
        let asks = std::mem::take(&mut progress.asks);
        return (probing || tells_commit || asks).then(|| Next::Append(empty_append(progress, log)));
    }
    let most = credit.as_ref().map_or(limits.append_bytes_max, |left| limits.append_bytes_max.min(**left));
    let (end, bytes) = extent(log, view, start, most);
    if let Some(left) = credit {
        *left = left.saturating_sub(bytes);
    }
    let (last, prev) = (end.prev(), start.prev());
    if !probing {
        if progress.inflights.messages() == 0 {
            progress.moved_at = now;
        }
        progress.inflights.add(last, bytes);
        progress.next_index = end;
    }
    progress.asks = false;
    progress.sent_commit = log.commit().min(last);
    Some(Next::Append(AppendEntries {
        prev_log_index: prev,
        prev_log_term: log.terms.term(prev).unwrap_or_default(),
        leader_commit: log.commit(),
        entries: Entries::Interval { last, last_term: log.terms.term(last).unwrap_or_default() },
    }))
}

/// The log no longer reaches back to what this follower needs.
fn needs_snapshot(progress: &mut Progress, log: &Log) -> Option<SnapshotMeta> {
    if log.terms.term(progress.next_index.prev()).is_some() {
        return None;
    }
    let snapshot = log.base_snapshot();
    progress.become_snapshot(snapshot.index);
    Some(snapshot)
}

/// An append without entries after everything that was sent.
fn empty_append(progress: &mut Progress, log: &Log) -> AppendEntries {
    let last = progress.next_index.prev();
    let last_term = log.terms.term(last).unwrap_or_default();
    progress.sent_commit = log.commit().min(last);
    AppendEntries {
        prev_log_index: last,
        prev_log_term: last_term,
        leader_commit: log.commit(),
        entries: Entries::Interval { last, last_term },
    }
}

/// The end (half-open) of the append that starts at `start`, and the bytes that the window counts for it.
fn extent(log: &Log, view: &dyn LogView, start: LogIndex, bytes_max: u64) -> (LogIndex, u64) {
    let fresh = log.handed().next();
    if start < fresh {
        // Sizes are in the host's index. The window counts the most that it can be: catch-up needs no fine measure.
        let end = view.extent(start..fresh, bytes_max);
        return (end.clamp(start.next(), fresh), bytes_max);
    }
    let entries = log.unstable();
    if start == fresh && log.unstable_bytes() <= bytes_max {
        return (log.last().next(), log.unstable_bytes());
    }
    #[expect(clippy::cast_possible_truncation, reason = "an offset into a vector")]
    let entries = &entries[(start.0 - fresh.0) as usize..];
    let mut bytes = 0;
    let mut end = start;
    for entry in entries {
        let size = entry.size_bytes();
        if end > start && bytes + size > bytes_max {
            break;
        }
        bytes += size;
        end = end.next();
    }
    (end, bytes)
}
