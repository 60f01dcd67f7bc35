use pontoon_proto::authpb::UserAddOptions;
use pontoon_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthUserDeleteRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest,
};

use super::*;

fn add_user(store: &mut AuthStore, name: &str) -> Result<Vec<AuthRecord>, EtcdError> {
    let hashed_password = format!("hash of {name}");
    store.change(&AuthChange::UserAdd(AuthUserAddRequest {
        name: name.into(),
        hashed_password,
        ..Default::default()
    }))
}

fn add_role(store: &mut AuthStore, name: &str) -> Result<Vec<AuthRecord>, EtcdError> {
    store.change(&AuthChange::RoleAdd(AuthRoleAddRequest { name: name.into() }))
}

fn give(store: &mut AuthStore, user: &str, role: &str) -> Result<Vec<AuthRecord>, EtcdError> {
    store
        .change(&AuthChange::UserGrantRole(AuthUserGrantRoleRequest { user: user.into(), role: role.into() }))
}

fn grant(store: &mut AuthStore, role: &str, kind: Type, key: &'static str, end: &'static str) {
    let perm = Permission { perm_type: kind.into(), key: key.into(), range_end: end.into() };
    let change = AuthRoleGrantPermissionRequest { name: role.into(), perm: Some(perm) };
    store.change(&AuthChange::RoleGrantPermission(change)).unwrap();
}

fn enable(store: &mut AuthStore) -> Result<Vec<AuthRecord>, EtcdError> {
    store.change(&AuthChange::Enable { secret: [9; SECRET_BYTES] })
}

fn with_root() -> AuthStore {
    let mut store = AuthStore::default();
    add_user(&mut store, "root").unwrap();
    add_role(&mut store, "root").unwrap();
    give(&mut store, "root", "root").unwrap();
    store
}

fn user(store: &AuthStore, name: &str) -> Caller {
    Caller::User { name: name.into(), revision: store.revision() }
}

#[test]
fn root_must_be_there_and_stay() {
    let mut store = AuthStore::default();
    assert_eq!(enable(&mut store), Err(EtcdError::RootUserNotExist));
    add_user(&mut store, "root").unwrap();
    assert_eq!(enable(&mut store), Err(EtcdError::RootRoleNotExist));
    let mut store = with_root();
    enable(&mut store).unwrap();
    assert!(store.is_enabled());
    let refused = Err(EtcdError::InvalidAuthManagement);
    let delete_user = AuthChange::UserDelete(AuthUserDeleteRequest { name: "root".into() });
    let delete_role = AuthChange::RoleDelete(AuthRoleDeleteRequest { role: "root".into() });
    let revoke = AuthUserRevokeRoleRequest { name: "root".into(), role: "root".into() };
    let revoke = AuthChange::UserRevokeRole(revoke);
    for change in [&delete_user, &delete_role, &revoke] {
        assert_eq!(store.change(change), refused);
    }
    store.change(&AuthChange::Disable).unwrap();
    for change in [&revoke, &delete_role, &delete_user] {
        store.change(change).unwrap();
    }
    assert_eq!((store.users(), store.roles()), (vec![], vec![]));
}

#[test]
fn the_revision_moves_with_changes_and_with_nothing_else() {
    let mut store = with_root();
    let before = store.revision();
    assert_eq!(before, 4);
    assert_eq!(add_user(&mut store, "root"), Err(EtcdError::UserAlreadyExists));
    assert_eq!(give(&mut store, "root", "root"), Ok(vec![]));
    assert_eq!(give(&mut store, "root", "other"), Err(EtcdError::RoleNotFound));
    assert_eq!(enable(&mut store), Ok(vec![AuthRecord::State]));
    assert_eq!(store.revision(), before);
    let old = user(&store, "root");
    add_role(&mut store, "reader").unwrap();
    assert_eq!(store.revision(), before + 1);
    assert_eq!(store.permit(&old, Access::Read, b"a", b""), Err(EtcdError::AuthOldRevision));
    assert_eq!(store.permit(&user(&store, "root"), Access::Write, b"\0", b"\0"), Ok(()));
    assert_eq!(store.permit(&Caller::Nobody, Access::Read, b"a", b""), Err(EtcdError::UserEmpty));
}

#[test]
fn rights_come_from_all_roles_of_a_user_and_go_with_them() {
    let mut store = with_root();
    add_user(&mut store, "u").unwrap();
    for role in ["r1", "r2"] {
        add_role(&mut store, role).unwrap();
        give(&mut store, "u", role).unwrap();
    }
    grant(&mut store, "r1", Type::Read, "a", "c");
    grant(&mut store, "r2", Type::Readwrite, "c", "e");
    enable(&mut store).unwrap();
    let may = |store: &AuthStore, access, key: &str, end: &str| {
        store.permit(&user(store, "u"), access, key.as_bytes(), end.as_bytes())
    };
    let denied = Err(EtcdError::PermissionDenied);
    assert_eq!(may(&store, Access::Read, "a", "e"), Ok(()), "over two roles");
    assert_eq!(may(&store, Access::Write, "a", ""), denied);
    assert_eq!(may(&store, Access::Write, "d", ""), Ok(()));
    assert_eq!(may(&store, Access::Read, "a", "\0"), denied);
    assert_eq!(store.permit_admin(&user(&store, "u")), denied);
    assert_eq!(store.permit_role(&user(&store, "u"), "r1"), Ok(()));
    assert_eq!(store.permit_role(&user(&store, "u"), "root"), denied);
    store.change(&AuthChange::RoleDelete(AuthRoleDeleteRequest { role: "r2".into() })).unwrap();
    assert_eq!(may(&store, Access::Write, "d", ""), denied);
    assert_eq!(may(&store, Access::Read, "b", ""), Ok(()));
    let revoke =
        AuthRoleRevokePermissionRequest { role: "r1".into(), key: "a".into(), range_end: "c".into() };
    let revoke = AuthChange::RoleRevokePermission(revoke);
    store.change(&revoke).unwrap();
    assert_eq!(store.change(&revoke), Err(EtcdError::PermissionNotGranted));
    assert_eq!(may(&store, Access::Read, "b", ""), denied);
}

#[test]
fn a_token_holds_for_its_user_its_time_and_its_password() {
    let mut store = with_root();
    add_user(&mut store, "u").unwrap();
    enable(&mut store).unwrap();
    let token = store.issue_token("u", "hash of u", 100);
    assert_eq!(store.check_token(&token, 99).as_deref(), Some("u"));
    assert_eq!(store.check_token(&token, 100), None, "its time is over");
    for at in 0..token.len() {
        let mut forged = token.clone().into_bytes();
        forged[at] = if forged[at] == b'7' { b'8' } else { b'7' };
        assert_eq!(store.check_token(&String::from_utf8(forged).unwrap(), 1), None, "byte {at}");
    }
    for bad in ["", "p1", "p1...", "p1.7.100.", "p1.75.x.00", &format!("{token}."), &"7".repeat(9999)] {
        assert_eq!(store.check_token(bad, 1), None, "{bad}");
    }
    let mut other = store.clone();
    let change = AuthUserChangePasswordRequest {
        name: "u".into(),
        hashed_password: "another".into(),
        ..Default::default()
    };
    other.change(&AuthChange::UserChangePassword(change)).unwrap();
    assert_eq!(other.check_token(&token, 1), None, "another password");
    let mut other = store.clone();
    other.change(&AuthChange::UserDelete(AuthUserDeleteRequest { name: "u".into() })).unwrap();
    assert_eq!(other.check_token(&token, 1), None, "no such user");
    store.change(&AuthChange::Disable).unwrap();
    assert_eq!(store.check_token(&token, 1), None, "switched off");
    store.change(&AuthChange::Enable { secret: [8; SECRET_BYTES] }).unwrap();
    assert_eq!(store.check_token(&token, 1), None, "switched on again, with another secret");
}

#[test]
fn a_user_without_a_password_has_no_way_in_by_one() {
    let mut store = with_root();
    let options = Some(UserAddOptions { no_password: true });
    let add = AuthUserAddRequest { name: "cert".into(), options, ..Default::default() };
    store.change(&AuthChange::UserAdd(add)).unwrap();
    enable(&mut store).unwrap();
    assert_eq!(store.password_hash("cert"), None);
    let token = store.issue_token("cert", "", 100);
    assert_eq!(store.check_token(&token, 1), None, "nobody gets a token for it");
}

#[test]
fn what_is_kept_is_what_there_was() {
    let mut store = with_root();
    add_user(&mut store, "u").unwrap();
    grant(&mut store, "root", Type::Write, "x", "");
    enable(&mut store).unwrap();
    let mut again = AuthStore::default();
    let users = store.users().into_iter().map(AuthRecord::User);
    let roles = store.roles().into_iter().map(AuthRecord::Role);
    for record in users.chain(roles).chain([AuthRecord::State]) {
        again.load(&record, &store.encode(&record).unwrap()).unwrap();
    }
    assert_eq!(format!("{again:?}"), format!("{store:?}"));
    assert_eq!(again.check_token(&store.issue_token("u", "hash of u", 9), 1).as_deref(), Some("u"));
    assert_eq!(store.encode(&AuthRecord::User("gone".into())), None);
    assert!(again.load(&AuthRecord::State, b"short").is_err());
}

#[test]
fn users_and_roles_are_bounded() {
    let mut store = AuthStore::default();
    assert_eq!(add_user(&mut store, &"n".repeat(NAME_BYTES_MAX + 1)), Err(EtcdError::AuthTooLarge));
    add_role(&mut store, "r").unwrap();
    let mut granted = 0;
    let refused = loop {
        let mut key = vec![b'k'; 30_000];
        key.extend_from_slice(&u32::to_be_bytes(granted));
        let perm = Permission { key: key.into(), ..Permission::default() };
        let change = AuthRoleGrantPermissionRequest { name: "r".into(), perm: Some(perm) };
        match store.change(&AuthChange::RoleGrantPermission(change)) {
            Ok(_) => granted += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(refused, EtcdError::AuthTooLarge);
    assert!((200..300).contains(&granted), "{granted}");
}
