//! The commands of the documentation's pages on trouble, as they stand there, against stores that run or are stopped.

use std::process::Command;

use crate::cluster::Cluster;

/// The commands of a page: indented lines that begin with `pontoon`, without what follows a `#`.
fn commands(page: &str) -> Vec<Vec<String>> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src").join(page);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines()
        .filter_map(|line| line.strip_prefix("    pontoon "))
        .map(|line| words(line.split(" #").next().unwrap_or_default()))
        .collect()
}

/// Words as a shell takes them, as far as the pages need it.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (n, part) in line.split('"').enumerate() {
        if n % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn run(args: &[String]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon")).args(args).output().expect("runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Runs a command of a page, with the places of this machine in it.
fn done(args: &[String], places: &[(&str, &str)]) -> String {
    let place = |word: &String| {
        let found = places.iter().find(|(page, _)| page == word);
        found.map_or_else(|| word.clone(), |(_, here)| (*here).to_owned())
    };
    let args: Vec<_> = args.iter().map(place).collect();
    let (code, out, err) = run(&args);
    assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    out
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_on_disasters_recovers_a_cluster() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.put(2, "w/x", "1").await;
    let found = cluster.range(2, "w/", false).await;
    assert_eq!(found.kvs.len(), 1);
    for i in 0..3 {
        cluster.kill(i);
    }
    for i in 0..2 {
        std::fs::remove_dir_all(cluster.data_dir(i)).expect("removed");
    }
    let (dir, endpoint) = (cluster.data_dir(2).display().to_string(), cluster.endpoint(2));
    let mut words = String::new();
    let mut seen = Vec::new();
    for command in commands("disaster.md") {
        let name = command.iter().take_while(|w| w.bytes().all(|b| b.is_ascii_lowercase())).cloned();
        let name = name.collect::<Vec<_>>().join(" ");
        let places = [
            ("/var/lib/pontoon", dir.as_str()),
            ("10.0.0.3:2379", &endpoint),
            ("give-up-2-9f31c0aa", &words),
            // The page's example of one group is of a larger cluster.
            ("n4", "n1"),
            ("n5", "n2"),
            ("orders", "default"),
        ];
        match name.as_str() {
            "serve" => {
                cluster.spawn(2);
                cluster.wait_ready(2);
                let found = cluster.range(2, "w/", false).await;
                assert_eq!(found.kvs[0].value, "1");
                cluster.put(2, "w/x", "2").await;
            }
            "recover plan" if command.iter().any(|w| w == "--group") => {
                cluster.signal(2, "TERM");
                assert_eq!(cluster.wait_exit(2), Some(0));
                // These stores are gone, and the page's names mean nobody any more.
                let args: Vec<_> = command
                    .iter()
                    .map(|w| if w == "/var/lib/pontoon" { dir.clone() } else { w.clone() })
                    .collect();
                let (code, _, err) = run(&args);
                assert!(code == Some(2) && err.contains("there is no such store"), "{err}");
            }
            _ => {
                let out = done(&command, &places);
                if let Some(found) = out.split_whitespace().find(|w| w.starts_with("give-up-")) {
                    found.clone_into(&mut words);
                }
                if name == "recover history" {
                    assert!(out.contains("rack 4 burnt down"), "{out}");
                }
            }
        }
        seen.push(name);
    }
    assert_eq!(
        seen,
        ["recover plan", "recover apply", "serve", "status", "recover history", "recover plan"],
        "the page's commands"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_on_stuck_groups_and_of_the_one_on_logs_work() {
    let mut cluster = Cluster::start(3, &[]);
    cluster.leader(&[0, 1, 2]).await;
    let endpoint = cluster.endpoint(0);
    let mut log_id = String::new();
    for command in commands("logs.md") {
        if command[1] == "tail" {
            continue;
        }
        let online = [command, vec!["--endpoints".to_owned(), endpoint.clone()]].concat();
        let out = done(&online, &[("HEX", &log_id)]);
        if let Some(id) = out.lines().find_map(|line| line.strip_prefix("id ")) {
            id.trim().clone_into(&mut log_id);
        }
    }
    assert!(!log_id.is_empty());
    let (offline, online): (Vec<_>, Vec<_>) = commands("stuck-group.md")
        .into_iter()
        .partition(|command| command.iter().any(|word| word == "/var/lib/pontoon"));
    assert!(online.len() >= 7 && offline.len() == 2, "{online:?} {offline:?}");
    for command in online {
        // A leader that is asked to hand over, and whoever is to lead, both have to be in step.
        cluster.leader(&[0, 1, 2]).await;
        let online = [command, vec!["--endpoints".to_owned(), endpoint.clone()]].concat();
        let out = done(&online, &[]);
        assert!(!out.is_empty(), "{online:?}");
    }
    for i in 0..3 {
        cluster.kill(i);
    }
    let dir = cluster.data_dir(0).display().to_string();
    for command in offline {
        done(&command, &[("/var/lib/pontoon", &dir)]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_page_on_backups_work() {
    let cluster = Cluster::start(1, &[]);
    cluster.put(0, "w/x", "1").await;
    let (dir, endpoint) = (cluster.beside("backup").display().to_string(), cluster.endpoint(0));
    let mut seen = Vec::new();
    for command in commands("backup.md") {
        let online = [command.clone(), vec!["--endpoints".to_owned(), endpoint.clone()]].concat();
        done(&online, &[("/var/backups/pontoon", &dir)]);
        seen.push(command[0].clone());
    }
    assert_eq!(seen, ["backup", "restore"], "the page's commands");
}

#[test]
fn top_in_a_pipe_is_one_page_with_stores_links_and_groups() {
    let cluster = Cluster::start(3, &[]);
    let args =
        ["top", "--interval", "300ms", "--rows", "1", "--endpoints", &cluster.endpoint(1)].map(str::to_owned);
    let out = done(&args, &[]);
    for part in ["seen from n2", "STORE", "LINK TO", "up/up", "GROUP", "... and 1 more"] {
        assert!(out.contains(part), "no {part:?} in\n{out}");
    }
    assert!(!out.contains('\x1b'), "no control sequences in a pipe");
    let json = [&args[..], &["--output".to_owned(), "json".to_owned()]].concat();
    let page: serde_json::Value = serde_json::from_str(&done(&json, &[])).expect("JSON");
    assert_eq!(page["stores"].as_array().map(Vec::len), Some(3));
    assert_eq!(page["groups_total"], 2);
}
