//! The status of one group.

use pontoon_proto::v1::{
    Election, ElectionReason, GroupServer, GroupStatus, MemberPhase, MemberStatus, ReplicaRole,
};
use serde::Serialize;

use super::connection::{ConnectionDocument, connection_table};
use super::kind_name;
use crate::cli::output::{Hex, or_dash, table};

/// `status --group NAME --output json`.
#[derive(Serialize)]
pub(super) struct GroupDocument {
    group: String,
    group_id: u64,
    kind: &'static str,
    cluster: Hex,
    store: Hex,
    name: String,
    address: String,
    status: &'static str,
    role: &'static str,
    term: u64,
    leader: Option<Hex>,
    vote: Option<Hex>,
    last_election: Option<ElectionDocument>,
    election_timer_ms: u64,
    election_timer_new_ms: Option<u64>,
    log_first: u64,
    log_last: u64,
    commit: u64,
    applied: u64,
    uncommitted: u64,
    unapplied: u64,
    connections: Vec<ConnectionDocument>,
    disconnections: u64,
    servers: Vec<ServerDocument>,
    /// The store's disk is nearly full.
    space_low: bool,
    /// The leader's flow control, in words.
    flow: String,
}

#[derive(Serialize)]
struct ElectionDocument {
    started_ms_ago: u64,
    reason: &'static str,
    won_ms_ago: Option<u64>,
}

#[derive(Serialize)]
struct ServerDocument {
    store: Hex,
    name: String,
    address: String,
    #[serde(rename = "self")]
    own: bool,
    role: &'static str,
    phase: &'static str,
    next_index: Option<u64>,
    match_index: Option<u64>,
    last_msg_ms_ago: Option<u64>,
}

impl From<GroupStatus> for GroupDocument {
    fn from(group: GroupStatus) -> Self {
        Self {
            kind: kind_name(group.kind()),
            status: match group.status() {
                MemberStatus::ClusterMember => "cluster member",
                MemberStatus::Joining => "joining cluster",
                MemberStatus::Leaving => "leaving cluster",
                MemberStatus::Left => "left cluster",
                MemberStatus::Failed => "failed",
                MemberStatus::Disconnected => "disconnected from the cluster (election timeout)",
                MemberStatus::InDoubt => "in doubt (its last log record was torn or damaged)",
                MemberStatus::Unspecified => "unknown",
            },
            role: match group.role() {
                ReplicaRole::Leader => "leader",
                ReplicaRole::Follower => "follower",
                ReplicaRole::Candidate => "candidate",
                ReplicaRole::Learner => "learner",
                ReplicaRole::Unspecified => "unknown",
            },
            group: group.group,
            group_id: group.group_id,
            cluster: Hex(group.cluster),
            store: Hex(group.store),
            name: group.name,
            address: group.address,
            term: group.term,
            leader: group.leader.map(Hex),
            vote: group.vote.map(Hex),
            last_election: group.last_election.map(ElectionDocument::from),
            election_timer_ms: group.election_timer_ms,
            election_timer_new_ms: group.election_timer_new_ms,
            log_first: group.log_first,
            log_last: group.log_last,
            commit: group.commit,
            applied: group.applied,
            // A store answers from one moment, but a bad answer must not bring the command down.
            uncommitted: group.log_last.saturating_sub(group.commit),
            unapplied: group.commit.saturating_sub(group.applied),
            connections: group.connections.into_iter().map(ConnectionDocument::from).collect(),
            disconnections: group.disconnections,
            servers: group.servers.into_iter().map(ServerDocument::from).collect(),
            space_low: group.space_low,
            flow: group.flow,
        }
    }
}

impl From<Election> for ElectionDocument {
    fn from(election: Election) -> Self {
        Self {
            reason: match election.reason() {
                ElectionReason::Timeout => "timeout",
                ElectionReason::LeadershipTransfer => "leadership_transfer",
                ElectionReason::Unspecified => "unknown",
            },
            started_ms_ago: election.started_ms_ago,
            won_ms_ago: election.won_ms_ago,
        }
    }
}

impl From<GroupServer> for ServerDocument {
    fn from(server: GroupServer) -> Self {
        Self {
            phase: match server.phase() {
                MemberPhase::Stable => "stable",
                MemberPhase::CatchUp => "catch-up",
                MemberPhase::CaughtUp => "caught up",
                MemberPhase::Committing => "committing",
                MemberPhase::Remove => "remove",
                MemberPhase::Unspecified => "unknown",
            },
            store: Hex(server.store),
            name: server.name,
            address: server.address,
            own: server.self_,
            role: if server.learner { "learner" } else { "voter" },
            next_index: server.next_index,
            match_index: server.match_index,
            last_msg_ms_ago: server.last_msg_ms_ago,
        }
    }
}

impl GroupDocument {
    /// For people: the group's figures, then its members, then its connections.
    pub(super) fn table(&self) -> String {
        let name_of = |id: Hex| {
            let server = self.servers.iter().find(|server| server.store == id);
            server.map_or_else(|| id.to_string(), |server| format!("{} ({id})", server.name))
        };
        let election = self.last_election.as_ref().map(|election| {
            let won = election.won_ms_ago.map_or_else(|| "not won".into(), |ms| format!("won {ms} ms ago"));
            format!("started {} ms ago ({}), {won}", election.started_ms_ago, election.reason)
        });
        let new_timer =
            self.election_timer_new_ms.map_or_else(String::new, |ms| format!(", changing to {ms} ms"));
        let fields = [
            ("group", format!("{} ({} {})", self.group, self.kind, self.group_id)),
            ("cluster", self.cluster.to_string()),
            ("store", format!("{} ({}) at {}", self.name, self.store, self.address)),
            (
                "status",
                if self.space_low { format!("{}, no space", self.status) } else { self.status.to_owned() },
            ),
            ("role", self.role.to_owned()),
            ("term", self.term.to_string()),
            ("leader", or_dash(self.leader.map(name_of))),
            ("vote", or_dash(self.vote.map(name_of))),
            ("last election", or_dash(election)),
            ("election timer", format!("{} ms{new_timer}", self.election_timer_ms)),
            ("log", format!("[{}, {}]", self.log_first, self.log_last)),
            ("committed", format!("{} ({} not yet)", self.commit, self.uncommitted)),
            ("applied", format!("{} ({} not yet)", self.applied, self.unapplied)),
            ("disconnections", self.disconnections.to_string()),
            ("flow control", or_dash(Some(self.flow.clone()).filter(|flow| !flow.is_empty()))),
        ];
        let fields = table(&["field", "value"], fields.map(|(field, value)| [field.to_owned(), value]));
        let servers = table(
            &["member", "store", "address", "role", "phase", "next>", "match>", "heard ms ago>"],
            self.servers.iter().map(|server| {
                [
                    if server.own { format!("{} (self)", server.name) } else { server.name.clone() },
                    server.store.to_string(),
                    server.address.clone(),
                    server.role.to_owned(),
                    server.phase.to_owned(),
                    or_dash(server.next_index),
                    or_dash(server.match_index),
                    or_dash(server.last_msg_ms_ago),
                ]
            }),
        );
        let connections = connection_table(&self.connections, name_of);
        format!("{fields}\n\n{servers}\n\n{connections}")
    }
}

#[cfg(test)]
mod tests {
    use pontoon_proto::v1::GroupKind;

    use super::super::connection::example;
    use super::*;

    #[test]
    fn the_groups_document_has_the_contracts_fields() {
        let (connection, connection_json) = example();
        let status = GroupStatus {
            group: "default".into(),
            group_id: 1,
            kind: GroupKind::Kv.into(),
            cluster: 0xc,
            store: 1,
            name: "n1".into(),
            address: "h:1".into(),
            status: MemberStatus::ClusterMember.into(),
            role: ReplicaRole::Leader.into(),
            term: 3,
            leader: Some(1),
            vote: None,
            last_election: Some(Election {
                started_ms_ago: 5,
                reason: ElectionReason::LeadershipTransfer.into(),
                won_ms_ago: Some(4),
            }),
            election_timer_ms: 1000,
            election_timer_new_ms: None,
            log_first: 2,
            log_last: 90,
            commit: 89,
            applied: 87,
            connections: vec![connection],
            disconnections: 0,
            servers: vec![GroupServer {
                store: 2,
                name: "n2".into(),
                address: "h:2".into(),
                self_: false,
                learner: false,
                phase: MemberPhase::Stable.into(),
                next_index: Some(91),
                match_index: Some(90),
                last_msg_ms_ago: Some(12),
            }],
            space_low: true,
            flow: "group 1".into(),
        };
        let document = GroupDocument::from(status);
        let expected = serde_json::json!({
            "group": "default", "group_id": 1, "kind": "kv", "cluster": "000000000000000c",
            "store": "0000000000000001", "name": "n1", "address": "h:1",
            "status": "cluster member", "role": "leader", "term": 3,
            "leader": "0000000000000001", "vote": null,
            "last_election": { "started_ms_ago": 5, "reason": "leadership_transfer", "won_ms_ago": 4 },
            "election_timer_ms": 1000, "election_timer_new_ms": null,
            "log_first": 2, "log_last": 90, "commit": 89, "applied": 87, "uncommitted": 1, "unapplied": 2,
            "connections": [connection_json],
            "disconnections": 0,
            "servers": [{
                "store": "0000000000000002", "name": "n2", "address": "h:2", "self": false, "role": "voter",
                "phase": "stable", "next_index": 91, "match_index": 90, "last_msg_ms_ago": 12
            }],
            "space_low": true, "flow": "group 1"
        });
        assert_eq!(serde_json::to_value(&document).expect("plain"), expected);
        let table = document.table();
        assert!(table.contains("n2 (0000000000000002)") && table.contains("[2, 90]"), "{table}");
        assert!(table.contains("connection refused by h:2") && table.contains("member, no space"), "{table}");
    }
}
