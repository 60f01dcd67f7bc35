//! What `deploy/` and the documentation say of metrics and flags, against a store that runs.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cluster::{Cluster, free_ports};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn file(name: &str) -> String {
    std::fs::read_to_string(repository().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The words of a text that begin with `prefix`.
fn words<'a>(text: &'a str, prefix: &'static str) -> impl Iterator<Item = &'a str> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    text.split(move |c| !is_part(c)).filter(move |word| word.starts_with(prefix) && word.len() > prefix.len())
}

fn get(port: u16, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    socket.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).expect("writes");
    let mut page = String::new();
    socket.read_to_string(&mut page).expect("reads");
    page
}

/// The names on a page of metrics: of samples, so counters end in `_total`.
fn served(port: u16) -> BTreeSet<String> {
    let page = get(port, "/metrics");
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    families
        .filter_map(|line| line.split_once(' '))
        .map(|(name, kind)| if kind == "counter" { format!("{name}_total") } else { name.to_owned() })
        .collect()
}

#[test]
fn dashboards_alerts_and_documentation_name_the_metrics_that_exist() {
    let port = free_ports(1)[0];
    let _cluster = Cluster::start(1, &["--metrics-listen", &format!("127.0.0.1:{port}")]);
    for (path, part) in [
        ("/health", r#""health":"true""#),
        ("/version", r#""etcdserver":"3.5."#),
        ("/readyz", "ok"),
        ("/livez", "ok"),
    ] {
        let page = get(port, path);
        assert!(page.starts_with("HTTP/1.0 200") && page.contains(part), "{path}: {page}");
    }
    let served = served(port);
    assert!(served.contains("pontoon_log_syncs_total"), "{served:?}");
    for name in ["deploy/grafana/pontoon.json", "deploy/prometheus/alerts.yaml"] {
        let text = file(name);
        let mut named = words(&text, "pontoon_").peekable();
        assert!(named.peek().is_some(), "{name} names no metric");
        for metric in named {
            let bare = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| metric.strip_suffix(end))
                .unwrap_or(metric);
            assert!(served.contains(bare), "{name} has {metric}, which no store serves");
        }
    }
    let page = file("docs/src/operations.md");
    let mut documented = BTreeSet::new();
    // What is ours, and what every process tells.
    for start in ["pontoon_", "process_"] {
        let rows = page.lines().filter(|line| line.starts_with(&format!("| `{start}")));
        documented.extend(rows.flat_map(|row| words(row, start)).map(str::to_owned));
    }
    let missing: Vec<_> = served.difference(&documented).collect();
    assert!(missing.is_empty(), "docs/src/operations.md does not explain {missing:?}");
    let gone: Vec<_> = documented.difference(&served).collect();
    assert!(gone.is_empty(), "docs/src/operations.md explains {gone:?}, which no store serves");
}

#[test]
fn deployments_use_flags_that_exist() {
    let help = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["serve", "--help"])
        .output()
        .expect("the binary runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let known: BTreeSet<_> = words(&help, "--").collect();
    for name in ["deploy/kubernetes/statefulset.yaml", "deploy/compose.yaml"] {
        let text = file(name);
        let arguments = text.lines().filter_map(|line| line.trim().strip_prefix("- --"));
        let mut any = false;
        for argument in arguments {
            let flag = format!("--{}", argument.split('=').next().unwrap_or_default());
            assert!(known.contains(flag.as_str()), "{name} has {flag}, which `pontoon serve` does not know");
            any = true;
        }
        assert!(any, "{name} has no flags");
    }
}

/// The page on Kubernetes tells the stores of a running cluster about more of them, by a patch that knows where an argument is.
#[test]
fn the_page_on_kubernetes_patches_what_the_manifest_has() {
    let (page, manifest) = (file("docs/src/kubernetes.md"), file("deploy/kubernetes/statefulset.yaml"));
    let json = page.split("```json").nth(1).and_then(|rest| rest.split("```").next()).expect("a patch");
    let patch: serde_json::Value = serde_json::from_str(json).expect("JSON");
    let arguments = manifest.lines().skip_while(|line| line.trim() != "args:").skip(1);
    let arguments: Vec<_> = arguments.map_while(|line| line.trim().strip_prefix("- ")).collect();
    let path = patch[0]["path"].as_str().expect("a path");
    let (list, place) = path.rsplit_once('/').expect("a place");
    assert_eq!(list, "/spec/template/spec/containers/0/args");
    let old = arguments[place.parse::<usize>().expect("a number")];
    let new = patch[0]["value"].as_str().expect("an argument");
    assert!(old.starts_with("--initial-cluster=") && new.starts_with(&format!("{old},")), "{old}\n{new}");
    assert_eq!(patch[1]["path"], format!("{list}/-"));
    assert_eq!(patch[1]["value"], "--initial-cluster-state=existing");
    for line in page.lines().filter_map(|line| line.split(" -- /pontoon ").nth(1)) {
        let command = line.split_whitespace().take_while(|w| w.bytes().all(|b| b.is_ascii_lowercase()));
        let mut words: Vec<_> = command.take(2).collect();
        if words[0] != "keyspace" {
            words.truncate(1);
        }
        let help = Command::new(env!("CARGO_BIN_EXE_pontoon")).args(&words).arg("--help").output();
        assert!(help.expect("the binary runs").status.success(), "there is no `pontoon {}`", words.join(" "));
    }
}

/// The stage that compiles needs a network and minutes, so no test runs it. It does what `local-image` does, which CI runs, with
/// the compiler that the repository names.
#[test]
fn the_dockerfile_compiles_what_the_local_image_is_made_of() {
    let (dockerfile, script) = (file("deploy/Dockerfile"), file("deploy/local-image"));
    let toolchain = file("rust-toolchain.toml");
    let channel = toolchain.lines().find_map(|l| l.strip_prefix("channel = ")).expect("a channel");
    let image = dockerfile.lines().find_map(|l| l.strip_prefix("FROM rust:")).expect("a stage that compiles");
    let version = image.split('-').next().expect("a version");
    assert!(channel.trim_matches('"').starts_with(version), "{image} has not the compiler {channel}");

    let build = |text: &str| {
        let line = text.lines().find(|l| l.contains("cargo build")).expect("a build").trim();
        let line = line.trim_end_matches('\\').trim();
        line[line.find("cargo build").expect("found")..].to_owned()
    };
    assert_eq!(build(&dockerfile), build(&script));
    let flags = |text: &str| {
        let at = text.find("RUSTFLAGS=").expect("flags of the compiler");
        text[at..].split('"').nth(1).map(str::to_owned)
    };
    assert_eq!(flags(&dockerfile), flags(&script));

    // What is run in it is a script that a shell understands, and what is copied out of it is what it made.
    let lines = dockerfile.lines().skip_while(|l| !l.starts_with("RUN "));
    let mut run = String::new();
    for line in lines {
        run.push_str(line.strip_prefix("RUN ").unwrap_or(line));
        run.push('\n');
        if !line.trim_end().ends_with('\\') {
            break;
        }
    }
    let parsed = Command::new("sh").args(["-n", "-c", &run]).output().expect("sh runs");
    assert!(parsed.status.success(), "{}\n{run}", String::from_utf8_lossy(&parsed.stderr));
    for copied in dockerfile.lines().filter(|l| l.starts_with("COPY --from=build")) {
        let from = copied.split_whitespace().find(|w| w.starts_with("/out/")).expect("what is copied");
        assert!(run.contains(from), "{copied}: nothing makes {from}");
    }
}
