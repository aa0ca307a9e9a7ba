//! The id that finds a call in logs and access records: the caller's own if it is harmless, else one made here.

use std::cell::Cell;

use bearerd_crypto::random_base62;
use http::{HeaderMap, HeaderValue};

use crate::names;

/// 1 to 64 of `[A-Za-z0-9._-]`.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(HeaderValue);

impl RequestId {
    pub(crate) fn into_value(self) -> HeaderValue {
        self.0
    }

    pub(crate) fn value(&self) -> HeaderValue {
        self.0.clone()
    }

    pub(crate) fn as_str(&self) -> &str {
        self.0.to_str().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn for_test(text: &'static str) -> Self {
        Self(HeaderValue::from_static(text))
    }
}

/// Makes the ids of one worker: a random prefix and a count.
#[derive(Debug)]
pub(crate) struct RequestIds {
    prefix: [u8; PREFIX_LEN],
    next: Cell<u64>,
}

impl RequestIds {
    pub(crate) fn new() -> Self {
        let mut prefix = [b'-'; PREFIX_LEN];
        prefix[..PREFIX_LEN - 1].copy_from_slice(random_base62(PREFIX_LEN - 1).as_bytes());
        Self { prefix, next: Cell::new(0) }
    }

    /// The id of one call (P-23: what a caller sends reaches a log only if it is one harmless word).
    pub(crate) fn id_for(&self, headers: &HeaderMap) -> RequestId {
        let mut given = headers.get_all(&names::X_REQUEST_ID).iter();
        match (given.next(), given.next()) {
            (Some(id), None) if is_harmless(id.as_bytes()) => RequestId(id.clone()),
            _ => self.make(),
        }
    }

    fn make(&self) -> RequestId {
        let count = self.next.get();
        self.next.set(count.wrapping_add(1));
        let mut text = [0; PREFIX_LEN + COUNT_LEN];
        text[..PREFIX_LEN].copy_from_slice(&self.prefix);
        for (place, digit) in text[PREFIX_LEN..].iter_mut().rev().enumerate() {
            *digit = b"0123456789abcdef"[(count >> (4 * place) & 15) as usize];
        }
        RequestId(HeaderValue::from_bytes(&text).expect("letters, digits and '-'"))
    }
}

fn is_harmless(id: &[u8]) -> bool {
    (1..=64).contains(&id.len())
        && id.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// 60 random bits and a dash: workers and processes do not meet.
const PREFIX_LEN: usize = 11;
/// Hex digits of the count; it wraps after 2⁴⁰ calls.
const COUNT_LEN: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_harmless_id_is_kept_and_another_replaced() {
        let ids = RequestIds::new();
        let id = |values: &[&[u8]]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("x-request-id", HeaderValue::from_bytes(value).unwrap());
            }
            ids.id_for(&headers).as_str().to_owned()
        };
        for kept in ["a", "A.b_c-9", &"x".repeat(64)] {
            assert_eq!(id(&[kept.as_bytes()]), kept);
        }
        let long = "x".repeat(65);
        for replaced in
            [&[b"".as_slice()][..], &[b"a b"], &[b"a\"b"], &[b"\xff"], &[long.as_bytes()], &[b"a", b"a"], &[]]
        {
            let made = id(replaced);
            assert_eq!(made.len(), 21, "{made}");
            assert!(is_harmless(made.as_bytes()));
        }
        assert_ne!(id(&[]), id(&[]));
        assert_ne!(RequestIds::new().make().as_str(), RequestIds::new().make().as_str());
    }
}
