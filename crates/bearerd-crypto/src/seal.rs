//! Sealing: a fresh data key per seal encrypts the record; a master key wraps the data key. A sealed value opens
//! only as the record and field that it was sealed for, so nothing in the store can be swapped, moved or altered
//! unnoticed.
//!
//! ```text
//! byte 0        format version, 1
//! 1 .. 9        id of the master key
//! 9 .. 21       nonce of the wrap          AAD of the wrap: version, master key id
//! 21 .. 69      data key, wrapped (32 + 16)
//! 69 .. 81      nonce of the data          AAD of the data: version, kind, record id, field
//! 81 ..         data, encrypted (n + 16)
//! ```

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};
use zeroize::Zeroizing;

use crate::{KeyRing, MasterKeyId, random_bytes};

/// What a sealed value is, bound to it as additional data. The master key's id is not part of it: re-wrapping under
/// another master key must not touch the data.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    /// Kind of record, such as `connection`.
    pub kind: &'a str,
    pub id: &'a str,
    /// Part of the record, such as `record`.
    pub field: &'a str,
}

/// An encrypted record, as the store holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed(Vec<u8>);

/// Why a sealed value did not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    #[error("it is cut short")]
    Truncated,
    #[error("its format version {0} is unknown: it was written by a newer bearerd")]
    UnknownFormat(u8),
    #[error("it is sealed under master key {0}, which is not in the key file")]
    UnknownMasterKey(MasterKeyId),
    #[error("it was altered, moved from another record, or sealed under another master key of the same id")]
    NotAuthentic,
}

const FORMAT: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;
const DATA_KEY: usize = 32;
const WRAP_AT: usize = 9;
const DATA_AT: usize = WRAP_AT + NONCE + DATA_KEY + TAG;

impl KeyRing {
    /// Encrypts `plain` so that it opens only under the same `context`.
    pub fn seal(&self, context: SealContext<'_>, plain: &[u8]) -> Sealed {
        let (master_id, master) = self.sealing();
        let data_key = random_bytes::<DATA_KEY>();
        let mut out = Vec::with_capacity(DATA_AT + NONCE + plain.len() + TAG);
        out.push(FORMAT);
        out.extend_from_slice(&master_id.0);
        append_encrypted(&mut out, master, &wrap_aad(*master_id), data_key.as_ref());
        let data_cipher =
            RandomizedNonceKey::new(&AES_256_GCM, data_key.as_ref()).expect("32 bytes are a key");
        append_encrypted(&mut out, &data_cipher, &data_aad(context), plain);
        Sealed(out)
    }

    /// # Errors
    /// [`UnsealError`]; any altered bit, and any other `context` than it was sealed with, is `NotAuthentic`.
    pub fn open(&self, context: SealContext<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let bytes = &sealed.0;
        match bytes.first() {
            None => return Err(UnsealError::Truncated),
            Some(&FORMAT) => {}
            Some(&version) => return Err(UnsealError::UnknownFormat(version)),
        }
        if bytes.len() < DATA_AT + NONCE + TAG {
            return Err(UnsealError::Truncated);
        }
        let master_id = MasterKeyId(bytes[1..WRAP_AT].try_into().expect("eight bytes"));
        let master = self.opening(master_id).ok_or(UnsealError::UnknownMasterKey(master_id))?;
        let data_key = decrypt(master, &wrap_aad(master_id), &bytes[WRAP_AT..DATA_AT])?;
        let data_cipher =
            RandomizedNonceKey::new(&AES_256_GCM, &data_key).map_err(|_| UnsealError::NotAuthentic)?;
        decrypt(&data_cipher, &data_aad(context), &bytes[DATA_AT..])
    }
}

impl Sealed {
    /// Takes bytes from a store; they are judged when opened.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn append_encrypted(out: &mut Vec<u8>, key: &RandomizedNonceKey, aad: &[u8], plain: &[u8]) {
    // Room for the tag from the start: growing would leave the plaintext behind in an unwiped buffer.
    let mut buffer = Zeroizing::new(Vec::with_capacity(plain.len() + TAG));
    buffer.extend_from_slice(plain);
    let nonce = key
        .seal_in_place_append_tag(Aad::from(aad), &mut *buffer)
        .expect("records are far below AES-GCM's limit");
    out.extend_from_slice(nonce.as_ref());
    out.extend_from_slice(&buffer);
}

fn decrypt(key: &RandomizedNonceKey, aad: &[u8], sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
    let (nonce, ciphertext) = sealed.split_at(NONCE);
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| UnsealError::Truncated)?;
    let mut buffer = Zeroizing::new(ciphertext.to_vec());
    let length =
        key.open_in_place(nonce, Aad::from(aad), &mut buffer).map_err(|_| UnsealError::NotAuthentic)?.len();
    buffer.truncate(length);
    Ok(buffer)
}

fn wrap_aad(id: MasterKeyId) -> Vec<u8> {
    [b"bearerd wrap".as_slice(), &[FORMAT], &id.0].concat()
}

/// Each part is preceded by its length, so that no two contexts give the same bytes.
fn data_aad(context: SealContext<'_>) -> Vec<u8> {
    let mut aad = vec![FORMAT];
    for part in [context.kind, context.id, context.field] {
        let length = u32::try_from(part.len()).expect("record names are short");
        aad.extend_from_slice(&length.to_be_bytes());
        aad.extend_from_slice(part.as_bytes());
    }
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: SealContext<'_> = SealContext { kind: "connection", id: "hr", field: "record" };

    fn ring() -> KeyRing {
        KeyRing::parse(&KeyRing::new_key_file()).unwrap()
    }

    #[test]
    fn what_was_sealed_opens_and_does_not_show() {
        let ring = ring();
        for plain in [b"".as_slice(), b"canary", &[7; 4096]] {
            let sealed = ring.seal(HERE, plain);
            assert_eq!(ring.open(HERE, &sealed).unwrap().as_slice(), plain);
            assert!(
                plain.is_empty() || !sealed.as_bytes().windows(plain.len()).any(|window| window == plain)
            );
        }
        assert_ne!(ring.seal(HERE, b"x"), ring.seal(HERE, b"x"));
    }

    /// S-03: a value opens only as the record and field that it was sealed for.
    #[test]
    fn a_moved_value_does_not_open() {
        let ring = ring();
        let contexts: Vec<SealContext<'_>> = ["connection", "policy"]
            .into_iter()
            .flat_map(|kind| ["a", "ab", ""].into_iter().map(move |id| (kind, id)))
            .flat_map(|(kind, id)| {
                ["record", "brecord"].into_iter().map(move |field| SealContext { kind, id, field })
            })
            .collect();
        for (at, context) in contexts.iter().enumerate() {
            let sealed = ring.seal(*context, b"x");
            for (elsewhere, other) in contexts.iter().enumerate() {
                let opened = ring.open(*other, &sealed);
                assert_eq!(opened.is_ok(), at == elsewhere, "{context:?} as {other:?}");
            }
        }
    }

    /// S-04: every flipped byte and every cut is noticed.
    #[test]
    fn an_altered_value_does_not_open() {
        let ring = ring();
        let sealed = ring.seal(HERE, b"some record");
        for at in 0..sealed.as_bytes().len() {
            let mut bytes = sealed.as_bytes().to_vec();
            bytes[at] ^= 1;
            assert!(ring.open(HERE, &Sealed::from_bytes(bytes)).is_err(), "byte {at}");
            let cut = Sealed::from_bytes(sealed.as_bytes()[..at].to_vec());
            assert!(ring.open(HERE, &cut).is_err(), "cut at {at}");
        }
    }

    /// S-07: another key file says so.
    #[test]
    fn another_master_key_is_named() {
        let (ours, theirs) = (ring(), ring());
        let sealed = ours.seal(HERE, b"x");
        assert_eq!(theirs.open(HERE, &sealed).unwrap_err(), UnsealError::UnknownMasterKey(ours.primary()));
    }
}
