//! Short text inside a record, without the heap, harmless in a line of JSON and in a terminal.

use std::fmt;

/// Up to `N` (at most 255) characters of printable ASCII without `"` and `\`: nothing in it needs escaping, nothing ends a line
/// (P-23). Empty: not known.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: u8,
}

impl<const N: usize> Text<N> {
    pub fn new(text: &str) -> Self {
        Self::from_bytes(text.as_bytes())
    }

    /// Takes the first `N` bytes. What is not admitted becomes `?`.
    pub fn from_bytes(given: &[u8]) -> Self {
        const { assert!(N <= u8::MAX as usize, "the length is a byte") };
        let len = given.len().min(N);
        let mut bytes = [0; N];
        for (to, from) in bytes[..len].iter_mut().zip(given) {
            *to = if is_harmless(*from) { *from } else { b'?' };
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
        &self.bytes[..usize::from(self.len)]
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

/// May stand between the quotes of a JSON string as it is.
pub(crate) fn is_harmless(byte: u8) -> bool {
    matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')
}

#[cfg(test)]
mod tests {
    use super::*;

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
