//! Tokens: what a user shows after a login, instead of the password.
//!
//! Any store serves any client, so any store must be able to check a token that another one made. A token therefore
//! says what there is to know, and is signed with a secret that is part of the replicated state:
//!
//! ```text
//! p1.USER.END.SIGNATURE     the name in hexadecimal digits; seconds since 1970, decimal; HMAC-SHA256
//! ```
//!
//! The signature also covers the hash of the user's password. So a token is void when its time is over, when the password
//! is changed, when the user is deleted (and made again), and when authentication is switched off.

use ring::hmac;

use super::AuthStore;
use super::store::SECRET_BYTES;

const KIND: &str = "p1";

/// A token of a name of this length and more is not looked at.
const TOKEN_BYTES_MAX: usize = 4096;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
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

/// What is signed; lengths in front, so that no two tokens sign the same bytes.
fn signed(name: &str, end: u64, password_hash: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(24 + name.len() + password_hash.len());
    bytes.extend_from_slice(&end.to_le_bytes());
    bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(password_hash.as_bytes());
    bytes
}

fn key(secret: &[u8; SECRET_BYTES]) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, secret)
}

impl AuthStore {
    /// A token for a user whose password was checked against this hash; it ends at `end`, in seconds since 1970.
    pub(crate) fn issue_token(&self, name: &str, password_hash: &str, end: u64) -> String {
        let signature = hmac::sign(&key(self.secret()), &signed(name, end, password_hash));
        format!("{KIND}.{}.{end}.{}", hex(name.as_bytes()), hex(signature.as_ref()))
    }

    /// The user that a token stands for; `None` if it is none of ours, or is void by now.
    pub(crate) fn check_token(&self, token: &str, now: u64) -> Option<String> {
        if !self.is_enabled() || token.len() > TOKEN_BYTES_MAX {
            return None;
        }
        let mut parts = token.split('.');
        let (kind, name, end, signature) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if kind != KIND || parts.next().is_some() {
            return None;
        }
        let name = String::from_utf8(unhex(name)?).ok()?;
        let end: u64 = end.parse().ok()?;
        let hash = self.password_hash(&name)?;
        hmac::verify(&key(self.secret()), &signed(&name, end, hash), &unhex(signature)?).ok()?;
        (now < end).then_some(name)
    }
}
