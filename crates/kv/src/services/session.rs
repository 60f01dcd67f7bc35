//! A request's keyspace, and who asks.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::Extensions;
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::EtcdServices;
use crate::auth::{Access, Caller};
use crate::consensus::Consensus;
use crate::error::EtcdError;
use crate::keyspace;
use crate::mvcc::state::Keyspace;

/// The metadata in which clients show what they got for a login; the second is what gateways use.
const TOKEN_METADATA: [&str; 2] = ["token", "authorization"];

/// Clients that send this with `true` want no answer from a store that knows no leader.
const NEEDS_LEADER_METADATA: &str = "hasleader";

/// In a request's extensions: the user that the connection's verified certificate stands for. As in etcd it is the
/// certificate's common name, a token comes before it, and requests that a gateway passes on do not get it: theirs is the
/// gateway's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateUser(pub Arc<str>);

/// What a caller has shown of who he is.
#[derive(Clone, Debug)]
pub(super) enum Shown {
    Nothing,
    Token(String),
    Certificate(CertificateUser),
}

impl Shown {
    pub(super) fn by(metadata: &MetadataMap, extensions: &Extensions) -> Self {
        let certificate = || extensions.get::<CertificateUser>().cloned();
        match token_of(metadata) {
            Some(token) => Self::Token(token.to_owned()),
            None => certificate().map_or(Self::Nothing, Self::Certificate),
        }
    }
}

/// A keyspace, and who asks for something in it.
#[derive(Clone)]
pub(super) struct Session {
    pub(super) keyspace: Arc<Keyspace>,
    pub(super) caller: Caller,
}

impl Deref for Session {
    type Target = Keyspace;

    fn deref(&self) -> &Keyspace {
        &self.keyspace
    }
}

impl Session {
    /// Whether the caller may touch a range of keys, by what is applied here.
    pub(super) fn permit(&self, access: Access, key: &[u8], range_end: &[u8]) -> Result<(), Status> {
        self.control().auth.permit(&self.caller, access, key, range_end).map_err(EtcdError::status)
    }

    /// Whether the caller may look at, or change, what is nobody's alone.
    pub(super) fn permit_admin(&self) -> Result<(), Status> {
        self.control().auth.permit_admin(&self.caller).map_err(EtcdError::status)
    }

    /// Whether the caller is a user, where users are asked for.
    pub(super) fn permit_user(&self) -> Result<(), Status> {
        self.control().auth.permit_user(&self.caller).map_err(EtcdError::status)
    }

    /// Users and roles must not have changed since the request came: what was read meanwhile may not be the caller's to
    /// see any more.
    pub(super) fn check_unchanged(&self) -> Result<(), Status> {
        let control = self.control();
        match &self.caller {
            _ if !control.auth.is_enabled() => Ok(()),
            Caller::User { revision, .. } if *revision == control.auth.revision() => Ok(()),
            Caller::User { .. } => Err(EtcdError::AuthOldRevision.status()),
            Caller::Nobody => Err(EtcdError::UserEmpty.status()),
        }
    }
}

/// The seconds since 1970, by the store's clock: only the life of tokens depends on it.
pub(super) fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What the caller has shown.
fn token_of(metadata: &MetadataMap) -> Option<&str> {
    TOKEN_METADATA.into_iter().find_map(|name| metadata.get(name)?.to_str().ok())
}

/// Whether the caller wants no answer without a leader.
pub(super) fn needs_leader(metadata: &MetadataMap) -> bool {
    metadata.get(NEEDS_LEADER_METADATA).is_some_and(|v| v == "true")
}

impl<C: Consensus> EtcdServices<C> {
    /// The keyspace that a request means, whoever sends it.
    pub(super) fn find(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Arc<Keyspace>, Status> {
        keyspace::with_name(metadata.as_ref(), extensions, |name| {
            self.0.directory.find(name).ok_or_else(|| keyspace::unknown(name))
        })?
    }

    /// The keyspace that a request means, and who sends it.
    pub(super) async fn session(
        &self,
        metadata: &MetadataMap,
        extensions: &Extensions,
    ) -> Result<Session, Status> {
        let keyspace = self.find(metadata, extensions)?;
        if needs_leader(metadata) && self.knows_no_leader(&keyspace) {
            return Err(Status::unavailable("etcdserver: no leader"));
        }
        let shown = Shown::by(metadata, extensions);
        let caller = match self.caller(&keyspace, &shown) {
            // A login by way of another store may be ahead of what is applied here.
            Err(EtcdError::InvalidAuthToken | EtcdError::AuthNotEnabled) => {
                self.read_barrier(&keyspace).await?;
                match self.caller(&keyspace, &shown) {
                    Err(EtcdError::AuthNotEnabled) => Ok(Caller::Nobody),
                    known => known,
                }
            }
            known => known,
        };
        let caller = caller.map_err(EtcdError::status)?;
        if keyspace.control().restore().is_some() {
            return Err(EtcdError::Restoring.status());
        }
        Ok(Session { keyspace, caller })
    }

    /// Whom a caller stands for, by what is applied here.
    ///
    /// # Errors
    /// [`EtcdError::InvalidAuthToken`]; or a token is shown where nobody has to log in: then it says nothing.
    pub(super) fn caller(&self, keyspace: &Keyspace, shown: &Shown) -> Result<Caller, EtcdError> {
        let control = keyspace.control();
        let name = match shown {
            Shown::Nothing => return Ok(Caller::Nobody),
            Shown::Token(_) if !control.auth.is_enabled() => return Err(EtcdError::AuthNotEnabled),
            Shown::Token(token) => {
                let name = control.auth.check_token(token, now_seconds());
                name.ok_or(EtcdError::InvalidAuthToken)?.into()
            }
            // Whether there is such a user is asked when it comes to what he may do.
            Shown::Certificate(CertificateUser(name)) => Arc::clone(name),
        };
        Ok(Caller::User { name, revision: control.auth.revision() })
    }

    pub(super) fn knows_no_leader(&self, keyspace: &Keyspace) -> bool {
        self.consensus().status(keyspace.group()).is_none_or(|status| status.leader.is_none())
    }
}
