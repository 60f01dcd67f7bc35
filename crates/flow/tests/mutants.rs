//! Known mistakes, made on purpose in a copy of the crate: the simulation must find each. A simulation that finds nothing says
//! little unless it is known what it would find.
//!
//! `cargo test -p pontoon-flow --test mutants -- --ignored --nocapture` makes them, one build each; with `PONTOON_FLOW_MUTANT`
//! only those whose name contains that.
#![allow(clippy::print_stdout, reason = "each mutant gets a line")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

struct Mutant {
    name: &'static str,
    file: &'static str,
    before: &'static str,
    after: &'static str,
}

const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "a closed stream forgets to return what it sent",
        file: "controller.rs",
        before: "pools.disconnected(replica.store, stream.held());",
        after: "pools.disconnected(replica.store, Held { send: Bytes::ZERO, forced: 0, ..stream.held() });",
    },
    Mutant {
        name: "a grant that was not used is forgotten when its stream closes",
        file: "controller.rs",
        before: "            if stream.granted > 0 {\n                pools.give_grant(replica.store, stream.granted);\n            }",
        after: "",
    },
    Mutant {
        name: "a grant that was not fetched is forgotten when its stream closes",
        file: "pools.rs",
        before: "        if let Some(bytes) = pools.grants.remove(&key) {\n            self.give_grant(key.1.store, bytes);\n        }",
        after: "        pools.grants.remove(&key);",
    },
    Mutant {
        name: "an admission is returned twice",
        file: "pools.rs",
        before: "        pools.window.admitted(held.send.total());\n        self.give(store, held);",
        after: "        pools.window.admitted(held.send.total());\n        self.give(store, held);\n        self.give(store, held);",
    },
    Mutant {
        name: "a repeated report returns again",
        file: "stream.rs",
        before: "            sent.pop_front();\n        }\n        held",
        after: "            if oldest.last < index {\n                sent.pop_front();\n            } else {\n                break;\n            }\n        }\n        held",
    },
    Mutant {
        name: "a report of another term counts",
        file: "controller.rs",
        before: "if admitted.term != self.term {",
        after: "if admitted.term > self.term {",
    },
    Mutant {
        name: "queued entries stay regular in the pool, and are returned as elastic",
        file: "controller.rs",
        before: "pools.eval_becomes_elastic(replica.store, fresh.regular);",
        after: "",
    },
    Mutant {
        name: "a controller is dropped without its waiting group being forgotten",
        file: "controller.rs",
        before: "        pools.forget(self.group);\n    }",
        after: "    }",
    },
    Mutant {
        name: "members that left keep their tokens",
        file: "controller.rs",
        before: "            self.disconnect(pools, replica, Link::Away);\n            self.links.remove(&replica);",
        after: "            self.links.remove(&replica);",
    },
    Mutant {
        name: "a follower counts what an earlier leader was told as admitted",
        file: "follower.rs",
        before: "(self.term, self.accepted) = (term, LogIndex::ZERO);",
        after: "self.term = term;",
    },
    Mutant {
        name: "a queue that is denied once is denied for ever",
        file: "plan.rs",
        before: "if queue { Force::Flush } else { Force::Deny }",
        after: "if queue { Force::Flush } else { Force::Flush }",
    },
    Mutant {
        name: "force knows no cap",
        file: "pools.rs",
        before: "self.limits.forced_bytes.saturating_sub(self.stores.get(&store).map_or(0, |pools| pools.forced))",
        after: "self.limits.forced_bytes.max(self.stores.get(&store).map_or(0, |_| 0))",
    },
    Mutant {
        name: "who was looked at keeps its turn",
        file: "controller.rs",
        before: "        pools.end_turns(self.group);\n",
        after: "",
    },
    Mutant {
        name: "nobody is forced, though the quorum has a queue",
        file: "plan.rs",
        before: "while contributes.intersection(&set).count() < quorum(set.len()) {",
        after: "while contributes.is_empty() {",
    },
];

/// What is not found, and why that is right: the mistake costs pace, and no token.
const HARMLESS: &[&str] = &["a queue that is denied once is denied for ever"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_mutant_fits_the_sources() {
    for Mutant { name, file, before, .. } in MUTANTS {
        let text = fs::read_to_string(root().join("crates/flow/src").join(file)).expect("a source file");
        let found = text.matches(before).count();
        assert_eq!(
            found, 1,
            "{name}: its text occurs {found} times in {file}; make the same mistake again:\n{before}"
        );
    }
}

#[test]
#[ignore = "a build for each mutant; `just mutants-flow`"]
fn every_mutant_is_found() {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("flow-mutants");
    let tree = work.join("tree");
    let mut survivors = Vec::new();
    let only = env::var("PONTOON_FLOW_MUTANT").unwrap_or_default();
    for Mutant { name, file, before, after } in MUTANTS.iter().filter(|mutant| mutant.name.contains(&only)) {
        copy_sources(&tree).expect("a copy of the sources");
        let path = tree.join("crates/flow/src").join(file);
        let text = fs::read_to_string(&path).expect("a source file");
        fs::write(&path, text.replace(before, after)).expect("a changed source file");
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let cargo = |arguments: &[&str]| {
            let mut command = Command::new(&cargo);
            command.current_dir(&tree).args(arguments).env("CARGO_TARGET_DIR", work.join("build"));
            command.args([
                "--offline",
                "-p",
                "pontoon-flow",
                "--lib",
                "--test",
                "simulation",
                "--test",
                "force",
            ]);
            command.env("RUST_BACKTRACE", "0");
            command.output().expect("cargo runs")
        };
        let built = cargo(&["test", "--no-run"]);
        let words = String::from_utf8_lossy(&built.stderr).into_owned();
        assert!(built.status.success(), "{name}: the copy does not build:\n{words}");
        let tested = cargo(&["test"]);
        let words = String::from_utf8_lossy(&tested.stdout).into_owned();
        let how = words.lines().find(|line| line.contains("seed ")).unwrap_or("a unit test, or T10");
        let how: String = how.chars().take(110).collect();
        match (tested.status.success(), HARMLESS.contains(name)) {
            (false, _) => println!("found     {name}: {how}"),
            (true, true) => println!("harmless  {name}"),
            (true, false) => {
                println!("SURVIVED  {name}");
                survivors.push(*name);
            }
        }
    }
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}

fn copy_sources(tree: &Path) -> io::Result<()> {
    for directory in ["crates/flow", "crates/raft-core"] {
        copy(&root().join(directory), &tree.join(directory))?;
    }
    for file in ["Cargo.lock", "rust-toolchain.toml"] {
        fs::copy(root().join(file), tree.join(file))?;
    }
    // The other members are not there.
    let manifest = fs::read_to_string(root().join("Cargo.toml"))?;
    let kept = manifest
        .lines()
        .map(|line| if line.starts_with("members") { r#"members = ["crates/*"]"# } else { line })
        .filter(|line| !line.starts_with("default-members"));
    let manifest: String = kept.flat_map(|line| [line, "\n"]).collect();
    fs::write(tree.join("Cargo.toml"), manifest)
}

/// Copies files that differ, so that the build has little to do.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy(&from, &to)?;
        } else if fs::read(&to).ok() != Some(fs::read(&from)?) {
            fs::copy(&from, &to)?;
        }
    }
    Ok(())
}
