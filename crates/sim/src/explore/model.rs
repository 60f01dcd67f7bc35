//! What a model allows.

use pontoon_raft_core::{ConfigurationChange, MemberChange, ReplicaId, StoreId};

/// How disks answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// At once.
    AtOnce,
    /// As a step of its own: anything may happen between a write and its sync.
    Later,
}

/// How often each thing may still happen. Counted over the whole group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Bounds {
    /// Timeouts of replicas that do not lead.
    pub timeouts: u8,
    /// Heartbeats of leaders.
    pub heartbeats: u8,
    /// Long pauses of a leader: its clock jumps by two election timers.
    pub pauses: u8,
    /// Commands.
    pub proposals: u8,
    /// Power cuts.
    pub crashes: u8,
    /// Power cuts after which the last synced batch is lost too; the replica starts in doubt.
    pub losses: u8,
    /// Second deliveries of a message.
    pub duplicates: u8,
    /// Linearizable reads.
    pub reads: u8,
    /// Changes of the members; which ones is in the model.
    pub changes: u8,
    /// Compactions up to what is applied.
    pub compactions: u8,
    /// Transfers of leadership.
    pub transfers: u8,
}

impl Bounds {
    /// Whether everything may happen at least as often as `other` allows.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let all = |bounds: &Self| {
            let Self {
                timeouts,
                heartbeats,
                pauses,
                proposals,
                crashes,
                losses,
                duplicates,
                reads,
                changes,
                compactions,
                transfers,
            } = *bounds;
            [
                timeouts,
                heartbeats,
                pauses,
                proposals,
                crashes,
                losses,
                duplicates,
                reads,
                changes,
                compactions,
                transfers,
            ]
        };
        all(self).iter().zip(all(other)).all(|(most, least)| *most >= least)
    }
}

/// A small group, and what may happen to it.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// Replicas that vote from the start; numbered from 1.
    pub voters: u64,
    /// Replicas that know nothing and belong to nobody at the start; numbered after the voters.
    pub spares: u64,
    /// No replica goes beyond this term by itself.
    pub term_max: u64,
    /// Nothing is proposed to a log that is longer.
    pub log_max: u64,
    /// How disks answer.
    pub sync: Sync,
    /// Takes it for granted that an answer of a term older than its receiver's durable term means nothing, and forgets
    /// it. Without that, states that differ in such leftovers alone are many; with it, a core that heeds them would go
    /// unnoticed, so some models go without.
    pub forget_stale: bool,
    /// See `Config::pre_vote`.
    pub pre_vote: bool,
    /// See `Config::check_quorum`.
    pub check_quorum: bool,
    /// See `Config::append_bytes_max`: 1 sends entries one by one.
    pub append_bytes_max: u64,
    /// See `Config::inflight_messages_max`.
    pub inflight_messages_max: usize,
    /// How often each thing may happen.
    pub bounds: Bounds,
    /// Only snapshots come twice, no other messages.
    pub only_snapshots_twice: bool,
    /// Links, from one replica to another, on which every message is lost.
    pub dead_links: &'static [(u64, u64)],
    /// Who times out, in this order, if not anybody; then everything else is still free.
    pub campaigners: &'static [u64],
    /// The changes of members, in this order: add voter `n`, or remove `-n`, a few at once.
    pub changes: &'static [&'static [i64]],
    /// Whether changes stay in the joint configuration until they are told to leave it, by an empty change.
    pub explicit_joint: bool,
}

impl Model {
    /// What most models have in common: three voters, disks that answer at once, and nothing that may happen.
    pub const BASE: Self = Self {
        name: "",
        about: "",
        voters: 3,
        spares: 0,
        term_max: 2,
        log_max: 4,
        sync: Sync::AtOnce,
        forget_stale: true,
        pre_vote: false,
        check_quorum: false,
        append_bytes_max: 256 << 10,
        inflight_messages_max: 256,
        bounds: Bounds {
            timeouts: 0,
            heartbeats: 0,
            pauses: 0,
            proposals: 0,
            crashes: 0,
            losses: 0,
            duplicates: 0,
            reads: 0,
            changes: 0,
            compactions: 0,
            transfers: 0,
        },
        only_snapshots_twice: false,
        dead_links: &[],
        campaigners: &[],
        changes: &[],
        explicit_joint: false,
    };

    /// Changes one bound.
    ///
    /// # Errors
    /// There is no bound of that name; the text says which there are.
    pub fn bound(&mut self, name: &str, number: u8) -> Result<(), &'static str> {
        let bounds = &mut self.bounds;
        let which = match name {
            "timeouts" => &mut bounds.timeouts,
            "heartbeats" => &mut bounds.heartbeats,
            "pauses" => &mut bounds.pauses,
            "proposals" => &mut bounds.proposals,
            "crashes" => &mut bounds.crashes,
            "losses" => &mut bounds.losses,
            "duplicates" => &mut bounds.duplicates,
            "reads" => &mut bounds.reads,
            "changes" => &mut bounds.changes,
            "compactions" => &mut bounds.compactions,
            "transfers" => &mut bounds.transfers,
            "term_max" => {
                self.term_max = u64::from(number);
                return Ok(());
            }
            "log_max" => {
                self.log_max = u64::from(number);
                return Ok(());
            }
            _ => {
                return Err(
                    "no such bound; there are timeouts, heartbeats, pauses, proposals, crashes, losses, \
                            duplicates, reads, changes, compactions, transfers, term_max, log_max",
                );
            }
        };
        *which = number;
        Ok(())
    }

    /// The change of members that comes after `done` others.
    pub(super) fn change(&self, done: usize) -> Option<ConfigurationChange> {
        let changes = self.changes.get(done)?;
        let one = |n: &i64| {
            let id = replica(n.unsigned_abs());
            if *n > 0 { MemberChange::AddVoter(id) } else { MemberChange::Remove(id) }
        };
        let changes: Vec<_> = changes.iter().map(one).collect();
        Some(match (changes.is_empty(), self.explicit_joint) {
            (true, _) => ConfigurationChange::Leave,
            (false, true) => ConfigurationChange::EnterJoint(changes),
            (false, false) => ConfigurationChange::Change(changes),
        })
    }

    /// Whether a message from one to the other can arrive.
    pub(super) fn connects(&self, from: ReplicaId, to: ReplicaId) -> bool {
        !self.dead_links.contains(&(from.store.0, to.store.0))
    }

    /// Whether nobody asks who was heard when: that matters for leases of leadership, transfers and changes of members.
    pub(super) fn is_timeless(&self) -> bool {
        let Bounds { heartbeats, pauses, changes, transfers, .. } = self.bounds;
        !self.check_quorum && (heartbeats, pauses, changes, transfers) == (0, 0, 0, 0)
    }

    /// Whether the replicas are mirror images of each other.
    pub(super) fn is_symmetric(&self) -> bool {
        self.spares == 0
            && self.changes.is_empty()
            && self.campaigners.is_empty()
            && self.dead_links.is_empty()
    }
}

/// The replica on store `n`.
pub(super) fn replica(n: u64) -> ReplicaId {
    ReplicaId { store: StoreId(n), number: 1 }
}
