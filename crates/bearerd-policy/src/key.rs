//! API keys as text: `bd_<key id>_<secret><checksum>` for callers, `bda_…` for operators.
//!
//! Key id: 12 of `[a-z0-9]`, public. Secret: 32 of `[0-9A-Za-z]`, 190 bits. Checksum: CRC-32 of all before it as 6
//! base62 digits, so that a mistyped or made-up key is refused without a look-up, and secret scanners can tell a key
//! from a text that resembles one (S-12).

use std::fmt;

use bearerd_crypto::{KeyedHash, random_base62, random_bytes};
use bearerd_model::CallerKeyId;
use zeroize::Zeroizing;

/// Whom a key belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// An internal service, at the proxy door.
    Caller,
    /// An operator, at the admin door.
    Admin,
}

/// Why a text is not an API key. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFault {
    #[error("it does not have the shape of a bearerd key")]
    Shape,
    #[error("its checksum is wrong: it was mistyped or cut")]
    Checksum,
}

/// A key in full, as shown to its owner once. `Debug` is redacted; memory is wiped on drop.
#[derive(Clone)]
pub struct ApiKey {
    kind: KeyKind,
    text: Zeroizing<String>,
}

impl ApiKey {
    /// A new key with an id of its own.
    pub fn generate(kind: KeyKind) -> Self {
        Self::assemble(kind, &random_id())
    }

    /// A new secret for a key that exists, for rotation. `None` if `id` is not one that [`Self::generate`] made.
    pub fn generate_for(kind: KeyKind, id: &CallerKeyId) -> Option<Self> {
        let whole = id.as_str().len() == ID_LEN && id.as_str().bytes().all(is_id_byte);
        whole.then(|| Self::assemble(kind, id.as_str()))
    }

    /// # Errors
    /// As [`PresentedKey::parse`].
    pub fn parse(text: &str) -> Result<Self, KeyFault> {
        let kind = PresentedKey::parse(text.as_bytes())?.kind();
        Ok(Self { kind, text: Zeroizing::new(text.to_owned()) })
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    pub fn id(&self) -> CallerKeyId {
        CallerKeyId::parse(self.presented().id()).expect("an id of [a-z0-9] is a caller key id")
    }

    /// What the store keeps in place of the secret.
    pub fn secret_hmac(&self, hash: &KeyedHash) -> [u8; 32] {
        self.presented().secret_hmac(hash)
    }

    /// The text itself: for the one answer that shows it.
    pub fn expose(&self) -> &str {
        &self.text
    }

    pub fn presented(&self) -> PresentedKey<'_> {
        PresentedKey::parse(self.text.as_bytes()).expect("checked when it was made")
    }

    fn assemble(kind: KeyKind, id: &str) -> Self {
        let secret = Zeroizing::new(random_base62(SECRET_LEN));
        let mut text = Zeroizing::new(String::with_capacity(KEY_LEN_MAX));
        for part in [kind.prefix(), id, "_", &secret] {
            text.push_str(part);
        }
        let checksum = checksum(text.as_bytes());
        text.extend(checksum.iter().copied().map(char::from));
        Self { kind, text }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.presented().fmt(f)
    }
}

/// A key as a caller sent it, taken apart and its checksum verified. Borrows the header: nothing is allocated.
#[derive(Clone, Copy)]
pub struct PresentedKey<'a> {
    kind: KeyKind,
    id: &'a str,
    secret: &'a [u8],
}

impl<'a> PresentedKey<'a> {
    /// # Errors
    /// [`KeyFault`] if `text` is not a key of either kind, to the last character.
    pub fn parse(text: &'a [u8]) -> Result<Self, KeyFault> {
        let kind = [KeyKind::Caller, KeyKind::Admin]
            .into_iter()
            .find(|kind| text.starts_with(kind.prefix().as_bytes()))
            .ok_or(KeyFault::Shape)?;
        let rest = &text[kind.prefix().len()..];
        if rest.len() != ID_LEN + 1 + SECRET_LEN + CHECKSUM_LEN || rest[ID_LEN] != b'_' {
            return Err(KeyFault::Shape);
        }
        let (id, secret) = (&rest[..ID_LEN], &rest[ID_LEN + 1..ID_LEN + 1 + SECRET_LEN]);
        if !id.iter().copied().all(is_id_byte) || !secret.iter().all(u8::is_ascii_alphanumeric) {
            return Err(KeyFault::Shape);
        }
        let (body, sum) = text.split_at(text.len() - CHECKSUM_LEN);
        if sum != checksum(body) {
            return Err(KeyFault::Checksum);
        }
        let id = std::str::from_utf8(id).map_err(|_| KeyFault::Shape)?;
        Ok(Self { kind, id, secret })
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// The public part.
    pub fn id(&self) -> &'a str {
        self.id
    }

    /// Keyed hash of the secret part, as [`bearerd_model::KeySecret`] stores it.
    pub fn secret_hmac(&self, hash: &KeyedHash) -> [u8; 32] {
        hash.hash(self.secret)
    }
}

impl fmt::Debug for PresentedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}_(redacted)", self.kind.prefix(), self.id)
    }
}

impl KeyKind {
    /// How a key of this kind begins.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Caller => "bd_",
            Self::Admin => "bda_",
        }
    }
}

/// 12 of `[a-z0-9]`, each equally likely.
fn random_id() -> String {
    const ALPHABET: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut id = String::with_capacity(ID_LEN);
    while id.len() < ID_LEN {
        for byte in random_bytes::<ID_LEN>().iter() {
            // 252 = 7 × 36: bytes above it would favour the alphabet's beginning.
            if *byte < 252 && id.len() < ID_LEN {
                id.push(char::from(ALPHABET[usize::from(byte % 36)]));
            }
        }
    }
    id
}

fn is_id_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// CRC-32 as six base62 digits, the greatest first.
pub(crate) fn checksum(body: &[u8]) -> [u8; CHECKSUM_LEN] {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut left = crc32fast::hash(body);
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = ALPHABET[(left % 62) as usize];
        left /= 62;
    }
    digits
}

const ID_LEN: usize = 12;
const SECRET_LEN: usize = 32;
/// 62⁶ > 2³².
const CHECKSUM_LEN: usize = 6;
const KEY_LEN_MAX: usize = "bda_".len() + ID_LEN + 1 + SECRET_LEN + CHECKSUM_LEN;

#[cfg(test)]
mod tests {
    use bearerd_crypto::RootSecret;
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    /// Fixed for ever: keys in the field must stay valid.
    #[test]
    fn the_format_does_not_drift() {
        let text = "bd_abcdef012345_0123456789ABCDEFGHIJKLMNOPQRSTUV";
        let sum = checksum(text.as_bytes());
        assert_eq!(std::str::from_utf8(&sum).unwrap(), "2r1L0b");
        let whole = format!("{text}2r1L0b");
        let key = PresentedKey::parse(whole.as_bytes()).unwrap();
        assert_eq!((key.kind(), key.id()), (KeyKind::Caller, "abcdef012345"));
        assert_eq!(format!("{key:?}"), "bd_abcdef012345_(redacted)");
    }

    #[test]
    fn a_new_key_is_its_own_and_parses() {
        let hash = RootSecret::from_bytes([3; 32]).keyed_hash("caller key");
        for kind in [KeyKind::Caller, KeyKind::Admin] {
            let (key, other) = (ApiKey::generate(kind), ApiKey::generate(kind));
            assert_ne!(key.expose(), other.expose());
            assert_eq!(key.kind(), kind);
            assert_eq!(ApiKey::parse(key.expose()).unwrap().id(), key.id());
            assert!(!format!("{key:?}").contains(&key.expose()[20..]));
            let rotated = ApiKey::generate_for(kind, &key.id()).unwrap();
            assert_eq!(rotated.id(), key.id());
            assert_ne!(rotated.secret_hmac(&hash), key.secret_hmac(&hash));
            assert_eq!(key.presented().secret_hmac(&hash), key.secret_hmac(&hash));
        }
        assert!(ApiKey::generate_for(KeyKind::Caller, &CallerKeyId::parse("short").unwrap()).is_none());
    }

    /// S-12: every change of one character, every cut and every addition is refused without a look-up.
    #[test]
    fn every_single_character_change_is_refused() {
        for kind in [KeyKind::Caller, KeyKind::Admin] {
            let key = ApiKey::generate(kind);
            let whole = key.expose().as_bytes();
            for at in 0..whole.len() {
                for byte in (0..=u8::MAX).filter(|byte| *byte != whole[at]) {
                    let mut changed = whole.to_vec();
                    changed[at] = byte;
                    assert!(PresentedKey::parse(&changed).is_err(), "{at} {byte}");
                }
                assert!(PresentedKey::parse(&whole[..at]).is_err());
                let mut removed = whole.to_vec();
                removed.remove(at);
                assert!(PresentedKey::parse(&removed).is_err());
                if at + 1 < whole.len() && whole[at] != whole[at + 1] {
                    let mut swapped = whole.to_vec();
                    swapped.swap(at, at + 1);
                    assert!(PresentedKey::parse(&swapped).is_err());
                }
            }
            for longer in [[whole, b"0"].concat(), [b" ".as_slice(), whole].concat()] {
                assert!(PresentedKey::parse(&longer).is_err());
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_key_or_a_fault(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(PresentedKey::parse(&bytes).is_err());
            fuzzing::key(&bytes);
        }

        #[test]
        fn any_text_like_a_key_needs_its_checksum(
            text in "bda?_[a-z0-9]{12}_[0-9A-Za-z]{32}", sum in "[0-9A-Za-z]{6}",
        ) {
            let right = checksum(text.as_bytes());
            let whole = format!("{text}{sum}");
            prop_assert_eq!(PresentedKey::parse(whole.as_bytes()).is_ok(), sum.as_bytes() == right);
            fuzzing::key(text.as_bytes());
        }
    }
}
