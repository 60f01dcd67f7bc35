//! Pontoon's admin calls.

use std::time::Duration;

use pontoon_proto::v1::admin_client::AdminClient;
use pontoon_proto::v1::{
    CreateKeyspaceRequest, DeleteKeyspaceRequest, DescribeKeyspaceRequest, DescribeKeyspaceResponse,
    IdentityRequest, IdentityResponse, Keyspace, ListKeyspacesRequest, ListStoresRequest, ListStoresResponse,
    MemoryFigure, MemoryRequest, StatusRequest, StatusResponse, TakeLeadershipRequest,
    TakeLeadershipResponse, TransferLeadershipRequest, TransferLeadershipResponse,
};

use crate::call::{Caller, Kind};
use crate::error::CallError;
use crate::session::SessionStatus;

/// Administration; made by [`Client::admin`](crate::Client::admin). Cheap to clone.
///
/// Calls that tell something answer for the store the session happens to be with
/// ([`session`](Self::session) says which). To ask a certain store, make a client with only that remote.
///
/// # Deadlines and cancel safety
/// As for [`Keyspace`](crate::Keyspace). Calls that wait for an outcome (a new keyspace, a new leader) may want a
/// longer [`with_timeout`](Self::with_timeout).
#[derive(Clone, Debug)]
pub struct Admin {
    caller: Caller,
}

/// Makes a client of the generated service for one attempt.
macro_rules! admin {
    ($self:ident, $method:ident) => {{
        let limit = $self.caller.response_bytes_max;
        move |channel, request| async move {
            AdminClient::new(channel).max_decoding_message_size(limit).$method(request).await
        }
    }};
}

impl Admin {
    pub(crate) fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// The same, with another timeout for each call.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Duration) -> Self {
        self.caller.timeout = timeout;
        self
    }

    /// How the session behind it is doing.
    #[must_use]
    pub fn session(&self) -> SessionStatus {
        self.caller.session.status()
    }

    /// Who answers.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn identity(&self) -> Result<IdentityResponse, CallError> {
        self.caller.call(Kind::Repeatable, IdentityRequest {}, admin!(self, identity)).await
    }

    /// The cluster, or one group, as the asked store sees it.
    ///
    /// # Errors
    /// [`CallError`]; refused with `NotFound` when the store knows no such group.
    pub async fn status(&self, group: Option<&str>) -> Result<StatusResponse, CallError> {
        let request = StatusRequest { group: group.unwrap_or_default().to_owned() };
        self.caller.call(Kind::Repeatable, request, admin!(self, status)).await
    }

    /// The stores of the cluster.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn stores(&self) -> Result<ListStoresResponse, CallError> {
        self.caller.call(Kind::Repeatable, ListStoresRequest {}, admin!(self, list_stores)).await
    }

    /// Makes a keyspace and waits until it takes writes; with 0 replicas, as many as the cluster's default.
    ///
    /// # Errors
    /// [`CallError`]; refused with `AlreadyExists` or `InvalidArgument`.
    pub async fn create_keyspace(&self, name: &str, replicas: u32) -> Result<Option<Keyspace>, CallError> {
        let request = CreateKeyspaceRequest { name: name.to_owned(), replicas };
        Ok(self.caller.call(Kind::Write, request, admin!(self, create_keyspace)).await?.keyspace)
    }

    /// All keyspaces, sorted by name.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn keyspaces(&self) -> Result<Vec<Keyspace>, CallError> {
        let request = ListKeyspacesRequest {};
        Ok(self.caller.call(Kind::Repeatable, request, admin!(self, list_keyspaces)).await?.keyspaces)
    }

    /// One keyspace with its replicas and figures.
    ///
    /// # Errors
    /// [`CallError`]; refused with `NotFound`.
    pub async fn describe_keyspace(&self, name: &str) -> Result<DescribeKeyspaceResponse, CallError> {
        let request = DescribeKeyspaceRequest { name: name.to_owned() };
        self.caller.call(Kind::Repeatable, request, admin!(self, describe_keyspace)).await
    }

    /// Deletes a keyspace with all its data, if `id` is what the name stands for now.
    ///
    /// # Errors
    /// [`CallError`]; refused with `FailedPrecondition` when the id is another's.
    pub async fn delete_keyspace(&self, name: &str, id: u64) -> Result<(), CallError> {
        let request = DeleteKeyspaceRequest { name: name.to_owned(), id };
        self.caller.call(Kind::Write, request, admin!(self, delete_keyspace)).await?;
        Ok(())
    }

    /// Asks a group's leader to hand over, to a store given by name, address or prefix of its id, or to one of the
    /// leader's choice.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn transfer_leadership(
        &self,
        group: &str,
        store: Option<&str>,
    ) -> Result<TransferLeadershipResponse, CallError> {
        let store = store.unwrap_or_default().to_owned();
        let request = TransferLeadershipRequest { group: group.to_owned(), store };
        self.caller.call(Kind::Write, request, admin!(self, transfer_leadership)).await
    }

    /// Makes the asked store campaign for a group.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn take_leadership(&self, group: &str) -> Result<TakeLeadershipResponse, CallError> {
        let request = TakeLeadershipRequest { group: group.to_owned() };
        self.caller.call(Kind::Write, request, admin!(self, take_leadership)).await
    }

    /// What the asked store holds in memory, by purpose.
    ///
    /// # Errors
    /// [`CallError`].
    pub async fn memory(&self) -> Result<Vec<MemoryFigure>, CallError> {
        Ok(self.caller.call(Kind::Repeatable, MemoryRequest {}, admin!(self, memory)).await?.figures)
    }
}
