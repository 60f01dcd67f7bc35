//! Users and roles.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use pontoon_proto::authpb::permission::Type;
use pontoon_proto::authpb::{Permission, Role, User};
use pontoon_proto::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest,
};
use prost::Message as _;

use super::ranges::KeySet;
use super::{AuthChange, Caller};
use crate::error::{EtcdError, StoreError};

/// The role that may do everything, and the user that must have it.
const ROOT: &str = "root";

/// The secret that tokens are made with.
pub(crate) const SECRET_BYTES: usize = 32;

/// The longest name of a user or a role.
const NAME_BYTES_MAX: usize = 1024;

/// What all users and roles of a keyspace may take: they are kept in memory. Part of the replicated state's rules.
const BYTES_MAX: usize = 8 << 20;

/// What is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// What a user may touch, gathered from all roles.
#[derive(Default)]
struct Permitted {
    read: KeySet,
    write: KeySet,
}

/// Worked out when it is needed first; a changed store begins with none.
#[derive(Default)]
struct Cache(Mutex<HashMap<String, Arc<Permitted>>>);

impl Clone for Cache {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Secret([u8; SECRET_BYTES]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// The users and roles of a keyspace, and whether they are asked for.
#[derive(Clone, Debug)]
pub(crate) struct AuthStore {
    enabled: bool,
    /// Moves with every change; what was judged under an older one is judged again.
    revision: u64,
    secret: Secret,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<Role>>,
    cache: Cache,
}

impl Default for AuthStore {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: 1,
            secret: Secret([0; SECRET_BYTES]),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            cache: Cache::default(),
        }
    }
}

/// Which record of the state a change has touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthRecord {
    /// Whether users are asked for, the revision and the secret.
    State,
    User(String),
    Role(String),
}

const STATE_BYTES: usize = 1 + 8 + SECRET_BYTES;

fn check_name(name: &str) -> Result<(), EtcdError> {
    if name.len() > NAME_BYTES_MAX { Err(EtcdError::AuthTooLarge) } else { Ok(()) }
}

fn has_root_role(user: &User) -> bool {
    user.roles.iter().any(|role| role == ROOT)
}

impl AuthStore {
    /// Whether users are asked for.
    pub(crate) fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn revision(&self) -> u64 {
        self.revision
    }

    pub(super) fn secret(&self) -> &[u8; SECRET_BYTES] {
        &self.secret.0
    }

    /// A user of that name.
    pub(crate) fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(|user| &**user)
    }

    /// The names of all users, in order.
    pub(crate) fn users(&self) -> Vec<String> {
        self.users.keys().cloned().collect()
    }

    /// The names of all roles, in order.
    pub(crate) fn roles(&self) -> Vec<String> {
        self.roles.keys().cloned().collect()
    }

    /// The permissions of a role. Those of `root`, who may do everything, are what was granted to it.
    pub(crate) fn permissions(&self, role: &str) -> Result<Vec<Permission>, EtcdError> {
        self.roles.get(role).map(|role| role.key_permission.clone()).ok_or(EtcdError::RoleNotFound)
    }

    /// The user's password can be checked against this; `None` for users that have none, or are not there.
    pub(crate) fn password_hash(&self, name: &str) -> Option<&str> {
        let user = self.user(name)?;
        if user.options.is_some_and(|o| o.no_password) || user.password.is_empty() {
            return None;
        }
        std::str::from_utf8(&user.password).ok()
    }

    /// Carries a change out and says which records it has touched.
    pub(crate) fn change(&mut self, change: &AuthChange) -> Result<Vec<AuthRecord>, EtcdError> {
        let mut touched = Vec::new();
        match change {
            AuthChange::Enable { secret } => {
                if self.enabled {
                    return Ok(touched);
                }
                let root = self.user(ROOT).ok_or(EtcdError::RootUserNotExist)?;
                if !has_root_role(root) {
                    return Err(EtcdError::RootRoleNotExist);
                }
                self.enabled = true;
                self.secret = Secret(*secret);
                return Ok(vec![AuthRecord::State]);
            }
            AuthChange::Disable => {
                if !self.enabled {
                    return Ok(touched);
                }
                self.enabled = false;
                // Tokens end here, also those that nobody has seen yet.
                self.secret = Secret([0; SECRET_BYTES]);
            }
            AuthChange::UserAdd(r) => touched.push(self.add_user(r)?),
            AuthChange::UserDelete(r) => {
                if self.enabled && r.name == ROOT {
                    return Err(EtcdError::InvalidAuthManagement);
                }
                self.users.remove(&r.name).ok_or(EtcdError::UserNotFound)?;
                touched.push(AuthRecord::User(r.name.clone()));
            }
            AuthChange::UserChangePassword(r) => touched.push(self.change_password(r)?),
            AuthChange::UserGrantRole(r) => {
                let user = self.users.get(&r.user).ok_or(EtcdError::UserNotFound)?;
                if r.role != ROOT && !self.roles.contains_key(&r.role) {
                    return Err(EtcdError::RoleNotFound);
                }
                let Err(at) = user.roles.binary_search(&r.role) else { return Ok(touched) };
                self.check_room(r.role.len())?;
                if let Some(user) = self.users.get_mut(&r.user) {
                    Arc::make_mut(user).roles.insert(at, r.role.clone());
                }
                touched.push(AuthRecord::User(r.user.clone()));
            }
            AuthChange::UserRevokeRole(r) => {
                if self.enabled && r.name == ROOT && r.role == ROOT {
                    return Err(EtcdError::InvalidAuthManagement);
                }
                let user = self.users.get_mut(&r.name).ok_or(EtcdError::UserNotFound)?;
                let at = user.roles.binary_search(&r.role).map_err(|_| EtcdError::RoleNotGranted)?;
                Arc::make_mut(user).roles.remove(at);
                touched.push(AuthRecord::User(r.name.clone()));
            }
            AuthChange::RoleAdd(r) => {
                if r.name.is_empty() {
                    return Err(EtcdError::RoleEmpty);
                }
                check_name(&r.name)?;
                if self.roles.contains_key(&r.name) {
                    return Err(EtcdError::RoleAlreadyExists);
                }
                self.check_room(r.name.len())?;
                let role = Role { name: r.name.clone().into(), key_permission: Vec::new() };
                self.roles.insert(r.name.clone(), Arc::new(role));
                touched.push(AuthRecord::Role(r.name.clone()));
            }
            AuthChange::RoleDelete(r) => {
                if self.enabled && r.role == ROOT {
                    return Err(EtcdError::InvalidAuthManagement);
                }
                self.roles.remove(&r.role).ok_or(EtcdError::RoleNotFound)?;
                touched.push(AuthRecord::Role(r.role.clone()));
                for (name, user) in &mut self.users {
                    if let Ok(at) = user.roles.binary_search(&r.role) {
                        Arc::make_mut(user).roles.remove(at);
                        touched.push(AuthRecord::User(name.clone()));
                    }
                }
            }
            AuthChange::RoleGrantPermission(r) => touched.push(self.grant(r)?),
            AuthChange::RoleRevokePermission(r) => touched.push(self.revoke(r)?),
        }
        self.revision += 1;
        self.cache = Cache::default();
        touched.push(AuthRecord::State);
        Ok(touched)
    }

    fn add_user(&mut self, r: &AuthUserAddRequest) -> Result<AuthRecord, EtcdError> {
        if r.name.is_empty() {
            return Err(EtcdError::UserEmpty);
        }
        check_name(&r.name)?;
        if self.users.contains_key(&r.name) {
            return Err(EtcdError::UserAlreadyExists);
        }
        self.check_room(r.name.len() + r.hashed_password.len())?;
        let no_password = r.options.is_some_and(|o| o.no_password);
        let user = User {
            name: r.name.clone().into(),
            password: if no_password { Bytes::new() } else { r.hashed_password.clone().into() },
            roles: Vec::new(),
            options: r.options,
        };
        self.users.insert(r.name.clone(), Arc::new(user));
        Ok(AuthRecord::User(r.name.clone()))
    }

    fn change_password(&mut self, r: &AuthUserChangePasswordRequest) -> Result<AuthRecord, EtcdError> {
        let user = self.users.get_mut(&r.name).ok_or(EtcdError::UserNotFound)?;
        let user = Arc::make_mut(user);
        if !user.options.is_some_and(|o| o.no_password) {
            user.password = r.hashed_password.clone().into();
        }
        Ok(AuthRecord::User(r.name.clone()))
    }

    fn grant(&mut self, r: &AuthRoleGrantPermissionRequest) -> Result<AuthRecord, EtcdError> {
        let wanted = r.perm.as_ref().ok_or(EtcdError::PermissionNotGiven)?;
        if Type::try_from(wanted.perm_type).is_err() {
            return Err(EtcdError::PermissionNotGiven);
        }
        let role = self.roles.get(&r.name).ok_or(EtcdError::RoleNotFound)?;
        let same = |p: &Permission| p.key == wanted.key && p.range_end == wanted.range_end;
        let at = role.key_permission.iter().position(same);
        if at.is_none() {
            self.check_room(wanted.encoded_len())?;
        }
        if let Some(role) = self.roles.get_mut(&r.name) {
            let granted = &mut Arc::make_mut(role).key_permission;
            match at {
                Some(at) => granted[at].perm_type = wanted.perm_type,
                None => {
                    granted.push(wanted.clone());
                    granted.sort_by(|a, b| (&a.key, &a.range_end).cmp(&(&b.key, &b.range_end)));
                }
            }
        }
        Ok(AuthRecord::Role(r.name.clone()))
    }

    fn revoke(&mut self, r: &AuthRoleRevokePermissionRequest) -> Result<AuthRecord, EtcdError> {
        let role = self.roles.get_mut(&r.role).ok_or(EtcdError::RoleNotFound)?;
        let same = |p: &Permission| p.key == r.key && p.range_end == r.range_end;
        let at = role.key_permission.iter().position(same).ok_or(EtcdError::PermissionNotGranted)?;
        Arc::make_mut(role).key_permission.remove(at);
        Ok(AuthRecord::Role(r.role.clone()))
    }

    /// Refuses what would make users and roles too large to be kept in memory.
    fn check_room(&self, more: usize) -> Result<(), EtcdError> {
        let users: usize = self.users.values().map(|u| u.encoded_len() + u.name.len() + 128).sum();
        let roles: usize = self.roles.values().map(|r| r.encoded_len() + r.name.len() + 128).sum();
        if users + roles + more > BYTES_MAX { Err(EtcdError::AuthTooLarge) } else { Ok(()) }
    }

    /// Whether a caller may touch a range of keys, in the API's terms.
    pub(crate) fn permit(
        &self,
        caller: &Caller,
        access: Access,
        key: &[u8],
        range_end: &[u8],
    ) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let Caller::User { name, revision } = caller else { return Err(EtcdError::UserEmpty) };
        if *revision < self.revision {
            return Err(EtcdError::AuthOldRevision);
        }
        let user = self.user(name).ok_or(EtcdError::PermissionDenied)?;
        if has_root_role(user) {
            return Ok(());
        }
        let permitted = self.permitted(name, user);
        let keys = match access {
            Access::Read => &permitted.read,
            Access::Write => &permitted.write,
        };
        if keys.contains(key, range_end) { Ok(()) } else { Err(EtcdError::PermissionDenied) }
    }

    /// Whether a caller may manage users and roles, or look at the whole keyspace at once.
    pub(crate) fn permit_admin(&self, caller: &Caller) -> Result<(), EtcdError> {
        if !self.enabled {
            return Ok(());
        }
        let Caller::User { name, .. } = caller else { return Err(EtcdError::UserEmpty) };
        match self.user(name) {
            Some(user) if has_root_role(user) => Ok(()),
            _ => Err(EtcdError::PermissionDenied),
        }
    }

    /// Whether a caller is a user at all, where users are asked for.
    pub(crate) fn permit_user(&self, caller: &Caller) -> Result<(), EtcdError> {
        match caller {
            Caller::Nobody if self.enabled => Err(EtcdError::UserEmpty),
            Caller::User { name, .. } if self.enabled && self.user(name).is_none() => {
                Err(EtcdError::PermissionDenied)
            }
            _ => Ok(()),
        }
    }

    /// Whether a caller may see a role: one of its own, or any if it may manage them.
    pub(crate) fn permit_role(&self, caller: &Caller, role: &str) -> Result<(), EtcdError> {
        let own = match caller {
            Caller::User { name, .. } => {
                self.user(name).is_some_and(|user| user.roles.iter().any(|r| r == role))
            }
            Caller::Nobody => false,
        };
        if own { Ok(()) } else { self.permit_admin(caller) }
    }

    fn permitted(&self, name: &str, user: &User) -> Arc<Permitted> {
        let mut cache = self.cache.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(permitted) = cache.get(name) {
            return Arc::clone(permitted);
        }
        let roles = user.roles.iter().filter_map(|role| self.roles.get(role));
        let granted: Vec<&Permission> = roles.flat_map(|role| &role.key_permission).collect();
        let of = |other: Type| {
            let fits = move |p: &&&Permission| {
                p.perm_type == i32::from(Type::Readwrite) || p.perm_type == i32::from(other)
            };
            KeySet::union(granted.iter().filter(fits).map(|p| (&p.key[..], &p.range_end[..])))
        };
        let permitted = Arc::new(Permitted { read: of(Type::Read), write: of(Type::Write) });
        cache.insert(name.to_owned(), Arc::clone(&permitted));
        permitted
    }

    /// The bytes of a record; `None` if it is gone.
    pub(crate) fn encode(&self, record: &AuthRecord) -> Option<Vec<u8>> {
        match record {
            AuthRecord::State => {
                let mut out = Vec::with_capacity(STATE_BYTES);
                out.push(u8::from(self.enabled));
                out.extend_from_slice(&self.revision.to_le_bytes());
                out.extend_from_slice(&self.secret.0);
                Some(out)
            }
            AuthRecord::User(name) => self.users.get(name).map(|user| user.encode_to_vec()),
            AuthRecord::Role(name) => self.roles.get(name).map(|role| role.encode_to_vec()),
        }
    }

    /// Takes a record over that [`encode`](Self::encode) made.
    pub(crate) fn load(&mut self, record: &AuthRecord, bytes: &[u8]) -> Result<(), StoreError> {
        let damaged = || StoreError::damaged("control: a record of users or roles does not decode");
        match record {
            AuthRecord::State => {
                let bytes: &[u8; STATE_BYTES] = bytes.try_into().map_err(|_| damaged())?;
                self.enabled = bytes[0] == 1;
                let mut revision = [0; 8];
                revision.copy_from_slice(&bytes[1..9]);
                self.revision = u64::from_le_bytes(revision);
                self.secret.0.copy_from_slice(&bytes[9..]);
            }
            AuthRecord::User(name) => {
                let user = User::decode(bytes).map_err(|_| damaged())?;
                self.users.insert(name.clone(), Arc::new(user));
            }
            AuthRecord::Role(name) => {
                let role = Role::decode(bytes).map_err(|_| damaged())?;
                self.roles.insert(name.clone(), Arc::new(role));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
