//! The registry as a value: what each command does to it. Pure, and the same on every store. `stores.rs` has what concerns
//! stores, `replicas.rs` the steps of replicas; here are groups, and the way to all of it.

use pontoon_raft_core::types::GroupId;
use prost::Message as _;

use super::commands::{MetaCommand, MetaReply, meta_command};
use super::records::{
    GroupKind, GroupRecord, RECOVERIES_MAX, RecoveryRecord, Registry, StoreRecord, VOUCH_SECRET_BYTES,
    VOUCH_SECRETS_MAX, VouchSecret,
};
use super::{DEFAULT_GROUP, DEFAULT_NAME};

/// The longest name of a group: it has to fit into a DNS label, because clients name keyspaces by host name.
pub const MAX_NAME_BYTES: usize = 63;

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
    /// The registry of a new cluster: its stores, and the keyspace `default` on them.
    #[must_use]
    pub fn bootstrap(stores: impl IntoIterator<Item = StoreRecord>) -> Self {
        let mut registry = Self { next_group: DEFAULT_GROUP.0 + 1, ..Self::default() };
        for store in stores {
            registry.stores.insert(store.store, store);
        }
        registry.founders = registry.stores.values().cloned().collect();
        registry.meta = Some(Self::meta_of(registry.stores.keys().copied()));
        let all = registry.least_loaded(usize::MAX);
        registry.insert(GroupRecord::found(DEFAULT_GROUP, DEFAULT_NAME, GroupKind::Kv, &all, 0));
        registry
    }

    fn insert(&mut self, group: GroupRecord) {
        self.names.insert(group.name.clone(), group.group);
        self.groups.insert(group.group, group);
    }

    /// The stores that take replicas, those with the fewest first, by id among equals; no more than `n`, sorted by id.
    fn least_loaded(&self, n: usize) -> Vec<u64> {
        let takes = self.stores.values().filter(|s| s.stays() && !s.learner);
        let mut by_load: Vec<_> = takes.map(|s| (self.replicas_on(s.store), s.store)).collect();
        by_load.sort_unstable();
        let mut stores: Vec<_> = by_load.into_iter().take(n).map(|(_, store)| store).collect();
        stores.sort_unstable();
        stores
    }

    /// Applies one command. Deterministic; a command that makes no sense changes nothing and says why.
    pub fn apply(&mut self, command: &[u8]) -> MetaReply {
        use meta_command::Change;
        match MetaCommand::decode(command) {
            Err(error) => MetaReply::refused(format!("not a registry command: {error}")),
            Ok(MetaCommand { change: None }) => {
                MetaReply::refused("a registry command of a newer version; upgrade this store")
            }
            Ok(MetaCommand { change: Some(change) }) => match change {
                Change::AnnounceStore(store) => self.announce(store),
                Change::CreateGroup(create) => self.create(&create),
                Change::DeleteGroup(delete) => self.delete(&delete),
                Change::AddStore(store) => self.add_store(store),
                Change::RemoveStore(remove) => self.remove_store(remove),
                Change::ForgetStore(forget) => self.forget_store(forget.store),
                Change::ReserveStore(store) => self.reserve_store(store),
                Change::PromoteStore(promote) => self.promote_store(promote.store),
                Change::MoveReplica(step) => self.move_replica(step),
                Change::ReaddressStore(readdress) => self.readdress_store(readdress),
                Change::RecordRecovery(recovery) => self.record_recovery(recovery),
                Change::ReplaceVouchSecret(secret) => self.replace_vouch_secret(secret),
            },
        }
    }

    fn record_recovery(&mut self, recovery: RecoveryRecord) -> MetaReply {
        self.recoveries.push(recovery);
        let over = self.recoveries.len().saturating_sub(RECOVERIES_MAX);
        self.recoveries.drain(..over);
        MetaReply::default()
    }

    fn replace_vouch_secret(&mut self, secret: VouchSecret) -> MetaReply {
        if secret.secret.len() != VOUCH_SECRET_BYTES {
            return MetaReply::refused(format!(
                "a secret by which stores vouch has {VOUCH_SECRET_BYTES} bytes, this one has {}",
                secret.secret.len()
            ));
        }
        // One that comes twice must not drive out the one before it.
        if self.vouch_secrets.first() != Some(&secret) {
            self.vouch_secrets.insert(0, secret);
            self.vouch_secrets.truncate(VOUCH_SECRETS_MAX);
        }
        MetaReply::default()
    }

    fn create(&mut self, create: &meta_command::CreateGroup) -> MetaReply {
        if let Err(error) = check_group_name(&create.name) {
            return MetaReply::refused(error);
        }
        if let Some(&group) = self.names.get(&create.name) {
            let error = format!("{:?} exists already (id {group:016x}); choose another name", create.name);
            return MetaReply { group, ..MetaReply::exists(error) };
        }
        let Ok(kind @ (GroupKind::Kv | GroupKind::Log)) = GroupKind::try_from(create.kind) else {
            return MetaReply::refused(format!("groups of kind {} cannot be created", create.kind));
        };
        let all = self.least_loaded(usize::MAX).len();
        if create.replicas as usize > all {
            return MetaReply::refused(format!(
                "{} replicas are asked for, the cluster has {all} stores: each replica needs a store of its own; ask for \
                 at most {all}",
                create.replicas
            ));
        }
        let wished = if create.replicas == 0 { create.wished as usize } else { create.replicas as usize };
        let stores = self.least_loaded(if wished == 0 { all } else { wished });
        if stores.is_empty() {
            return MetaReply::refused(
                "no store of the cluster takes new replicas: all of them join or leave; try again later",
            );
        }
        let wished = if wished == 0 { stores.len() } else { wished };
        let group = self.next_group;
        self.next_group += 1;
        let wished = u32::try_from(wished).unwrap_or(u32::MAX);
        self.insert(GroupRecord::found(GroupId(group), &create.name, kind, &stores, wished));
        MetaReply { group, ..MetaReply::default() }
    }

    fn delete(&mut self, delete: &meta_command::DeleteGroup) -> MetaReply {
        match self.names.get(&delete.name) {
            _ if delete.group <= DEFAULT_GROUP.0 => {
                MetaReply::missing("the keyspace \"default\" always exists and cannot be deleted")
            }
            None => MetaReply::missing(format!("there is no group {:?}", delete.name)),
            Some(&group) if group != delete.group => MetaReply::missing(format!(
                "the group {:?} has the id {group:016x}, not {:016x}: it is not the one that was meant",
                delete.name, delete.group
            )),
            Some(&group) => {
                self.names.remove(&delete.name);
                self.groups.remove(&group);
                MetaReply { group, ..MetaReply::default() }
            }
        }
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
            wished: 0,
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
    fn the_last_two_secrets_are_kept_and_not_told() {
        let mut registry = registry();
        let secret = |byte: u8, len| VouchSecret { secret: vec![byte; len] };
        let replace = |registry: &mut Registry, secret| {
            let change = Some(meta_command::Change::ReplaceVouchSecret(secret));
            registry.apply(&MetaCommand { change }.to_bytes())
        };
        for byte in [1, 2, 2, 3] {
            assert!(replace(&mut registry, secret(byte, VOUCH_SECRET_BYTES)).is_done());
        }
        let kept = [secret(3, VOUCH_SECRET_BYTES), secret(2, VOUCH_SECRET_BYTES)];
        assert_eq!(registry.vouch_secrets, kept);
        assert!(!replace(&mut registry, secret(4, VOUCH_SECRET_BYTES - 1)).is_done(), "too short");
        assert_eq!(registry.vouch_secrets, kept);
        assert!(!format!("{registry:?}").contains("[3, 3"), "it would be in a log one day");
    }

    #[test]
    fn replicas_go_where_there_are_fewest() {
        let mut registry = registry();
        let voters = |r: &Registry, name: &str| {
            r.group_named(name).expect("created").voters().map(|v| v.store).collect::<Vec<_>>()
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

    fn change(registry: &mut Registry, change: meta_command::Change) -> MetaReply {
        registry.apply(&MetaCommand { change: Some(change) }.to_bytes())
    }

    fn joiner(store: u64, name: &str, peer_address: &str) -> StoreRecord {
        let (name, peer_address) = (name.to_owned(), peer_address.to_owned());
        StoreRecord { store, name, peer_address, lineage: store, ..StoreRecord::default() }
    }

    #[test]
    fn a_store_is_let_in_once_and_only_under_a_name_and_an_address_of_its_own() {
        use meta_command::Change::AddStore;
        let mut registry =
            Registry::bootstrap((1..=3).map(|i| joiner(i, &format!("n{i}"), &format!("h:{i}"))));
        for (bad, why) in [
            (joiner(9, "n2", "h:9"), "the name n2 belongs to"),
            (joiner(9, "n9", "h:2"), "the peer address h:2 belongs to"),
            (StoreRecord { lineage: 77, ..joiner(2, "n9", "h:9") }, "belongs to another store"),
        ] {
            let before = registry.clone();
            let reply = change(&mut registry, AddStore(bad));
            assert!(reply.exists && reply.error.contains(why), "{}", reply.error);
            assert_eq!(registry, before);
        }
        for bad in [
            joiner(9, "", "h:9"),
            joiner(9, "n9", ""),
            joiner(9, &"n".repeat(300), "h:9"),
            joiner(0, "n9", "h:9"),
        ] {
            let reply = change(&mut registry, AddStore(bad));
            assert!(!reply.is_done() && !reply.exists, "{}", reply.error);
        }
        let first = change(&mut registry, AddStore(joiner(9, "n9", "h:9")));
        assert_eq!((first.store, first.number, &first.error[..]), (9, 2, ""));
        // The answer was lost; meanwhile it has another address.
        let again = change(&mut registry, AddStore(joiner(9, "n9", "h:10")));
        assert_eq!((again.store, again.number), (9, 2));
        assert_eq!((registry.stores.len(), &registry.stores[&9].peer_address[..]), (4, "h:10"));
        // Late wishes of another time.
        let step = |number, step: meta_command::Step, version| {
            meta_command::Change::MoveReplica(meta_command::MoveReplica {
                group: 0,
                store: 9,
                number,
                step: step as i32,
                version,
            })
        };
        assert!(change(&mut registry, step(7, meta_command::Step::Place, 0)).exists);
        assert!(change(&mut registry, step(2, meta_command::Step::Removed, 0)).error.contains("is to stay"));
        assert!(
            change(&mut registry, step(2, meta_command::Step::Remove, 5)).exists,
            "made for another version"
        );
        assert!(change(&mut registry, step(2, meta_command::Step::Placed, 0)).is_done());
        assert!(registry.stores[&9].stays());
    }

    #[test]
    fn the_registry_of_a_version_that_changed_no_members_is_read() {
        let founded = Registry::bootstrap((1..=3).map(|i| joiner(i, &format!("n{i}"), "")));
        let mut now = founded.clone();
        create(&mut now, "a", 2);
        // As that version wrote it.
        let mut old = now.clone();
        (old.meta, old.election_timer_ms) = (None, 0);
        old.founders.clear();
        for group in old.groups.values_mut() {
            group.replicas.clear();
            (group.wished, group.next_number) = (0, 0);
        }
        let mut read = Registry::decode(&old.encode_to_vec()[..]).expect("it decodes");
        read.upgrade();
        let without_lineage = |r: &Registry| {
            let mut r = r.clone();
            r.founders.iter_mut().for_each(|f| f.lineage = 0);
            r
        };
        assert_eq!(without_lineage(&read), without_lineage(&now));
        let again = read.clone();
        read.upgrade();
        assert_eq!(read, again);
        assert!(!Registry::default().is_founded());
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
