//! Which keyspaces there are, and which of them live on this store.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use pontoon_kv::Keyspace;
use pontoon_kv::keyspace::Directory;
use pontoon_node::meta::{GroupRecord, Registry};
use pontoon_raft_core::types::{GroupId, StoreId};

/// The keyspaces of the registry, as far as this store has followed it.
#[derive(Debug, Default)]
pub(crate) struct KeyspaceDirectory(RwLock<Entries>);

#[derive(Debug, Default)]
struct Entries {
    by_group: BTreeMap<GroupId, Entry>,
    by_name: HashMap<String, GroupId>,
}

#[derive(Debug)]
struct Entry {
    name: String,
    place: Place,
}

#[derive(Clone, Debug)]
enum Place {
    /// A replica is here.
    Here(Arc<Keyspace>),
    /// Replicas are on these stores only.
    Elsewhere(Arc<[StoreId]>),
}

impl KeyspaceDirectory {
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, record: &GroupRecord, place: Place) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        entries.by_name.insert(record.name.clone(), record.id());
        entries.by_group.insert(record.id(), Entry { name: record.name.clone(), place });
    }

    /// Adds a keyspace with a replica on this store.
    pub(crate) fn insert(&self, record: &GroupRecord, keyspace: Arc<Keyspace>) {
        self.add(record, Place::Here(keyspace));
    }

    /// Adds a keyspace that lives on other stores.
    pub(crate) fn insert_remote(&self, record: &GroupRecord) {
        self.add(record, Place::Elsewhere(record.voters.iter().map(|v| StoreId(v.store)).collect()));
    }

    /// Takes a keyspace away.
    pub(crate) fn remove(&self, group: GroupId) {
        let mut entries = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.by_group.remove(&group)
            && entries.by_name.get(&entry.name) == Some(&group)
        {
            entries.by_name.remove(&entry.name);
        }
    }

    /// Whether the group has been followed up.
    pub(crate) fn knows(&self, group: GroupId) -> bool {
        self.read().by_group.contains_key(&group)
    }

    /// The groups that are here and not in the registry any more.
    pub(crate) fn groups_not_in(&self, registry: &Registry) -> Vec<GroupId> {
        self.read().by_group.keys().filter(|g| !registry.groups.contains_key(&g.0)).copied().collect()
    }

    /// The state of a keyspace that has a replica here.
    pub(crate) fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        match &self.read().by_group.get(&group)?.place {
            Place::Here(keyspace) => Some(Arc::clone(keyspace)),
            Place::Elsewhere(_) => None,
        }
    }

    /// Where a keyspace lives, if it has no replica here.
    pub(crate) fn elsewhere(&self, name: &str) -> Option<Arc<[StoreId]>> {
        let entries = self.read();
        match &entries.by_group.get(entries.by_name.get(name)?)?.place {
            Place::Here(_) => None,
            Place::Elsewhere(stores) => Some(Arc::clone(stores)),
        }
    }
}

impl Directory for KeyspaceDirectory {
    fn find(&self, name: &str) -> Option<Arc<Keyspace>> {
        let entries = self.read();
        match &entries.by_group.get(entries.by_name.get(name)?)?.place {
            Place::Here(keyspace) => Some(Arc::clone(keyspace)),
            Place::Elsewhere(_) => None,
        }
    }
}
