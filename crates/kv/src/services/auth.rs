//! `etcdserverpb.Auth`: users and roles, and logins.
//!
//! Passwords are hashed here, before anything is proposed, and tokens are made here: see `auth/token.rs` for why every
//! store can check what another one made. A login by a client's certificate will find its user where `session.rs` looks
//! for a token.

use pontoon_proto::etcdserverpb::auth_server::Auth;
use pontoon_proto::etcdserverpb::{
    AuthDisableRequest, AuthDisableResponse, AuthEnableRequest, AuthEnableResponse, AuthRoleAddRequest,
    AuthRoleAddResponse, AuthRoleDeleteRequest, AuthRoleDeleteResponse, AuthRoleGetRequest,
    AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleGrantPermissionResponse,
    AuthRoleListRequest, AuthRoleListResponse, AuthRoleRevokePermissionRequest,
    AuthRoleRevokePermissionResponse, AuthStatusRequest, AuthStatusResponse, AuthUserAddRequest,
    AuthUserAddResponse, AuthUserChangePasswordRequest, AuthUserChangePasswordResponse,
    AuthUserDeleteRequest, AuthUserDeleteResponse, AuthUserGetRequest, AuthUserGetResponse,
    AuthUserGrantRoleRequest, AuthUserGrantRoleResponse, AuthUserListRequest, AuthUserListResponse,
    AuthUserRevokeRoleRequest, AuthUserRevokeRoleResponse, AuthenticateRequest, AuthenticateResponse,
    ResponseHeader,
};
use tonic::{Request, Response, Status};

use super::EtcdServices;
use super::session::{Session, now_seconds};
use crate::auth::{AuthChange, Caller, SECRET_BYTES, password};
use crate::command::Command;
use crate::consensus::Consensus;
use crate::error::EtcdError;

pub(super) fn random<const N: usize>() -> Result<[u8; N], Status> {
    let mut bytes = [0; N];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Status::internal(format!("pontoon: no random numbers from the system: {e}")))?;
    Ok(bytes)
}

impl<C: Consensus> EtcdServices<C> {
    /// Works on a password where it stalls no other request, and not too many at a time.
    async fn with_password<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        let stopped = || Status::unavailable("etcdserver: server stopped");
        let _place = self.0.hashing.acquire().await.map_err(|_| stopped())?;
        tokio::task::spawn_blocking(work).await.map_err(|_| stopped())
    }

    /// The hash of a new password: of the one that the client sent, or the one that it made itself.
    async fn hash(&self, password: String, hashed: String) -> Result<String, Status> {
        if !hashed.is_empty() {
            if !password::is_usable(&hashed) {
                return Err(EtcdError::BadPasswordHash.status());
            }
            return Ok(hashed);
        }
        let salt = random()?;
        self.with_password(move || password::hash(&password, salt)).await?.map_err(EtcdError::status)
    }

    async fn change_auth(
        &self,
        session: &Session,
        change: AuthChange,
    ) -> Result<Option<ResponseHeader>, Status> {
        let command = Command::Auth(change).encode();
        let mut response: AuthDisableResponse = self.propose(session, None, command).await?;
        self.complete(session, &mut response.header);
        Ok(response.header)
    }

    /// A session of somebody who manages users and roles, with all that was changed before.
    async fn up_to_date<T>(&self, request: &Request<T>) -> Result<Session, Status>
    where
        T: Sync,
    {
        let session = self.session(request.metadata(), request.extensions()).await?;
        self.read_barrier(&session).await?;
        Ok(session)
    }
}

macro_rules! changes {
    ($($method:ident($request:ident) -> $response:ident, |$session:ident, $services:ident, $r:ident| $change:expr;)*) => {
        #[tonic::async_trait]
        impl<C: Consensus> Auth for EtcdServices<C> {
            $(async fn $method(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                let $session = self.session(request.metadata(), request.extensions()).await?;
                // Looked at again where it counts; but nobody else is worth the hashing.
                $session.permit_admin()?;
                let ($services, $r) = (self, request.into_inner());
                let change = $change;
                let header = self.change_auth(&$session, change).await?;
                Ok(Response::new($response { header }))
            })*

            async fn auth_status(
                &self,
                request: Request<AuthStatusRequest>,
            ) -> Result<Response<AuthStatusResponse>, Status> {
                let session = self.up_to_date(&request).await?;
                session.permit_admin()?;
                let control = session.control();
                Ok(Response::new(AuthStatusResponse {
                    header: self.header(&session, session.revision()),
                    enabled: control.auth.is_enabled(),
                    auth_revision: control.auth.revision(),
                }))
            }

            async fn authenticate(
                &self,
                request: Request<AuthenticateRequest>,
            ) -> Result<Response<AuthenticateResponse>, Status> {
                self.log_in(request).await
            }

            async fn user_get(
                &self,
                request: Request<AuthUserGetRequest>,
            ) -> Result<Response<AuthUserGetResponse>, Status> {
                let session = self.up_to_date(&request).await?;
                let name = request.into_inner().name;
                if !matches!(&session.caller, Caller::User { name: own, .. } if **own == *name) {
                    session.permit_admin()?;
                }
                let control = session.control();
                let user = control.auth.user(&name).ok_or_else(|| EtcdError::UserNotFound.status())?;
                let header = self.header(&session, session.revision());
                Ok(Response::new(AuthUserGetResponse { header, roles: user.roles.clone() }))
            }

            async fn user_list(
                &self,
                request: Request<AuthUserListRequest>,
            ) -> Result<Response<AuthUserListResponse>, Status> {
                let session = self.up_to_date(&request).await?;
                session.permit_admin()?;
                let (header, control) = (self.header(&session, session.revision()), session.control());
                Ok(Response::new(AuthUserListResponse { header, users: control.auth.users() }))
            }

            async fn role_get(
                &self,
                request: Request<AuthRoleGetRequest>,
            ) -> Result<Response<AuthRoleGetResponse>, Status> {
                let session = self.up_to_date(&request).await?;
                let (control, role) = (session.control(), request.into_inner().role);
                control.auth.permit_role(&session.caller, &role).map_err(EtcdError::status)?;
                let perm = control.auth.permissions(&role).map_err(EtcdError::status)?;
                let header = self.header(&session, session.revision());
                Ok(Response::new(AuthRoleGetResponse { header, perm }))
            }

            async fn role_list(
                &self,
                request: Request<AuthRoleListRequest>,
            ) -> Result<Response<AuthRoleListResponse>, Status> {
                let session = self.up_to_date(&request).await?;
                session.permit_admin()?;
                let (header, control) = (self.header(&session, session.revision()), session.control());
                Ok(Response::new(AuthRoleListResponse { header, roles: control.auth.roles() }))
            }
        }
    };
}

changes! {
    auth_enable(AuthEnableRequest) -> AuthEnableResponse, |session, _s, _r| {
        AuthChange::Enable { secret: random::<SECRET_BYTES>()? }
    };
    auth_disable(AuthDisableRequest) -> AuthDisableResponse, |session, _s, _r| AuthChange::Disable;
    user_add(AuthUserAddRequest) -> AuthUserAddResponse, |session, services, r| {
        AuthChange::UserAdd(services.hashed_user(r).await?)
    };
    user_delete(AuthUserDeleteRequest) -> AuthUserDeleteResponse, |session, _s, r| AuthChange::UserDelete(r);
    user_change_password(AuthUserChangePasswordRequest) -> AuthUserChangePasswordResponse,
        |session, services, r| {
            let AuthUserChangePasswordRequest { name, password, hashed_password } = r;
            let hashed_password = services.hash(password, hashed_password).await?;
            AuthChange::UserChangePassword(AuthUserChangePasswordRequest {
                name,
                password: String::new(),
                hashed_password,
            })
        };
    user_grant_role(AuthUserGrantRoleRequest) -> AuthUserGrantRoleResponse,
        |session, _s, r| AuthChange::UserGrantRole(r);
    user_revoke_role(AuthUserRevokeRoleRequest) -> AuthUserRevokeRoleResponse,
        |session, _s, r| AuthChange::UserRevokeRole(r);
    role_add(AuthRoleAddRequest) -> AuthRoleAddResponse, |session, _s, r| AuthChange::RoleAdd(r);
    role_delete(AuthRoleDeleteRequest) -> AuthRoleDeleteResponse, |session, _s, r| AuthChange::RoleDelete(r);
    role_grant_permission(AuthRoleGrantPermissionRequest) -> AuthRoleGrantPermissionResponse,
        |session, _s, r| AuthChange::RoleGrantPermission(r);
    role_revoke_permission(AuthRoleRevokePermissionRequest) -> AuthRoleRevokePermissionResponse,
        |session, _s, r| AuthChange::RoleRevokePermission(r);
}

impl<C: Consensus> EtcdServices<C> {
    /// The request as it goes through the log.
    async fn hashed_user(&self, r: AuthUserAddRequest) -> Result<AuthUserAddRequest, Status> {
        if r.name.is_empty() {
            return Err(EtcdError::UserEmpty.status());
        }
        let hashed_password = match r.options {
            Some(options) if options.no_password => String::new(),
            _ => self.hash(r.password, r.hashed_password).await?,
        };
        Ok(AuthUserAddRequest { name: r.name, password: String::new(), options: r.options, hashed_password })
    }

    async fn log_in(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        // An old token beside the password is no reason to refuse it.
        let keyspace = self.find(request.metadata(), request.extensions())?;
        self.read_barrier(&keyspace).await?;
        let control = keyspace.control();
        if !control.auth.is_enabled() {
            return Err(EtcdError::AuthNotEnabled.status());
        }
        let AuthenticateRequest { name, password } = request.into_inner();
        let hash = control.auth.password_hash(&name).map(str::to_owned);
        let tried = hash.clone();
        let fits = self.with_password(move || password::verify(&password, tried.as_deref())).await?;
        let (true, Some(hash)) = (fits, hash) else { return Err(EtcdError::AuthFailed.status()) };
        let end = now_seconds().saturating_add(self.limits().auth_token_ttl.as_secs());
        let token = control.auth.issue_token(&name, &hash, end);
        let header = self.header(&keyspace, keyspace.revision());
        Ok(Response::new(AuthenticateResponse { header, token }))
    }
}
