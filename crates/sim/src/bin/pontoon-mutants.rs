//! Makes each known mistake in a copy of the sources, and demands that the explorer finds it.
//!
//! See `crates/sim/src/mutations.rs` for what a mutation is.
#![allow(clippy::print_stdout, reason = "a command line program reports on standard output")]

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::Instant;
use std::{env, fs, io};

use clap::Parser;
use pontoon_sim::mutations::{self, Mutation};

/// Makes each known mistake in a copy of the core, and demands that the explorer finds it.
#[derive(Debug, Parser)]
struct Arguments {
    /// Which mutations; all if none is named.
    mutations: Vec<String>,
    /// The repository.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// Where the copy and what is built from it goes; kept, so that the next run is faster.
    #[arg(long, default_value = "target/mutants")]
    work: PathBuf,
    /// A mutation that is not found within so many states has survived.
    #[arg(long, default_value_t = 1_500_000)]
    states_max: u64,
    /// How many seeds of the simulation are tried as well, to see whether it finds the mistake too.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(survivors) => {
            println!("{survivors} mutations were not found: the models have a hole");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("pontoon-mutants: {error}");
            ExitCode::from(2)
        }
    }
}

type Error = Box<dyn std::error::Error>;

fn run(arguments: &Arguments) -> Result<usize, Error> {
    let mut all = mutations::all(&arguments.root)?;
    for name in &arguments.mutations {
        if !all.iter().any(|mutation| mutation.name == *name) {
            return Err(format!("there is no mutation {name} in crates/sim/mutations").into());
        }
    }
    all.retain(|m| arguments.mutations.is_empty() || arguments.mutations.contains(&m.name));
    let tree = arguments.work.join("tree");
    let mut survivors = 0;
    for mutation in &all {
        let began = Instant::now();
        mutation.fits(&arguments.root)?;
        copy_sources(&arguments.root, &tree)?;
        mutation.apply(&tree)?;
        let binaries = build(&tree, &arguments.work.join("build"))?;
        // The shortest way first; if there are too many short ones, a long one will do.
        let mut explored = explore(&binaries, mutation, "breadth", arguments.states_max)?;
        if explored.status.success() {
            explored = explore(&binaries, mutation, "depth", arguments.states_max)?;
        }
        let found = verdict(mutation, &explored);
        let simulated = Command::new(binaries.join("pontoon-seeds"))
            .args(["--first", "1", "--seeds", &arguments.seeds.to_string()])
            .env("RUST_BACKTRACE", "0")
            .output()?;
        let simulation = first_failure(&simulated);
        let seconds = began.elapsed().as_secs();
        match found {
            Some(how) => println!("found     {:<30} {how}; {simulation} ({seconds} s)", mutation.name),
            None => {
                survivors += 1;
                println!("SURVIVED  {:<30} model {}; {simulation}", mutation.name, mutation.model);
                println!("{}", String::from_utf8_lossy(&explored.stdout));
            }
        }
    }
    println!("{} mutations, {} found by the explorer", all.len(), all.len() - survivors);
    Ok(survivors)
}

fn explore(binaries: &Path, mutation: &Mutation, order: &str, states_max: u64) -> io::Result<Output> {
    Command::new(binaries.join("pontoon-explore"))
        .args([&mutation.model, "--order", order, "--states-max", &states_max.to_string()])
        .env("RUST_BACKTRACE", "0")
        .output()
}

/// How the explorer found the mistake: by one of the properties that it breaks.
fn verdict(mutation: &Mutation, explored: &Output) -> Option<String> {
    if explored.status.code() != Some(1) {
        return None;
    }
    let text = String::from_utf8_lossy(&explored.stdout);
    let line = text.lines().find(|line| line.starts_with("model "))?;
    let expected = mutation.breaks.iter().any(|property| line.contains(&format!("breaks \"{property}\"")));
    expected.then(|| line.split(": ").next().unwrap_or(line).to_owned())
}

fn first_failure(simulated: &Output) -> String {
    let text = String::from_utf8_lossy(&simulated.stdout);
    let line = text.lines().find(|line| line.starts_with("seed "));
    let property = |line: &str| line.split(" at ").next().unwrap_or(line).to_owned();
    line.map_or_else(
        || "the simulation did not find it".to_owned(),
        |line| format!("simulation: {}", property(line)),
    )
}

/// Copies what the explorer and the simulation are built from, and whatever else cargo wants to see of it.
fn copy_sources(root: &Path, tree: &Path) -> io::Result<()> {
    for directory in ["crates", "proto"] {
        copy(&root.join(directory), &tree.join(directory))?;
    }
    for file in ["Cargo.lock", "rust-toolchain.toml"] {
        fs::copy(root.join(file), tree.join(file))?;
    }
    // The other members are not there.
    let manifest = fs::read_to_string(root.join("Cargo.toml"))?;
    let kept = manifest.lines().filter(|line| !line.starts_with("default-members"));
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

fn build(tree: &Path, target: &Path) -> Result<PathBuf, Error> {
    let target = env::current_dir()?.join(target);
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(tree)
        .args(["build", "--release", "--offline", "-p", "pontoon-sim", "--no-default-features"])
        .args(["--bin", "pontoon-explore", "--bin", "pontoon-seeds"])
        .env("CARGO_TARGET_DIR", &target)
        // Built often and run shortly.
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
        .env("CARGO_PROFILE_RELEASE_INCREMENTAL", "true")
        .output()?;
    if !built.status.success() {
        return Err(format!("the copy does not build:\n{}", String::from_utf8_lossy(&built.stderr)).into());
    }
    Ok(target.join("release"))
}
