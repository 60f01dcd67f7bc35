//! Whoever drives something of several steps dies at each of them, right before it and right after it: what was begun is done
//! in the end, or taken back, and nothing of it is left behind.
//!
//! [`play_of`] says for each step what has to be played so that it is reached; a new step does not compile without, and a play
//! in which nobody dies fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use pontoon_kv::{Engine, EngineOptions};
use pontoon_node::{CrashPoint, DriverStep};
use pontoon_proto::etcdserverpb::cluster_client::ClusterClient;
use pontoon_proto::etcdserverpb::{MemberAddRequest, MemberPromoteRequest, MemberUpdateRequest};
use serde_json::Value;

use crate::cluster::{Cluster, PATIENCE, retry};
use crate::failures::ALLOWED;
use crate::keyspaces;
use crate::saved::kill_a_restore;

/// What is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Play {
    /// A new cluster that asks for certificates starts; played in `tls.rs`.
    Found,
    /// A store joins a cluster that runs.
    Join,
    /// A store leaves.
    Leave,
    /// A store is kicked.
    Kick,
    /// A place is made for a store by etcd's calls; it comes, and is promoted.
    Reserve,
    /// A keyspace or a log is made.
    Create,
    /// A keyspace or a log is deleted.
    Delete,
    /// A store comes back at another address.
    Move,
    /// Two of four stores are lost, and what is left goes on without them.
    Recover,
    /// A keyspace is restored from a file.
    Restore,
    /// What a restore has left that was broken off is taken away.
    RestoreAgain,
    /// A cluster is saved, and restored into another; played in `backup.rs`.
    Backup,
}

fn play_of(step: DriverStep) -> Option<Play> {
    use DriverStep as S;
    Some(match step {
        S::AddStore
        | S::PlaceReplica
        | S::ReplicaPlaced
        | S::AskToAdd
        | S::LearnerEntry
        | S::VoterEntry
        | S::NoteJoin
        | S::NoteGranted
        | S::Establish
        | S::ForgetJoin => Play::Join,
        S::LeaveStore
        | S::RemoveReplica
        | S::ReplicaRemoved
        | S::AskToRemove
        | S::RemovalEntry
        | S::HandOver
        | S::ForgetStore => Play::Leave,
        S::KickStore | S::NoteGone => Play::Kick,
        S::ReserveStore | S::ReaddressStore | S::PromoteStore | S::PromoteReplica => Play::Reserve,
        S::CreateGroup | S::OpenReplica => Play::Create,
        S::DeleteGroup | S::DestroyLog | S::DestroyState => Play::Delete,
        S::ReplaceVouchSecret => Play::Found,
        S::AnnounceStore => Play::Move,
        S::GiveUpStores | S::RecoverGroups | S::RecoverRegistry | S::NoteRecovery => Play::Recover,
        S::ClaimKeyspace | S::FillKeyspace => Play::Restore,
        S::GiveUpRestore | S::DeleteUnfinished => Play::RestoreAgain,
        S::SaveGroup | S::WriteManifest | S::RestoreGroup => Play::Backup,
        // Written by `recover apply`, in the batch of `RecoverRegistry`: no step of its own.
        S::RecordRecovery => return None,
    })
}

pub(crate) fn points(play: Play) -> Vec<CrashPoint> {
    CrashPoint::all().filter(|point| play_of(point.step) == Some(play)).collect()
}

/// A cluster whose stores are started again when they die at the point.
struct Stage {
    cluster: Cluster,
    point: Option<CrashPoint>,
    /// Stores that are to run.
    wanted: Vec<usize>,
    /// One that ends by itself when it is gone, with this code or with that of one that was told to be.
    going: Option<(usize, i32)>,
    deaths: usize,
}

impl Stage {
    fn new(n: usize) -> Self {
        let mut flags = vec!["--election-timeout", "500ms"];
        flags.extend(ALLOWED);
        let cluster = Cluster::start(n, &flags);
        Self { cluster, point: None, wanted: (0..n).collect(), going: None, deaths: 0 }
    }

    /// From now on whoever reaches the point dies there.
    async fn arm(&mut self, point: CrashPoint) {
        self.point = Some(point);
        self.deaths = 0;
        for i in self.wanted.clone() {
            // It may have been started a moment ago.
            let name = point.to_string();
            self.until("it can be told", |stage| stage.try_at(i, &["failure-test", &name]).is_ok()).await;
        }
    }

    /// Nobody dies any more; somebody has.
    async fn disarm(&mut self) {
        assert!(self.deaths > 0, "nobody came by {:?}", self.point);
        // Some may have yet to come by. Whoever dies before it is told is started again, and then nothing is to happen there.
        for i in self.wanted.clone() {
            self.until("it is told", |stage| stage.try_at(i, &["failure-test", "clear"]).is_ok()).await;
        }
        self.point = None;
    }

    /// Starts again whoever died at the point.
    fn revive(&mut self) {
        for i in self.wanted.clone() {
            if self.cluster.runs(i) {
                continue;
            }
            let code = self.cluster.wait_exit(i);
            if self
                .going
                .is_some_and(|(going, wished)| i == going && (code == Some(wished) || code == Some(2)))
            {
                self.wanted.retain(|s| *s != i);
                continue;
            }
            let log = self.cluster.log(i);
            let said =
                self.point.is_some_and(|p| log.contains(&format!("test={p}")) && log.contains("dies here"));
            assert!(code.is_none() && said, "store {i} ended with {code:?}; its log:\n{log}");
            self.deaths += 1;
            if i < 3 { self.cluster.spawn(i) } else { self.cluster.spawn_joining(i, &[0, 1, 2]) }
        }
    }

    /// Waits until it is so.
    async fn until(&mut self, what: &str, mut holds: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            self.revive();
            assert!(start.elapsed() < 2 * PATIENCE, "{:?}: waited too long until {what}", self.point);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    fn try_at(&self, asked: usize, args: &[&str]) -> Result<Value, String> {
        self.try_with(&self.cluster.endpoint(asked), args)
    }

    /// Asks whoever answers.
    fn try_any(&self, args: &[&str]) -> Result<Value, String> {
        let all: Vec<_> = self.wanted.iter().map(|i| self.cluster.endpoint(*i)).collect();
        self.try_with(&all.join(","), args)
    }

    fn try_with(&self, endpoints: &str, args: &[&str]) -> Result<Value, String> {
        let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .args(args)
            .args(["--output", "json", "--endpoints", endpoints])
            .output()
            .expect("runs");
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    /// Whether nothing moves, and exactly these stores are members, by the registry.
    fn is_at_rest(&self, members: &[usize]) -> bool {
        let Ok(list) = self.try_any(&["store", "list"]) else { return false };
        let Ok(moves) = self.try_any(&["moves"]) else { return false };
        let mut found: Vec<_> = rows(&list, "stores")
            .iter()
            .filter(|s| s["state"] == "member")
            .map(|s| s["name"].as_str().unwrap_or_default().to_owned())
            .collect();
        found.sort();
        let mut wished: Vec<_> = members.iter().map(|i| self.cluster.stores[*i].name.clone()).collect();
        wished.sort();
        rows(&list, "stores").len() == members.len() && found == wished && rows(&moves, "moves").is_empty()
    }

    /// Whether each keyspace has a replica on each of so many stores.
    fn is_replicated(&self, replicas: usize) -> bool {
        let Ok(list) = self.try_any(&["keyspace", "list"]) else { return false };
        rows(&list, "keyspaces").iter().all(|k| rows(k, "replicas").len() == replicas)
    }

    async fn join(&mut self, point: CrashPoint) -> usize {
        let i = self.cluster.stores.len();
        self.cluster.add(i);
        self.arm(point).await;
        self.cluster.extra_mut().extend(["--failure-test".to_owned(), point.to_string()]);
        self.cluster.spawn_joining(i, &[0, 1, 2]);
        self.cluster.extra_mut().truncate(3);
        self.wanted.push(i);
        let members = self.wanted.clone();
        self.until("it has joined", |stage| stage.is_at_rest(&members)).await;
        self.until("default is on all", |stage| stage.is_replicated(4) && stage.is_at_rest(&members)).await;
        self.until("all run", |stage| members.iter().all(|i| stage.cluster.runs(*i))).await;
        self.disarm().await;
        i
    }

    /// A store goes, by this command; `code`: how it ends.
    async fn go(&mut self, i: usize, command: &[&str], code: i32, point: CrashPoint) {
        self.until("it leads", |stage| stage.try_at(i, &["take-leadership", "default"]).is_ok()).await;
        self.arm(point).await;
        self.going = Some((i, code));
        let stay: Vec<_> = self.wanted.iter().copied().filter(|s| *s != i).collect();
        // Who is asked may die before or after it has done it.
        self.until("it is to go", |stage| {
            let asked = if command[0] == "leave" { stage.try_at(i, command) } else { stage.try_any(command) };
            // One that has just started may not have heard of any store yet, or not of this one: all have to say so.
            let is_gone_for = |asked: &usize| {
                stage.try_at(*asked, &["store", "list"]).is_ok_and(|l| {
                    let name = &stage.cluster.stores[i].name;
                    let stores = rows(&l, "stores");
                    stores.len() >= 3 && stores.iter().all(|s| s["name"] != **name || s["state"] != "member")
                })
            };
            asked.is_ok() || stay.iter().all(is_gone_for)
        })
        .await;
        self.until("it is gone", |stage| !stage.wanted.contains(&i) && stage.is_at_rest(&stay)).await;
        self.going = None;
        self.until("all run", |stage| stay.iter().all(|i| stage.cluster.runs(*i))).await;
        self.disarm().await;
        self.cluster.spawn_prepared(i);
        assert_eq!(self.cluster.wait_exit(i), Some(2), "it never comes back: {}", self.cluster.log(i));
    }

    /// Kills all: the stores that stayed have what the registry wishes and nothing else, and kept Raft's guarantees.
    async fn end(mut self, groups: &[u64]) {
        self.cluster.equal_hashes_of(&self.wanted).await;
        let dirs: Vec<PathBuf> = self.wanted.iter().map(|i| self.cluster.data_dir(*i).to_owned()).collect();
        for i in self.wanted.clone() {
            self.cluster.kill(i);
        }
        for dir in &dirs {
            nothing_left(dir, groups);
        }
        self.cluster.kill_and_check_of(&self.wanted);
    }
}

fn rows<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    value[field].as_array().map_or(&[], Vec::as_slice)
}

/// The logs and the states of a stopped store are those of these groups.
fn nothing_left(dir: &Path, groups: &[u64]) {
    let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
        .args(["inspect", "--output", "json", &dir.display().to_string()])
        .output()
        .expect("runs");
    let inspected: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let logs: Vec<_> = rows(&inspected, "groups").iter().filter_map(|g| g["group_id"].as_u64()).collect();
    assert_eq!(logs, groups, "{}: {inspected}", dir.display());
    assert!(!dir.join("JOIN").exists(), "{}", dir.display());
    let engine = Engine::open(&dir.join("kv"), &EngineOptions::default()).expect("opens");
    let mut states: Vec<_> = engine.groups().expect("lists").into_iter().map(|g| g.0).collect();
    states.sort_unstable();
    // What was not synced of a state is made again from its log.
    assert!(states.iter().all(|g| groups.contains(g)), "{}: {states:?}", dir.display());
}

/// Joins and goes in turn, so that each round ends as it began: `share` of `of` of all rounds.
async fn rounds_of_membership(share: usize, of: usize) {
    let mut stage = Stage::new(3);
    stage.cluster.put(0, "w/first", "1").await;
    let joins = points(Play::Join);
    let goes: Vec<_> = points(Play::Leave).into_iter().chain(points(Play::Kick)).collect();
    for round in (0..joins.len().max(goes.len())).filter(|round| round % of == share) {
        let (join, go) = (joins[round % joins.len()], goes[round % goes.len()]);
        eprintln!("round {round}: {join}, {go}");
        let i = stage.join(join).await;
        stage.cluster.put(i, &format!("w/{round}"), "1").await;
        let name = stage.cluster.stores[i].name.clone();
        if play_of(go.step) == Some(Play::Leave) {
            stage.go(i, &["leave", "--detach"], 0, go).await;
        } else {
            stage.go(i, &["kick", &name, "--detach"], 2, go).await;
        }
        let found = stage.cluster.range(0, &format!("w/{round}"), false).await;
        assert_eq!(found.kvs.len(), 1, "{join}, {go}");
    }
    stage.end(&[0, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_join_or_a_leave_dies_at_each_step_first_third() {
    rounds_of_membership(0, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_join_or_a_leave_dies_at_each_step_second_third() {
    rounds_of_membership(1, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_drives_a_join_or_a_leave_dies_at_each_step_last_third() {
    rounds_of_membership(2, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_makes_or_deletes_a_group_dies_at_each_step() {
    let mut stage = Stage::new(3);
    for (n, point) in points(Play::Create).into_iter().chain(points(Play::Delete)).enumerate() {
        let creates = play_of(point.step) == Some(Play::Create);
        let (kind, name) = (["keyspace", "log"][n % 2], format!("g{n}"));
        if creates {
            stage.arm(point).await;
        }
        stage
            .until("it is made", |stage| match stage.try_any(&[kind, "create", &name]) {
                Ok(_) => true,
                Err(error) => error.contains("exists already"),
            })
            .await;
        let mut id = String::new();
        stage
            .until("it is described", |stage| {
                let described = stage.try_any(&[kind, "describe", &name]).unwrap_or_default();
                id = described["id"].as_str().unwrap_or_default().to_owned();
                !id.is_empty()
            })
            .await;
        if creates {
            // Each store opens its replica, sooner or later.
            stage.until("somebody has died", |stage| stage.deaths > 0).await;
            stage.until("it is led", |stage| stage.try_any(&["take-leadership", &name]).is_ok()).await;
            stage.disarm().await;
        } else {
            stage.arm(point).await;
        }
        stage
            .until("it is deleted", |stage| match stage.try_any(&[kind, "delete", &name, "--id", &id]) {
                Ok(_) => true,
                Err(error) => error.contains("there is no"),
            })
            .await;
        if !creates {
            stage.until("somebody has died", |stage| stage.deaths > 0).await;
            stage.until("all run", |stage| (0..3).all(|i| stage.try_at(i, &["sid"]).is_ok())).await;
            stage.disarm().await;
        }
    }
    // The registry is rid of them before each store has destroyed its log and its state.
    stage
        .until("everything is gone", |stage| {
            (0..3).all(|i| {
                let status = stage.try_at(i, &["status"]).unwrap_or_default();
                rows(&status, "groups").len() == 2 && status["leftovers"] == 0
            })
        })
        .await;
    stage.end(&[0, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_makes_a_place_by_the_calls_of_etcd_dies_at_each_step() {
    let mut stage = Stage::new(3);
    for point in points(Play::Reserve) {
        let i = stage.cluster.stores.len();
        stage.cluster.add(i);
        let (name, peer) = (stage.cluster.stores[i].name.clone(), stage.cluster.stores[i].peer);
        let url = format!("http://127.0.0.1:{peer}");
        // Whoever dies is started again beside, so each call is repeated until the registry shows its effect.
        stage.arm(point).await;
        let mut id = 0;
        let add = MemberAddRequest { peer_ur_ls: vec!["http://127.0.0.1:9".to_owned()], is_learner: true };
        stage
            .call(
                async |mut client: ClusterClient<_>| client.member_add(add.clone()).await.map(drop),
                |found| {
                    let place = found.iter().find(|m| m.peer_ur_ls == ["http://127.0.0.1:9"]);
                    id = place.map_or(0, |m| m.id);
                    id != 0
                },
            )
            .await;
        let update = MemberUpdateRequest { id, peer_ur_ls: vec![url.clone()] };
        stage
            .call(
                async |mut client: ClusterClient<_>| client.member_update(update.clone()).await.map(drop),
                |found| found.iter().any(|m| m.id == id && m.peer_ur_ls == [url.clone()]),
            )
            .await;
        stage.cluster.spawn_existing(i);
        stage.wanted.push(i);
        stage
            .until("it has come", |stage| {
                let list = stage.try_any(&["store", "list"]).unwrap_or_default();
                rows(&list, "stores").iter().any(|s| s["name"] == *name && s["state"] == "member")
            })
            .await;
        let promote = MemberPromoteRequest { id };
        stage
            .call(
                async |mut client: ClusterClient<_>| client.member_promote(promote).await.map(drop),
                |found| found.iter().any(|m| m.id == id && !m.is_learner),
            )
            .await;
        let members = stage.wanted.clone();
        stage.until("it is one of them", |stage| stage.is_at_rest(&members)).await;
        stage.until("default is on all", |stage| stage.is_replicated(4) && stage.is_at_rest(&members)).await;
        stage.disarm().await;
        stage.go(i, &["kick", &name, "--detach"], 2, DriverStep::KickStore.after()).await;
    }
    stage.end(&[0, 1]).await;
}

impl Stage {
    /// Repeats a call of etcd's Cluster service at each store, until the list of members is as it should be.
    async fn call<F>(
        &mut self,
        call: impl Fn(ClusterClient<tonic::transport::Channel>) -> F,
        mut done: impl FnMut(&[pontoon_proto::etcdserverpb::Member]) -> bool,
    ) where
        F: Future<Output = Result<(), tonic::Status>>,
    {
        let start = Instant::now();
        loop {
            for i in 0..3 {
                self.revive();
                let address = format!("http://{}", self.cluster.endpoint(i));
                let endpoint = tonic::transport::Endpoint::from_shared(address).expect("an address");
                let Ok(channel) = endpoint.connect().await else { continue };
                let mut client = ClusterClient::new(channel);
                let request = pontoon_proto::etcdserverpb::MemberListRequest { linearizable: true };
                let found = client.member_list(request).await;
                if found.is_ok_and(|found| done(&found.into_inner().members)) {
                    return;
                }
                // It may be dead by then, or say that it was done already.
                let _ = tokio::time::timeout(Duration::from_secs(5), call(client)).await;
            }
            assert!(start.elapsed() < PATIENCE, "{:?}", self.point);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_dies_while_it_tells_its_new_address_is_found_there() {
    let mut stage = Stage::new(3);
    for point in points(Play::Move) {
        stage.cluster.kill(2);
        stage.cluster.move_elsewhere(2);
        stage.point = Some(point);
        stage.cluster.extra_mut().extend(["--failure-test".to_owned(), point.to_string()]);
        stage.cluster.spawn_prepared(2);
        stage.cluster.extra_mut().truncate(3);
        let port = format!("127.0.0.1:{}", stage.cluster.stores[2].peer);
        stage.until("it has died", |stage| stage.deaths > 0).await;
        stage
            .until("the others know", |stage| {
                let list = stage.try_at(0, &["store", "list"]).unwrap_or_default();
                rows(&list, "stores").iter().any(|s| s["address"] == *port)
            })
            .await;
        stage.disarm().await;
        stage.deaths = 0;
    }
    stage.end(&[0, 1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recovery_that_dies_at_each_step_is_done_by_the_next_one() {
    let mut cluster = Cluster::start(4, &["--election-timeout", "500ms"]);
    for n in 0..4 {
        let name = format!("k{n}");
        let (code, out, err) =
            keyspaces::pontoon(&cluster, &["keyspace", "create", &name, "--replicas", "3"]);
        assert_eq!(code, Some(0), "{out}{err}");
    }
    cluster.put(0, "w/a", "1").await;
    cluster.equal_hashes().await;
    for i in 0..4 {
        cluster.kill(i);
    }
    let survivors = [0, 1].map(|i| cluster.data_dir(i).to_owned());
    let kept = [0, 1].map(|i| cluster.beside(&format!("kept{i}")));
    for (from, to) in survivors.iter().zip(&kept) {
        copy(from, to);
    }
    let recover = |args: &[&str]| {
        let dirs = survivors.each_ref().map(|dir| dir.display().to_string());
        let output = Command::new(env!("CARGO_BIN_EXE_pontoon"))
            .arg("recover")
            .args(args)
            .args(dirs)
            .args(["--output", "json"])
            .output()
            .expect("runs");
        let document: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        (output.status.code(), document, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let words = || recover(&["plan"]).1["confirm"].as_str().map(str::to_owned);
    for point in points(Play::Recover) {
        for (from, to) in kept.iter().zip(&survivors) {
            std::fs::remove_dir_all(to).expect("removed");
            copy(from, to);
        }
        let confirm = words().expect("there is something to do");
        let (code, _, err) = recover(&["apply", "--confirm", &confirm, "--failure-test", &point.to_string()]);
        assert!(code.is_none() && err.contains("dies here"), "{point}: {code:?} {err}");
        if let Some(confirm) = words() {
            let (code, _, err) = recover(&["apply", "--confirm", &confirm]);
            assert_eq!(code, Some(0), "{point}: {err}");
        }
        for i in 0..2 {
            cluster.spawn(i);
        }
        for i in 0..2 {
            cluster.wait_ready(i);
        }
        assert_eq!(cluster.range(1, "w/", false).await.kvs.len(), 1, "{point}");
        cluster.put(0, "w/b", "2").await;
        for n in 0..4 {
            // On one store or on both, each has a leader that answers, or is placed anew.
            let name = format!("k{n}");
            retry("it serves", || async {
                let (code, out, err) = keyspaces::pontoon(&cluster, &["take-leadership", &name]);
                let there =
                    code == Some(0) || err.contains("is not on this store") || err.contains("no replica");
                if there { Ok(()) } else { Err(format!("{point}: {name}: {out}{err}")) }
            })
            .await;
        }
        retry("the lost are gone", || async {
            let (_, out, err) = keyspaces::pontoon(&cluster, &["store", "list", "--output", "json"]);
            let list: Value = serde_json::from_str(&out).unwrap_or_default();
            if rows(&list, "stores").len() == 2 { Ok(()) } else { Err(format!("{point}: {out}{err}")) }
        })
        .await;
        for i in 0..2 {
            cluster.kill(i);
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status().expect("cp runs");
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_dies_at_each_step_is_done_by_the_next_one() {
    let cluster = Cluster::start(3, &[]);
    let value = "x".repeat(500_000);
    for n in 0..100 {
        cluster.put(n % 3, &format!("k{n}"), &format!("{n} {value}")).await;
    }
    let file = cluster.beside("saved");
    let file = file.to_str().expect("a printable path");
    let (code, out, err) = keyspaces::pontoon(&cluster, &["keyspace", "save", "default", "--to", file]);
    assert_eq!(code, Some(0), "{out}{err}");
    let dies_at = |name: &str, point: CrashPoint| {
        let point = point.to_string();
        let args = ["keyspace", "restore", name, "--from", file, "--failure-test", &point];
        let (code, out, err) = keyspaces::pontoon(&cluster, &args);
        assert!(code.is_none() && err.contains("dies here"), "{point}: {code:?} {out}{err}");
    };
    let again = |name: &str| keyspaces::pontoon(&cluster, &["keyspace", "restore", name, "--from", file]);
    let whole = |name: &str| {
        let (_, out, err) = keyspaces::pontoon(&cluster, &["keyspace", "describe", name]);
        assert!(out.lines().any(|l| l.starts_with("revision") && l.ends_with(" 101")), "{name}: {out}{err}");
        assert!(!out.contains("restore"), "{out}");
    };
    for (n, point) in points(Play::Restore).into_iter().enumerate() {
        let name = format!("copy{n}");
        dies_at(&name, point);
        let (code, out, err) = again(&name);
        // It had been done; then there is nothing left to do, and that is said.
        let done = point == DriverStep::FillKeyspace.after();
        assert!(code == Some(if done { 1 } else { 0 }), "{point}: {out}{err}");
        assert!(!done || err.contains("exists already"), "{point}: {err}");
        whole(&name);
    }
    kill_a_restore(&cluster, "copy", file, |out| out.contains("pieces are in"));
    for point in points(Play::RestoreAgain) {
        dies_at("copy", point);
    }
    let (code, out, err) = again("copy");
    assert_eq!(code, Some(0), "{out}{err}");
    whole("copy");
}
