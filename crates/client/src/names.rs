//! The names of writes: what makes it safe to send one again.
//!
//! A name (metadata `pontoon-eid`, 32 hex digits) is the same in all attempts at one write. Its first half is a *position* in the
//! keyspace's log that a store has told before the first attempt, its second half is random. A keyspace
//! remembers the names of its last writes and executes each once; by the position it tells a name that it may have
//! forgotten, and refuses it. A store that tells no positions (etcd) knows nothing of names, and gets none.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use pontoon_proto::etcdserverpb::StatusRequest;
use pontoon_proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::metadata::{AsciiMetadataValue, MetadataMap};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::call::KEYSPACE;

/// The metadata of an answer that tells how far the keyspace is applied: decimal digits.
const POSITION: &str = "pontoon-position";

/// What is known of one keyspace; shared by all calls to it.
#[derive(Debug, Default)]
pub(crate) struct Names(Mutex<Known>);

#[derive(Clone, Copy, Debug, Default)]
enum Known {
    /// No store has been asked.
    #[default]
    Nothing,
    /// The keyspace is applied so far at least.
    Position(u64),
    /// It does not know names.
    Nameless,
}

/// What to send with a write.
#[derive(Clone, Debug)]
pub(crate) enum Name {
    /// This, in every attempt.
    Given(AsciiMetadataValue),
    /// Nothing: the store would not understand it.
    None,
}

impl Names {
    /// For calls to services that know no names.
    pub(crate) fn nameless() -> Self {
        Self(Mutex::new(Known::Nameless))
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A name for a new write. Asks the store if nothing is known of the keyspace yet.
    pub(crate) async fn make(
        &self,
        channel: impl FnOnce() -> Channel,
        keyspace: Option<&AsciiMetadataValue>,
    ) -> Result<Name, Status> {
        let mut known = *self.lock();
        if matches!(known, Known::Nothing) {
            let mut request = Request::new(StatusRequest {});
            if let Some(keyspace) = keyspace {
                request.metadata_mut().insert(KEYSPACE, keyspace.clone());
            }
            let answer = MaintenanceClient::new(channel()).status(request).await?;
            known = position(answer.metadata()).map_or(Known::Nameless, Known::Position);
            *self.lock() = known;
        }
        Ok(match known {
            Known::Position(position) => Name::Given(name(position)),
            Known::Nothing | Known::Nameless => Name::None,
        })
    }

    /// An answer came: later names begin further on, so that they stay good for longer.
    pub(crate) fn learn(&self, answer: &MetadataMap) {
        if let Some(position) = position(answer) {
            let mut known = self.lock();
            *known = match *known {
                Known::Position(before) => Known::Position(before.max(position)),
                Known::Nothing | Known::Nameless => Known::Position(position),
            };
        }
    }

    /// The keyspace cannot judge our names: begin with what it says now, even if that is less than before.
    pub(crate) fn begin_anew(&self, refusal: &MetadataMap) {
        *self.lock() = position(refusal).map_or(Known::Nothing, Known::Position);
    }
}

fn position(metadata: &MetadataMap) -> Option<u64> {
    metadata.get(POSITION)?.to_str().ok()?.parse().ok()
}

/// A name that no other write has.
fn name(position: u64) -> AsciiMetadataValue {
    /// Keyed with random numbers once a process; hashing a counter with it gives numbers nobody else has.
    static KEY: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nonce = KEY.hash_one(COUNTER.fetch_add(1, Ordering::Relaxed));
    format!("{position:016x}{nonce:016x}").parse().expect("hex digits are ASCII")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_differ() {
        let names: std::collections::HashSet<_> =
            (0..1000).map(|_| name(7).to_str().unwrap().to_owned()).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.len() == 32 && name.starts_with("0000000000000007")));
    }

    #[test]
    fn positions_go_forward_unless_the_keyspace_says_otherwise() {
        let told = |text: &str| {
            let mut metadata = MetadataMap::new();
            metadata.insert(POSITION, text.parse().unwrap());
            metadata
        };
        let names = Names::default();
        names.learn(&told("9"));
        names.learn(&told("5"));
        names.learn(&told("-1"));
        names.learn(&MetadataMap::new());
        assert!(matches!(*names.lock(), Known::Position(9)));
        names.begin_anew(&told("5"));
        assert!(matches!(*names.lock(), Known::Position(5)));
        names.begin_anew(&MetadataMap::new());
        assert!(matches!(*names.lock(), Known::Nothing));
    }
}
