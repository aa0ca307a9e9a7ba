//! The master keys, as read from the key file. The first one seals; every one of them opens.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, RandomizedNonceKey};
use base64::{Engine, engine::general_purpose::STANDARD};
use zeroize::Zeroizing;

use crate::random_bytes;

/// Names a master key; stored beside everything that it wraps. Not a secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MasterKeyId(pub(crate) [u8; 8]);

impl fmt::Display for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for MasterKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MasterKeyId({self})")
    }
}

/// Why a text is not a key file. Never quotes the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyFileError {
    #[error("it holds no master key")]
    NoKey,
    #[error("line {line} is not `bearerd-master-key-1:ID:KEY`")]
    MalformedLine { line: usize },
    #[error("line {line} repeats a key id")]
    RepeatedId { line: usize },
}

/// The master keys. `Debug` shows their ids only.
pub struct KeyRing {
    keys: Vec<(MasterKeyId, RandomizedNonceKey)>,
}

/// Begins every line of a key file; the number is the format's version.
const LINE_TAG: &str = "bearerd-master-key-1";

impl KeyRing {
    /// The text of a key file with one fresh key.
    pub fn new_key_file() -> Zeroizing<String> {
        let id = MasterKeyId(*random_bytes::<8>());
        let key = Zeroizing::new(STANDARD.encode(random_bytes::<32>().as_ref()));
        Zeroizing::new(format!("{LINE_TAG}:{id}:{}\n", key.as_str()))
    }

    /// Reads a key file: one key a line, the first one seals; empty lines and lines that begin with `#` are skipped.
    ///
    /// # Errors
    /// [`KeyFileError`] names the line.
    pub fn parse(text: &str) -> Result<Self, KeyFileError> {
        let mut keys: Vec<(MasterKeyId, RandomizedNonceKey)> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let (line, number) = (line.trim(), index + 1);
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (id, key) = parse_line(line).ok_or(KeyFileError::MalformedLine { line: number })?;
            if keys.iter().any(|(known, _)| *known == id) {
                return Err(KeyFileError::RepeatedId { line: number });
            }
            keys.push((id, key));
        }
        if keys.is_empty() { Err(KeyFileError::NoKey) } else { Ok(Self { keys }) }
    }

    /// The key that seals.
    pub fn primary(&self) -> MasterKeyId {
        self.keys[0].0
    }

    pub(crate) fn sealing(&self) -> &(MasterKeyId, RandomizedNonceKey) {
        &self.keys[0]
    }

    pub(crate) fn opening(&self, id: MasterKeyId) -> Option<&RandomizedNonceKey> {
        self.keys.iter().find(|(known, _)| *known == id).map(|(_, key)| key)
    }
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|(id, _)| id)).finish()
    }
}

fn parse_line(line: &str) -> Option<(MasterKeyId, RandomizedNonceKey)> {
    let (id, key) = line.strip_prefix(LINE_TAG)?.strip_prefix(':')?.split_once(':')?;
    if id.len() != 16 || !id.is_ascii() {
        return None;
    }
    let mut id_bytes = [0; 8];
    for (byte, digits) in id_bytes.iter_mut().zip(id.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    let key = Zeroizing::new(STANDARD.decode(key).ok()?);
    let key = RandomizedNonceKey::new(&AES_256_GCM, &key).ok()?;
    Some((MasterKeyId(id_bytes), key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_file_is_read_back_and_faults_name_their_line() {
        let text = KeyRing::new_key_file();
        let ring = KeyRing::parse(&format!("# ours\n\n{}", text.as_str())).unwrap();
        assert!(text.contains(&ring.primary().to_string()));
        assert!(!format!("{ring:?}").contains(text.trim().rsplit(':').next().unwrap()));
        for (text, why) in [
            (String::new(), KeyFileError::NoKey),
            ("# nothing\n".to_owned(), KeyFileError::NoKey),
            ("\nhello".to_owned(), KeyFileError::MalformedLine { line: 2 }),
            (format!("{LINE_TAG}:0011223344556677:AAAA"), KeyFileError::MalformedLine { line: 1 }),
            (format!("{LINE_TAG}:ä11223344556677:AAAA"), KeyFileError::MalformedLine { line: 1 }),
            (format!("{0}{0}", text.as_str()), KeyFileError::RepeatedId { line: 2 }),
        ] {
            assert_eq!(KeyRing::parse(&text).unwrap_err(), why);
        }
    }
}
