//! Hostile text on its way to a page (O-32). The templates escape markup; this takes care of what escaping leaves:
//! length, control characters, characters that turn the writing direction, and the shell of the operator who copies a
//! command.

/// `text` on one line and no longer than `chars_max`; characters that could mislead the eye become U+FFFD.
pub(crate) fn shown(text: &str, chars_max: usize) -> String {
    let mut chars = text.chars().map(|char| match char {
        '\t' | '\n' | '\r' => ' ',
        char if char.is_control() || steers_text(char) => char::REPLACEMENT_CHARACTER,
        char => char,
    });
    let mut cut: String = chars.by_ref().take(chars_max).collect();
    if chars.next().is_some() {
        cut.push('…');
    }
    cut
}

/// `text` as one argument of a POSIX shell: as it is where that is harmless, else in single quotes.
pub(crate) fn shell_argument(text: &str) -> String {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
    if !text.is_empty() && text.bytes().all(harmless) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Bidirectional controls, line and paragraph separators, invisible characters and tags: they show something else
/// than what is there.
fn steers_text(char: char) -> bool {
    matches!(
        char,
        '\u{00ad}'
            | '\u{061c}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_is_cut_and_flattened() {
        assert_eq!(shown("Zoë O'Neill <b>", 99), "Zoë O'Neill <b>");
        assert_eq!(shown("a\r\nSet-Cookie: x\u{0}", 99), "a  Set-Cookie: x\u{fffd}");
        assert_eq!(shown("abc\u{202e}cba", 99), "abc\u{fffd}cba");
        assert_eq!(shown(&"ä".repeat(70_000), 600).chars().count(), 601);
        assert_eq!(shown("abc", 3), "abc");
        assert_eq!(shown("abcd", 3), "abc…");
    }

    #[test]
    fn a_user_name_cannot_run_in_the_operators_shell() {
        assert_eq!(shell_argument("abel.tuter"), "abel.tuter");
        assert_eq!(shell_argument("abel@example.com"), "abel@example.com");
        assert_eq!(shell_argument("Abel Tuter"), "'Abel Tuter'");
        assert_eq!(shell_argument("x; rm -rf ~"), "'x; rm -rf ~'");
        assert_eq!(shell_argument("$(id)'`id`"), r"'$(id)'\''`id`'");
        assert_eq!(shell_argument(""), "''");
    }
}
