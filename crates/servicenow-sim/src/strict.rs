//! A second look at the bytes of HTTP/1.1 connections, stricter than the server that answers them: whatever is not
//! exactly one well-formed request after another is a finding. Pure; `line` feeds it.
//!
//! Stricter than RFC 9112 where a careful client never goes: origin form and HTTP/1.1 only, one `Host`, one
//! `Content-Length` or one `Transfer-Encoding: chunked`, CRLF, no chunk extensions.

use std::mem;

use bytes::Bytes;
use http::Request;
use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, TE, TRANSFER_ENCODING, UPGRADE,
};

/// The head of one request, as it arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RawHead {
    /// With the empty line at its end.
    pub(crate) bytes: Bytes,
    /// What is wrong with it.
    pub(crate) findings: Vec<&'static str>,
}

/// What came to light.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Head(RawHead),
    /// Something is wrong with the body that follows the latest head; what comes after it cannot be told apart.
    BrokenBody(&'static str),
}

/// Reads one direction of one connection.
#[derive(Debug, Default)]
pub(crate) struct StrictReader {
    state: State,
    /// Bytes of the head, or of the line, that is not complete.
    partial: Vec<u8>,
    heads: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    Counted(u64),
    ChunkSize,
    Chunk(u64),
    /// The line end after a chunk's bytes.
    ChunkEnd,
    Trailers,
    /// HTTP/2, or beyond understanding: nothing more is read.
    Blind,
}

/// How long the body of a request is.
enum Framing {
    Counted(u64),
    Chunked,
    Unclear,
}

impl StrictReader {
    /// Reads on.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Vec<Seen> {
        let mut seen = Vec::new();
        while !bytes.is_empty() {
            match self.state {
                State::Blind => break,
                State::Head => bytes = self.read_head(bytes, &mut seen),
                State::Counted(left) => {
                    let (taken, left) = part(bytes, left);
                    bytes = &bytes[taken..];
                    self.state = if left == 0 { State::Head } else { State::Counted(left) };
                }
                State::Chunk(left) => {
                    let (taken, left) = part(bytes, left);
                    bytes = &bytes[taken..];
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                }
                State::ChunkSize | State::ChunkEnd | State::Trailers => {
                    bytes = self.read_line(bytes, &mut seen);
                }
            }
        }
        seen
    }

    fn read_head<'b>(&mut self, bytes: &'b [u8], seen: &mut Vec<Seen>) -> &'b [u8] {
        let before = self.partial.len();
        self.partial.extend_from_slice(bytes);
        let Some(end) = head_end(&self.partial, before.saturating_sub(3)) else {
            if self.partial.len() > HEAD_BYTES_MAX {
                self.give_up("the head has no end", seen);
            }
            return &[];
        };
        let mut head = mem::take(&mut self.partial);
        head.truncate(end);
        self.heads += 1;
        if self.heads == 1 && head == HTTP_2_PREFACE {
            self.state = State::Blind;
            return &[];
        }
        let (findings, framing) = judge(&head);
        self.state = match framing {
            Framing::Counted(0) => State::Head,
            Framing::Counted(length) => State::Counted(length),
            Framing::Chunked => State::ChunkSize,
            Framing::Unclear => State::Blind,
        };
        seen.push(Seen::Head(RawHead { bytes: head.into(), findings }));
        &bytes[end - before..]
    }

    fn read_line<'b>(&mut self, bytes: &'b [u8], seen: &mut Vec<Seen>) -> &'b [u8] {
        let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
            self.partial.extend_from_slice(bytes);
            if self.partial.len() > LINE_BYTES_MAX {
                self.give_up("a line of a chunked body has no end", seen);
            }
            return &[];
        };
        let (line, rest) = bytes.split_at(at + 1);
        self.partial.extend_from_slice(line);
        let line = mem::take(&mut self.partial);
        match (self.state, line.strip_suffix(b"\r\n")) {
            (_, None) => self.give_up("a line of a chunked body ends in a bare LF", seen),
            (State::ChunkSize, Some(size)) => match chunk_size(size) {
                Some(0) => self.state = State::Trailers,
                Some(size) => self.state = State::Chunk(size),
                None => self.give_up("a chunk size is not hexadecimal digits alone", seen),
            },
            (State::ChunkEnd, Some(b"")) => self.state = State::ChunkSize,
            (State::ChunkEnd, Some(_)) => self.give_up("a chunk is longer than its size", seen),
            (State::Trailers, Some(b"")) => self.state = State::Head,
            (State::Trailers, Some(line)) if field(line).is_none() => {
                self.give_up("a trailer is malformed", seen);
            }
            _ => {}
        }
        rest
    }

    fn give_up(&mut self, finding: &'static str, seen: &mut Vec<Seen>) {
        self.state = State::Blind;
        self.partial = Vec::new();
        seen.push(Seen::BrokenBody(finding));
    }
}

/// How many of the bytes belong to what is left, and what is left then.
fn part(bytes: &[u8], left: u64) -> (usize, u64) {
    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
    (taken, left - u64::try_from(taken).unwrap_or(left))
}

/// Where the first empty line ends, CRLF or bare LF: what a lenient server takes for the end. Empty lines before the
/// request line do not count.
fn head_end(bytes: &[u8], from: usize) -> Option<usize> {
    let start = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let from = from.max(start);
    bytes.get(from..)?.iter().enumerate().find_map(|(offset, byte)| {
        let at = from + offset;
        let before = &bytes[start..at];
        let ends = *byte == b'\n' && (before.ends_with(b"\n") || before.ends_with(b"\n\r"));
        ends.then_some(at + 1)
    })
}

fn judge(head: &[u8]) -> (Vec<&'static str>, Framing) {
    let mut findings = Vec::new();
    let text = head.strip_suffix(b"\r\n\r\n").unwrap_or_else(|| {
        findings.push("the head does not end in two CRLF");
        head
    });
    let mut lines = split_crlf(text);
    let request_line = lines.first().copied().unwrap_or_default();
    if let Some(finding) = judge_request_line(request_line) {
        findings.push(finding);
    }
    let (mut hosts, mut lengths, mut codings) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines.drain(..).skip(1) {
        let Some((name, value)) = field(line) else {
            findings.push("a header line is malformed");
            continue;
        };
        match name.to_ascii_lowercase().as_slice() {
            b"host" => hosts.push(value),
            b"content-length" => lengths.push(value),
            b"transfer-encoding" => codings.push(value),
            _ => {}
        }
    }
    match hosts.as_slice() {
        [host] if is_host(host) => {}
        [_] => findings.push("Host is no host"),
        [] => findings.push("Host is missing"),
        _ => findings.push("more than one Host"),
    }
    let framing = framing(&lengths, &codings, &mut findings);
    if findings.contains(&"a header line is malformed") {
        return (findings, Framing::Unclear); // it may hide what frames the body
    }
    (findings, framing)
}

/// What is wrong with the head of an HTTP/2 request (RFC 9113 §8.2, §8.3) that the server let pass.
pub(crate) fn judge_http2<B>(request: &Request<B>) -> Vec<&'static str> {
    let mut findings = Vec::new();
    let hosts: Vec<&[u8]> = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes).collect();
    match (request.uri().authority(), hosts.as_slice()) {
        (Some(_), []) => {}
        (Some(authority), [host]) if authority.as_str().as_bytes() == *host => {}
        (None, [host]) if is_host(host) => {}
        (None, []) => findings.push("neither :authority nor Host"),
        _ => findings.push("Host and :authority differ"),
    }
    let of_connections = [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE, &PROXY_CONNECTION, &KEEP_ALIVE];
    if of_connections.iter().any(|name| request.headers().contains_key(*name)) {
        findings.push("a header of HTTP/1.1 connections");
    }
    if request.headers().get(TE).is_some_and(|value| value != "trailers") {
        findings.push("TE is not trailers");
    }
    if request.headers().get_all(CONTENT_LENGTH).iter().count() > 1 {
        findings.push("more than one Content-Length");
    }
    findings
}

fn framing(lengths: &[&[u8]], codings: &[&[u8]], findings: &mut Vec<&'static str>) -> Framing {
    match (lengths, codings) {
        ([], []) => Framing::Counted(0),
        ([length], []) => decimal(length).map_or_else(
            || {
                findings.push("Content-Length is not a number");
                Framing::Unclear
            },
            Framing::Counted,
        ),
        ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") => Framing::Chunked,
        ([], [_]) => {
            findings.push("Transfer-Encoding is not chunked");
            Framing::Unclear
        }
        ([], _) => {
            findings.push("more than one Transfer-Encoding");
            Framing::Unclear
        }
        (_, []) => {
            findings.push("more than one Content-Length");
            Framing::Unclear
        }
        _ => {
            findings.push("both Content-Length and Transfer-Encoding");
            Framing::Unclear
        }
    }
}

fn judge_request_line(line: &[u8]) -> Option<&'static str> {
    let parts: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = parts.as_slice() else {
        return Some("the request line is not three words");
    };
    if method.is_empty() || !method.iter().all(u8::is_ascii_uppercase) {
        return Some("the method is not upper-case letters");
    }
    if *version != b"HTTP/1.1" {
        return Some("the version is not HTTP/1.1");
    }
    let is_visible = |byte: &u8| matches!(byte, b'!'..=b'~') && *byte != b'#';
    if !target.starts_with(b"/") || !target.iter().all(is_visible) {
        return Some("the target is not in origin form");
    }
    None
}

/// Name and trimmed value of a header line; `None` if it is none, a folded one included.
fn field(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|byte| *byte == b':')?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    let is_text = |byte: &u8| matches!(byte, b'\t' | b' '..=b'~' | 0x80..=0xff);
    let good = !name.is_empty() && name.iter().all(|byte| is_token(*byte)) && value.iter().all(is_text);
    good.then(|| (name, value.trim_ascii()))
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn is_host(value: &[u8]) -> bool {
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(byte);
    !value.is_empty() && value.iter().all(good)
}

fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn chunk_size(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

fn split_crlf(text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
        lines.push(&rest[..at]);
        rest = &rest[at + 2..];
    }
    lines.push(rest);
    lines
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const HTTP_2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\n";
/// More than the server reads.
const HEAD_BYTES_MAX: usize = 1024 * 1024;
const LINE_BYTES_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const GET: &str = "GET /a?b=c^d HTTP/1.1\r\nHost: h:1\r\n\r\n";

    fn read(text: &[u8]) -> (StrictReader, Vec<Seen>) {
        let mut reader = StrictReader::default();
        let seen = reader.read(text);
        (reader, seen)
    }

    /// Heads without a finding, and everything that is wrong.
    fn judged(text: &str) -> (usize, Vec<&'static str>) {
        let (_, seen) = read(text.as_bytes());
        let mut wrong = Vec::new();
        let mut good = 0;
        for one in seen {
            match one {
                Seen::Head(head) if head.findings.is_empty() => good += 1,
                Seen::Head(head) => wrong.extend(head.findings),
                Seen::BrokenBody(finding) => wrong.push(finding),
            }
        }
        (good, wrong)
    }

    #[test]
    fn good_requests_follow_one_another() {
        let chunked = "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                       5\r\nhello\r\n0a\r\n0123456789\r\n0\r\nX-A: b\r\n\r\n";
        let counted = "PUT /d HTTP/1.1\r\nhost:h\r\ncontent-length: 5\r\n\r\nhello";
        let text = [GET, chunked, counted, GET].concat();
        assert_eq!(judged(&text), (4, vec![]));
        assert_eq!(read(text.as_bytes()).0.state, State::Head);
    }

    #[test]
    fn each_flaw_is_found() {
        for (text, finding) in [
            ("GET /a HTTP/1.1\r\n\r\n", "Host is missing"),
            ("GET /a HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "more than one Host"),
            ("GET /a HTTP/1.1\r\nHost: a b\r\n\r\n", "Host is no host"),
            ("GET /a HTTP/1.1\nHost: a\n\n", "the head does not end in two CRLF"),
            ("GET /a HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "a header line is malformed"),
            ("GET /a HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", "a header line is malformed"),
            ("GET /a HTTP/1.1\r\nHost: a\r\nX : b\r\n\r\n", "a header line is malformed"),
            ("GET /a HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", "a header line is malformed"),
            ("GET /a HTTP/1.1\r\nHost: a\r\nX: b\0\r\n\r\n", "a header line is malformed"),
            ("GET /a HTTP/1.0\r\nHost: a\r\n\r\n", "the version is not HTTP/1.1"),
            ("get /a HTTP/1.1\r\nHost: a\r\n\r\n", "the method is not upper-case letters"),
            ("GET  /a HTTP/1.1\r\nHost: a\r\n\r\n", "the request line is not three words"),
            ("\r\nGET /a HTTP/1.1\r\nHost: a\r\n\r\n", "the request line is not three words"),
            ("GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n", "the target is not in origin form"),
            ("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n", "the target is not in origin form"),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                "both Content-Length and Transfer-Encoding",
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
                "more than one Content-Length",
            ),
            ("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", "Content-Length is not a number"),
            ("POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n", "Content-Length is not a number"),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
                "Transfer-Encoding is not chunked",
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n",
                "a chunk size is not hexadecimal digits alone",
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
                "a chunk is longer than its size",
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\na\r\n",
                "a line of a chunked body ends in a bare LF",
            ),
            (
                "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nx y\r\n\r\n",
                "a trailer is malformed",
            ),
        ] {
            assert!(judged(text).1.contains(&finding), "{text:?}: {:?}", judged(text));
        }
    }

    #[test]
    fn http_2_is_not_looked_into() {
        let (reader, seen) = read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0");
        assert_eq!((seen, reader.state), (vec![], State::Blind));
        assert_eq!(judged(&format!("{GET}PRI * HTTP/2.0\r\n\r\n")).1.len(), 2, "only at the start");
    }

    #[test]
    fn http_2_heads_are_judged() {
        for (uri, headers, finding) in [
            ("http://a/b", vec![], None),
            ("http://a/b", vec![("host", "a"), ("te", "trailers")], None),
            ("/b", vec![("host", "a")], None),
            ("/b", vec![], Some("neither :authority nor Host")),
            ("http://a/b", vec![("host", "c")], Some("Host and :authority differ")),
            ("http://a/b", vec![("host", "a"), ("host", "a")], Some("Host and :authority differ")),
            ("http://a/b", vec![("transfer-encoding", "chunked")], Some("a header of HTTP/1.1 connections")),
            ("http://a/b", vec![("te", "gzip")], Some("TE is not trailers")),
            (
                "http://a/b",
                vec![("content-length", "1"), ("content-length", "1")],
                Some("more than one Content-Length"),
            ),
        ] {
            let request = Request::builder().uri(uri);
            let request =
                headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            let found = judge_http2(&request.body(()).unwrap());
            assert_eq!(found.first().copied(), finding, "{uri} {headers:?}");
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            pieces in prop::collection::vec(prop::sample::select(vec![
                GET, "\r\n", "\n", "Host: a\r\n", "POST / HTTP/1.1\r\n", "Transfer-Encoding: chunked\r\n",
                "Content-Length: 3\r\n", "0\r\n", "3\r\nabc\r\n", "abc", ":", " ", "\0", "é",
            ]), 0..30),
            cut in 1..40_usize,
        ) {
            let text = pieces.concat();
            let (_, at_once) = read(text.as_bytes());
            let mut reader = StrictReader::default();
            let in_pieces: Vec<_> = text.as_bytes().chunks(cut).flat_map(|piece| reader.read(piece)).collect();
            prop_assert_eq!(at_once, in_pieces);
        }
    }
}
