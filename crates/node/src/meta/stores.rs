//! What commands do to stores: they come, announce themselves, leave and are removed.

use super::commands::{MetaReply, meta_command};
use super::records::{
    Registry, RemovedStore, ReplicaRecord, ReplicaState, StoreRecord, StoreState, VOTERS_MAX,
};

/// Names and addresses are no longer than this.
const TEXT_BYTES_MAX: usize = 256;

impl Registry {
    /// A store tells of itself. Only the directory that it has begun with may speak for it, and no start before the
    /// latest one: such an announcement is of an older copy, or was long on its way.
    pub(super) fn announce(&mut self, mut store: StoreRecord) -> MetaReply {
        let id = store.store;
        let Some(known) = self.stores.get(&id) else {
            let removed = self.removed.get(&id);
            let why = removed.map_or("is not a member of this cluster", RemovedStore::reason);
            let error = format!("store {id:016x}: {why}");
            return MetaReply { removed: removed.is_some(), ..MetaReply::missing(error) };
        };
        if store.lineage == 0 {
            // Of a version that knows no lineages. What is known stays.
            (store.lineage, store.start) = (known.lineage, known.start);
        } else if known.lineage != 0 && store.lineage != known.lineage {
            return MetaReply::refused(format!(
                "store {id:016x} has the data directory of lineage {:016x}, and this is {:016x}: start the store with the \
                 directory that it has run on",
                known.lineage, store.lineage
            ));
        } else if store.start < known.start {
            return MetaReply::refused(format!(
                "start {} of store {id:016x} is over: start {} has been announced",
                store.start, known.start
            ));
        }
        // Where it is in its life is not for itself to say.
        (store.state, store.learner) = (known.state, known.learner);
        self.stores.insert(id, store);
        MetaReply::default()
    }

    /// Who has this name, or this address, but `store`. One that is being kicked has lost both: what takes its place may come.
    fn clash(&self, store: u64, name: &str, peer_address: &str) -> Option<String> {
        let other = |s: &&StoreRecord| s.store != store && s.state() != StoreState::Kicked;
        if let Some(s) = self.stores.values().filter(other).find(|s| !name.is_empty() && s.name == name) {
            return Some(format!(
                "the name {name} belongs to store {:016x} at {}; each store has a name of its own: choose another one, or \
                 kick that store if it is gone for good",
                s.store, s.peer_address
            ));
        }
        let taken = self.stores.values().filter(other).find(|s| s.peer_address == peer_address)?;
        Some(format!(
            "the peer address {peer_address} belongs to store {:016x} ({}); each store has an address of its own: choose \
             another one, or kick that store if it is gone for good",
            taken.store, taken.name
        ))
    }

    /// A new store is let in, with a replica of the meta group. A directory that was let in before gets the same answer.
    pub(super) fn add_store(&mut self, mut new: StoreRecord) -> MetaReply {
        if new.lineage == 0 || new.store == 0 {
            return MetaReply::refused(
                "a store that joins must name its id and its data directory's lineage",
            );
        }
        let texts = [&new.name, &new.peer_address, &new.client_address];
        if new.name.is_empty()
            || new.peer_address.is_empty()
            || texts.iter().any(|t| t.len() > TEXT_BYTES_MAX)
        {
            return MetaReply::refused(format!(
                "a store that joins must have a name and a peer address, of at most {TEXT_BYTES_MAX} bytes each"
            ));
        }
        let gone = |(id, gone): (&u64, &RemovedStore)| *id == new.store || gone.lineage == new.lineage;
        if let Some((id, gone)) = self.removed.iter().find(|(id, r)| gone((id, r))) {
            let error =
                format!("store {id:016x}: {}; it never comes back: join with a new directory", gone.reason());
            return MetaReply { removed: true, ..MetaReply::refused(error) };
        }
        if let Some(known) = self.stores.values().find(|s| s.lineage == new.lineage) {
            let id = known.store;
            if known.goes() {
                let error = format!("store {id:016x} is being removed from the cluster");
                return MetaReply { removed: true, ..MetaReply::refused(error) };
            }
            if let Some(clash) = self.clash(id, &new.name, &new.peer_address) {
                return MetaReply::exists(clash);
            }
            if known.state() == StoreState::Joining
                && let Some(known) = self.stores.get_mut(&id)
            {
                (known.name, known.peer_address) = (new.name, new.peer_address);
                known.client_address = new.client_address;
            }
            return self.let_in(id);
        }
        let reserved = self
            .stores
            .values()
            .find(|s| s.state() == StoreState::Reserved && s.peer_address == new.peer_address);
        match reserved {
            Some(reserved) => (new.store, new.learner) = (reserved.store, reserved.learner),
            None if self.stores.contains_key(&new.store) => {
                return MetaReply::exists(format!("the id {:016x} belongs to another store", new.store));
            }
            None => new.learner = false,
        }
        if let Some(clash) = self.clash(new.store, &new.name, &new.peer_address) {
            return MetaReply::exists(clash);
        }
        new.state = StoreState::Joining as i32;
        let (id, learner) = (new.store, new.learner);
        self.stores.insert(id, new);
        let Some(meta) = &mut self.meta else {
            return MetaReply::refused("this registry is not founded");
        };
        let votes = |r: &&ReplicaRecord| matches!(r.state(), ReplicaState::Voter | ReplicaState::Joining);
        let full = meta.replicas.iter().filter(votes).count() >= VOTERS_MAX;
        let state = if learner || full { ReplicaState::JoiningLearner } else { ReplicaState::Joining };
        meta.add(id, state);
        self.let_in(id)
    }

    /// The answer to a store that was let in.
    fn let_in(&self, store: u64) -> MetaReply {
        let number = self.meta.as_ref().and_then(|meta| meta.on(store)).map_or(0, |r| r.number);
        MetaReply { store, number, ..MetaReply::default() }
    }

    /// Keeps a place. The same place asked for twice is kept once.
    pub(super) fn reserve_store(&mut self, mut new: StoreRecord) -> MetaReply {
        if new.store == 0 || new.peer_address.is_empty() || new.peer_address.len() > TEXT_BYTES_MAX {
            return MetaReply::refused("a place for a store needs an id and a peer address");
        }
        if self.removed.contains_key(&new.store) || self.stores.contains_key(&new.store) {
            return MetaReply::exists(format!("the id {:016x} was given before", new.store));
        }
        if let Some(clash) = self.clash(new.store, "", &new.peer_address) {
            return MetaReply::exists(clash);
        }
        let store = new.store;
        (new.state, new.name, new.lineage, new.start) = (StoreState::Reserved as i32, String::new(), 0, 0);
        self.stores.insert(store, new);
        MetaReply { store, ..MetaReply::default() }
    }

    /// A store wishes to leave, or is kicked.
    pub(super) fn remove_store(&mut self, remove: meta_command::RemoveStore) -> MetaReply {
        let meta_command::RemoveStore { store, kick } = remove;
        let done = MetaReply { store, ..MetaReply::default() };
        if self.removed.contains_key(&store) {
            return done;
        }
        let Some(known) = self.stores.get(&store) else {
            return MetaReply::missing(format!("there is no store {store:016x}"));
        };
        if known.state() == StoreState::Reserved {
            self.bury(store, kick);
            return done;
        }
        let stays = |s: &&StoreRecord| s.store != store && s.stays() && !s.learner;
        if !known.goes() && !self.stores.values().any(|s| stays(&s)) {
            return MetaReply::refused(format!(
                "store {} is the last one of its cluster that could stay, and a cluster without a store could never do \
                 anything again; let another one join first",
                known.name
            ));
        }
        let state = match known.state() {
            StoreState::Kicked => StoreState::Kicked,
            _ if kick => StoreState::Kicked,
            _ => StoreState::Leaving,
        };
        if let Some(known) = self.stores.get_mut(&store) {
            known.state = state as i32;
        }
        done
    }

    /// A store that goes and has no replica left is gone.
    pub(super) fn forget_store(&mut self, store: u64) -> MetaReply {
        let done = MetaReply { store, ..MetaReply::default() };
        let Some(known) = self.stores.get(&store) else { return done };
        if !known.goes() {
            return MetaReply::refused(format!("store {store:016x} is to stay"));
        }
        if let Some(group) = self.all_groups().find(|g| g.on(store).is_some()) {
            return MetaReply::refused(format!("store {store:016x} still has a replica of {}", group.name));
        }
        let kicked = known.state() == StoreState::Kicked;
        self.bury(store, kicked);
        done
    }

    fn bury(&mut self, store: u64, kicked: bool) {
        if let Some(gone) = self.stores.remove(&store) {
            self.removed.insert(store, RemovedStore { name: gone.name, kicked, lineage: gone.lineage });
        }
    }

    /// A store that came without a vote may vote, and take keyspaces.
    pub(super) fn promote_store(&mut self, store: u64) -> MetaReply {
        let Some(known) = self.stores.get_mut(&store) else {
            return MetaReply::missing(format!("there is no store {store:016x}"));
        };
        known.learner = false;
        MetaReply { store, ..MetaReply::default() }
    }

    /// Another peer address for a store.
    pub(super) fn readdress_store(&mut self, readdress: meta_command::ReaddressStore) -> MetaReply {
        let meta_command::ReaddressStore { store, peer_address } = readdress;
        if !self.stores.contains_key(&store) {
            return MetaReply::missing(format!("there is no store {store:016x}"));
        }
        if peer_address.is_empty() || peer_address.len() > TEXT_BYTES_MAX {
            return MetaReply::refused("a peer address has 1 to 256 bytes");
        }
        if let Some(clash) = self.clash(store, "", &peer_address) {
            return MetaReply::exists(clash);
        }
        if let Some(known) = self.stores.get_mut(&store) {
            known.peer_address = peer_address;
        }
        MetaReply { store, ..MetaReply::default() }
    }
}
