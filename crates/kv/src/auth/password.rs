//! Passwords: kept as bcrypt hashes, in etcd's cost and form, so that hashes which clients make themselves fit as well.

use std::sync::LazyLock;

use crate::error::EtcdError;

/// Two to this power rounds; etcd's default. More makes guessing dearer, and every login slower.
const COST: u32 = 10;

/// The highest cost of a hash that a client brings: checking one of cost 14 takes a second, of cost 31 days.
const COST_MAX: u32 = 14;

/// bcrypt looks at no more than this: a longer password would be as good as its beginning.
pub(crate) const PASSWORD_BYTES_MAX: usize = 72;

/// Is checked in the place of a user's hash that is not there, so that the time an answer takes does not tell which
/// users there are.
static NOBODYS: LazyLock<String> = LazyLock::new(|| hash_with("nobody's", [7; 16]).unwrap_or_default());

fn hash_with(password: &str, salt: [u8; 16]) -> Result<String, EtcdError> {
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(EtcdError::PasswordTooLong);
    }
    let hashed = bcrypt::hash_with_salt(password, COST, salt).map_err(|_| EtcdError::PasswordTooLong)?;
    Ok(hashed.to_string())
}

/// Hashes a password; takes tens of milliseconds.
///
/// # Errors
/// The password is longer than bcrypt can take.
pub(crate) fn hash(password: &str, salt: [u8; 16]) -> Result<String, EtcdError> {
    hash_with(password, salt)
}

/// Whether a password is the one that was hashed; takes as long for a user that does not exist.
pub(crate) fn verify(password: &str, hash: Option<&str>) -> bool {
    let known = hash.is_some() && password.len() <= PASSWORD_BYTES_MAX;
    let matches = bcrypt::verify(password, hash.unwrap_or(&NOBODYS)).unwrap_or(false);
    known && matches
}

/// Whether a client's hash can be checked in reasonable time.
pub(crate) fn is_usable(hash: &str) -> bool {
    hash.parse::<bcrypt::HashParts>().is_ok_and(|parts| (4..=COST_MAX).contains(&parts.get_cost()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_password_fits() {
        let hashed = hash("secret", [3; 16]).unwrap();
        assert!(hashed.starts_with("$2b$10$") && is_usable(&hashed), "{hashed}");
        assert!(verify("secret", Some(&hashed)));
        assert!(!verify("Secret", Some(&hashed)));
        assert!(!verify("nobody's", None), "there is no such user");
        assert_eq!(hash(&"x".repeat(73), [3; 16]), Err(EtcdError::PasswordTooLong));
        assert!(!verify(&"x".repeat(73), Some(&hash(&"x".repeat(72), [3; 16]).unwrap())));
    }

    #[test]
    fn hashes_that_would_take_for_ever_are_refused() {
        let hashed = hash("secret", [3; 16]).unwrap();
        assert!(!is_usable(&hashed.replace("$10$", "$31$")));
        for bad in ["", "secret", "$2b$10$short"] {
            assert!(!is_usable(bad), "{bad}");
        }
    }
}
