# Shortcuts. Each recipe is a plain command that also works when typed; `just` is not needed to build, test or run.

# What is there.
default:
    @just --list

# Checks everything that CI checks, and changes nothing.
verify:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
    cargo test --workspace --locked
    @if cargo deny --version >/dev/null 2>&1; then cargo deny --locked check; \
     else echo "cargo-deny is not installed: licences, advisories and sources are not checked"; fi

# Changes files until the formatter and clippy have nothing left that they can do themselves.
fix:
    cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged
    cargo fmt --all

# The README's test command.
test *arguments:
    cargo test --workspace --locked {{arguments}}

# The test suites of other people's etcd clients (from PyPI), unchanged, against `pontoon dev`.
foreign *suites:
    cargo build --locked -p pontoon-server
    crates/server/tests/foreign/run {{suites}}

# Three real stores, 32 clients, kill -9 and SIGSTOP; then every acknowledged write and the whole history is checked.
torture seconds="60" seed="1":
    cargo build --release --locked -p pontoon-server -p pontoon-sim
    target/release/pontoon-torture --pontoon target/release/pontoon --seconds {{seconds}} --seed {{seed}}

# What slow links, slow stores and floods cost the others: slow-follower, control, giant-entries, classes, overhead.
weather test *flags:
    cargo build --release --locked -p pontoon-server -p pontoon-sim
    target/release/pontoon-torture weather {{test}} {{flags}}

# 300 groups while a fourth store joins and the first is kicked.
grow *flags:
    cargo build --release --locked -p pontoon-server -p pontoon-sim
    target/release/pontoon-torture grow {{flags}}

# Another commit and this one in one cluster: a rolling upgrade under a checked workload.
mixed commit *flags:
    deploy/mixed-build {{commit}} {{flags}}

# The same in containers on a network of their own: stores are cut off, paused, killed, replaced, added and removed.
containers:
    deploy/local-image pontoon:local
    cargo build --release --locked -p pontoon-server -p pontoon-sim
    target/release/pontoon-torture containers --image pontoon:local

# Loads a running cluster (`pontoon dev`, or etcd) with 1, 64 and 256 clients in turn.
bench endpoints="127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379" duration="10s":
    cargo build --release --locked -p pontoon-server
    for clients in 1 64 256; do \
        target/release/pontoon bench put --clients $clients --value-size 256 --duration {{duration}} \
            --endpoints {{endpoints}} || exit 1; \
    done

# Every schedule of small groups of the real consensus core, each model for so many seconds at most.
explore seconds="120" *models:
    cargo build --release --locked -p pontoon-sim --no-default-features --bin pontoon-explore
    target/release/pontoon-explore --seconds-max {{seconds}} {{models}}

# Makes each known mistake in a copy of the core, and demands that the explorer finds it.
mutants *mutations:
    cargo build --release --locked -p pontoon-sim --no-default-features --bin pontoon-mutants
    target/release/pontoon-mutants {{mutations}}

# Seeds of the simulation for so many seconds, from another place each day; ends at the first that breaks a property.
soak seconds="600" first=`date +%j0000000`:
    cargo build --release --locked -p pontoon-sim --no-default-features --bin pontoon-seeds
    target/release/pontoon-seeds --first $(expr {{first}} + 0) --seconds {{seconds}}

# Flow control: 2,000 seeds of 100,000 events, every invariant after each event. Minutes.
soak-flow seeds="2000" events="100000" first="1":
    PONTOON_FLOW_FIRST={{first}} PONTOON_FLOW_SEEDS={{seeds}} PONTOON_FLOW_EVENTS={{events}} \
        cargo test --release --locked -p pontoon-flow --test simulation -- --nocapture

# Makes each known mistake in a copy of the flow control, and demands that its tests find it.
mutants-flow:
    cargo test --locked -p pontoon-flow --test mutants -- --ignored --nocapture

# Moves the leadership of a running cluster every 300 ms, under a leader-only client that writes.
leader-moves endpoints="127.0.0.1:2379,127.0.0.1:22379,127.0.0.1:32379" seconds="60":
    cargo run --release --locked -p pontoon-client --example figures -- moves {{endpoints}} {{seconds}}

# All remotes of a client refuse: how often it tries, and how often it may.
all-down seconds="60":
    cargo run --release --locked -p pontoon-client --example figures -- down {{seconds}}

# The torture again and again with another seed each time, until it fails; the seed is in the last line it prints.
soak-torture rounds="100" seconds="60":
    cargo build --release --locked -p pontoon-server -p pontoon-sim
    for seed in $(seq 1 {{rounds}}); do \
        echo "soak: seed $seed"; \
        target/release/pontoon-torture --pontoon target/release/pontoon --seconds {{seconds}} --seed $seed || exit 1; \
    done

# 500 kills of a writing process, most of them in the midst of checkpoints, changes of the segment and rewrites of sled.
kill-storage rounds="500":
    PONTOON_CRASH_ROUNDS={{rounds}} cargo test --release --locked -p pontoon-storage --test crash -- --nocapture

# 1,000 flipped bits in each kind of file (images of keyspaces too), and power cuts over many seeds. A debug build: overflows are checked as well.
damage-storage flips="1000" seeds="40":
    PONTOON_FLIPS={{flips}} cargo test --locked -p pontoon-storage --test damage a_flipped_bit -- --nocapture
    PONTOON_FLIPS={{flips}} cargo test --locked -p pontoon-kv --test machine a_damaged_or_unfinished -- --nocapture
    PONTOON_POWER_SEEDS={{seeds}} cargo test --locked -p pontoon-storage --test power_cut_sled -- --nocapture

# A million entries appended and compacted: the disk must not grow without end.
space-storage:
    PONTOON_SPACE_ENTRIES=100000 cargo test --release --locked -p pontoon-storage --test checkpoint ten_times -- --nocapture

# The log store on a real file system of 128 MiB that fills up, and a whole cluster on one of 1 GiB (as root: they are
# mounted over a loop device).
small-disk:
    #!/usr/bin/env bash
    set -euo pipefail
    dir=$(mktemp -d)
    truncate -s 128M "$dir/image"
    mkfs.ext4 -q -m 0 "$dir/image"
    mkdir "$dir/mounted"
    mount -o loop "$dir/image" "$dir/mounted"
    trap 'umount "$dir/mounted"; rm -rf "$dir"' EXIT
    PONTOON_SMALL_DISK="$dir/mounted" cargo test --locked -p pontoon-storage --test faults small_real -- --ignored --nocapture
    umount "$dir/mounted"
    truncate -s 1G "$dir/image"
    mkfs.ext4 -q -F -m 0 "$dir/image"
    mount -o loop "$dir/image" "$dir/mounted"
    cargo test --locked -p pontoon-server --test e2e --no-run
    TMPDIR="$dir/mounted" PONTOON_SMALL_DISK="$dir/mounted" \
        cargo test --locked -p pontoon-server --test e2e full_disk -- --ignored --nocapture

# Fuzzes the opening of a log store (needs cargo-fuzz). No single allocation may have 64 MiB. The variable lets the pinned
# compiler do what fuzzing needs and only nightly ones do otherwise.
fuzz-storage seconds="300":
    RUSTC_BOOTSTRAP=1 cargo fuzz run open -- -max_total_time={{seconds}} -rss_limit_mb=1024 -malloc_limit_mb=64

# Fuzzes the gate for what peers send, likewise.
fuzz-transport seconds="300":
    RUSTC_BOOTSTRAP=1 cargo fuzz run gate -- -max_total_time={{seconds}} -rss_limit_mb=1024 -malloc_limit_mb=64

# The Raft core in memory; beside raft-rs and openraft in one run (a crate outside the workspace, which compiles for minutes).
bench-raft:
    cargo bench --locked -p pontoon-raft-core
    cargo run --release --locked --manifest-path benches/raft-compare/Cargo.toml
