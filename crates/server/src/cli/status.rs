//! `pontoon status`: the cluster, or one group, as one store sees it.
//!
//! The field names of the JSON documents are a contract with scripts; a field is never renamed or removed.

use anyhow::bail;
use clap::Args;
use pontoon_proto::v1::status_response::View;
use pontoon_proto::v1::{ClusterStatus, GroupKind, GroupSummary, StatusRequest, StoreState, StoreSummary};
use serde::Serialize;

use self::connection::{ConnectionDocument, connection_table};
use self::flow::FlowDocument;
use super::Global;
use super::connect::{Repeat, ask};
use super::output::{Hex, or_dash, table};

mod connection;
mod flow;
mod group;

/// Flags of `status`.
#[derive(Args, Debug)]
pub(crate) struct StatusArgs {
    /// Show this group: a keyspace's name, or `meta` [default: the whole cluster]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
}

/// A store in `status` and `store list`.
#[derive(Serialize)]
pub(crate) struct StoreRow {
    store: Hex,
    name: String,
    address: String,
    client: String,
    state: &'static str,
    leaders: u64,
    replicas: u64,
    alive: bool,
    /// Why, if `state` is `fenced`.
    fenced: Option<String>,
}

impl From<StoreSummary> for StoreRow {
    fn from(store: StoreSummary) -> Self {
        let state = state_name(store.state());
        Self {
            store: Hex(store.store),
            name: store.name,
            address: store.address,
            client: store.client,
            state,
            leaders: store.leaders,
            replicas: store.replicas,
            alive: store.alive,
            fenced: store.fenced,
        }
    }
}

#[derive(Serialize)]
struct GroupRow {
    group: String,
    group_id: u64,
    kind: &'static str,
    leader: Option<Hex>,
    term: u64,
    replicas: Vec<Hex>,
}

impl From<GroupSummary> for GroupRow {
    fn from(group: GroupSummary) -> Self {
        Self {
            kind: kind_name(group.kind()),
            group: group.group,
            group_id: group.group_id,
            leader: group.leader.map(Hex),
            term: group.term,
            replicas: group.replicas.into_iter().map(Hex).collect(),
        }
    }
}

#[derive(Serialize)]
struct ClusterDocument {
    cluster: Hex,
    stores: Vec<StoreRow>,
    groups: Vec<GroupRow>,
    connections: Vec<ConnectionDocument>,
    flow: Option<FlowDocument>,
    /// Replicas of the asked store that are being destroyed; `null` right after its start.
    leftovers: Option<u64>,
}

impl From<ClusterStatus> for ClusterDocument {
    fn from(status: ClusterStatus) -> Self {
        Self {
            cluster: Hex(status.cluster),
            stores: status.stores.into_iter().map(StoreRow::from).collect(),
            groups: status.groups.into_iter().map(GroupRow::from).collect(),
            connections: status.connections.into_iter().map(ConnectionDocument::from).collect(),
            flow: status.flow.map(FlowDocument::from),
            leftovers: status.leftovers,
        }
    }
}

/// A store's state as people and programs see it.
pub(super) fn state_name(state: StoreState) -> &'static str {
    match state {
        StoreState::Joining => "joining",
        StoreState::Member => "member",
        StoreState::Leaving => "leaving",
        StoreState::Left => "left",
        StoreState::Fenced => "fenced",
        StoreState::Kicked => "kicked",
        StoreState::Unspecified => "unknown",
    }
}

/// A group's kind as people and programs see it.
pub(super) fn kind_name(kind: GroupKind) -> &'static str {
    match kind {
        GroupKind::Meta => "meta",
        GroupKind::Kv => "kv",
        GroupKind::Log => "log",
        GroupKind::Unspecified => "unknown",
    }
}

/// Runs it.
pub(crate) async fn run(args: StatusArgs, global: &Global) -> anyhow::Result<()> {
    let request = StatusRequest { group: args.group.clone().unwrap_or_default() };
    let answer = ask(global, Repeat::Harmless, async |client| client.status(request.clone()).await).await?;
    match (answer.view, args.group) {
        (Some(View::Cluster(status)), None) => {
            global.output.print(&ClusterDocument::from(status), cluster_table)
        }
        (Some(View::Group(status)), Some(_)) => {
            global.output.print(&group::GroupDocument::from(status), group::GroupDocument::table)
        }
        (view, _) => {
            let got = match view {
                Some(View::Cluster(_)) => "the cluster's status",
                Some(View::Group(_)) => "a group's status",
                None => "nothing",
            };
            bail!("the store answered with {got}, which was not asked for; its version is not this one's");
        }
    }
}

/// The stores as a table, and below it why a process of one is not taken.
pub(crate) fn store_table(stores: &[StoreRow]) -> String {
    let mut text = table(
        &["store", "name", "peers", "clients", "state", "alive", "leaders>", "replicas>"],
        stores.iter().map(|store| {
            [
                store.store.to_string(),
                store.name.clone(),
                store.address.clone(),
                if store.client.is_empty() { "-".to_owned() } else { store.client.clone() },
                store.state.to_owned(),
                if store.alive { "yes" } else { "no" }.to_owned(),
                store.leaders.to_string(),
                store.replicas.to_string(),
            ]
        }),
    );
    for store in stores {
        if let Some(why) = &store.fenced {
            text.push_str(&format!("\n\nstore {} is fenced: {why}", store.name));
        }
    }
    text
}

fn cluster_table(status: &ClusterDocument) -> String {
    let name_of = |id: Hex| {
        let store = status.stores.iter().find(|store| store.store == id);
        store.map_or_else(|| id.to_string(), |store| store.name.clone())
    };
    let groups = table(
        &["group", "id>", "kind", "leader", "term>", "replicas"],
        status.groups.iter().map(|group| {
            let replicas: Vec<_> = group.replicas.iter().map(|id| name_of(*id)).collect();
            [
                group.group.clone(),
                group.group_id.to_string(),
                group.kind.to_owned(),
                or_dash(group.leader.map(name_of)),
                group.term.to_string(),
                replicas.join(" "),
            ]
        }),
    );
    let connections = connection_table(&status.connections, name_of);
    let flow = status.flow.as_ref().map_or_else(String::new, |flow| format!("\n\n{}", flow.table(name_of)));
    let leftovers = match status.leftovers {
        None | Some(0) => String::new(),
        Some(n) => format!("\n\nreplicas that are being destroyed on the store that was asked: {n}"),
    };
    format!(
        "cluster {}\n\n{}\n\n{groups}\n\n{connections}{flow}{leftovers}",
        status.cluster,
        store_table(&status.stores)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clusters_document_has_the_contracts_fields() {
        let (connection, connection_json) = connection::example();
        let status = ClusterStatus {
            cluster: 0xc,
            stores: vec![StoreSummary {
                store: 1,
                name: "n1".into(),
                address: "h:1".into(),
                client: "h:2".into(),
                state: StoreState::Member.into(),
                leaders: 2,
                replicas: 3,
                alive: true,
                fenced: None,
            }],
            groups: vec![GroupSummary {
                group: "default".into(),
                group_id: 1,
                kind: GroupKind::Kv.into(),
                leader: Some(1),
                term: 3,
                replicas: vec![1],
                applied: Some(9),
            }],
            connections: vec![connection],
            flow: Some(flow::example().0),
            leftovers: Some(7),
        };
        let document = ClusterDocument::from(status);
        let text = cluster_table(&document);
        assert!(
            text.contains("connection refused by h:2")
                && text.contains("destroyed on the store that was asked: 7")
        );
        let json = serde_json::to_value(&document).expect("plain");
        let expected = serde_json::json!({
            "cluster": "000000000000000c",
            "stores": [{
                "store": "0000000000000001", "name": "n1", "address": "h:1", "client": "h:2",
                "state": "member", "leaders": 2, "replicas": 3, "alive": true, "fenced": null
            }],
            "groups": [{
                "group": "default", "group_id": 1, "kind": "kv", "leader": "0000000000000001", "term": 3,
                "replicas": ["0000000000000001"]
            }],
            "connections": [connection_json],
            "flow": flow::example().1,
            "leftovers": 7
        });
        assert_eq!(json, expected);
    }
}
