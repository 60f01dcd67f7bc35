//! Failures that are made on purpose, so that tests meet a running process at its most delicate points. The names are those of
//! ovsdb's `cluster/failure-test`; what each does here is said with it. Besides, the driver of whatever takes several steps
//! can be made to die at each of them ([`CrashPoint`]).
//!
//! Nothing of this is reached unless the process was told to allow it ([`Failures::new`]); then each point costs one look at a
//! byte in memory.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use pontoon_raft_core::message::{AppendEntries, Body, Entries, Heartbeat, Message};
use pontoon_raft_core::types::{Configuration, Entry, GroupId, LogIndex, Payload, StoreId};
use pontoon_storage::NoSpace;
use pontoon_transport::{Direction, Transport};

use crate::crash_points::{CrashPoint, DriverStep};
use crate::flow::Flow;
use crate::group_host::GroupHost;
use crate::hand_over::{self, DiskHealth};
use crate::routing::{RETRY_MS, route_commands};

/// How long a process that is to die after sending waits for its peers to have read what it sent.
const SENT_MAX: Duration = Duration::from_secs(1);

macro_rules! tests {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A failure that is made on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FailureTest {
            $($(#[$doc])* $variant,)*
        }

        impl FailureTest {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it is called.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

tests! {
    /// The process dies when a leader is about to send entries.
    CrashBeforeSendingAppendRequest = "crash-before-sending-append-request",
    /// The process dies when a leader has sent entries, and its peers' processes have read them.
    CrashAfterSendingAppendRequest = "crash-after-sending-append-request",
    /// The process dies when a command that another store relayed is committed and nobody was told.
    CrashBeforeSendingExecuteCommandReply = "crash-before-sending-execute-command-reply",
    /// The process dies when its followers have heard that a relayed command is committed.
    CrashAfterSendingExecuteCommandReply = "crash-after-sending-execute-command-reply",
    /// The process dies when it is about to relay a command to a leader.
    CrashBeforeSendingExecuteCommandRequest = "crash-before-sending-execute-command-request",
    /// The process dies when it has relayed a command, and the leader's process has read it.
    CrashAfterSendingExecuteCommandRequest = "crash-after-sending-execute-command-request",
    /// The process dies when it has received entries, before it writes them.
    CrashAfterReceivingAppendRequestUpdate = "crash-after-receiving-append-request-update",
    /// The process dies when its log durably begins with a received snapshot, before its state does and before it says so.
    CrashBeforeSendingInstallSnapshotReply = "crash-before-sending-install-snapshot-reply",
    /// Each election is put off by one more election timer.
    DelayElection = "delay-election",
    /// Nobody is asked for a vote, or whether an election would be won.
    DontSendVoteRequest = "dont-send-vote-request",
    /// No message of a group is sent or taken; the connections stay up, and are probed.
    StopRaftRpc = "stop-raft-rpc",
    /// Each group that is led here is handed over, once in each term.
    TransferLeadership = "transfer-leadership",
    /// A group that is led here is handed over when entries were sent, once in each term.
    TransferLeadershipAfterSendingAppendRequest = "transfer-leadership-after-sending-append-request",
}

impl fmt::Display for FailureTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FailureTest {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.iter().find(|test| test.name() == text).copied().ok_or(())
    }
}

/// What can be made to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Injection {
    /// One of ovsdb's.
    Test(FailureTest),
    /// The process dies at a step of something that it drives.
    Crash(CrashPoint),
}

impl Injection {
    /// Never 0, and different for each.
    const fn code(self) -> u8 {
        match self {
            Self::Test(test) => test as u8 + 1,
            Self::Crash(CrashPoint { step, after }) => FIRST_CRASH_CODE + 2 * step as u8 + after as u8,
        }
    }
}

const FIRST_CRASH_CODE: u8 = FailureTest::ALL.len() as u8 + 1;
const _: () = assert!(FIRST_CRASH_CODE as usize + 2 * DriverStep::ALL.len() <= u8::MAX as usize + 1);

impl fmt::Display for Injection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Test(test) => test.fmt(f),
            Self::Crash(point) => point.fmt(f),
        }
    }
}

/// No failure is called so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no failure test {0:?}; there are {tests}, `clear`, and crash-before-STEP and crash-after-STEP, where a STEP is \
     one of {steps}",
    tests = FailureTest::ALL.iter().map(|t| t.name()).collect::<Vec<_>>().join(", "),
    steps = DriverStep::ALL.iter().map(|s| s.name()).collect::<Vec<_>>().join(", ")
)]
pub struct UnknownFailureTest(String);

impl FromStr for Injection {
    type Err = UnknownFailureTest;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let test = text.parse().map(Self::Test);
        test.or_else(|()| text.parse().map(Self::Crash)).map_err(|_| UnknownFailureTest(text.to_owned()))
    }
}

/// Failures may not be made in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failures may not be made here; only a store that was started with --enable-failure-injection makes them"
)]
pub struct FailuresForbidden;

/// Which failure is to be made in this process.
#[derive(Debug, Default)]
pub struct Failures {
    allowed: bool,
    /// An [`Injection::code`]; 0: none.
    armed: AtomicU8,
}

impl Failures {
    /// None yet. A process of production must not have them `allowed`: whoever may ask for one can end the process.
    #[must_use]
    pub fn new(allowed: bool) -> Arc<Self> {
        Arc::new(Self { allowed, armed: AtomicU8::new(0) })
    }

    /// From now on this one is made, or none.
    ///
    /// # Errors
    /// The process was not told to allow it.
    pub fn arm(&self, failure: Option<Injection>) -> Result<(), FailuresForbidden> {
        if !self.allowed {
            return Err(FailuresForbidden);
        }
        self.armed.store(failure.map_or(0, Injection::code), Ordering::Relaxed);
        Ok(())
    }

    /// Whether they may be made.
    #[must_use]
    pub fn allowed(&self) -> bool {
        self.allowed
    }

    /// Whoever drives something comes by here; it dies if that is wished.
    pub fn reach(&self, point: CrashPoint) {
        if self.armed.load(Ordering::Relaxed) == Injection::Crash(point).code() {
            die(point);
        }
    }

    pub(crate) fn is(&self, test: FailureTest) -> bool {
        self.armed.load(Ordering::Relaxed) == Injection::Test(test).code()
    }

    /// Whether it is armed; it is not any more after this.
    fn take(&self, test: FailureTest) -> bool {
        let code = Injection::Test(test).code();
        self.armed.compare_exchange(code, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    /// Dies here, if that is wished.
    pub(crate) fn crash_if(&self, test: FailureTest) {
        if self.is(test) {
            die(test);
        }
    }

    /// Dies when this store has read what was sent to it, if that is wished.
    pub(crate) fn crash_when_sent(&self, test: FailureTest, transport: &Transport, to: StoreId) {
        if !self.take(test) {
            return;
        }
        let transport = transport.clone();
        tokio::spawn(async move {
            let read = async {
                loop {
                    let links = transport.links();
                    let waits = |l: &pontoon_transport::LinkStatus| {
                        l.direction == Direction::Outbound
                            && l.connected
                            && l.store == to
                            && l.queued_bytes + l.in_flight_bytes > 0
                    };
                    if !links.iter().any(waits) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            // That it reads nothing is no reason to live on.
            let _ = tokio::time::timeout(SENT_MAX, read).await;
            die(test);
        });
    }

    /// Whether no message of a group passes.
    pub(crate) fn is_deaf(&self) -> bool {
        self.is(FailureTest::StopRaftRpc)
    }

    /// Whether a message is kept back.
    pub(crate) fn keeps_back(&self, message: &Message) -> bool {
        match message.body {
            Body::PreVote(_) | Body::RequestVote(_) => {
                self.is(FailureTest::DontSendVoteRequest) || self.is_deaf()
            }
            _ => self.is_deaf(),
        }
    }

    /// A message is about to be taken.
    pub(crate) fn received(&self, message: &Message) {
        if let Body::AppendEntries(AppendEntries { entries: Entries::Inline(entries), .. }) = &message.body
            && !entries.is_empty()
        {
            self.crash_if(FailureTest::CrashAfterReceivingAppendRequestUpdate);
        }
    }

    /// The group's deadline has come: it is passed on, or put off.
    pub(crate) fn tick(&self, host: &mut GroupHost, now: u64, disk: DiskHealth) {
        if self.is(FailureTest::DelayElection)
            && !host.core.is_leader()
            && let Some(deadline) = host.core.next_deadline().filter(|at| *at <= now)
        {
            let put_off = host.hand_over.put_off_until;
            if !put_off.is_some_and(|until| deadline <= until && until <= now) {
                let until = put_off
                    .filter(|until| *until > now)
                    .unwrap_or_else(|| now + host.core.election_timer_ms());
                host.hand_over.put_off_until = Some(until);
                host.hand_over.hold_until = Some(until);
                return;
            }
        }
        host.hand_over.put_off_until = None;
        hand_over::tick(host, now, disk);
    }

    /// A group is looked at: leaderships that are to be handed over.
    pub(crate) fn look(&self, host: &mut GroupHost, now: u64) {
        if self.is(FailureTest::TransferLeadership) {
            hand_over_once(host, now, FailureTest::TransferLeadership);
        }
    }

    /// [`route_commands`], with the points before and behind it.
    pub(crate) fn route(
        &self,
        host: &mut GroupHost,
        transport: &Transport,
        flow: &Flow,
        now: u64,
        no_space: Option<&NoSpace>,
    ) {
        let waits = host.retry_at.is_some_and(|at| at > now);
        let leader = host.core.leader().filter(|_| !host.core.is_leader() && !waits);
        let before = host.arrived.len();
        let Some(leader) = leader.filter(|_| before > 0) else {
            return route_commands(host, transport, flow, now, no_space);
        };
        if self.is_deaf() {
            host.retry_at = Some(now + RETRY_MS);
            return;
        }
        self.crash_if(FailureTest::CrashBeforeSendingExecuteCommandRequest);
        route_commands(host, transport, flow, now, no_space);
        if host.arrived.len() < before {
            let test = FailureTest::CrashAfterSendingExecuteCommandRequest;
            self.crash_when_sent(test, transport, leader.store);
        }
    }

    /// These entries are committed: a leader knows it now, and nobody else.
    pub(crate) fn committed(&self, host: &GroupHost, committed: &Range<LogIndex>) {
        if host.core.is_leader() && committed.contains(&host.relayed_upto) {
            self.crash_if(FailureTest::CrashBeforeSendingExecuteCommandReply);
        }
        if let Some((index, step)) = host.failure_members.entry
            && committed.contains(&index)
        {
            self.reach(step.after());
        }
    }

    /// A leader is asked to change its members: what they are before.
    pub(crate) fn asked_to_change(&self, host: &mut GroupHost) {
        if self.allowed && host.failure_members.before.is_none() {
            host.failure_members.before = Some(host.core.configuration().clone());
        }
    }

    /// A leader is about to write entries, which nobody has seen.
    pub(crate) fn appends(&self, host: &mut GroupHost, entries: &[Entry]) {
        let Some(before) = &mut host.failure_members.before else { return };
        for entry in entries {
            if let Payload::Configuration(new) = &entry.payload {
                let step = step_of(before, new);
                before.clone_from(new);
                host.failure_members.entry = step.map(|step| (entry.index, step));
                if let Some(step) = step {
                    self.reach(step.before());
                }
            }
        }
    }

    /// These messages are about to be sent; `relayed_upto` tells of a group that is led here the last command that another
    /// store relayed. Returns what [`Self::sent`] has to know.
    pub(crate) fn sends(
        &self,
        messages: &[(GroupId, Message)],
        relayed_upto: impl Fn(GroupId) -> Option<LogIndex>,
    ) -> Sends {
        let mut sends = Sends::default();
        if self.armed.load(Ordering::Relaxed) == 0 {
            return sends;
        }
        for (group, message) in messages {
            let leader_commit = match &message.body {
                Body::AppendEntries(append) => {
                    if has_entries(append) {
                        sends.entries.push(*group);
                    }
                    append.leader_commit
                }
                Body::Heartbeat(Heartbeat { leader_commit, .. }) => *leader_commit,
                _ => continue,
            };
            sends.replies |=
                relayed_upto(*group).is_some_and(|upto| upto > LogIndex::ZERO && leader_commit >= upto);
        }
        if !sends.entries.is_empty() {
            self.crash_if(FailureTest::CrashBeforeSendingAppendRequest);
        }
        sends
    }

    /// They were given to the transport.
    pub(crate) fn sent(&self, transport: &Transport, to: StoreId, sends: &Sends) {
        if !sends.entries.is_empty() {
            self.crash_when_sent(FailureTest::CrashAfterSendingAppendRequest, transport, to);
        }
        if sends.replies {
            self.crash_when_sent(FailureTest::CrashAfterSendingExecuteCommandReply, transport, to);
        }
    }

    /// Entries of a group were sent: its leadership may have to be handed over.
    pub(crate) fn after_sending(&self, host: &mut GroupHost, now: u64) {
        let test = FailureTest::TransferLeadershipAfterSendingAppendRequest;
        if self.is(test) {
            hand_over_once(host, now, test);
        }
    }
}

/// What one configuration does to the one before.
fn step_of(before: &Configuration, new: &Configuration) -> Option<DriverStep> {
    if !before.members().is_subset(&new.members()) {
        Some(DriverStep::RemovalEntry)
    } else if !new.voters.is_subset(&before.voters) {
        Some(DriverStep::VoterEntry)
    } else if !new.learners.is_subset(&before.learners) {
        Some(DriverStep::LearnerEntry)
    } else {
        None
    }
}

/// What a group remembers of its changes of members, where failures are allowed.
#[derive(Debug, Default)]
pub(crate) struct MemberSteps {
    /// The configuration before the next change.
    before: Option<Configuration>,
    /// The last change that this leader appended.
    entry: Option<(LogIndex, DriverStep)>,
}

/// What a round sends to one store.
#[derive(Debug, Default)]
pub(crate) struct Sends {
    /// The groups with entries in it.
    pub(crate) entries: Vec<GroupId>,
    /// It tells that a relayed command is committed.
    replies: bool,
}

/// Ends the process as a kill would: nothing is flushed, handed over or closed.
fn die(test: impl fmt::Display) -> ! {
    tracing::error!(%test, "failure test: the process dies here");
    std::process::abort()
}

fn has_entries(append: &AppendEntries) -> bool {
    match &append.entries {
        Entries::Interval { last, .. } => *last > append.prev_log_index,
        Entries::Inline(entries) => !entries.is_empty(),
    }
}

/// Once in each term that is led: somebody else may give it back.
fn hand_over_once(host: &mut GroupHost, now: u64, test: FailureTest) {
    let term = host.core.term();
    if !host.core.is_leader() || host.failure_handed_over == Some(term) {
        return;
    }
    match host.core.transfer_leadership(now, None) {
        Ok(()) => {
            host.failure_handed_over = Some(term);
            tracing::info!(group = %host.shared.id, %test, "failure test: leadership is handed over");
        }
        Err(error) => {
            tracing::debug!(group = %host.shared.id, %error, "failure test: leadership stays for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_thirteen_by_the_names_of_ovsdb_and_none_without_permission() {
        assert_eq!(FailureTest::ALL.len(), 13);
        for test in FailureTest::ALL {
            assert_eq!(test.name().parse(), Ok(Injection::Test(*test)));
        }
        let error = "clear".parse::<Injection>().expect_err("no test").to_string();
        assert!(error.contains("stop-raft-rpc") && error.contains("`clear`"), "{error}");
        assert!(error.contains("crash-after-STEP") && error.contains("forget-store"), "{error}");
        let forbidden = Failures::new(false);
        assert_eq!(forbidden.arm(Some(Injection::Test(FailureTest::StopRaftRpc))), Err(FailuresForbidden));
        assert!(!forbidden.is_deaf());
        let allowed = Failures::new(true);
        assert_eq!(allowed.arm(Some(Injection::Test(FailureTest::StopRaftRpc))), Ok(()));
        assert!(allowed.is_deaf() && !allowed.is(FailureTest::DelayElection));
        assert_eq!(allowed.arm(None), Ok(()));
        assert!(FailureTest::ALL.iter().all(|test| !allowed.is(*test)));
    }

    #[test]
    fn each_failure_has_a_code_of_its_own() {
        let tests = FailureTest::ALL.iter().map(|test| Injection::Test(*test));
        let all: Vec<_> = tests.chain(CrashPoint::all().map(Injection::Crash)).collect();
        let codes: std::collections::BTreeSet<_> = all.iter().map(|failure| failure.code()).collect();
        assert_eq!(codes.len(), all.len());
        assert!(!codes.contains(&0));
        for failure in all {
            assert_eq!(failure.to_string().parse(), Ok(failure));
        }
    }

    #[test]
    fn a_configuration_is_known_by_what_it_changes() {
        let id = |store| pontoon_raft_core::types::ReplicaId { store: StoreId(store), number: 1 };
        let two = Configuration::of_voters([id(1), id(2)]);
        let learner = Configuration { learners: [id(3)].into(), ..two.clone() };
        let three = Configuration::of_voters([id(1), id(2), id(3)]);
        assert_eq!(step_of(&two, &learner), Some(DriverStep::LearnerEntry));
        assert_eq!(step_of(&learner, &three), Some(DriverStep::VoterEntry));
        assert_eq!(step_of(&three, &two), Some(DriverStep::RemovalEntry));
        assert_eq!(step_of(&learner, &two), Some(DriverStep::RemovalEntry));
        assert_eq!(step_of(&two, &two), None);
    }
}
