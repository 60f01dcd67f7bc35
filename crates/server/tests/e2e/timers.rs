//! The election timer, changed through the log.

use serde_json::Value;

use crate::cluster::{Cluster, retry};
use crate::keyspaces::pontoon;

/// The timer that a store has in force for `default`.
async fn timer(cluster: &Cluster, i: usize) -> u64 {
    let endpoint = cluster.endpoint(i);
    let answer = retry("status", || async {
        let args = ["status", "--group", "default", "--output", "json", "--endpoints", &endpoint];
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_pontoon")).args(args).output();
        let output = output.map_err(|e| e.to_string())?;
        serde_json::from_slice::<Value>(&output.stdout).map_err(|e| e.to_string())
    })
    .await;
    answer["election_timer_ms"].as_u64().expect("a number")
}

async fn wait_for_timer(cluster: &Cluster, millis: u64) {
    for i in 0..cluster.stores.len() {
        retry("the timer", || async {
            match timer(cluster, i).await {
                now if now == millis => Ok(()),
                now => Err(format!("store {i} has {now} ms")),
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_election_timer_changes_at_most_to_its_double_and_stays() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let change = |cluster: &Cluster, to: &str| pontoon(cluster, &["change-election-timer", "default", to]);
    let (code, out, err) = change(&cluster, "2s");
    assert_eq!(
        (code, out.as_str()),
        (Some(0), "default: the election timer is 2000 ms, was 1000 ms\n"),
        "{err}"
    );
    wait_for_timer(&cluster, 2000).await;
    let (code, _, err) = change(&cluster, "5s");
    assert_eq!(code, Some(1), "{err}");
    assert!(
        err.contains("may at most double per change: 2000 to 5000 ms") && err.lines().count() == 1,
        "{err}"
    );
    // Out of bounds, without asking anybody.
    for wrong in ["99ms", "11m", "2"] {
        let (code, _, err) = change(&cluster, wrong);
        assert_eq!(code, Some(2), "{err}");
    }
    let (code, _, err) = pontoon(&cluster, &["change-election-timer", "nobody", "2s"]);
    assert_eq!(code, Some(1), "{err}");
    // Down to anything at once, and the same again changes nothing.
    for _ in 0..2 {
        let (code, _, err) = change(&cluster, "300ms");
        assert_eq!(code, Some(0), "{err}");
    }
    wait_for_timer(&cluster, 300).await;
    for i in 0..3 {
        cluster.kill(i);
    }
    cluster.restart_all();
    cluster.put(0, "a", "b").await;
    wait_for_timer(&cluster, 300).await;
}
