//! Cluster and store ids of a static start, derived so that all stores agree without talking.
//!
//! Every store of `--initial-cluster` knows the same token and the same names. The ids are
//!
//! ```text
//! cluster = id("pontoon cluster", token, name 1, .., name n)            names sorted by their bytes
//! store i = id("pontoon store",   token, name 1, .., name n, name i)
//! ```
//!
//! where `id` is 64-bit FNV-1a over its arguments, each followed by one zero byte (no argument contains one,
//! so no two lists of arguments are the same bytes), mixed by the finalizer of SplitMix64, because the upper
//! bits of FNV-1a barely depend on the last bytes. A result of zero, which means "no id" everywhere, is
//! replaced by 1.
//!
//! This is a part of the contract between stores, possibly of different versions: it must never change.

/// The id of the cluster that starts with this token and these names; `names` must be sorted.
pub(crate) fn cluster_id<'a>(token: &'a str, names: impl IntoIterator<Item = &'a str>) -> u64 {
    id(["pontoon cluster", token].into_iter().chain(names))
}

/// The id of the store `own` in that cluster; `names` must be sorted and contain `own`.
pub(crate) fn store_id<'a>(token: &'a str, names: impl IntoIterator<Item = &'a str>, own: &'a str) -> u64 {
    id(["pontoon store", token].into_iter().chain(names).chain([own]))
}

fn id<'a>(parts: impl IntoIterator<Item = &'a str>) -> u64 {
    const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut hash = OFFSET_BASIS;
    for part in parts {
        for byte in part.bytes().chain([0]) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
    hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^= hash >> 31;
    hash.max(1)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const NAMES: [&str; 3] = ["n1", "n2", "n3"];

    /// Golden values: a change here would make stores of two versions disagree about who they are.
    #[test]
    fn ids_never_change() {
        assert_eq!(format!("{:016x}", cluster_id("pontoon", NAMES)), "853917e705702395");
        assert_eq!(format!("{:016x}", store_id("pontoon", NAMES, "n1")), "87bc23677b316b0e");
        assert_eq!(format!("{:016x}", store_id("pontoon", NAMES, "n2")), "121b58e7ad92ce45");
        assert_eq!(format!("{:016x}", store_id("pontoon", NAMES, "n3")), "0d97c275e7451877");
        assert_eq!(format!("{:016x}", cluster_id("pontoon", ["default"])), "19ff30be0ba9dc34");
        assert_eq!(format!("{:016x}", cluster_id("other", NAMES)), "597feebd99008c56");
    }

    #[test]
    fn every_argument_matters() {
        let mut ids = BTreeSet::new();
        for token in ["a", "b", "n1"] {
            for names in [vec!["n1"], vec!["n1", "n2"], vec!["n1n2"], vec!["n1", "n2", "n3"]] {
                assert!(ids.insert(cluster_id(token, names.iter().copied())));
                for name in &names {
                    assert!(ids.insert(store_id(token, names.iter().copied(), name)));
                }
            }
        }
        assert!(!ids.contains(&0));
    }
}
