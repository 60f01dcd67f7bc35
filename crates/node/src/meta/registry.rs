//! The registry as a value: what stores and groups there are, and what each command does to it. Pure.

use std::collections::BTreeMap;

use pontoon_raft_core::types::{GroupId, ReplicaId, StoreId};
use prost::Message as _;

use super::{DEFAULT_GROUP, DEFAULT_NAME};

/// The longest name of a group: it has to fit into a DNS label, because clients name keyspaces by host name.
pub const MAX_NAME_BYTES: usize = 63;

/// What a group replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum GroupKind {
    /// The registry itself.
    Meta = 0,
    /// An etcd keyspace.
    Kv = 1,
}

impl std::fmt::Display for GroupKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Meta => "meta",
            Self::Kv => "kv",
        })
    }
}

/// One store.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StoreRecord {
    /// Its id.
    #[prost(fixed64, tag = "1")]
    pub store: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other stores reach it.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients reach it; empty until it has announced itself.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// Of its data directory, which it keeps for ever ([`crate::lineage`]); 0 until it has announced itself.
    #[prost(fixed64, tag = "5")]
    pub lineage: u64,
    /// The latest start that it has announced.
    #[prost(uint64, tag = "6")]
    pub start: u64,
}

/// A replica, as it is written down.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct ReplicaRecord {
    /// The store that hosts it.
    #[prost(fixed64, tag = "1")]
    pub store: u64,
    /// Never reused within the group.
    #[prost(uint64, tag = "2")]
    pub number: u64,
}

impl From<ReplicaRecord> for ReplicaId {
    fn from(r: ReplicaRecord) -> Self {
        Self { store: StoreId(r.store), number: r.number }
    }
}

/// One group.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct GroupRecord {
    /// Its id, never reused.
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// Its name, unique among the groups that exist.
    #[prost(string, tag = "2")]
    pub name: String,
    /// What it replicates.
    #[prost(enumeration = "GroupKind", tag = "3")]
    pub kind: i32,
    /// The voters that it was created with.
    #[prost(message, repeated, tag = "4")]
    pub voters: Vec<ReplicaRecord>,
}

impl GroupRecord {
    /// The id as a type.
    #[must_use]
    pub fn id(&self) -> GroupId {
        GroupId(self.group)
    }

    /// The voters that it was created with.
    #[must_use]
    pub fn voter_ids(&self) -> Vec<ReplicaId> {
        self.voters.iter().copied().map(Into::into).collect()
    }
}

/// Everything that the meta group knows.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Registry {
    /// The stores, by id.
    #[prost(btree_map = "fixed64, message", tag = "1")]
    pub stores: BTreeMap<u64, StoreRecord>,
    /// The groups, by id.
    #[prost(btree_map = "uint64, message", tag = "2")]
    pub groups: BTreeMap<u64, GroupRecord>,
    /// The id of the next group.
    #[prost(uint64, tag = "3")]
    pub next_group: u64,
    /// The group of each name.
    #[prost(btree_map = "string, uint64", tag = "4")]
    pub names: BTreeMap<String, u64>,
}

/// A change of the registry.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetaCommand {
    /// Which change.
    #[prost(oneof = "meta_command::Change", tags = "1, 2, 3")]
    pub change: Option<meta_command::Change>,
}

/// The changes.
pub mod meta_command {
    /// One change of the registry.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Change {
        /// A store tells its name and addresses.
        #[prost(message, tag = "1")]
        AnnounceStore(super::StoreRecord),
        /// Creates a group.
        #[prost(message, tag = "2")]
        CreateGroup(CreateGroup),
        /// Deletes a group, by name and id, so that no recreated namesake is hit.
        #[prost(message, tag = "3")]
        DeleteGroup(DeleteGroup),
    }

    /// Creates a group.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct CreateGroup {
        /// Its name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// What it replicates.
        #[prost(enumeration = "super::GroupKind", tag = "2")]
        pub kind: i32,
        /// How many voters; 0: as many as there are stores.
        #[prost(uint32, tag = "3")]
        pub replicas: u32,
    }

    /// Deletes a group.
    #[derive(Clone, PartialEq, Eq, prost::Message)]
    pub struct DeleteGroup {
        /// Its name.
        #[prost(string, tag = "1")]
        pub name: String,
        /// Its id.
        #[prost(uint64, tag = "2")]
        pub group: u64,
    }
}

/// What a change came to.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MetaReply {
    /// Empty if it was done; else what is wrong, which rule, and what to do.
    #[prost(string, tag = "1")]
    pub error: String,
    /// The group that was created, deleted or found in the way.
    #[prost(uint64, tag = "2")]
    pub group: u64,
    /// Whether the error is a name that exists already.
    #[prost(bool, tag = "3")]
    pub exists: bool,
    /// Whether the error is a name that does not exist.
    #[prost(bool, tag = "4")]
    pub missing: bool,
}

impl MetaCommand {
    /// The command's bytes in the log.
    #[must_use]
    pub fn to_bytes(&self) -> bytes::Bytes {
        self.encode_to_vec().into()
    }
}

/// Checks a name against the rule: a DNS label, so that clients can name the keyspace by host name.
///
/// # Errors
/// One sentence: the name and the rule.
pub fn check_group_name(name: &str) -> Result<(), String> {
    let fits = !name.is_empty()
        && name.len() <= MAX_NAME_BYTES
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    // "0123" would read as part of an IP address; "localhost" means `default`.
    let reserved = name == "localhost" || name.bytes().all(|b| b.is_ascii_digit());
    if fits && !reserved {
        return Ok(());
    }
    Err(format!(
        "the name {name:?} cannot be used: a name has 1 to {MAX_NAME_BYTES} of a-z, 0-9 and '-', begins and ends with a \
         letter or digit, is not a number and not \"localhost\" (it has to work as the first label of a host name)"
    ))
}

impl Registry {
    /// The registry of a new cluster: its stores, and the keyspace `default` on all of them.
    #[must_use]
    pub fn bootstrap(stores: impl IntoIterator<Item = StoreRecord>) -> Self {
        let mut registry = Self { next_group: DEFAULT_GROUP.0 + 1, ..Self::default() };
        for store in stores {
            registry.stores.insert(store.store, store);
        }
        let voters = registry.place(0);
        registry.insert(DEFAULT_GROUP.0, DEFAULT_NAME.to_owned(), GroupKind::Kv, voters);
        registry
    }

    fn insert(&mut self, group: u64, name: String, kind: GroupKind, voters: Vec<ReplicaRecord>) {
        self.names.insert(name.clone(), group);
        self.groups.insert(group, GroupRecord { group, name, kind: kind as i32, voters });
    }

    /// Chooses stores for a new group: those with the fewest replicas, by id among equals. 0 means all.
    fn place(&self, replicas: u32) -> Vec<ReplicaRecord> {
        let mut load: BTreeMap<u64, usize> = self.stores.keys().map(|s| (*s, 0)).collect();
        for voter in self.groups.values().flat_map(|g| &g.voters) {
            if let Some(n) = load.get_mut(&voter.store) {
                *n += 1;
            }
        }
        let mut by_load: Vec<_> = load.into_iter().map(|(store, n)| (n, store)).collect();
        by_load.sort_unstable();
        let n = if replicas == 0 { by_load.len() } else { replicas as usize };
        let mut voters: Vec<_> =
            by_load.into_iter().take(n).map(|(_, store)| ReplicaRecord { store, number: 1 }).collect();
        voters.sort_unstable_by_key(|r| r.store);
        voters
    }

    /// Applies one command. Deterministic; a command that makes no sense changes nothing and says why.
    pub fn apply(&mut self, command: &[u8]) -> MetaReply {
        let refused = |error: String| MetaReply { error, ..MetaReply::default() };
        match MetaCommand::decode(command) {
            Err(error) => refused(format!("not a registry command: {error}")),
            Ok(MetaCommand { change: None }) => {
                refused("a registry command of a newer version; upgrade this store".to_owned())
            }
            Ok(MetaCommand { change: Some(change) }) => match change {
                meta_command::Change::AnnounceStore(store) => self.announce(store),
                meta_command::Change::CreateGroup(create) => self.create(&create),
                meta_command::Change::DeleteGroup(delete) => self.delete(&delete),
            },
        }
    }

    /// A store tells of itself. Only the directory that it has begun with may speak for it, and no start before the
    /// latest one: such an announcement is of an older copy, or was long on its way.
    fn announce(&mut self, mut store: StoreRecord) -> MetaReply {
        let id = store.store;
        let Some(known) = self.stores.get(&id) else {
            let error = format!("store {id:016x} is not a member of this cluster");
            return MetaReply { error, missing: true, ..MetaReply::default() };
        };
        if store.lineage == 0 {
            // Of a version that knows no lineages. What is known stays.
            (store.lineage, store.start) = (known.lineage, known.start);
        } else if known.lineage != 0 && store.lineage != known.lineage {
            let error = format!(
                "store {id:016x} has the data directory of lineage {:016x}, and this is {:016x}: start the store with the \
                 directory that it has run on",
                known.lineage, store.lineage
            );
            return MetaReply { error, ..MetaReply::default() };
        } else if store.start < known.start {
            let error = format!(
                "start {} of store {id:016x} is over: start {} has been announced",
                store.start, known.start
            );
            return MetaReply { error, ..MetaReply::default() };
        }
        self.stores.insert(id, store);
        MetaReply::default()
    }

    fn create(&mut self, create: &meta_command::CreateGroup) -> MetaReply {
        if let Err(error) = check_group_name(&create.name) {
            return MetaReply { error, ..MetaReply::default() };
        }
        if let Some(&group) = self.names.get(&create.name) {
            let error = format!("{:?} exists already (id {group:016x}); choose another name", create.name);
            return MetaReply { error, group, exists: true, ..MetaReply::default() };
        }
        let kind = match GroupKind::try_from(create.kind) {
            Ok(GroupKind::Kv) => GroupKind::Kv,
            _ => {
                let error = format!("groups of kind {} cannot be created", create.kind);
                return MetaReply { error, ..MetaReply::default() };
            }
        };
        let stores = self.stores.len();
        if create.replicas as usize > stores {
            let error = format!(
                "{} replicas are asked for, the cluster has {stores} stores: each replica needs a store of its own; \
                 ask for at most {stores}",
                create.replicas
            );
            return MetaReply { error, ..MetaReply::default() };
        }
        let group = self.next_group;
        self.next_group += 1;
        let voters = self.place(create.replicas);
        self.insert(group, create.name.clone(), kind, voters);
        MetaReply { group, ..MetaReply::default() }
    }

    fn delete(&mut self, delete: &meta_command::DeleteGroup) -> MetaReply {
        let refused = |error: String| MetaReply { error, missing: true, ..MetaReply::default() };
        match self.names.get(&delete.name) {
            _ if delete.group <= DEFAULT_GROUP.0 => {
                refused("the keyspace \"default\" always exists and cannot be deleted".to_owned())
            }
            None => refused(format!("there is no keyspace {:?}", delete.name)),
            Some(&group) if group != delete.group => refused(format!(
                "the keyspace {:?} has the id {group:016x}, not {:016x}: it is not the one that was meant",
                delete.name, delete.group
            )),
            Some(&group) => {
                self.names.remove(&delete.name);
                self.groups.remove(&group);
                MetaReply { group, ..MetaReply::default() }
            }
        }
    }

    /// The group of this name.
    #[must_use]
    pub fn group_named(&self, name: &str) -> Option<&GroupRecord> {
        self.groups.get(self.names.get(name)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry::bootstrap((1..=3).map(|store| StoreRecord {
            store,
            name: format!("n{store}"),
            ..StoreRecord::default()
        }))
    }

    fn create(registry: &mut Registry, name: &str, replicas: u32) -> MetaReply {
        let change = meta_command::Change::CreateGroup(meta_command::CreateGroup {
            name: name.to_owned(),
            kind: GroupKind::Kv as i32,
            replicas,
        });
        registry.apply(&MetaCommand { change: Some(change) }.to_bytes())
    }

    #[test]
    fn ids_are_never_reused_and_names_are_unique() {
        let mut registry = registry();
        let a = create(&mut registry, "a", 0).group;
        assert!(create(&mut registry, "a", 0).exists);
        let delete = |group| MetaCommand {
            change: Some(meta_command::Change::DeleteGroup(meta_command::DeleteGroup {
                name: "a".into(),
                group,
            })),
        };
        assert!(
            !registry.apply(&delete(a + 7).to_bytes()).error.is_empty(),
            "the id guards against a namesake"
        );
        assert_eq!(registry.apply(&delete(a).to_bytes()).error, "");
        assert!(create(&mut registry, "a", 0).group > a);
        assert!(registry.apply(&delete(1).to_bytes()).error.contains("always exists"));
    }

    #[test]
    fn replicas_go_where_there_are_fewest() {
        let mut registry = registry();
        let voters = |r: &Registry, name: &str| {
            r.group_named(name).expect("created").voters.iter().map(|v| v.store).collect::<Vec<_>>()
        };
        create(&mut registry, "a", 1);
        create(&mut registry, "b", 1);
        create(&mut registry, "c", 2);
        assert_eq!((voters(&registry, "a"), voters(&registry, "b")), (vec![1], vec![2]));
        assert_eq!(voters(&registry, "c"), vec![1, 3]);
        assert!(create(&mut registry, "d", 4).error.contains("at most 3"));
        assert_eq!(voters(&registry, "default"), vec![1, 2, 3]);
    }

    #[test]
    fn names_that_cannot_be_host_labels_are_refused() {
        for bad in ["", "A", "a.b", "-a", "a-", "127", "localhost", &"x".repeat(64), "ü"] {
            assert!(check_group_name(bad).is_err(), "{bad}");
        }
        for good in ["a", "tenant-17", "0a", &"x".repeat(63)] {
            assert!(check_group_name(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn a_store_keeps_its_directory_and_its_starts_never_fall() {
        let mut registry = registry();
        let mut announce = |lineage, start, client_address: &str| {
            let (name, client_address) = ("n1".to_owned(), client_address.to_owned());
            let store =
                StoreRecord { store: 1, name, client_address, lineage, start, ..StoreRecord::default() };
            let command = MetaCommand { change: Some(meta_command::Change::AnnounceStore(store)) };
            let error = registry.apply(&command.to_bytes()).error;
            let known = &registry.stores[&1];
            (error, known.lineage, known.start, known.client_address.clone())
        };
        let done = |lineage, start, address: &str| (String::new(), lineage, start, address.to_owned());
        assert_eq!(announce(0, 0, "a"), done(0, 0, "a"), "an older version");
        assert_eq!(announce(5, 3, "b"), done(5, 3, "b"));
        assert_eq!(announce(5, 3, "c"), done(5, 3, "c"), "the same process has moved");
        assert_eq!(announce(5, 7, "d"), done(5, 7, "d"));
        assert_eq!(announce(0, 0, "e"), done(5, 7, "e"), "an older version again");
        let (error, lineage, start, address) = announce(6, 9, "f");
        assert!(error.contains("lineage 0000000000000005"), "{error}");
        assert_eq!((lineage, start, address.as_str()), (5, 7, "e"));
        let (error, _, start, address) = announce(5, 6, "f");
        assert!(error.contains("start 6") && error.contains("is over"), "{error}");
        assert_eq!((start, address.as_str()), (7, "e"));
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut registry = registry();
        let before = registry.clone();
        assert!(!registry.apply(b"\xff\xff\xff").error.is_empty());
        assert!(!registry.apply(b"").error.is_empty());
        assert_eq!(registry, before);
    }
}
