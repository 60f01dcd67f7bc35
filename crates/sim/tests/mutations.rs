//! Every known mistake can still be made: the sources have not moved on without it. (Whether the explorer finds them is
//! asked by `pontoon-mutants`, which takes minutes.)

use std::path::Path;

use pontoon_sim::{explore, mutations};

#[test]
fn every_mutation_fits_the_sources() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let all = mutations::all(&root).unwrap();
    assert!(all.len() >= 20, "mutations were lost: there are {}", all.len());
    let misfits: Vec<_> =
        all.iter().filter_map(|m| m.fits(&root).err()).map(|error| error.to_string()).collect();
    assert!(misfits.is_empty(), "{}", misfits.join("\n\n"));
    for mutation in all {
        assert!(explore::model(&mutation.model).is_some(), "{}: no model {}", mutation.name, mutation.model);
    }
}
