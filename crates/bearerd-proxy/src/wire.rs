//! Reads along with the parser, and notes what the parser forgives and a strict reading does not (P-02): a line that
//! ends in a bare LF, two body lengths (hyper drops one of them, and does not look at it), transfer codings beside
//! `chunked` (dropped too), a `#` in the request target (cut off in silence), and what stands around the data of chunks.
//! Purely an observer: it follows the framing of each request and never changes a byte.

/// What is wrong with a request on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireFault {
    BareLineFeed,
    TwoLengths,
    Length,
    TransferCoding,
    Fragment,
    Chunk,
    Trailer,
}

impl WireFault {
    pub(crate) const fn detail(self) -> &'static str {
        match self {
            Self::BareLineFeed => "A line of the head does not end in CR LF.",
            Self::TwoLengths => "The request states its body's length twice.",
            Self::TransferCoding => "The request has a transfer coding other than chunked alone.",
            Self::Length => "The Content-Length is not a number.",
            Self::Fragment => "The request target holds a fragment.",
            Self::Chunk => "A chunk's size or extension is malformed.",
            Self::Trailer => "The trailers are malformed, or hold what belongs into the head.",
        }
    }
}

/// Follows the requests of one HTTP/1 connection.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanner {
    state: State,
    /// A line whose end has not come yet; empty on almost every connection, always.
    partial: Vec<u8>,
    lengths: u32,
    length: u64,
    chunked: bool,
    /// Heads that have ended.
    heads: u64,
    fault: Option<(u64, WireFault)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    RequestLine,
    Header,
    /// Bytes left of a body, or of a chunk with its CR LF.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    Trailer,
    /// The parser refuses what follows, or a fault was found: the connection ends here.
    Over,
}

impl Scanner {
    /// The first fault: its request, counted from 0, and what it is.
    pub(crate) fn fault(&self) -> Option<(u64, WireFault)> {
        self.fault
    }

    /// A head has begun and not ended.
    pub(crate) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Header) || (self.state == State::RequestLine && !self.partial.is_empty())
    }

    /// Takes the next bytes of the connection, in order.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            match self.state {
                State::Over => return,
                State::Body(left) => match skip(&mut bytes, left) {
                    0 => self.next_request(),
                    left => self.state = State::Body(left),
                },
                State::Chunk(left) => {
                    let left = skip(&mut bytes, left);
                    self.state = if left == 0 { State::ChunkSize } else { State::Chunk(left) };
                }
                State::RequestLine | State::Header | State::ChunkSize | State::Trailer => {
                    self.take_line(&mut bytes);
                }
            }
        }
    }

    fn take_line(&mut self, bytes: &mut &[u8]) {
        let end = memchr::memchr(b'\n', bytes);
        let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        *bytes = rest;
        if end.is_none() {
            // The parser's own buffer is smaller than this: it has refused such a line already.
            if self.partial.len() + line.len() > LINE_BYTES_MAX {
                self.over();
            } else {
                self.partial.extend_from_slice(line);
            }
        } else if self.partial.is_empty() {
            self.line(&line[..line.len() - 1]);
        } else {
            let mut joined = std::mem::take(&mut self.partial);
            joined.extend_from_slice(&line[..line.len() - 1]);
            self.line(&joined);
        }
    }

    /// `line` is without its LF.
    fn line(&mut self, line: &[u8]) {
        let Some(line) = line.strip_suffix(b"\r") else {
            return self.found(match self.state {
                State::RequestLine | State::Header => WireFault::BareLineFeed,
                State::Trailer => WireFault::Trailer,
                _ => WireFault::Chunk,
            });
        };
        match self.state {
            // Empty lines before a request line are skipped (RFC 9112 §2.2).
            State::RequestLine if line.is_empty() => {}
            State::RequestLine if line.contains(&b'#') => self.found(WireFault::Fragment),
            State::RequestLine => self.state = State::Header,
            State::Header if line.is_empty() => self.end_of_head(),
            State::Header => self.header(line),
            State::ChunkSize => self.chunk_size(line),
            State::Trailer if line.is_empty() => self.next_request(),
            State::Trailer if !is_harmless_trailer(line) => self.found(WireFault::Trailer),
            State::Trailer | State::Body(_) | State::Chunk(_) | State::Over => {}
        }
    }

    fn header(&mut self, line: &[u8]) {
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some(value) = value_of(line, b"content-length") {
                    self.lengths += 1;
                    let digits = value.trim_ascii();
                    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                    match number.filter(|_| digits.iter().all(u8::is_ascii_digit)) {
                        Some(length) => self.length = length,
                        None => self.found(WireFault::Length),
                    }
                }
            }
            Some(b't') => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    if self.chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                        return self.found(WireFault::TransferCoding);
                    }
                    self.chunked = true;
                }
            }
            _ => {}
        }
    }

    fn end_of_head(&mut self) {
        if self.lengths > 1 || (self.chunked && self.lengths > 0) {
            return self.found(WireFault::TwoLengths);
        }
        self.heads += 1;
        match (self.chunked, self.length) {
            (true, _) => self.state = State::ChunkSize,
            (false, 0) => self.next_request(),
            (false, length) => self.state = State::Body(length),
        }
    }

    fn chunk_size(&mut self, line: &[u8]) {
        let end = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
        let (digits, extensions) = line.split_at(end);
        let size = std::str::from_utf8(digits).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        match size.filter(|_| are_extensions(extensions)) {
            Some(0) => self.state = State::Trailer,
            // With the CR LF after the data.
            Some(size) => self.state = State::Chunk(size.saturating_add(2)),
            None => self.found(WireFault::Chunk),
        }
    }

    fn next_request(&mut self) {
        self.state = State::RequestLine;
        (self.lengths, self.length, self.chunked) = (0, 0, false);
    }

    fn found(&mut self, fault: WireFault) {
        let of_body = matches!(self.state, State::ChunkSize | State::Trailer);
        self.fault = Some((self.heads - u64::from(of_body), fault));
        self.over();
    }

    fn over(&mut self) {
        self.state = State::Over;
        self.partial = Vec::new();
    }
}

/// Gives what is left to skip.
fn skip(bytes: &mut &[u8], left: u64) -> u64 {
    let here = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    *bytes = &bytes[here..];
    left - here as u64
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    if start.eq_ignore_ascii_case(name) { rest.strip_prefix(b":") } else { None }
}

/// `*( ";" token [ "=" ( token / quoted-string ) ] )` (RFC 9112 §7.1.1), without the white space that no one may send.
fn are_extensions(mut text: &[u8]) -> bool {
    while let [b';', rest @ ..] = text {
        let Some(rest) = after_token(rest) else { return false };
        text = match rest {
            [b'=', b'"', rest @ ..] => match after_quoted(rest) {
                Some(rest) => rest,
                None => return false,
            },
            [b'=', rest @ ..] => match after_token(rest) {
                Some(rest) => rest,
                None => return false,
            },
            rest => rest,
        };
    }
    text.is_empty()
}

/// What follows a token (RFC 9110 §5.6.2).
fn after_token(text: &[u8]) -> Option<&[u8]> {
    let end = text.iter().position(|byte| !is_token_byte(*byte)).unwrap_or(text.len());
    (end > 0).then(|| &text[end..])
}

/// What follows the closing quote of a string (RFC 9110 §5.6.4) whose opening one was read.
fn after_quoted(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match text {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b' '..=b'~' | b'\t', rest @ ..] | [b' '..=b'[' | b']'..=b'~' | b'\t', rest @ ..] => rest,
            _ => return None,
        };
    }
}

fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// A field that may come after a body. It is dropped; one that frames (RFC 9110 §6.5.1) somebody before us may have read.
fn is_harmless_trailer(line: &[u8]) -> bool {
    let Some(end) = line.iter().position(|byte| *byte == b':') else { return false };
    let (name, value) = (&line[..end], &line[end + 1..]);
    let framing = ["content-length", "transfer-encoding"];
    !name.is_empty()
        && name.iter().all(|byte| is_token_byte(*byte))
        && !framing.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        && value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

/// Longer than any head that passes.
const LINE_BYTES_MAX: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    #[track_caller]
    fn check(stream: &str, expected: Option<(u64, WireFault)>) {
        for size in [stream.len().max(1), 1, 2, 7] {
            let mut scanner = Scanner::default();
            for piece in stream.as_bytes().chunks(size) {
                scanner.feed(piece);
            }
            assert_eq!(scanner.fault(), expected, "{stream:?} in pieces of {size}");
        }
    }

    /// P-02.
    #[test]
    fn what_the_parser_forgives_is_noted() {
        use WireFault::{BareLineFeed, Fragment, TransferCoding, TwoLengths};
        let get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        check(get, None);
        check(&format!("\r\n{get}{get}"), None);
        check("GET / HTTP/1.1\nHost: a\r\n\r\n", Some((0, BareLineFeed)));
        check("GET / HTTP/1.1\r\nHost: a\n\r\n", Some((0, BareLineFeed)));
        check("GET / HTTP/1.1\r\nHost: a\r\n\n", Some((0, BareLineFeed)));
        check("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Some((0, BareLineFeed)));
        check(&format!("{get}{get}GET / HTTP/1.1\nHost: a\n\n"), Some((2, BareLineFeed)));
        check("GET /#f HTTP/1.1\r\n\r\n", Some((0, Fragment)));
        for pair in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked",
            "transfer-encoding: chunked\r\ncontent-length: 3",
            "Transfer-Encoding: chunked\r\nX: y\r\nCONTENT-LENGTH:0",
            "Content-Length: 3\r\nContent-Length: 3",
        ] {
            check(&format!("{get}POST / HTTP/1.1\r\n{pair}\r\n\r\nabc"), Some((1, TwoLengths)));
        }
        for coding in [
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: chunked, chunked",
            "transfer-encoding: identity, chunked",
            "Transfer-Encoding: foo\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ] {
            check(&format!("{get}POST / HTTP/1.1\r\n{coding}\r\n\r\n"), Some((1, TransferCoding)));
        }
        check("POST / HTTP/1.1\r\nTransfer-Encoding:\tChunked \r\n\r\n0\r\n\r\n", None);
    }

    #[test]
    fn bodies_are_followed_to_the_next_request() {
        let bad = "GET / HTTP/1.1\n\n";
        let found = Some((1, WireFault::BareLineFeed));
        check(&format!("POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n\n\n\n\n{bad}"), found);
        check(&format!("POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n{bad}"), found);
        let chunks = "3\r\n\n\n\n\r\nA;x=y\r\n0123456789\r\n0\r\n";
        check(&format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}\r\n{bad}"), found);
        check(
            &format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}X-T: 1\r\n\r\n{bad}"),
            found,
        );
    }

    /// The parser does not look at a length beside a transfer coding.
    #[test]
    fn a_length_is_a_number() {
        for length in ["x", "-1", "+1", "", "99999999999999999999", "3, 3", "0_3", "0x3", "3 3"] {
            let found = Some((0, WireFault::Length));
            check(&format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"), found);
            check(
                &format!("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: {length}\r\n\r\n"),
                found,
            );
        }
        check("POST / HTTP/1.1\r\nContent-Length: \t0003 \r\n\r\nabc", None);
    }

    /// RFC 9112 §7.1.
    #[test]
    fn what_stands_around_chunks_is_read_strictly() {
        let chunked = "GET / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for size in [
            "3 ",
            "3\t",
            " 3",
            "0x3",
            "+3",
            "",
            "zz",
            "3;",
            "3;=a",
            "3;a=",
            "3;a b",
            "3;a=\"b",
            "3;a=b\"c",
            "3;;a",
            "3;a,b",
            "3 ;a",
            "3; a",
            "3;a\u{7f}",
            "3;\u{8}",
            "3;a=\"\u{0}\"",
        ] {
            check(&format!("{chunked}{size}\r\nabc\r\n"), Some((1, WireFault::Chunk)));
        }
        check(&format!("{chunked}3\nabc\r\n"), Some((1, WireFault::Chunk)));
        for size in ["3", "03", "3;a", "3;a=b", "3;a=\"b; \\\"c\"", "3;a;b=1"] {
            check(&format!("{chunked}{size}\r\nabc\r\n0\r\n\r\n"), None);
        }
        for trailer in
            ["X-T", "X T: 1", ": 1", "X-T: a\u{0}b", "Content-Length: 3", "transfer-encoding: gzip", " X: 1"]
        {
            check(&format!("{chunked}0\r\nX: 1\r\n{trailer}\r\n\r\n"), Some((1, WireFault::Trailer)));
        }
        check(&format!("{chunked}0\r\nX-T: 1\n\r\n"), Some((1, WireFault::Trailer)));
        check(&format!("{chunked}0\r\n\n"), Some((1, WireFault::Trailer)));
    }

    #[test]
    fn a_head_under_way_is_known() {
        let mut scanner = Scanner::default();
        for (bytes, expected) in [
            ("", false),
            ("\r\n", false),
            ("GE", true),
            ("T / HTTP/1.1\r\n", true),
            ("Host: a\r\n\r", true),
            ("\n", false),
            ("POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n", false),
            ("ab", false),
            ("P", true),
        ] {
            scanner.feed(bytes.as_bytes());
            assert_eq!(scanner.is_in_head(), expected, "after {bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_stream_in_any_pieces_gives_the_same_finding(
            stream in proptest::collection::vec(prop_oneof![
                Just(b"GET / HTTP/1.1\r\n".to_vec()), Just(b"Content-Length: 3\r\n".to_vec()), Just(b"\r\n".to_vec()),
                Just(b"Transfer-Encoding: chunked\r\n".to_vec()), Just(b"3\r\nabc\r\n".to_vec()), Just(b"0\r\n".to_vec()),
                Just(b"\n".to_vec()), proptest::collection::vec(any::<u8>(), 0..4),
            ], 0..12),
            size in 1_u8..20,
        ) {
            fuzzing::wire(&[&[size], &stream.concat()[..]].concat());
        }
    }
}
