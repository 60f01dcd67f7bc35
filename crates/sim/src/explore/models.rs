//! The models that are run: the small ones in the tests, all by `pontoon-explore`.

use super::model::{Bounds, Model, Sync};

const NOTHING: Bounds = Model::BASE.bounds;

/// All models, the cheap ones first.
pub const MODELS: &[Model] = &[
    Model {
        name: "two-elections",
        about: "two replicas stand; disks answer at once; one power cut",
        bounds: Bounds { timeouts: 2, crashes: 1, ..NOTHING },
        ..Model::BASE
    },
    Model {
        name: "stale-votes",
        about: "a replica stands twice while another one stands too; answers to its first try are late",
        bounds: Bounds { timeouts: 3, ..NOTHING },
        campaigners: &[1, 1, 3],
        forget_stale: false,
        ..Model::BASE
    },
    Model {
        name: "pre-vote",
        about: "pre-votes and check-quorum: an election, a second one while the leader sleeps",
        bounds: Bounds { timeouts: 2, pauses: 1, ..NOTHING },
        pre_vote: true,
        check_quorum: true,
        ..Model::BASE
    },
    Model {
        name: "divergent-heartbeat",
        about: "a follower with an old leader's entry hears heartbeats of the new one",
        bounds: Bounds { timeouts: 2, heartbeats: 1, ..NOTHING },
        campaigners: &[3, 1],
        ..Model::BASE
    },
    Model {
        name: "divergent-probe",
        about: "a follower whose log goes on differently after a common begin is probed by the new leader",
        bounds: Bounds { timeouts: 2, heartbeats: 1, proposals: 1, ..NOTHING },
        campaigners: &[3, 1],
        log_max: 2,
        ..Model::BASE
    },
    Model {
        name: "reads",
        about: "a read while a second leader is elected",
        bounds: Bounds { timeouts: 2, reads: 1, ..NOTHING },
        campaigners: &[1, 2],
        ..Model::BASE
    },
    Model {
        name: "joint",
        about: "three voters become one through a joint configuration, while another one stands",
        bounds: Bounds { timeouts: 2, changes: 1, ..NOTHING },
        campaigners: &[1, 2],
        changes: &[&[-2, -3]],
        ..Model::BASE
    },
    Model {
        name: "joint-votes",
        about: "the leader of a joint change loses power and stands again, against one of the old members",
        bounds: Bounds { timeouts: 3, changes: 1, crashes: 1, ..NOTHING },
        campaigners: &[1, 1, 2],
        changes: &[&[-2, -3]],
        log_max: 2,
        ..Model::BASE
    },
    Model {
        name: "single-steps",
        about: "a member leaves and another joins, one by one, under two leaders (the bug of 2015)",
        bounds: Bounds { timeouts: 2, changes: 2, heartbeats: 1, ..NOTHING },
        campaigners: &[1, 2],
        changes: &[&[-3], &[4]],
        spares: 1,
        ..Model::BASE
    },
    Model {
        name: "snapshot",
        about: "a leader compacts while a follower lags; the snapshot comes twice",
        bounds: Bounds { timeouts: 1, proposals: 2, compactions: 1, duplicates: 1, ..NOTHING },
        only_snapshots_twice: true,
        log_max: 3,
        campaigners: &[1],
        ..Model::BASE
    },
    Model {
        name: "transfer",
        about: "leadership is handed over while another one stands",
        bounds: Bounds { timeouts: 2, transfers: 1, ..NOTHING },
        campaigners: &[1, 2],
        term_max: 3,
        ..Model::BASE
    },
    Model {
        name: "lost-record",
        about: "a store loses its last synced batch and starts in doubt, and another replica stands",
        bounds: Bounds { timeouts: 2, losses: 1, ..NOTHING },
        campaigners: &[1, 3],
        ..Model::BASE
    },
    Model {
        name: "forgotten-vote",
        about: "a voter loses the record of its vote, and acknowledges entries of the leader before",
        bounds: Bounds { timeouts: 2, losses: 1, proposals: 1, ..NOTHING },
        campaigners: &[1, 3],
        log_max: 2,
        ..Model::BASE
    },
    Model {
        name: "doubt-settles",
        about: "the same, and a leader settles the doubt while another one stands",
        bounds: Bounds { timeouts: 2, losses: 1, heartbeats: 2, proposals: 1, ..NOTHING },
        campaigners: &[1, 3],
        log_max: 3,
        ..Model::BASE
    },
    Model {
        name: "doubt-of-two",
        about: "a leader settles the doubt of the only one it can reach, whose forgotten vote is still under way to another",
        bounds: Bounds { timeouts: 3, losses: 1, heartbeats: 2, ..NOTHING },
        campaigners: &[1, 3, 3],
        dead_links: &[(1, 3), (3, 1)],
        ..Model::BASE
    },
    Model {
        name: "figure-8",
        about: "two leaders in turn who hear of each other through a third only, entries one by one: what old terms left must \
                not be counted (thesis 3.7)",
        bounds: Bounds { timeouts: 5, crashes: 1, ..NOTHING },
        // The second one finds the first term's vote given away and stands again.
        campaigners: &[1, 3, 3, 1, 3],
        dead_links: &[(1, 3), (3, 1)],
        term_max: 4,
        append_bytes_max: 1,
        ..Model::BASE
    },
    Model {
        name: "stale-leader",
        about: "three leaders, the power fails once, and appends of the first are still under way",
        bounds: Bounds { timeouts: 3, crashes: 1, ..NOTHING },
        campaigners: &[1, 2, 3],
        term_max: 3,
        ..Model::BASE
    },
    Model {
        name: "late-leader",
        about: "a leader is elected by late votes, after the next one has committed what the first one wrote",
        bounds: Bounds { timeouts: 3, ..NOTHING },
        campaigners: &[1, 2, 1],
        term_max: 3,
        ..Model::BASE
    },
    Model {
        name: "duplicates",
        about: "two leaders, a command, messages come twice",
        bounds: Bounds { timeouts: 2, proposals: 1, duplicates: 1, ..NOTHING },
        campaigners: &[1, 2],
        ..Model::BASE
    },
    Model {
        name: "slow-disks",
        about: "two leaders, slow disks: several writes in flight, some void",
        bounds: Bounds { timeouts: 2, ..NOTHING },
        campaigners: &[1, 3],
        sync: Sync::Later,
        ..Model::BASE
    },
    Model {
        name: "power-cut",
        about: "two leaders, slow disks, and what was not synced is lost once",
        bounds: Bounds { timeouts: 2, crashes: 1, ..NOTHING },
        campaigners: &[1, 3],
        sync: Sync::Later,
        ..Model::BASE
    },
    Model {
        name: "void-writes",
        about: "writes under way are overtaken by the next leader's; power is lost once, a message comes twice",
        bounds: Bounds { timeouts: 2, crashes: 1, duplicates: 1, ..NOTHING },
        campaigners: &[1, 3],
        sync: Sync::Later,
        ..Model::BASE
    },
    Model {
        name: "election",
        about: "three replicas stand in two terms, with slow disks and a power cut",
        bounds: Bounds { timeouts: 3, crashes: 1, ..NOTHING },
        sync: Sync::Later,
        ..Model::BASE
    },
    Model {
        name: "replication",
        about: "two leaders, a command, slow disks",
        bounds: Bounds { timeouts: 2, proposals: 1, ..NOTHING },
        sync: Sync::Later,
        ..Model::BASE
    },
];

/// The model of that name.
pub fn model(name: &str) -> Option<&'static Model> {
    MODELS.iter().find(|model| model.name == name)
}

/// Bounds under which a model is small enough to be seen whole within a minute.
const SMALL: &[(&str, &[(&str, u8)])] = &[
    ("two-elections", &[("crashes", 0)]),
    ("stale-votes", &[]),
    ("reads", &[("timeouts", 1)]),
    ("joint", &[("timeouts", 1)]),
    ("joint-votes", &[("crashes", 0)]),
    ("transfer", &[("timeouts", 1)]),
    ("lost-record", &[("timeouts", 1)]),
    ("figure-8", &[]),
    ("late-leader", &[("timeouts", 2)]),
    ("slow-disks", &[]),
    ("power-cut", &[("timeouts", 1)]),
    ("election", &[("timeouts", 2), ("crashes", 0)]),
    ("replication", &[("timeouts", 1)]),
];

/// The model, bounded so that all of its states can be seen soon; `None`: it has too many, however it is bounded.
pub fn exhaustible(model: &Model) -> Option<Model> {
    let (_, bounds) = SMALL.iter().find(|(name, _)| *name == model.name)?;
    let mut small = *model;
    for (bound, number) in *bounds {
        small.bound(bound, *number).ok()?;
    }
    Some(small)
}
