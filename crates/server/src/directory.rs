//! Which keyspaces and logs there are, and which of them this store serves.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use pontoon_kv::Keyspace;
use pontoon_kv::keyspace::Directory;
use pontoon_kv::log::LogState;
use pontoon_node::meta::{GroupRecord, Registry, ReplicaState};
use pontoon_raft_core::types::{GroupId, StoreId};
use tokio::sync::watch;

/// The groups of the registry, as far as this store has followed it.
#[derive(Debug, Default)]
pub(crate) struct KeyspaceDirectory {
    entries: RwLock<Entries>,
    /// Tells those who wait for a keyspace to appear here.
    changed: watch::Sender<()>,
    leftovers: Mutex<Leftovers>,
}

/// What is known of replicas that are gone and still take up space here.
#[derive(Debug, Default)]
struct Leftovers {
    /// States that have lost their log were looked for since this process started, and since a replica could not be
    /// destroyed.
    swept: bool,
    /// Those that are being destroyed now, or could not be.
    destroying: BTreeSet<GroupId>,
}

#[derive(Debug, Default)]
struct Entries {
    by_group: BTreeMap<GroupId, Entry>,
    by_name: HashMap<String, GroupId>,
}

/// What a replica here is read through.
#[derive(Clone, Debug)]
pub(crate) enum Hosted {
    /// An etcd keyspace.
    Kv(Arc<Keyspace>),
    /// A plain log.
    Log(Arc<LogState>),
}

#[derive(Debug)]
struct Entry {
    name: String,
    /// A replica is here. It need not be one that may be asked: it may be on its way in or out.
    here: Option<Hosted>,
    /// This store answers for it.
    serves: bool,
    /// The other stores that do.
    elsewhere: Arc<[StoreId]>,
}

impl KeyspaceDirectory {
    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn leftovers(&self) -> std::sync::MutexGuard<'_, Leftovers> {
        self.leftovers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The replica of a group here is being destroyed.
    pub(crate) fn destroying(&self, group: GroupId) {
        self.leftovers().destroying.insert(group);
    }

    /// Nothing is left of it.
    pub(crate) fn destroyed(&self, group: GroupId) {
        self.leftovers().destroying.remove(&group);
    }

    /// Whether all states that have lost their log were found.
    pub(crate) fn is_swept(&self) -> bool {
        self.leftovers().swept
    }

    /// See [`Self::is_swept`].
    pub(crate) fn set_swept(&self, swept: bool) {
        self.leftovers().swept = swept;
    }

    /// The groups whose replicas are being destroyed here, and whether there can be no others.
    pub(crate) fn being_destroyed(&self) -> (BTreeSet<GroupId>, bool) {
        let leftovers = self.leftovers();
        (leftovers.destroying.clone(), leftovers.swept)
    }

    /// Hears of every change from now on.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Follows what the registry says of a group. A replica that is joining, or to be removed, is passed over as long as
    /// others can answer.
    pub(crate) fn follow(&self, record: &GroupRecord, own: StoreId) {
        let mut entries = self.write();
        entries.by_name.insert(record.name.clone(), record.id());
        let others = || record.voters().filter(|r| r.store != own.0).map(|r| StoreId(r.store));
        let entry = entries.by_group.entry(record.id()).or_insert_with(|| Entry {
            name: record.name.clone(),
            here: None,
            serves: false,
            elsewhere: Arc::from([]),
        });
        if !entry.elsewhere.iter().copied().eq(others()) {
            entry.elsewhere = others().collect();
        }
        let votes = record.on(own.0).is_some_and(|r| r.state() == ReplicaState::Voter);
        entry.serves = entry.here.is_some() && (votes || entry.elsewhere.is_empty());
        drop(entries);
        self.changed.send_replace(());
    }

    /// The replica that was opened here.
    pub(crate) fn opened(&self, group: GroupId, hosted: Hosted) {
        if let Some(entry) = self.write().by_group.get_mut(&group) {
            entry.here = Some(hosted);
        }
    }

    /// The replica here is about to be closed.
    pub(crate) fn closing(&self, group: GroupId) {
        if let Some(entry) = self.write().by_group.get_mut(&group) {
            (entry.serves, entry.here) = (false, None);
        }
    }

    /// Takes a group away.
    pub(crate) fn remove(&self, group: GroupId) {
        let mut entries = self.write();
        let Some(entry) = entries.by_group.remove(&group) else { return };
        if entries.by_name.get(&entry.name) == Some(&group) {
            entries.by_name.remove(&entry.name);
        }
    }

    /// Whether the name stands for this group here.
    pub(crate) fn is_named(&self, name: &str, group: GroupId) -> bool {
        self.read().by_name.get(name) == Some(&group)
    }

    /// Whether a replica of it is open here.
    pub(crate) fn is_open(&self, group: GroupId) -> bool {
        self.read().by_group.get(&group).is_some_and(|entry| entry.here.is_some())
    }

    /// The groups that are here and not in the registry any more.
    pub(crate) fn groups_not_in(&self, registry: &Registry) -> Vec<GroupId> {
        self.read().by_group.keys().filter(|g| !registry.groups.contains_key(&g.0)).copied().collect()
    }

    /// The state of a keyspace that has a replica here.
    pub(crate) fn keyspace(&self, group: GroupId) -> Option<Arc<Keyspace>> {
        match &self.read().by_group.get(&group)?.here {
            Some(Hosted::Kv(keyspace)) => Some(Arc::clone(keyspace)),
            _ => None,
        }
    }

    /// The state of a log that has a replica here which may be asked.
    pub(crate) fn log(&self, group: GroupId) -> Option<Arc<LogState>> {
        match self.read().by_group.get(&group).filter(|entry| entry.serves)? {
            Entry { here: Some(Hosted::Log(log)), .. } => Some(Arc::clone(log)),
            _ => None,
        }
    }

    /// Where a group lives, if this store does not answer for it.
    pub(crate) fn elsewhere(&self, name: &str) -> Option<Arc<[StoreId]>> {
        let entries = self.read();
        let entry = entries.by_group.get(entries.by_name.get(name)?)?;
        (!entry.serves).then(|| Arc::clone(&entry.elsewhere))
    }
}

impl Directory for KeyspaceDirectory {
    fn find(&self, name: &str) -> Option<Arc<Keyspace>> {
        let entries = self.read();
        let entry = entries.by_group.get(entries.by_name.get(name)?)?;
        match &entry.here {
            Some(Hosted::Kv(keyspace)) if entry.serves => Some(Arc::clone(keyspace)),
            _ => None,
        }
    }
}
