//! Keyed hashes: what the store keeps in place of a caller key, a `state` or a cookie, and what operators see in
//! place of a token. Their keys come from one root secret that lives, sealed, in the store, and so outlive every
//! master key.

use std::fmt;

use aws_lc_rs::hmac;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::random_bytes;

/// The store's own random secret, made with the store and never changed.
#[derive(Clone)]
pub struct RootSecret(Zeroizing<[u8; 32]>);

impl RootSecret {
    pub fn random() -> Self {
        Self(random_bytes::<32>())
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// For sealing it into the store.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The keyed hash for one purpose; two purposes never share a key. `purpose` is a fixed text such as
    /// `caller key`.
    pub fn keyed_hash(&self, purpose: &str) -> KeyedHash {
        let root = hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice());
        let derived = hmac::sign(&root, purpose.as_bytes());
        KeyedHash(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }
}

impl fmt::Debug for RootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RootSecret(redacted)")
    }
}

/// HMAC-SHA-256 under a key of its own.
#[derive(Clone)]
pub struct KeyedHash(hmac::Key);

impl KeyedHash {
    pub fn hash(&self, text: &[u8]) -> [u8; 32] {
        hmac::sign(&self.0, text).as_ref().try_into().expect("HMAC-SHA-256 gives 32 bytes")
    }

    /// Compares in constant time.
    pub fn matches(&self, text: &[u8], stored: &[u8; 32]) -> bool {
        self.hash(text).ct_eq(stored).into()
    }

    /// The hash as 64 hex digits, for a store key.
    pub fn hex(&self, text: &[u8]) -> String {
        hex(&self.hash(text))
    }

    pub fn fingerprint(&self, text: &str) -> Fingerprint {
        let hash = self.hash(text.as_bytes());
        Fingerprint(hash[..8].try_into().expect("eight bytes"))
    }
}

impl fmt::Debug for KeyedHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyedHash(redacted)")
    }
}

/// Tells tokens apart without showing them: the first 64 bits of their keyed hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(b"0123456789abcdef"[usize::from(digit)]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_do_not_share_a_key() {
        let root = RootSecret::from_bytes([7; 32]);
        let (keys, states) = (root.keyed_hash("caller key"), root.keyed_hash("state"));
        assert_eq!(keys.hash(b"x"), root.keyed_hash("caller key").hash(b"x"));
        assert_ne!(keys.hash(b"x"), states.hash(b"x"));
        assert!(keys.matches(b"x", &keys.hash(b"x")) && !keys.matches(b"y", &keys.hash(b"x")));
        assert_eq!(keys.hex(b"x").len(), 64);
        assert_eq!(keys.fingerprint("x").to_string(), keys.hex(b"x")[..16]);
    }
}
