//! The store against a naive second version, reopened at random points.

mod common;

use common::*;
use pontoon_storage::disk::memory::MemoryDisk;
use pontoon_storage::{LogStore, RecoveryReport};
use proptest::prelude::*;

const GROUPS: u64 = 6;

fn run(seed: u64, batches: u64, open: &mut dyn FnMut() -> (LogStore, RecoveryReport)) -> u64 {
    let mut random = Random(seed);
    let mut model = Model::default();
    let (mut store, _) = open();
    let mut checkpoints = 0;
    for n in 0..batches {
        let batch = model.random_batch(&mut random, GROUPS);
        if random.between(0, 3) == 0 {
            put(&store, batch).unwrap();
        } else {
            store.submit(of(batch), Box::new(|outcome| outcome.unwrap()));
        }
        if random.between(0, 20) == 0 {
            model.check(&store);
        }
        if random.between(0, 30) == 0 || n + 1 == batches {
            store.clone().close();
            model.check(&store);
            checkpoints += store.stats().checkpoints;
            drop(store);
            let (again, report) = open();
            assert_eq!(report.last_batch, n + 1);
            assert!(!report.doubt);
            store = again;
            model.check(&store);
        }
    }
    checkpoints
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn in_memory(seed in any::<u64>()) {
        let disk = MemoryDisk::new();
        run(seed, 300, &mut || open_memory(&disk, small()).unwrap());
    }
}

#[test]
fn on_sled() {
    let mut checkpoints = 0;
    for seed in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        checkpoints += run(seed, 400, &mut || LogStore::open(dir.path(), small_sled()).unwrap());
    }
    assert!(checkpoints > 10, "only {checkpoints} checkpoints: the test does not reach what it is for");
}
