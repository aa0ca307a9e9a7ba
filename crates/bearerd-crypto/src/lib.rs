//! Key ring, sealing, HMAC and fingerprints. One AEAD (AES-256-GCM), one MAC (HMAC-SHA-256), one source of
//! randomness (aws-lc). No I/O: the binary reads the key file and hands its text over.

mod keyed;
mod random;
mod ring;
mod seal;

pub use keyed::{Fingerprint, KeyedHash, RootSecret};
pub use random::{base64url, random_base62, random_bytes, random_hex, sha256};
pub use ring::{KeyFileError, KeyRing, MasterKeyId};
pub use seal::{SealContext, Sealed, UnsealError};
