//! The client: sessions, and who shares them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use tonic::transport::Endpoint;

use crate::admin::Admin;
use crate::call::Caller;
use crate::config::{Config, check_keyspace};
use crate::error::ConfigError;
use crate::keyspace::Keyspace;
use crate::names::Names;
use crate::session::Session;

/// Beyond this number of keyspaces, those that nobody holds a [`Keyspace`] of are forgotten. That costs one small call
/// when they are written to again.
const KEYSPACES_KNOWN_MAX: usize = 1024;

/// A list of stores and the sessions with them. Cheap to clone.
///
/// A session ends when neither the client nor a [`Keyspace`] or [`Admin`] made by it uses it any more.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    /// The remotes, checked.
    endpoints: Vec<Endpoint>,
    /// With any store, for admin calls and, unless leaders are insisted on, for all keyspaces. Begun when first used.
    any: OnceLock<Arc<Session>>,
    /// With the leaders of keyspaces, by name; empty: the keyspace the remotes' host names mean.
    leaders: Mutex<HashMap<String, Weak<Session>>>,
    /// What is known of keyspaces, by name, for the names of writes.
    names: Mutex<HashMap<String, Arc<Names>>>,
}

impl Client {
    /// Makes a client. It begins to connect when it is first asked for a keyspace or for the admin calls.
    ///
    /// # Errors
    /// [`ConfigError`] when the configuration makes no sense; that a store cannot be reached is told by the calls.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let endpoints = config.endpoints()?;
        let inner = Inner {
            config,
            endpoints,
            any: OnceLock::new(),
            leaders: Mutex::default(),
            names: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// A keyspace by name.
    ///
    /// # Errors
    /// [`ConfigError::Keyspace`] when no keyspace can have that name; whether there is one is told by the calls.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn keyspace(&self, name: &str) -> Result<Keyspace, ConfigError> {
        check_keyspace(name)?;
        Ok(self.open(Some(name)))
    }

    /// The keyspace that the remotes' host names or listeners mean: `default` for addresses and for `localhost`.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn default_keyspace(&self) -> Keyspace {
        self.open(None)
    }

    /// The admin calls.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin::new(self.caller(self.any(), Arc::new(Names::nameless()), None))
    }

    fn open(&self, name: Option<&str>) -> Keyspace {
        let session = if self.inner.config.leader_only { self.leader(name) } else { self.any() };
        Keyspace::new(self.caller(session, self.names(name), name))
    }

    fn caller(&self, session: Arc<Session>, names: Arc<Names>, keyspace: Option<&str>) -> Caller {
        Caller {
            session,
            names,
            keyspace: keyspace.map(|name| name.parse().expect("a checked name is ASCII")),
            timeout: self.inner.config.call_timeout,
            retry_unknown_writes: self.inner.config.retry_unknown_writes,
            response_bytes_max: self.inner.config.response_bytes_max,
        }
    }

    /// What is known of a keyspace.
    fn names(&self, keyspace: Option<&str>) -> Arc<Names> {
        let mut names = self.inner.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= KEYSPACES_KNOWN_MAX {
            names.retain(|_, names| Arc::strong_count(names) > 1);
        }
        Arc::clone(names.entry(keyspace.unwrap_or_default().to_owned()).or_default())
    }

    /// The session with any store.
    fn any(&self) -> Arc<Session> {
        let start = || {
            let config = Config { leader_only: false, ..self.inner.config.clone() };
            Arc::new(Session::start(&config, self.inner.endpoints.clone(), None))
        };
        Arc::clone(self.inner.any.get_or_init(start))
    }

    /// The session with a keyspace's leader: the one that is in use, or a new one.
    fn leader(&self, name: Option<&str>) -> Arc<Session> {
        let mut leaders = self.inner.leaders.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(session) = leaders.get(name.unwrap_or_default()).and_then(Weak::upgrade) {
            return session;
        }
        leaders.retain(|_, session| session.strong_count() > 0);
        let session = Arc::new(Session::start(&self.inner.config, self.inner.endpoints.clone(), name));
        leaders.insert(name.unwrap_or_default().to_owned(), Arc::downgrade(&session));
        session
    }
}
