//! Reads the bytes of a caller before the parser does, strictly (P-02; RFC 9112 §2–§7). A head goes on to the parser when
//! it is whole, and only if nothing is wrong with it: neither what the parser would refuse with a bare status that no
//! caller can tell from the instance's, nor what it forgives (a bare LF, two body lengths, transfer codings beside
//! `chunked`, a `#` in the target that it cuts off in silence). Bodies go on as they come; what stands around the data of
//! chunks is noted. Never changes a byte.

use bearerd_policy::Method;

use crate::{
    error::{Code, Fault},
    settings::Limits,
};

/// What is wrong with a request on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireFault {
    BareLineFeed,
    RequestLine,
    Method,
    NotAPath,
    TargetByte,
    Fragment,
    TargetTooLong,
    FoldedHeader,
    HeaderName,
    HeaderValue,
    HeadersTooLarge,
    TwoLengths,
    Length,
    TransferCoding,
    Chunk,
    Trailer,
    /// The head does not come to its end in time.
    TooSlow,
}

impl WireFault {
    /// As its caller is told.
    pub(crate) fn fault(self) -> Fault {
        Fault::malformed(match self {
            Self::Method => return Fault::new(Code::MethodRefused).closing(),
            Self::TargetTooLong => return Fault::new(Code::TargetTooLong).closing(),
            Self::HeadersTooLarge => return Fault::new(Code::HeadersTooLarge).closing(),
            Self::TooSlow => return Fault::new(Code::RequestTooSlow).closing(),
            Self::BareLineFeed => "A line of the head does not end in CR LF.",
            Self::RequestLine => "The request line is not `METHOD /path HTTP/1.1`, nor the same of HTTP/1.0.",
            Self::NotAPath => "The request target is not a path.",
            Self::TargetByte => "The request target holds a byte that must be percent-encoded.",
            Self::Fragment => "The request target holds a fragment.",
            Self::FoldedHeader => "A header goes on in a second line, which is obsolete (RFC 9112 §5.2).",
            Self::HeaderName => "A header line does not begin with a name and a colon.",
            Self::HeaderValue => "A header value holds a control character.",
            Self::TwoLengths => "The request states its body's length twice.",
            Self::TransferCoding => "The request has a transfer coding other than chunked alone.",
            Self::Length => "The Content-Length is not a number.",
            Self::Chunk => "A chunk's size or extension is malformed.",
            Self::Trailer => "The trailers are malformed, or hold what belongs into the head.",
        })
    }
}

impl WireFault {
    /// It was found when the head had gone on already.
    pub(crate) fn is_of_body(self) -> bool {
        matches!(self, Self::Chunk | Self::Trailer)
    }
}

/// What may go on to the parser.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// So many of the bytes; what is left is the beginning of a head, or belongs to one that is refused.
    pub(crate) passed: usize,
    /// The head behind them is refused, and the connection ends with it.
    pub(crate) refused: bool,
}

/// What goes on in place of a refused head, as much of it as was read: its method, and what the answer and the access
/// record are made from, where that is well-formed.
pub(crate) fn in_place_of(refused: &[u8]) -> Vec<u8> {
    let lines = refused.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let mut lines = lines.skip_while(|line| line.is_empty());
    let start = lines.next().unwrap_or_default();
    let method = start.split(|byte| *byte == b' ').next().unwrap_or_default();
    let method = std::str::from_utf8(method).ok().and_then(Method::parse).map_or("-", Method::name);
    let version = if start.ends_with(b" HTTP/1.0") { "1.0" } else { "1.1" };
    let mut head = format!("{method} / HTTP/{version}\r\nHost: a\r\n").into_bytes();
    for line in lines.take_while(|line| !line.is_empty()).take(HEADERS_MAX) {
        let tells = SAID_OF_REFUSED.iter().any(|name| value_of(line, name.as_bytes()).is_some());
        if tells && line.len() <= SAID_BYTES_MAX && is_clean(line) {
            head.extend_from_slice(line);
            head.extend_from_slice(b"\r\n");
        }
    }
    head.extend_from_slice(b"\r\n");
    head
}

/// Headers that say how to answer, and whom.
const SAID_OF_REFUSED: [&str; 4] = ["accept", "forwarded", "traceparent", "x-request-id"];
/// Of one of them.
const SAID_BYTES_MAX: usize = 512;

/// Follows the requests of one HTTP/1 connection.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Scanner {
    target_bytes_max: usize,
    headers_bytes_max: usize,
    state: State,
    /// A line whose end has not come yet; empty but for a connection's first head, and lines that come in pieces.
    partial: Vec<u8>,
    /// Of the head under way, or of the empty lines before it.
    head_bytes: usize,
    headers: usize,
    is_http10: bool,
    /// Of the head under way, which is read to its end all the same: it says how to answer.
    target_too_long: bool,
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
    /// Bytes left of a body, or of a chunk's data.
    Body(u64),
    ChunkSize,
    Chunk(u64),
    /// The byte that must follow a chunk's data: CR, then LF.
    ChunkEnd(u8),
    Trailer,
    /// The parser refuses what follows, or a fault was found in a body: the connection ends here.
    Over,
    /// A head is refused: nothing of it goes on, nor of what follows.
    Refused,
}

impl Scanner {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            target_bytes_max: limits.target_bytes_max,
            headers_bytes_max: limits.headers_bytes_max,
            state: State::default(),
            partial: Vec::new(),
            head_bytes: 0,
            headers: 0,
            is_http10: false,
            target_too_long: false,
            lengths: 0,
            length: 0,
            chunked: false,
            heads: 0,
            fault: None,
        }
    }

    /// The first fault: its request, counted from 0, and what it is.
    pub(crate) fn fault(&self) -> Option<(u64, WireFault)> {
        self.fault
    }

    /// A head has begun and not ended.
    pub(crate) fn is_in_head(&self) -> bool {
        matches!(self.state, State::Header) || (self.state == State::RequestLine && !self.partial.is_empty())
    }

    /// Refuses the head under way; `false`: there is none.
    pub(crate) fn refuse_late_head(&mut self) -> bool {
        let is_in_head = self.is_in_head();
        if is_in_head {
            self.found(WireFault::TooSlow);
        }
        is_in_head
    }

    pub(crate) fn head_is_refused(&self) -> bool {
        self.state == State::Refused
    }

    /// A request has begun and not ended.
    #[cfg(test)]
    pub(crate) fn is_in_request(&self) -> bool {
        self.state != State::RequestLine || !self.partial.is_empty()
    }

    /// Takes the next bytes of the connection, in order.
    pub(crate) fn feed(&mut self, mut bytes: &[u8]) -> Reading {
        let (len, mut passed) = (bytes.len(), 0);
        while !bytes.is_empty() {
            match self.state {
                State::Refused => break,
                State::Over => bytes = &[],
                State::Body(left) => match skip(&mut bytes, left) {
                    0 => self.next_request(),
                    left => self.state = State::Body(left),
                },
                State::Chunk(left) => {
                    let left = skip(&mut bytes, left);
                    self.state = if left == 0 { State::ChunkEnd(b'\r') } else { State::Chunk(left) };
                }
                State::ChunkEnd(expected) => {
                    let (byte, rest) = (bytes[0], &bytes[1..]);
                    bytes = rest;
                    match expected {
                        _ if byte != expected => self.found(WireFault::Chunk),
                        b'\r' => self.state = State::ChunkEnd(b'\n'),
                        _ => self.state = State::ChunkSize,
                    }
                }
                State::RequestLine | State::Header | State::ChunkSize | State::Trailer => {
                    self.take_line(&mut bytes);
                }
            }
            if !self.is_in_head() && self.state != State::Refused {
                passed = len - bytes.len();
            }
        }
        Reading { passed, refused: self.state == State::Refused }
    }

    fn take_line(&mut self, bytes: &mut &[u8]) {
        let end = memchr::memchr(b'\n', bytes);
        let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
        *bytes = rest;
        if matches!(self.state, State::RequestLine | State::Header) {
            self.head_bytes += line.len();
            if let Some(fault) = self.is_too_long() {
                return self.found(fault);
            }
        }
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

    fn is_too_long(&self) -> Option<WireFault> {
        let most = head_bytes_max(self.target_bytes_max, self.headers_bytes_max);
        match self.state {
            _ if self.head_bytes <= most => None,
            State::RequestLine => Some(WireFault::TargetTooLong),
            _ if self.target_too_long => Some(WireFault::TargetTooLong),
            _ => Some(WireFault::HeadersTooLarge),
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
            // Empty lines before a request line are skipped (RFC 9112 §2.2), if there are few.
            State::RequestLine if line.is_empty() && self.head_bytes <= EMPTY_LINES_BYTES_MAX => {}
            State::RequestLine => match self.request_line(line) {
                Ok(()) => self.state = State::Header,
                Err(fault) => self.found(fault),
            },
            State::Header if line.is_empty() => self.end_of_head(),
            State::Header => self.header(line),
            State::ChunkSize => self.chunk_size(line),
            State::Trailer if line.is_empty() => self.next_request(),
            State::Trailer if !is_harmless_trailer(line) => self.found(WireFault::Trailer),
            State::Trailer
            | State::Body(_)
            | State::Chunk(_)
            | State::ChunkEnd(_)
            | State::Over
            | State::Refused => {}
        }
    }

    /// RFC 9112 §3, of which only the origin form of a target (§3.2.1) is served.
    fn request_line(&mut self, line: &[u8]) -> Result<(), WireFault> {
        self.is_http10 = line.ends_with(b" HTTP/1.0");
        let versioned = self.is_http10 || line.ends_with(b" HTTP/1.1");
        let parts = versioned.then(|| &line[..line.len() - b" HTTP/1.1".len()]);
        let parts = parts.and_then(|parts| parts.split_at_checked(memchr::memchr(b' ', parts)?));
        let (method, target) = parts.ok_or(WireFault::RequestLine)?;
        let target = &target[1..];
        if !is_token(method) || target.is_empty() || target.contains(&b' ') {
            return Err(WireFault::RequestLine);
        }
        if target[0] != b'/' {
            let known = std::str::from_utf8(method).is_ok_and(|method| Method::parse(method).is_some());
            return Err(if known { WireFault::NotAPath } else { WireFault::Method });
        }
        self.target_too_long = target.len() > self.target_bytes_max;
        if has_any(target, |byte| byte <= b' ' || byte >= 0x7f || matches!(byte, b'"' | b'<' | b'>' | b'#')) {
            let fragment = target.contains(&b'#');
            return Err(if fragment { WireFault::Fragment } else { WireFault::TargetByte });
        }
        // The parser takes this one in a query alone.
        let path = memchr::memchr(b'?', target).map_or(target, |end| &target[..end]);
        if path.contains(&b'`') { Err(WireFault::TargetByte) } else { Ok(()) }
    }

    /// RFC 9112 §5.
    fn header(&mut self, line: &[u8]) {
        self.headers += 1;
        if self.headers > HEADERS_MAX {
            return self.found(WireFault::HeadersTooLarge);
        }
        if let [b' ' | b'\t', ..] = line {
            return self.found(WireFault::FoldedHeader);
        }
        let end = memchr::memchr(b':', line).filter(|end| is_token(&line[..*end]));
        let Some(end) = end else { return self.found(WireFault::HeaderName) };
        if end > NAME_BYTES_MAX {
            return self.found(WireFault::HeadersTooLarge);
        }
        if !is_clean(&line[end..]) {
            return self.found(WireFault::HeaderValue);
        }
        match line.first().map(u8::to_ascii_lowercase) {
            Some(b'c') => {
                if let Some(value) = value_of(line, b"content-length") {
                    self.lengths += 1;
                    let digits = value.trim_ascii();
                    let number = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
                    match number
                        .filter(|number| *number <= LENGTH_MAX && digits.iter().all(u8::is_ascii_digit))
                    {
                        Some(length) => self.length = length,
                        None => self.found(WireFault::Length),
                    }
                }
            }
            Some(b't') => {
                if let Some(value) = value_of(line, b"transfer-encoding") {
                    if self.is_http10 || self.chunked || !value.trim_ascii().eq_ignore_ascii_case(b"chunked")
                    {
                        return self.found(WireFault::TransferCoding);
                    }
                    self.chunked = true;
                }
            }
            _ => {}
        }
    }

    fn end_of_head(&mut self) {
        if self.target_too_long {
            return self.found(WireFault::TargetTooLong);
        }
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
            Some(size) => self.state = State::Chunk(size),
            None => self.found(WireFault::Chunk),
        }
    }

    fn next_request(&mut self) {
        self.state = State::RequestLine;
        (self.lengths, self.length, self.chunked) = (0, 0, false);
        (self.head_bytes, self.headers) = (0, 0);
    }

    fn found(&mut self, fault: WireFault) {
        let of_body = fault.is_of_body();
        self.fault = Some((self.heads - u64::from(of_body), fault));
        self.over();
        if !of_body {
            self.state = State::Refused;
        }
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

/// No byte that a header value may not hold (RFC 9110 §5.5).
fn is_clean(text: &[u8]) -> bool {
    !has_any(text, |byte| byte < b' ' && byte != b'\t' || byte == 0x7f)
}

/// Without a branch per byte.
fn has_any(bytes: &[u8], refused: impl Fn(u8) -> bool) -> bool {
    bytes.iter().fold(false, |found, byte| found | refused(*byte))
}

fn is_token(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(|byte| is_token_byte(*byte))
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
    const TABLE: [bool; 256] = {
        let others = b"!#$%&'*+-.^_`|~";
        let mut table = [false; 256];
        let mut byte = 0_u8;
        while byte < 0x80 {
            table[byte as usize] = byte.is_ascii_alphanumeric();
            byte += 1;
        }
        let mut at = 0;
        while at < others.len() {
            table[others[at] as usize] = true;
            at += 1;
        }
        table
    };
    TABLE[usize::from(byte)]
}

/// A field that may come after a body. It is dropped; one that frames (RFC 9110 §6.5.1) somebody before us may have read.
fn is_harmless_trailer(line: &[u8]) -> bool {
    let Some(end) = line.iter().position(|byte| *byte == b':') else { return false };
    let (name, value) = (&line[..end], &line[end + 1..]);
    let framing = ["content-length", "transfer-encoding"];
    is_token(name)
        && !framing.iter().any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        && value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != 0x7f))
}

impl Limits {
    /// No head that goes on to the parser is longer.
    pub(crate) fn head_bytes_max(&self) -> usize {
        head_bytes_max(self.target_bytes_max, self.headers_bytes_max)
    }
}

const fn head_bytes_max(target_bytes_max: usize, headers_bytes_max: usize) -> usize {
    target_bytes_max + REQUEST_LINE_SLACK_BYTES + headers_bytes_max + HEADERS_SLACK_BYTES
}

/// As many as the parser has room for.
pub(crate) const HEADERS_MAX: usize = 100;
const NAME_BYTES_MAX: usize = 1024;
/// Of a method, a version, and the empty lines before them.
const REQUEST_LINE_SLACK_BYTES: usize = 256;
/// Of all that stands around names and values: `headers_bytes_max` is for these.
const HEADERS_SLACK_BYTES: usize = 4 * 1024;
const EMPTY_LINES_BYTES_MAX: usize = 8;
/// More than this no counter follows to its end.
const LENGTH_MAX: u64 = 1 << 62;
/// The parser takes no line as long between chunks.
const LINE_BYTES_MAX: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fuzzing;

    #[track_caller]
    fn check(stream: &str, expected: Option<(u64, WireFault)>) {
        for size in [stream.len().max(1), 1, 2, 7] {
            let mut scanner = fuzzing::scanner();
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

    /// P-02, P-20: what the parser would refuse with a bare status.
    #[test]
    fn what_the_parser_refuses_does_not_go_on_to_it() {
        let long = "x".repeat(8 * 1024);
        let line = |line: &str, fault| check(&format!("{line}\r\nHost: a\r\n\r\n"), Some((0, fault)));
        for request_line in [
            "GET",
            "GET /",
            "GET / ",
            "GET  / HTTP/1.1",
            "GET /  HTTP/1.1",
            "GET / x HTTP/1.1",
            " GET / HTTP/1.1",
            "G(T / HTTP/1.1",
            "GET / HTTP/1.2",
            "GET / HTTP/2.0",
            "GET / http/1.1",
            "GET / HTTP/1.1 ",
            "GET\t/ HTTP/1.1",
            "PRI * HTTP/2.0",
            "GET HTTP/1.1",
        ] {
            line(request_line, WireFault::RequestLine);
        }
        for target in ["*", "b.example:80", "http://b.example/", "x", "?x"] {
            line(&format!("GET {target} HTTP/1.1"), WireFault::NotAPath);
        }
        for request in ["OPTIONS *", "CONNECT b.example:443", "get http://b.example/"] {
            line(&format!("{request} HTTP/1.1"), WireFault::Method);
        }
        for target in ["/\u{1}", "/\u{7f}", "/\u{e9}", "/a?\"", "/a?<", "/a?>", "/`", "/\"", "/\0", "/\r"] {
            line(&format!("GET {target} HTTP/1.1"), WireFault::TargetByte);
        }
        line("GET /a?b#\" HTTP/1.1", WireFault::Fragment);
        check("GET /a?a=b^c|{d}[e]\\~`'();,:@!$&*+ HTTP/1.1\r\n\r\n", None);
        line(&format!("GET /{long} HTTP/1.1"), WireFault::TargetTooLong);
        check(&format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", &long[1..]), None);
        check(&format!("GET /{}", long.repeat(10)), Some((0, WireFault::TargetTooLong)));
        check("\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", None);
        check("\r\n\r\n\r\n\r\n\r\nGET / HTTP/1.1\r\n\r\n", Some((0, WireFault::RequestLine)));
        let header = |header: &str, fault| {
            check(&format!("GET / HTTP/1.1\r\nHost: a\r\n{header}\r\nX: y\r\n\r\n"), Some((0, fault)));
        };
        for name in ["", "x ", "x\t", "x y", "x(", "\u{e9}", "x\r"] {
            header(&format!("{name}: v"), WireFault::HeaderName);
        }
        header("no colon", WireFault::HeaderName);
        for folded in [" x: y", "\tx", " "] {
            header(folded, WireFault::FoldedHeader);
        }
        for value in ["\0", "a\rb", "\u{7f}", "\u{1f}"] {
            header(&format!("x:{value}"), WireFault::HeaderValue);
        }
        check("GET / HTTP/1.1\r\nX:\t caf\u{e9} \r\nY:\r\n!#$%&'*+-.^_`|~0: z\r\n\r\n", None);
        header(&"x: y\r\n".repeat(100), WireFault::HeadersTooLarge);
        header(&format!("{}: y", &long[..1025]), WireFault::HeadersTooLarge);
        header(&format!("x: {}", long.repeat(10)), WireFault::HeadersTooLarge);
        check(
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            Some((0, WireFault::TransferCoding)),
        );
    }

    /// A head goes on when it is whole, a body as it comes, and of what is refused nothing.
    #[test]
    fn heads_go_on_whole() {
        let mut scanner = fuzzing::scanner();
        for (bytes, passed, refused) in [
            ("\r\n", 2, false),
            ("GET / HT", 0, false),
            ("TP/1.1\r\nHost: a\r\n\r", 0, false),
            ("\n", 1, false),
            ("POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\na", 39, false),
            ("bcGE", 2, false),
            ("T / HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3;", 65, false),
            ("x\r\nabc\r\n0\r\nX-T: u\r\n\r\nGET", 21, false),
            (" / HTTP/1.1\r\n\r\nGET / HTTP/1.1\nX", 15, true),
            ("anything", 0, true),
        ] {
            assert_eq!(scanner.feed(bytes.as_bytes()), Reading { passed, refused }, "{bytes:?}");
        }
    }

    /// RFC 9110 §9.3.2: a HEAD stays one, or its caller would take a body for the beginning of another answer.
    #[test]
    fn what_goes_on_in_place_of_a_head_says_how_to_answer_it() {
        for (head, expected) in [
            ("HEAD x HTTP/1.1\r\n", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("\r\nHEAD / HTTP/1.0\r\nx", "HEAD / HTTP/1.0\r\nHost: a\r\n\r\n"),
            ("HEAD /", "HEAD / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("", "- / HTTP/1.1\r\nHost: a\r\n\r\n"),
            ("CONNECT a:1 HTTP/1.1\r\n", "- / HTTP/1.1\r\nHost: a\r\n\r\n"),
            (
                "GET /#x HTTP/1.1\r\nACCEPT: text/xml\r\nX-Y: z\r\nX-Request-Id: 7\nForwarded: a\0b\r\n\r\nAccept: no",
                "GET / HTTP/1.1\r\nHost: a\r\nACCEPT: text/xml\r\nX-Request-Id: 7\r\n\r\n",
            ),
        ] {
            assert_eq!(String::from_utf8_lossy(&in_place_of(head.as_bytes())), expected, "{head:?}");
        }
    }

    proptest! {
        /// It passes, whatever was refused.
        #[test]
        fn what_goes_on_in_place_of_a_head_is_one_clean_head(
            lines in proptest::collection::vec("(GET|HEAD|x)? ?(accept|forwarded|X-Request-Id|content-length)?:?[ -~\\x00-\\x1f]{0,12}", 0..6),
        ) {
            let head = in_place_of(lines.join("\r\n").as_bytes());
            let mut scanner = fuzzing::scanner();
            prop_assert_eq!(scanner.feed(&head), Reading { passed: head.len(), refused: false });
            prop_assert!(!scanner.is_in_request());
        }
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
        for end in ["de\r\n", "\rx\r\n", "\n\r\n", "\r\r\n", "d"] {
            check(&format!("{chunked}3\r\nabc{end}0\r\n\r\n"), Some((1, WireFault::Chunk)));
        }
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
        let mut scanner = fuzzing::scanner();
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
