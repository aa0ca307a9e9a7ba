//! Random texts in the alphabets that the protocols want, and plain SHA-256.

use aws_lc_rs::{digest, rand};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// `N` bytes from the operating system's generator.
pub fn random_bytes<const N: usize>() -> Zeroizing<[u8; N]> {
    let mut bytes = Zeroizing::new([0; N]);
    rand::fill(bytes.as_mut()).expect("the operating system gives randomness");
    bytes
}

/// `bytes` random bytes as lower-case hex: for `state`, which ServiceNow wants without special characters.
pub fn random_hex(bytes: usize) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes * 2);
    let mut left = bytes;
    while left > 0 {
        let block = random_bytes::<16>();
        for byte in block.iter().take(left) {
            write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        }
        left = left.saturating_sub(block.len());
    }
    text
}

/// `length` characters of `0-9A-Za-z`, each equally likely.
pub fn random_base62(length: usize) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        for byte in random_bytes::<32>().iter() {
            // 248 = 4 × 62: bytes above it would favour the alphabet's beginning.
            if *byte < 248 && text.len() < length {
                text.push(char::from(ALPHABET[usize::from(byte % 62)]));
            }
        }
    }
    text
}

/// base64url without padding (RFC 4648 §5).
pub fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-01: as long as asked for, and never the same twice.
    #[test]
    fn random_texts_have_their_length_and_alphabet() {
        for length in [0, 1, 15, 16, 17, 33] {
            assert_eq!(random_hex(length).len(), length * 2);
            let text = random_base62(length);
            assert_eq!(text.len(), length);
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        }
        assert_ne!(random_hex(16), random_hex(16));
    }
}
