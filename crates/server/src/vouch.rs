//! Stores that vouch to each other for who asks.
//!
//! A store that passes a request on does so over a connection of its own, so whom the *client's* certificate stands for is
//! known to nobody else. It says so in a header, and signs that with a secret that the registry gives to every store of the
//! cluster and to nobody else:
//!
//! ```text
//! pontoon-vouched: v1.USER.END.SIGNATURE     the name in hexadecimal digits; seconds since 1970, decimal; HMAC-SHA256
//! ```
//!
//! The signature covers the keyspace too, as the passed-on request names it. What a client writes there itself counts for
//! nothing: it cannot sign, it never sees what stores send to each other, and what it sent is taken out before a request is
//! passed on. Chosen against trusting whoever shows a store's certificate: any client could say that it passes a request
//! on, and nothing in a certificate says that it is a store's.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Extensions, HeaderMap, HeaderValue};
use pontoon_kv::CertificateUser;
use pontoon_kv::keyspace::with_name;
use pontoon_node::Node;
use pontoon_node::meta::meta_command::Change;
use pontoon_node::meta::{META_GROUP, Registry, VOUCH_SECRET_BYTES, VouchSecret};
use ring::hmac;
use tokio::sync::watch;

use crate::reconcile;

/// How long a new cluster's secret is waited for: by the store that passes a request on until there is one, by the other until
/// its registry has it too.
const SECRET_MAX: Duration = Duration::from_secs(3);

/// The header by which one store tells another who asks.
pub(crate) const VOUCHED: &str = "pontoon-vouched";

/// How long the word of a store counts. The request is on its way for much less; the rest is for clocks that differ.
const COUNTS_SECONDS: u64 = 300;

/// A header that is longer is none of ours: the common name of a certificate has 64 bytes by its standard.
const HEADER_BYTES_MAX: usize = 4096;

/// How long a store leaves it to the leader of the meta group to make a secret.
const LEADER_FIRST: Duration = Duration::from_secs(5);

/// Gives and takes the word of stores.
#[derive(Clone, Debug)]
pub(crate) struct Vouchers(watch::Receiver<Arc<Registry>>);

fn now_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn key(secret: &VouchSecret) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, &secret.secret)
}

/// What is signed; lengths in front, so that no two statements sign the same bytes.
fn statement(keyspace: &str, user: &str, end: u64) -> Vec<u8> {
    let mut bytes = b"pontoon-vouched v1".to_vec();
    bytes.extend_from_slice(&end.to_le_bytes());
    for text in [keyspace, user] {
        bytes.extend_from_slice(&(text.len() as u64).to_le_bytes());
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

impl Vouchers {
    /// By the secrets in the registry.
    pub(crate) fn new(registry: watch::Receiver<Arc<Registry>>) -> Self {
        Self(registry)
    }

    /// The word of this store that a request for a keyspace comes from a user; `None` if the cluster gets no secret.
    pub(crate) async fn vouch(&self, keyspace: &str, user: &CertificateUser) -> Option<HeaderValue> {
        let mut registry = self.0.clone();
        let there = registry.wait_for(|r| !r.vouch_secrets.is_empty());
        let _ = tokio::time::timeout(SECRET_MAX, there).await;
        self.vouch_at(keyspace, user, now_seconds())
    }

    fn vouch_at(
        &self,
        keyspace: &str,
        CertificateUser(user): &CertificateUser,
        now: u64,
    ) -> Option<HeaderValue> {
        let registry = self.0.borrow();
        let secret = registry.vouch_secrets.first()?;
        let end = now + COUNTS_SECONDS;
        let signature = hmac::sign(&key(secret), &statement(keyspace, user, end));
        let word = format!("v1.{}.{end}.{}", hex(user.as_bytes()), hex(signature.as_ref()));
        HeaderValue::from_str(&word).ok().filter(|word| word.len() <= HEADER_BYTES_MAX)
    }

    /// The user that another store vouches for, if one does, for the keyspace that this request means.
    pub(crate) fn vouched(&self, headers: &HeaderMap, extensions: &Extensions) -> Option<CertificateUser> {
        self.vouched_at(headers, extensions, now_seconds())
    }

    /// Whether this store may not know the secret yet that a word was signed with: the registry of a new cluster reaches one
    /// store before the other.
    pub(crate) fn may_hear_more(&self) -> bool {
        self.0.borrow().vouch_secrets.is_empty()
    }

    /// Waits until this store knows a secret, or should not keep the client waiting any more.
    pub(crate) async fn secret_known(mut self) {
        let there = self.0.wait_for(|r| !r.vouch_secrets.is_empty());
        let _ = tokio::time::timeout(SECRET_MAX, there).await;
    }

    fn vouched_at(&self, headers: &HeaderMap, extensions: &Extensions, now: u64) -> Option<CertificateUser> {
        let word = headers.get(VOUCHED)?.to_str().ok().filter(|word| word.len() <= HEADER_BYTES_MAX)?;
        let mut parts = word.split('.');
        let (version, user, end, signature) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "v1" || parts.next().is_some() {
            return None;
        }
        let user = String::from_utf8(unhex(user)?).ok()?;
        let end: u64 = end.parse().ok()?;
        // A store whose clock is far ahead gives no words that count for longer than others.
        if user.is_empty() || end <= now || end > now + 2 * COUNTS_SECONDS {
            return None;
        }
        let signature = unhex(signature)?;
        let registry = Arc::clone(&self.0.borrow());
        let is_signed = with_name(headers, extensions, |keyspace| {
            let statement = statement(keyspace, &user, end);
            registry
                .vouch_secrets
                .iter()
                .any(|secret| hmac::verify(&key(secret), &statement, &signature).is_ok())
        });
        is_signed.ok()?.then(|| CertificateUser(user.into()))
    }
}

/// Sees to it that the cluster has a secret: the leader of the meta group makes one, or any store if that one does not (it may
/// be of a version that knows no secrets).
pub(crate) async fn keep_secret(node: Node, mut registry: watch::Receiver<Arc<Registry>>) {
    loop {
        // What is there was there for everybody.
        if registry.wait_for(|r| r.is_founded() && r.vouch_secrets.is_empty()).await.is_err() {
            return;
        }
        let leads = node.leadership(META_GROUP).is_some_and(|(_, leader)| leader == Some(node.store()));
        if !leads {
            let there = registry.wait_for(|r| !r.vouch_secrets.is_empty());
            if tokio::time::timeout(LEADER_FIRST, there).await.is_ok() {
                continue;
            }
        }
        // After a restart the registry is as old as its last checkpoint: the log may know more.
        if node.read_barrier(META_GROUP).await.is_ok() && registry.borrow().vouch_secrets.is_empty() {
            make_secret(&node).await;
        } else {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

async fn make_secret(node: &Node) {
    let mut secret = vec![0; VOUCH_SECRET_BYTES];
    if let Err(error) = rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty()) {
        tracing::warn!(%error, "no random numbers from the system; another store has to make the cluster's secret");
        return tokio::time::sleep(LEADER_FIRST).await;
    }
    let change = Change::ReplaceVouchSecret(VouchSecret { secret });
    match reconcile::change(node, change).await {
        Ok(reply) if reply.is_done() => {
            tracing::info!("the cluster has a new secret by which stores vouch for users");
        }
        Ok(reply) => {
            tracing::info!(error = reply.error, "the cluster gets no secret by which stores vouch for users");
            tokio::time::sleep(LEADER_FIRST).await;
        }
        Err(error) => {
            tracing::debug!(%error, "the registry cannot be changed now");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use pontoon_kv::keyspace::KEYSPACE_METADATA;

    use super::*;

    fn vouchers(secrets: &[u8]) -> Vouchers {
        let secret = |byte: &u8| VouchSecret { secret: vec![*byte; VOUCH_SECRET_BYTES] };
        let registry =
            Registry { vouch_secrets: secrets.iter().map(secret).collect(), ..Registry::default() };
        // The channel's value outlives its sender.
        Vouchers(watch::channel(Arc::new(registry)).1)
    }

    fn alice() -> CertificateUser {
        CertificateUser("alice".into())
    }

    fn heard(
        vouchers: &Vouchers,
        keyspace: &'static str,
        word: &HeaderValue,
        now: u64,
    ) -> Option<CertificateUser> {
        let mut headers = HeaderMap::new();
        headers.insert(KEYSPACE_METADATA, HeaderValue::from_static(keyspace));
        headers.insert(VOUCHED, word.clone());
        vouchers.vouched_at(&headers, &Extensions::new(), now)
    }

    #[test]
    fn a_word_counts_for_its_keyspace_and_its_time_by_any_known_secret() {
        let ours = vouchers(&[1]);
        let word = ours.vouch_at("tenant-a", &alice(), 1000).expect("there is a secret");
        assert_eq!(heard(&ours, "tenant-a", &word, 1000), Some(alice()));
        assert_eq!(heard(&vouchers(&[2, 1]), "tenant-a", &word, 1000), Some(alice()), "replaced meanwhile");
        assert_eq!(heard(&ours, "tenant-b", &word, 1000), None, "another keyspace");
        assert_eq!(heard(&vouchers(&[2, 3]), "tenant-a", &word, 1000), None, "another cluster");
        assert_eq!(heard(&vouchers(&[]), "tenant-a", &word, 1000), None);
        assert_eq!(heard(&ours, "tenant-a", &word, 1000 + COUNTS_SECONDS), None, "its time is over");
        assert_eq!(heard(&ours, "tenant-a", &word, 1000 - COUNTS_SECONDS - 1), None, "far in the future");
        assert_eq!(heard(&ours, "tenant-a", &word, 1000 - COUNTS_SECONDS), Some(alice()), "clocks differ");
        assert_eq!(vouchers(&[]).vouch_at("tenant-a", &alice(), 1000), None);
        let long = CertificateUser("x".repeat(HEADER_BYTES_MAX).into());
        assert_eq!(ours.vouch_at("tenant-a", &long, 1000), None);
    }

    #[test]
    fn nothing_in_it_can_be_changed() {
        let ours = vouchers(&[1]);
        let word = ours.vouch_at("tenant-a", &alice(), 1000).expect("there is a secret");
        let word = word.to_str().expect("ASCII");
        for at in 0..word.len() {
            for other in ["0", "f", "9", ".", "v", "g", ""] {
                let changed = format!("{}{other}{}", &word[..at], &word[at + 1..]);
                if changed != word {
                    let changed = HeaderValue::from_str(&changed).expect("ASCII");
                    assert_eq!(heard(&ours, "tenant-a", &changed, 1000), None, "{changed:?}");
                }
            }
        }
        for hostile in ["", "v1", "v1...", "v1.61.99999999999999999999.00", "v1.61.1100.", "v1.é.1.0"] {
            let hostile = HeaderValue::from_bytes(hostile.as_bytes()).expect("a header value");
            assert_eq!(heard(&ours, "tenant-a", &hostile, 1000), None, "{hostile:?}");
        }
    }
}
