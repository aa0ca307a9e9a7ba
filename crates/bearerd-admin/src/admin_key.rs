//! Admin keys: how an operator shows that they are one. For now there is the one that `bearerd init` printed.

use std::fmt;

use bearerd_control::Operator;
use bearerd_crypto::sha256;
use bearerd_policy::{ApiKey, KeyFault, KeyKind, PresentedKey};
use subtle::{Choice, ConstantTimeEq};

/// The admin keys that this process admits.
///
/// Settings hold a plain SHA-256 of a key's secret part: with 190 random bits nothing can be guessed, so a slow or
/// keyed hash would add nothing, and the way in works before the store does.
#[derive(Debug, Clone, Default)]
pub struct AdminKeys(Vec<KnownKey>);

#[derive(Clone)]
struct KnownKey {
    id: String,
    secret_sha256: [u8; 32],
}

/// Why a text is not the setting `admin.bootstrap_key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not KEY-ID:SHA-256 (12 of a-z and 0-9, a colon, 64 hex digits); `bearerd init` writes it")]
pub struct MalformedAdminKey;

/// Why a key was not admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRefused {
    Shape,
    Mistyped,
    /// A caller key, which is for the proxy door.
    CallerKey,
    Unknown,
}

impl AdminKeys {
    /// Reads the setting `admin.bootstrap_key`: `<key id>:<SHA-256 of the key's secret part, in hex>`.
    ///
    /// # Errors
    /// [`MalformedAdminKey`]
    pub fn parse(setting: &str) -> Result<Self, MalformedAdminKey> {
        let (id, hash) = setting.trim().split_once(':').ok_or(MalformedAdminKey)?;
        let is_id = id.len() == KEY_ID_LEN
            && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        let secret_sha256 = from_hex(hash).ok_or(MalformedAdminKey)?;
        if is_id {
            Ok(Self(vec![KnownKey { id: id.to_owned(), secret_sha256 }]))
        } else {
            Err(MalformedAdminKey)
        }
    }

    /// What to write as `admin.bootstrap_key` so that `key` is admitted.
    pub fn setting_for(key: &ApiKey) -> String {
        let hash = sha256(secret_of(key.expose()));
        hash.iter().fold(format!("{}:", key.id()), |text, byte| text + &format!("{byte:02x}"))
    }

    /// Time depends on how many keys are known, not on which one matches or how far.
    pub(crate) fn check(&self, text: &str) -> Result<Operator, KeyRefused> {
        let presented = PresentedKey::parse(text.as_bytes()).map_err(|fault| match fault {
            KeyFault::Shape => KeyRefused::Shape,
            KeyFault::Checksum => KeyRefused::Mistyped,
        })?;
        if presented.kind() != KeyKind::Admin {
            return Err(KeyRefused::CallerKey);
        }
        let (id, hash) = (presented.id(), sha256(secret_of(text)));
        let known = self.0.iter().fold(Choice::from(0), |known, key| {
            known | (key.id.as_bytes().ct_eq(id.as_bytes()) & key.secret_sha256.ct_eq(&hash))
        });
        if bool::from(known) {
            Ok(Operator { name: format!("admin key {id}") })
        } else {
            Err(KeyRefused::Unknown)
        }
    }
}

impl fmt::Debug for KnownKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:(redacted)", self.id)
    }
}

/// The secret part of a whole key: what lies between the last `_` and the checksum.
fn secret_of(key: &str) -> &[u8] {
    let tail = key.rsplit_once('_').map_or("", |(_, tail)| tail).as_bytes();
    &tail[..tail.len().saturating_sub(CHECKSUM_LEN)]
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

const KEY_ID_LEN: usize = 12;
const CHECKSUM_LEN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_admitted_by_its_setting_and_no_other_is() {
        let (ours, other) = (ApiKey::generate(KeyKind::Admin), ApiKey::generate(KeyKind::Admin));
        let keys = AdminKeys::parse(&format!(" {}\n", AdminKeys::setting_for(&ours))).unwrap();
        assert_eq!(keys.check(ours.expose()).unwrap().name, format!("admin key {}", ours.id()));
        assert_eq!(keys.check(other.expose()), Err(KeyRefused::Unknown));
        assert_eq!(keys.check(ApiKey::generate(KeyKind::Caller).expose()), Err(KeyRefused::CallerKey));
        let same_id = ApiKey::generate_for(KeyKind::Admin, &ours.id()).unwrap();
        assert_eq!(keys.check(same_id.expose()), Err(KeyRefused::Unknown));
        let mut mistyped = ours.expose().to_owned();
        mistyped.pop();
        mistyped.push('!');
        assert_eq!(keys.check(&mistyped), Err(KeyRefused::Mistyped));
        assert_eq!(keys.check("secret"), Err(KeyRefused::Shape));
        assert_eq!(AdminKeys::default().check(ours.expose()), Err(KeyRefused::Unknown));
        assert!(!format!("{keys:?}").contains(&AdminKeys::setting_for(&ours)[13..]));
    }

    #[test]
    fn a_malformed_setting_is_refused() {
        let hash = "0".repeat(64);
        for bad in [
            "",
            ":",
            "abc",
            &format!("short:{hash}"),
            &format!("ABCDEF012345:{hash}"),
            &format!("abcdef012345:{}", &hash[1..]),
            &format!("abcdef012345:{}g", &hash[1..]),
        ] {
            assert!(AdminKeys::parse(bad).is_err(), "{bad}");
        }
        assert!(AdminKeys::parse(&format!("abcdef012345:{hash}")).is_ok());
    }
}
