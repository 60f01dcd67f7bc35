//! What a store logs is changed while it runs.

use crate::cluster::{Cluster, retry};
use crate::keyspaces::pontoon;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_logged_changes_while_a_store_runs_and_names_groups_and_entries() {
    let cluster = Cluster::start(1, &[]);
    cluster.put(0, "w/x", "1").await;
    assert!(!cluster.log(0).contains("proposed"), "nobody asked for it");
    let (code, out, err) = pontoon(&cluster, &["log-level", "info,pontoon_node=trace"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("info was before"), "{out}");
    cluster.put(0, "w/y", "1").await;
    retry("a command with its group and its entry", || async {
        let log = cluster.log(0);
        let line = log.lines().rfind(|l| l.contains("command{group=1 id=") && l.contains("proposed"));
        // The request that it is of is around it.
        line.map(drop).ok_or(log)
    })
    .await;
    let (code, _, err) = pontoon(&cluster, &["log-level", "pontoon_node=loud"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("loud") && err.contains("level"), "{err}");
    let (code, out, _) = pontoon(&cluster, &["log-level"]);
    assert!(code == Some(0) && out.starts_with("info is logged"), "{out}");
    let told = cluster.log(0).lines().count();
    cluster.put(0, "w/z", "1").await;
    assert!(!cluster.log(0).lines().skip(told).any(|l| l.contains("proposed")), "{}", cluster.log(0));
    assert_eq!(cluster.log(0).matches("what is logged was changed").count(), 2);
}
