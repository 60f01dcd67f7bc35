//! The command line from outside: exit codes, one line for each error, nothing changed by a refusal.

use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the binary with nothing of this process's environment that could configure it.
fn pontoon(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pontoon"));
    for (variable, _) in std::env::vars_os() {
        if variable.to_str().is_some_and(|variable| variable.starts_with("PONTOON_")) {
            command.env_remove(variable);
        }
    }
    command.args(args).envs(env.iter().copied()).output().expect("the binary runs")
}

/// Checks that a command is refused with this exit code and one line that holds all parts.
#[track_caller]
fn refused(args: &[&str], env: &[(&str, &str)], code: i32, parts: &[&str]) {
    let output = pontoon(args, env);
    let error = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{args:?}: {error}");
    assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    assert!(error.starts_with("pontoon: error: "), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?} writes to standard output");
    for part in parts {
        assert!(error.contains(part), "{args:?}: `{part}` is not in: {error}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for (args, part) in [
        (&["--help"][..], "keyspace"),
        (&["help", "serve"], "--initial-cluster"),
        (&["bench", "put", "--help"], "--value-size"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
    ] {
        let output = pontoon(args, &[]);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains(part), "{args:?}");
        assert!(output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn usage_errors_exit_with_2_on_one_line() {
    refused(&["serve"], &[], 2, &["--data-dir", "pontoon serve --help"]);
    refused(&["serve", "--data-dir", "d", "--no-such-flag"], &[], 2, &["--no-such-flag"]);
    refused(&["no-such-command"], &[], 2, &["no-such-command"]);
    refused(
        &["serve", "--data-dir", "d", "--listen-client", "localhost"],
        &[],
        2,
        &["HOST:PORT", "port is missing"],
    );
    refused(&["serve", "--data-dir", "d", "--election-timeout", "11m"], &[], 2, &["100ms to 10m"]);
    refused(&["status", "--timeout", "5"], &[], 2, &["with a unit"]);
    refused(&["keyspace", "create", "-x-"], &[], 2, &["-x"]);
    refused(&["keyspace", "create", "UPPER"], &[], 2, &["lower-case letters"]);
    refused(&["dev", "--nodes", "7"], &[], 2, &["1..=6"]);
    refused(&["bench", "put", "--value-size", "2MiB"], &[], 2, &["1MiB"]);
    refused(&["status", "--log", "a=b=c"], &[], 2, &["log filter"]);
}

#[test]
fn a_refused_serve_changes_nothing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    let data_flag = data.to_str().expect("UTF-8");
    let cluster = "n1=127.0.0.1:2380,n2=127.0.0.1:22380";
    let with = |more: &[&'static str]| -> Vec<String> {
        ["serve", "--data-dir", data_flag, "--initial-cluster", cluster]
            .into_iter()
            .chain(more.iter().copied())
            .map(str::to_owned)
            .collect()
    };
    for (more, parts) in [
        (&["--name", "n3"][..], &["--name is n3", "n1, n2"][..]),
        (&["--name", "n2"], &["n2=127.0.0.1:22380", "--advertise-peer is 127.0.0.1:2380"]),
        (&["--name", "n1", "--metrics-listen", "127.0.0.1:2379"], &["--listen-client and --metrics-listen"]),
    ] {
        let args = with(more);
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        refused(&args, &[], 2, parts);
        assert!(!data.exists(), "{args:?} made the data directory");
    }
    std::fs::write(&data, "a file").expect("a written file");
    refused(&["serve", "--data-dir", data_flag], &[], 2, &["not a directory"]);
}

#[test]
fn the_environment_and_the_file_are_checked_like_flags() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("a written file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let unknown = file("unknown.toml", "data_dir = \"d\"\nlisten = \"h:1\"\n");
    refused(&["serve", "--config", &unknown], &[], 2, &["unknown key `listen`", "unknown.toml"]);
    let broken = file("broken.toml", "data_dir = \n");
    refused(&["serve", "--config", &broken], &[], 2, &["broken.toml", "line 1"]);
    refused(&["serve", "--config", "/no/such/file.toml"], &[], 2, &["/no/such/file.toml"]);
    let bad = file("bad.toml", "data_dir = \"d\"\nelection_timeout = \"1ms\"\n");
    refused(&["serve"], &[("PONTOON_CONFIG", &bad)], 2, &["100ms to 10m", "bad.toml"]);
    // The environment wins over the file, and a flag over both.
    refused(
        &["serve", "--config", &bad],
        &[("PONTOON_ELECTION_TIMEOUT", "2ms")],
        2,
        &["2ms", "PONTOON_ELECTION_TIMEOUT"],
    );
    let args = ["serve", "--config", &bad, "--election-timeout", "3ms"];
    refused(&args, &[("PONTOON_ELECTION_TIMEOUT", "2ms")], 2, &["'3ms'"]);
    assert!(!Path::new("d").exists());
}

#[test]
fn a_store_that_does_not_answer_is_named() {
    // A port that was free a moment ago: nobody listens there.
    let free =
        TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address").to_string();
    for command in
        [&["status"][..], &["store", "list"], &["keyspace", "list"], &["cid"], &["sid"], &["memory"]]
    {
        let mut args = command.to_vec();
        args.extend(["--endpoints", &free]);
        refused(&args, &[], 1, &["no store answers", &free, "refused"]);
    }
    refused(&["bench", "put", "--endpoints", &free], &[], 1, &[&free, "refused"]);
}

#[test]
fn dev_names_a_port_in_use_before_it_starts_anything() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let data = dir.path().join("data");
    // The lowest port of the range a base port may have that can be had; the store's own ports follow it.
    let (_taken, port) = (3000..5500)
        .find_map(|port| Some((TcpListener::bind(("127.0.0.1", port)).ok()?, port.to_string())))
        .expect("a free port");
    let args = ["dev", "--nodes", "1", "--base-port", &port, "--data-dir", data.to_str().expect("UTF-8")];
    refused(&args, &[], 1, &["in use", &port, "client port of n1"]);
    assert!(!data.exists());
}

#[test]
fn dev_does_not_run_another_number_of_stores_on_a_clusters_data() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    for name in ["n1", "n2", "n3"] {
        std::fs::create_dir(dir.path().join(name)).expect("a directory");
    }
    let data = dir.path().to_str().expect("UTF-8");
    refused(&["dev", "--nodes", "5", "--data-dir", data], &[], 2, &["cluster of 3 stores", "--nodes 3"]);
}
