//! Changes of users and roles, as they go through the log.

use bytes::{BufMut, Bytes, BytesMut};
use pontoon_proto::etcdserverpb::{
    AuthRoleAddRequest, AuthRoleDeleteRequest, AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest, AuthUserAddRequest, AuthUserChangePasswordRequest,
    AuthUserDeleteRequest, AuthUserGrantRoleRequest, AuthUserRevokeRoleRequest,
};
use prost::Message;

use super::SECRET_BYTES;
use crate::error::EtcdError;

/// A change. Passwords have been hashed before: none goes through the log.
#[derive(Clone, Debug, PartialEq)]
pub enum AuthChange {
    /// From now on users are asked for.
    Enable {
        /// Tokens are signed with it.
        secret: [u8; SECRET_BYTES],
    },
    /// From now on they are not.
    Disable,
    /// Adds a user.
    UserAdd(AuthUserAddRequest),
    /// Takes a user away.
    UserDelete(AuthUserDeleteRequest),
    /// Gives a user another password.
    UserChangePassword(AuthUserChangePasswordRequest),
    /// Gives a user a role.
    UserGrantRole(AuthUserGrantRoleRequest),
    /// Takes a role from a user.
    UserRevokeRole(AuthUserRevokeRoleRequest),
    /// Adds a role.
    RoleAdd(AuthRoleAddRequest),
    /// Takes a role away, from its users too.
    RoleDelete(AuthRoleDeleteRequest),
    /// Gives a role the right to a range.
    RoleGrantPermission(AuthRoleGrantPermissionRequest),
    /// Takes that right away.
    RoleRevokePermission(AuthRoleRevokePermissionRequest),
}

impl AuthChange {
    /// Appends the bytes for the log: one of kind, then etcd's own request.
    pub(crate) fn encode(&self, out: &mut BytesMut) {
        fn message(out: &mut BytesMut, kind: u8, message: &impl Message) {
            out.put_u8(kind);
            out.put_slice(&message.encode_to_vec());
        }
        match self {
            Self::Enable { secret } => {
                out.put_u8(1);
                out.put_slice(secret);
            }
            Self::Disable => out.put_u8(2),
            Self::UserAdd(r) => message(out, 3, r),
            Self::UserDelete(r) => message(out, 4, r),
            Self::UserChangePassword(r) => message(out, 5, r),
            Self::UserGrantRole(r) => message(out, 6, r),
            Self::UserRevokeRole(r) => message(out, 7, r),
            Self::RoleAdd(r) => message(out, 8, r),
            Self::RoleDelete(r) => message(out, 9, r),
            Self::RoleGrantPermission(r) => message(out, 10, r),
            Self::RoleRevokePermission(r) => message(out, 11, r),
        }
    }

    pub(crate) fn decode(mut bytes: Bytes) -> Result<Self, EtcdError> {
        let unknown = || EtcdError::UnknownCommand;
        if bytes.is_empty() {
            return Err(unknown());
        }
        let kind = bytes.split_to(1)[0];
        let change = match kind {
            1 => {
                let secret = bytes[..].try_into().map_err(|_| unknown())?;
                return Ok(Self::Enable { secret });
            }
            2 if bytes.is_empty() => return Ok(Self::Disable),
            3 => AuthUserAddRequest::decode(bytes).map(Self::UserAdd),
            4 => AuthUserDeleteRequest::decode(bytes).map(Self::UserDelete),
            5 => AuthUserChangePasswordRequest::decode(bytes).map(Self::UserChangePassword),
            6 => AuthUserGrantRoleRequest::decode(bytes).map(Self::UserGrantRole),
            7 => AuthUserRevokeRoleRequest::decode(bytes).map(Self::UserRevokeRole),
            8 => AuthRoleAddRequest::decode(bytes).map(Self::RoleAdd),
            9 => AuthRoleDeleteRequest::decode(bytes).map(Self::RoleDelete),
            10 => AuthRoleGrantPermissionRequest::decode(bytes).map(Self::RoleGrantPermission),
            11 => AuthRoleRevokePermissionRequest::decode(bytes).map(Self::RoleRevokePermission),
            _ => return Err(unknown()),
        };
        change.map_err(|_| unknown())
    }
}
