//! Short text inside a record, without the heap, harmless in a line of JSON and in a terminal.

use std::fmt;

/// Up to `N` (at most 255) characters of printable ASCII without `"` and `\`: nothing in it needs escaping, nothing ends a line
/// (P-23). Empty: not known.
#[derive(Clone, Copy)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Text<N> {
    #[inline]
    pub fn new(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }

    /// Takes the first `N` bytes. What is not admitted becomes `?`.
    #[inline]
    pub fn from_bytes(given: &[u8]) -> Self {
        const { assert!(N <= u8::MAX as usize, "the length is a byte") };
        let len = given.len().min(N);
        let mut bytes = [0; N];
        bytes[..len].copy_from_slice(&given[..len]);
        // In pieces of a fixed size, which the compiler makes into a few vector instructions each.
        let (pieces, rest) = bytes.as_chunks_mut::<PIECE>();
        let whole = pieces.len() * PIECE;
        for piece in pieces.iter_mut().take(len.div_ceil(PIECE)) {
            piece.iter_mut().for_each(replace_harmful);
        }
        if len > whole {
            rest.iter_mut().for_each(replace_harmful);
        }
        #[expect(clippy::cast_possible_truncation, reason = "N fits, and len is at most N")]
        Self { bytes, len: len as u8 }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).unwrap_or_default() // ASCII by construction
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        let (bytes, len) = self.padded();
        &bytes[..len]
    }

    /// The whole array, and how much of it is the text.
    pub(crate) fn padded(&self) -> (&[u8; N], usize) {
        (&self.bytes, usize::from(self.len).min(N))
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// May stand between the quotes of a JSON string as it is.
#[inline]
pub(crate) fn is_harmless(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

#[inline]
fn replace_harmful(byte: &mut u8) {
    *byte = if is_harmless(*byte) { *byte } else { b'?' };
}

const PIECE: usize = 16;

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    #[track_caller]
    fn check_each_byte<const N: usize>(given: &[u8]) {
        let expected = given.iter().take(N).map(|byte| if is_harmless(*byte) { *byte } else { b'?' });
        assert_eq!(Text::<N>::from_bytes(given).as_str().as_bytes(), expected.collect::<Vec<_>>());
    }

    proptest! {
        /// P-23, at every length around the pieces.
        #[test]
        fn every_byte_is_looked_at(given in vec(any::<u8>(), 0..100)) {
            check_each_byte::<16>(&given);
            check_each_byte::<55>(&given);
            check_each_byte::<63>(&given);
            check_each_byte::<64>(&given);
            check_each_byte::<80>(&given);
        }
    }

    /// P-23.
    #[test]
    fn what_could_leave_its_line_or_its_string_is_replaced() {
        for (given, expected) in [
            ("incident", "incident"),
            ("", ""),
            ("a b~!", "a b~!"),
            ("a\r\nb", "a??b"),
            ("\",\"admin\":\"", "?,?admin?:?"),
            ("\\u0022", "?u0022"),
            ("\u{1b}[2J", "?[2J"),
            ("\u{7f}\0\t", "???"),
            ("é\u{2028}", "?????"),
            ("0123456789abcdefgh", "0123456789abcdef"),
        ] {
            assert_eq!(Text::<16>::new(given).as_str(), expected, "{given:?}");
        }
        assert_eq!(Text::<4>::from_bytes(&[0xff, b'a', 0x80]).as_str(), "?a?");
        assert!(Text::<4>::default().is_empty());
    }
}
