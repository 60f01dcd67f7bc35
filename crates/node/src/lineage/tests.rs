use pontoon_storage::Options;
use pontoon_storage::disk::memory::MemoryDisk;

use super::*;

const X: StoreId = StoreId(7);

fn open(disk: &MemoryDisk) -> LogStore {
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.space_reserve_bytes = 64 << 10;
    LogStore::open_on(Arc::new(disk.clone()), options).expect("the disk is fine").0
}

fn begin(disk: &MemoryDisk) -> Arc<Lineages> {
    Arc::new(Lineages::begin(&open(disk), 99).expect("starts"))
}

fn claim(lineage: u64, start: u64, incarnation: u64, opened_at: u64, reached: u64) -> Option<Claim> {
    Some(Claim { identity: Identity { lineage, start, opened_at, in_doubt: false }, incarnation, reached })
}

fn refusal(lineages: &Lineages, claim: Option<Claim>) -> (bool, String) {
    let unwelcome = lineages.admit(X, claim).expect_err("it is refused");
    (unwelcome.final_, unwelcome.reason)
}

/// Starts of one directory that follow each other, by every way to die.
#[test]
fn restarts_are_always_taken() {
    let peer = begin(&MemoryDisk::new());
    assert_eq!(peer.admit(X, claim(5, 1, 0xa, 0, 3)), Ok(()));
    // The same process again, on another lane or after a broken connection.
    assert_eq!(peer.admit(X, claim(5, 1, 0xa, 0, 9)), Ok(()));
    peer.reached(X, 20);
    // It was killed after batch 20 was durable and heard of; batch 21 was durable, and nobody heard.
    assert_eq!(peer.admit(X, claim(5, 2, 0xb, 20, 21)), Ok(()));
    // Starts that nobody heard of.
    assert_eq!(peer.admit(X, claim(5, 9, 0xc, 30, 31)), Ok(()));
}

/// A damaged last record takes what was confirmed with it. Its store says so, and is not shut out.
#[test]
fn a_store_in_doubt_is_taken_with_less_and_its_reach_counts_anew() {
    let in_doubt = |start, incarnation, opened_at, reached| {
        let identity = Identity { lineage: 5, start, opened_at, in_doubt: true };
        Some(Claim { identity, incarnation, reached })
    };
    let disk = MemoryDisk::new();
    let peer = begin(&disk);
    assert_eq!(peer.admit(X, claim(5, 1, 0xa, 0, 3)), Ok(()));
    peer.reached(X, 20);
    assert!(refusal(&peer, claim(5, 2, 0xb, 19, 19)).0, "less, and it does not say so");
    assert!(refusal(&peer, in_doubt(1, 0xb, 19, 19)).0, "a doubt does not make an older start right");
    assert_eq!(peer.admit(X, in_doubt(3, 0xb, 19, 20)), Ok(()));
    // Another lane of the same process, and the next start once the doubt is settled.
    peer.reached(X, 22);
    assert_eq!(peer.admit(X, in_doubt(3, 0xb, 19, 20)), Ok(()));
    assert!(refusal(&peer, claim(5, 4, 0xc, 21, 21)).0);
    assert_eq!(peer.admit(X, claim(5, 4, 0xc, 22, 22)), Ok(()));
    // In doubt again, from less than was known before the first time.
    assert_eq!(peer.admit(X, in_doubt(6, 0xd, 15, 15)), Ok(()));
    assert_eq!(peer.admit(X, claim(5, 7, 0xe, 16, 16)), Ok(()));
}

/// What was told to a peer, whatever it was, is not undone by a power cut at any moment after.
#[test]
fn a_power_cut_at_any_moment_leaves_what_is_taken_again() {
    let mut disk = MemoryDisk::recording();
    for round in 0..4_u64 {
        let log = open(&disk);
        let own = Lineages::begin(&log, 5).expect("starts").identity();
        let told = |reach: u64| disk.mark(own.start << 32 | reach);
        told(log.durable_batch().0);
        for _ in 0..3 {
            log.put_note("work", &[1; 100]).expect("writes");
            told(log.durable_batch().0);
        }
        drop(log);
        for at in 0..=disk.recorded() {
            let (cut, mark) = disk.after_power_cut(at, round + at as u64);
            let Some(mark) = mark else { continue };
            let heard = Known { lineage: 5, start: mark >> 32, incarnation: 1, reached: mark & 0xffff_ffff };
            let again = Lineages::begin(&open(&cut), 6).expect("starts").identity();
            let claim = Claim { identity: again, incarnation: 2, reached: again.opened_at };
            judge(Some(heard), Some(claim)).unwrap_or_else(|e| panic!("round {round}, cut {at}: {e}"));
        }
        disk = disk.after_power_cut(disk.recorded(), round).0;
        disk.record();
    }
}

#[test]
fn an_empty_directory_under_a_known_name_is_refused_for_good() {
    let disk = MemoryDisk::new();
    let peer = begin(&disk);
    assert_eq!(peer.admit(X, claim(5, 3, 0xa, 10, 12)), Ok(()));
    let (is_final, reason) = refusal(&peer, claim(6, 1, 0xb, 0, 1));
    assert!(is_final && reason.contains("known is 0000000000000005"), "{reason}");
    assert_eq!(peer.refused().keys().collect::<Vec<_>>(), [&X]);
    // Also after a restart of whoever knows.
    drop(peer);
    let peer = begin(&disk);
    assert!(refusal(&peer, claim(6, 1, 0xb, 0, 1)).0);
    // The right one is taken.
    assert_eq!(peer.admit(X, claim(5, 4, 0xc, 12, 13)), Ok(()));
    assert!(peer.refused().is_empty());
}

#[test]
fn an_older_copy_is_refused_by_its_start_or_by_its_reach() {
    let disk = MemoryDisk::new();
    let peer = begin(&disk);
    assert_eq!(peer.admit(X, claim(5, 3, 0xa, 10, 12)), Ok(()));
    // Made before start 2 and before start 3.
    assert!(refusal(&peer, claim(5, 2, 0xb, 8, 9)).1.contains("its start 2, and start 3 is known"));
    assert!(refusal(&peer, claim(5, 3, 0xb, 9, 10)).1.contains("start 3 is known of another process"));
    // Made while start 3 ran, before batch 40.
    peer.reached(X, 40);
    let (is_final, reason) = refusal(&peer, claim(5, 4, 0xb, 39, 40));
    assert!(is_final && reason.contains("ended with batch 39") && reason.contains("batch 40"), "{reason}");
    // A hello after a restart of whoever knows makes the reach known again, durably.
    drop(peer);
    let peer = begin(&disk);
    assert_eq!(peer.admit(X, claim(5, 3, 0xa, 10, 41)), Ok(()));
    drop(peer);
    let peer = begin(&disk);
    assert!(refusal(&peer, claim(5, 4, 0xb, 40, 41)).0);
    assert_eq!(peer.admit(X, claim(5, 4, 0xb, 41, 42)), Ok(()));
}

#[tokio::test]
async fn the_reach_outlasts_a_restart_after_the_connection_is_lost() {
    let disk = MemoryDisk::new();
    let log = open(&disk);
    let peer = Arc::new(Lineages::begin(&log, 1).expect("starts"));
    assert_eq!(peer.admit(X, claim(5, 3, 0xa, 10, 12)), Ok(()));
    peer.reached(X, 40);
    peer.lost(X);
    let noted = || log.note(&peer_note(X)).and_then(|note| decode_known(&note)).map(|known| known.reached);
    while noted() != Some(40) {
        tokio::task::yield_now().await;
    }
    // Readable is not durable yet.
    log.put_note("after", &[]).expect("writes");
    let cut = disk.copy();
    assert!(refusal(&begin(&cut), claim(5, 4, 0xb, 39, 40)).0);
}

/// An older copy that one store takes and another one refuses has not acted: the right directory is taken by both.
#[test]
fn a_hello_alone_leaves_no_trace() {
    let disk = MemoryDisk::new();
    let peer = begin(&disk);
    assert_eq!(peer.meet(X, claim(5, 3, 0xa, 10, 12)), Ok(()), "the first that is heard of it");
    for incarnation in [0xb, 0xc] {
        assert_eq!(peer.meet(X, claim(5, 4, incarnation, 12, 13)), Ok(()));
    }
    assert_eq!(peer.admit(X, claim(5, 4, 0xc, 12, 13)), Ok(()), "it acts");
    assert!(peer.meet(X, claim(5, 4, 0xb, 12, 13)).is_err_and(|u| u.final_));
    // A lineage that is met first is durable at once: the other one may be introduced by it.
    let y = StoreId(8);
    assert_eq!(peer.meet(y, claim(6, 1, 0xa, 0, 0)), Ok(()));
    assert!(begin(&disk.copy()).meet(y, claim(7, 1, 0xb, 0, 0)).is_err_and(|u| u.final_));
}

#[test]
fn whoever_says_nothing_is_taken_as_long_as_nothing_is_known() {
    let peer = begin(&MemoryDisk::new());
    assert_eq!(peer.admit(X, None), Ok(()));
    assert_eq!(peer.admit(X, claim(5, 1, 0xa, 0, 0)), Ok(()), "it was upgraded");
    let (is_final, reason) = refusal(&peer, None);
    assert!(!is_final && reason.contains("older version"), "{reason}");
}

#[test]
fn a_store_that_is_not_introduced_refuses_nobody_for_good() {
    let disk = MemoryDisk::new();
    let log = open(&disk);
    create_lineage(&log, 1).expect("writes");
    create_lineage(&log, 2).expect("keeps the first");
    let new = Arc::new(Lineages::begin(&log, 3).expect("starts"));
    assert_eq!((new.identity().lineage, new.identity().start), (1, 1));
    assert!(!new.is_introduced());
    assert_eq!(new.admit(X, claim(5, 1, 0xa, 0, 0)), Ok(()));
    assert!(!refusal(&new, claim(6, 1, 0xb, 0, 0)).0);
}

#[tokio::test]
async fn introduction_needs_everybody_and_lasts() {
    let disk = MemoryDisk::new();
    let log = open(&disk);
    create_lineage(&log, 1).expect("writes");
    let new = Arc::new(Lineages::begin(&log, 1).expect("starts"));
    let others = BTreeMap::from([(StoreId(2), "n2".to_owned()), (StoreId(3), "n3".to_owned())]);
    new.welcomed(StoreId(2));
    let waiting = tokio::spawn({
        let (new, others) = (Arc::clone(&new), others.clone());
        async move { new.introduce(&others).await }
    });
    tokio::task::yield_now().await;
    assert!(!waiting.is_finished() && !new.is_introduced());
    new.welcomed(StoreId(3));
    waiting.await.expect("no panic").expect("writes");
    assert!(new.is_introduced());
    drop(new);
    log.close();
    assert!(begin(&disk).is_introduced());
}

#[tokio::test]
async fn the_registry_teaches_starts_and_fences_its_own_older_copy() {
    let disk = MemoryDisk::new();
    let peer = begin(&disk);
    let own = peer.identity();
    let me = StoreId(1);
    peer.learn(me, X, 5, 4);
    assert!(refusal(&peer, claim(5, 3, 0xa, 0, 0)).1.contains("start 4 is known"));
    assert!(refusal(&peer, claim(6, 9, 0xa, 0, 0)).1.contains("lineage"));
    assert_eq!(peer.admit(X, claim(5, 4, 0xa, 7, 7)), Ok(()));
    // Replayed from the beginning: nothing is unlearned.
    peer.learn(me, X, 5, 1);
    assert!(refusal(&peer, claim(5, 4, 0xb, 7, 7)).1.contains("another process"));
    // An older one of itself, and itself.
    peer.learn(me, me, own.lineage, own.start);
    assert!(!peer.is_fenced());
    peer.learn(me, me, own.lineage, own.start + 1);
    assert!(peer.is_fenced());
    assert_eq!(peer.fenced().await.by, None);
    drop(peer);
    let again = Lineages::begin(&open(&disk), 1).expect_err("never again").to_string();
    assert!(again.contains("refused for good") && again.contains("older copy"), "{again}");
}

/// Whom a recovery gave up is refused from the next start on, whatever the registry of before says.
#[test]
fn stores_that_were_given_up_stay_away_over_restarts() {
    let disk = MemoryDisk::new();
    assert_eq!(begin(&disk).removed(X), None);
    let log = open(&disk);
    give_up_stores(&log, &BTreeSet::from([X])).expect("noted");
    // The same plan once more, and another one.
    give_up_stores(&log, &BTreeSet::from([X])).expect("noted");
    give_up_stores(&log, &BTreeSet::from([StoreId(9)])).expect("noted");
    drop(log);
    for _ in 0..2 {
        let lineages = begin(&disk);
        lineages.set_removed(BTreeMap::from([(StoreId(8), "kicked".to_owned())]));
        for (store, why) in
            [(X, "given up for lost"), (StoreId(9), "given up for lost"), (StoreId(8), "kicked")]
        {
            let told = lineages.removed(store).unwrap_or_default();
            assert!(told.contains(why), "{store}: {told:?}");
        }
        assert_eq!(lineages.removed(StoreId(1)), None);
    }
    let log = open(&disk);
    log.put_note("given-up", &[1, 2, 3]).expect("noted");
    assert!(matches!(give_up_stores(&log, &BTreeSet::from([X])), Err(LineageError::Unreadable { .. })));
}
