//! One run: bad weather, then everything heals and the group must show that it lives.

use std::collections::BTreeMap;
use std::fmt;

use pontoon_raft_core::{GroupId, ReplicaId, StoreId};

use super::cluster::{Cluster, Event};
use super::invariants::{Violation, violated};

/// After the weather the group must commit within this time: a few of the longest election timers that the weather can
/// set (2.5 s), and the disk's and the network's delays.
const HEALING_MS: u64 = 60_000;

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Equal for equal runs.
    pub fingerprint: u64,
    /// Groups that took part.
    pub groups: u64,
    /// Events that happened.
    pub events: u64,
    /// Commands that clients were told are done.
    pub acknowledged: usize,
    /// Reads that were served.
    pub reads: u64,
    /// Terms that passed, in the group with most of them.
    pub terms: u64,
    /// How often each kind of fault and of rare event happened.
    pub counts: BTreeMap<&'static str, u64>,
    /// What happened, if the trace was kept.
    pub trace: Vec<String>,
}

/// What many runs did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    seeds: u64,
    groups: u64,
    events: u64,
    acknowledged: u64,
    reads: u64,
    terms: u64,
    counts: BTreeMap<&'static str, u64>,
}

impl Totals {
    /// One more.
    pub fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.groups += report.groups;
        self.events += report.events;
        self.acknowledged += report.acknowledged as u64;
        self.reads += report.reads;
        self.terms += report.terms;
        for (kind, count) in &report.counts {
            *self.counts.entry(kind).or_default() += count;
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seeds, groups, events, acknowledged, reads, terms, counts } = self;
        write!(
            f,
            "{seeds} seeds, {groups} groups, {events} events, {acknowledged} commands acknowledged, {reads} reads served, \
             {terms} terms"
        )?;
        counts.iter().try_for_each(|(kind, count)| write!(f, ", {count} {kind}"))
    }
}

/// A run that broke a property.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// Simulated milliseconds.
    pub at_ms: u64,
    /// What broke.
    pub violation: Violation,
    /// What happened, if the trace was kept.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, at_ms, violation, .. } = self;
        write!(
            f,
            "seed {seed} broke \"{}\" at {at_ms} ms: {}\nreplay: cargo run --release -p pontoon-sim --no-default-features \
             --bin pontoon-seeds -- --first {seed} --seeds 1 --trace",
            violation.invariant, violation.detail
        )
    }
}

/// Runs one seed. `keep_trace` keeps the events for people.
///
/// # Errors
/// A property was broken.
pub fn run(seed: u64, keep_trace: bool) -> Result<Report, Box<Failure>> {
    let mut cluster = Cluster::new(seed, keep_trace);
    match weather(&mut cluster).and_then(|()| healing(&mut cluster)) {
        Ok(()) => {
            let cores = cluster.stores.values().flat_map(|store| store.replicas.values());
            let terms = cores.filter_map(|host| host.group.as_ref()).map(|core| core.term().0);
            Ok(Report {
                seed,
                fingerprint: cluster.trace.fingerprint(),
                groups: cluster.profile.groups,
                events: cluster.events,
                acknowledged: cluster.groups.values().map(|g| g.invariants.acknowledged.len()).sum(),
                reads: cluster.groups.values().map(|g| g.invariants.reads.served).sum(),
                terms: terms.max().unwrap_or(0),
                counts: cluster.trace.counts().clone(),
                trace: cluster.trace.lines().to_vec(),
            })
        }
        Err(violation) => Err(Box::new(Failure {
            seed,
            at_ms: cluster.now,
            violation,
            trace: cluster.trace.lines().to_vec(),
        })),
    }
}

fn weather(cluster: &mut Cluster) -> Result<(), Violation> {
    while cluster.step(cluster.profile.duration_ms)? {}
    Ok(())
}

/// Everything comes back: soon the newest leaders' members must all have what was written last, in every group.
fn healing(cluster: &mut Cluster) -> Result<(), Violation> {
    cluster.network.healed = true;
    cluster.network.mend();
    // Slow enough that every window catches up.
    cluster.profile.request_every_ms = cluster.profile.request_every_ms.max(600);
    let ids: Vec<StoreId> = cluster.stores.keys().copied().collect();
    for id in &ids {
        let now = cluster.now;
        let store = cluster.store_mut(*id);
        store.paused_until = store.paused_until.min(now);
        store.disk.hangs_until = 0;
        let local = store.local(now);
        for core in store.replicas.values_mut().filter_map(|replica| replica.group.as_mut()) {
            // The transport takes everything again.
            for peer in core.configuration().members() {
                core.send_credit(local, peer, None);
            }
        }
        cluster.after(0, Event::Restart(*id));
    }
    let end = cluster.now + HEALING_MS;
    let mut open: Vec<GroupId> = cluster.groups.keys().copied().collect();
    while cluster.now < end {
        let slice = (cluster.now + 500).min(end);
        while cluster.step(slice)? {}
        open.retain(|group| !cluster.leader(*group).is_some_and(|leader| agreed(cluster, *group, leader)));
        if open.is_empty() {
            return finish(cluster);
        }
    }
    let group = open[0];
    let cores = cluster.stores.values().filter_map(|store| store.replicas.get(&group)?.group.as_ref());
    let states: Vec<_> = cores.map(|core| format!("\n  {}", core.status())).collect();
    let waiting = cluster.groups[&group].invariants.reads.waiting();
    let detail = format!(
        "group {group} (and {} more): no agreement {HEALING_MS} ms after healing; {waiting} reads wait{}",
        open.len() - 1,
        states.concat()
    );
    violated("liveness", detail)
}

/// Whether all members have executed an entry of the leader's term, and nearly everything it had.
fn agreed(cluster: &Cluster, group: GroupId, leader: ReplicaId) -> bool {
    let host = |id: &ReplicaId| &cluster.stores[&id.store].replicas[&group];
    let Some(leading) = host(&leader).group.as_ref() else { return false };
    let term = leading.term();
    let commit = leading.commit_index();
    leading.entry_term(commit) == Some(term)
        && leading.configuration().members().iter().all(|id| {
            let host = host(id);
            host.group.as_ref().is_some_and(|core| core.term() == term && core.leader() == Some(leader))
                && host.machine.applied.0 + 40 > commit.0
        })
}

/// The last words: a write that everybody executes; no reader is left waiting; and everything that clients were told makes
/// sense.
fn finish(cluster: &mut Cluster) -> Result<(), Violation> {
    cluster.profile.request_every_ms = 1 << 40;
    // Requests that are on their way, and reads.
    let settled = cluster.now + 15_000;
    while cluster.step(settled)? {}
    let groups: Vec<GroupId> = cluster.groups.keys().copied().collect();
    for group in &groups {
        if let Some(leader) = cluster.leader(*group) {
            cluster.write(leader.store, *group, 3)?;
        }
    }
    let settled = cluster.now + 15_000;
    while cluster.step(settled)? {}
    groups.into_iter().try_for_each(|group| finished(cluster, group))
}

fn finished(cluster: &Cluster, group: GroupId) -> Result<(), Violation> {
    let state = &cluster.groups[&group];
    let waiting = state.invariants.reads.waiting();
    if waiting > 0 {
        return violated("one answer per read", format!("group {group}: {waiting} reads never ended"));
    }
    let host = |id: &ReplicaId| &cluster.stores[&id.store].replicas[&group];
    let leader = cluster.leader(group);
    let Some(leading) = leader.and_then(|id| host(&id).group.as_ref()) else {
        return violated("liveness", format!("group {group}: the leader is gone again"));
    };
    for id in leading.configuration().members() {
        let machine = &host(&id).machine;
        if machine.applied != leading.last_index() {
            let (at, last) = (machine.applied, leading.last_index());
            let detail = format!("group {group}: {id} executed up to {at}, the log ends at {last}");
            return violated("liveness", detail);
        }
        state.invariants.acknowledged.check(machine)?;
    }
    state.clients.check(group, &host(&leading.id()).machine)
}
