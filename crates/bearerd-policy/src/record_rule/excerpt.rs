//! A piece of somebody's text, short and harmless enough to be put into a message.

use std::fmt;

/// At most `CHARACTERS_MAX` characters in quotes, all but printable ASCII escaped.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    pub(super) fn of(text: &str) -> Self {
        let mut characters = text.chars();
        let mut excerpt = String::from("\"");
        excerpt.extend(characters.by_ref().take(CHARACTERS_MAX).flat_map(char::escape_default));
        excerpt.push_str(if characters.next().is_some() { "…\"" } else { "\"" });
        Self(excerpt)
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Enough to find the place again.
const CHARACTERS_MAX: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_short_and_printable() {
        for (text, expected) in [
            ("", "\"\""),
            ("active", "\"active\""),
            ("a\r\nb\u{202e}\"", r#""a\r\nb\u{202e}\"""#),
            (&"x".repeat(40), &format!("\"{}\"", "x".repeat(40))),
            (&"x".repeat(41), &format!("\"{}…\"", "x".repeat(40))),
        ] {
            assert_eq!(Excerpt::of(text).to_string(), expected);
        }
    }
}
